import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kilopix.data.text_storage import STORAGES, pack, packed, stack, to_stored, tokens_in, view
from kilopix.errors import UserError

WORST = {"float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 254}


def states(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(tokens, 1, generator=generator) * 10 + 0.01
    return torch.randn(tokens, width, generator=generator) * sizes


@pytest.mark.parametrize("storage", STORAGES)
@given(tokens=st.integers(1, 20), width=st.sampled_from([4, 7, 64]), seed=st.integers(0, 99))
def test_what_is_packed_is_read_to_the_formats_precision(storage, tokens, width, seed):
    original = states(tokens, width, seed)
    data = np.frombuffer(bytearray(pack(original, storage)), np.uint8)
    assert tokens_in(len(data), storage, width) == tokens
    text = view(data, storage, width)
    assert np.shares_memory(text.values, data)
    back = stack([text], storage)
    assert back.mask.all()
    # Half precision errs in proportion to a value, int8 to the largest value of its token.
    size = original.abs() if storage != "int8" else original.abs().amax(1, keepdim=True)
    assert ((back.states[0] - original).abs() <= WORST[storage] * size * 1.001 + 1e-7).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_batch_brought_to_its_stored_form_on_a_device_packs_to_the_same_bytes(storage):
    batch = torch.stack([states(9, 64, seed) for seed in range(4)])
    batch[0, 3:] = 0  # padding
    values, scales = to_stored(batch, storage)
    for i, original in enumerate(batch):
        expected = original.numpy()
        if storage == "int8":  # the published form, by NumPy
            steps = np.maximum(np.abs(expected).max(1), np.float32(1e-12)) / np.float32(127)
            wanted = steps.tobytes() + np.rint(expected / steps[:, None]).astype(np.int8).tobytes()
        elif storage == "float16":
            wanted = expected.astype(np.float16).tobytes()
        else:
            wanted = original.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        assert packed(values[i], None if scales is None else scales[i], storage) == wanted
        assert pack(original, storage) == wanted


def test_no_device_divides_by_a_plain_number():
    divisors = []

    class Divisions(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.div:
                divisors.append(args[1])
            return func(*args, **(kwargs or {}))

    with Divisions():
        to_stored(states(3, 8), "int8")
    assert len(divisors) == 2
    assert all(isinstance(d, torch.Tensor) and d.ndim for d in divisors), "CUDA multiplies by the inverse"


@pytest.mark.parametrize("storage", STORAGES)
def test_batches_are_padded_with_zeros(storage):
    texts = [
        view(np.frombuffer(bytearray(pack(states(n, 8), storage)), np.uint8), storage, 8) for n in (2, 5)
    ]
    batch = stack(texts, storage, torch.bfloat16)
    assert batch.states.dtype == torch.bfloat16
    assert batch.mask.sum(1).tolist() == [2, 5]
    assert (batch.states[0, 2:] == 0).all()
    assert (batch.states[1] != 0).any(-1).all()


def test_what_does_not_fit_is_refused():
    large = torch.full((2, 4), 1e5)
    with pytest.raises(UserError, match="use bfloat16"):
        pack(large, "float16")
    pack(large, "bfloat16")
    with pytest.raises(UserError, match="not finite"):
        pack(torch.tensor([[float("nan"), 1.0]]), "int8")


def test_a_broken_length_is_seen():
    assert tokens_in(8 * 3 * 2 + 1, "float16", 8) == -1
    assert tokens_in((8 + 4) * 3, "int8", 8) == 3
