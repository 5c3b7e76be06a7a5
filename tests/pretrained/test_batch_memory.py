"""Batch sizes by measured memory, on devices whose memory is made up."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kilopix.pretrained.autoencoder import _DiffusersAutoencoder
from kilopix.pretrained.memory import (
    LARGEST_TENSOR,
    SHARE,
    BatchSize,
    fitting,
    in_batches,
    measured_size,
    most_at_once,
    widest,
)
from kilopix.types import UserError


class Made:
    """A device of so many bytes, on which a batch takes `fixed` and `each` for every item."""

    def __init__(self, total: int, fixed: int, each: int):
        self.total, self.fixed, self.each = total, fixed, each
        self.ran: list[int] = []
        self._needs = 0

    def run(self, size: int) -> None:
        self.ran.append(size)
        self._needs = self.fixed + size * self.each
        if self._needs > self.total:
            raise torch.OutOfMemoryError("too large")

    def free(self) -> int:
        return self.total

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self._needs


def test_a_size_follows_from_what_was_measured():
    assert fitting({1: 100}, free=10_000, most=1000) == 64, "70 items fit the share, and 64 is a power of two"
    assert fitting({1: 100, 8: 240}, free=10_000, most=1000) == 128, "the largest measured size counts"
    assert fitting({1: 100}, free=10_000, most=40) == 32
    assert fitting({1: 100}, free=50, most=40) == 1
    assert fitting({4: 0}, free=50, most=40) == 32, "what takes nothing is bounded all the same"


@pytest.mark.parametrize("fixed", [0, 500, 3000])
@pytest.mark.parametrize("total", [2_000_000, 90_000, 9_000])
def test_the_largest_size_that_takes_its_share_is_found(total: int, fixed: int):
    device = Made(total, fixed, each=100)
    size = measured_size(device.run, device, most=512)
    assert size in device.ran, "what is returned has run"
    assert fixed + 100 * size <= max(SHARE * total, fixed + 100)
    twice = fixed + 100 * 2 * size
    assert 2 * size > 512 or twice > SHARE * total or fixed / size > 20, "and no larger one would do"
    assert all(after <= 8 * before for before, after in zip(device.ran, device.ran[1:], strict=False))


def test_running_out_while_measuring_is_borne():
    class Cliff(Made):
        def run(self, size: int) -> None:  # a kernel takes a workspace from some size on
            super().run(size)
            if size >= 32:
                raise torch.OutOfMemoryError("workspace")

    device = Cliff(10**6, 0, 100)
    assert measured_size(device.run, device, most=512) == 16
    never = Made(50, 100, 1)
    with pytest.raises(UserError, match="does not hold a single item"):
        measured_size(never.run, never, most=512)


def test_running_out_halves_the_size_for_good_and_loses_no_work():
    done: list[int] = []
    tried: list[int] = []

    def work(items: Sequence[int]) -> Sequence[int]:
        tried.append(len(items))
        if len(items) > 3 and len(done) >= 8:  # memory is taken by another program meanwhile
            raise torch.OutOfMemoryError("too large")
        done.extend(items)
        return items

    size = BatchSize(8)
    results = in_batches(work, list(range(30)), size)
    assert [item for batch in results for item in batch] == done == list(range(30))
    assert tried == [8, 8, 4, *[2] * 11]
    assert size.most == 2


def test_the_widest_tensor_bounds_how_much_is_computed_at_once():
    layer = torch.nn.Linear(4, 1000)

    def work(count: int) -> None:
        layer(torch.zeros(count, 7, 4)).sum(2)

    assert widest(lambda: work(3)) == 3 * 7 * 1000
    assert most_at_once(lambda: work(1)) == LARGEST_TENSOR // 7000


@pytest.mark.slow
def test_no_tensor_of_sds_encoder_is_too_large():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore
            block_out_channels=(128, 256, 512, 512),  # pyright: ignore
            layers_per_block=2,
            latent_channels=4,
        )
    ours = _DiffusersAutoencoder("sd", Path(), model.to_empty(device="cpu"), 0.18215, 0.0, "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = {side: most_at_once(partial(_encode, ours, 1, side)) for side in (256, 512, 1024)}
        too_many = widest(partial(_encode, ours, found[256] + 1, 256))
    # The first feature maps, 128 channels padded by one on two sides, are the widest.
    assert found == {side: LARGEST_TENSOR // (128 * (side + 1) ** 2) for side in found}
    assert found == {256: 254, 512: 63, 1024: 15}
    assert too_many > LARGEST_TENSOR


def _encode(autoencoder: _DiffusersAutoencoder, count: int, side: int) -> None:
    autoencoder.encode(torch.zeros(count, 3, side, side))
