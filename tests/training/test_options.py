"""Options of how a network computes: the residual stream in bfloat16, products in float8."""

import sys
from functools import partial

import pytest
import torch
from test_compiled import NETWORKS, batch_of, step_loss
from torch import nn

from kilopix.models.dit import DiTBlock
from kilopix.models.rin_blocks import CrossAttentionBlock, SelfAttentionBlock
from kilopix.network import blocks_of
from kilopix.training.float8 import check_float8, to_float8
from kilopix.types import UserError

PRECISIONS = [torch.float32, torch.bfloat16]


def take(types: set[torch.dtype], module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    types.add(inputs[0].dtype)


LOWER = "training.residual=bfloat16"
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about norms of two types


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_the_stream_is_of_the_type_that_is_said_and_norms_are_not(
    name: str, settings: list[str], precision: torch.dtype
):
    for residual in PRECISIONS:
        said = f"training.residual={str(residual).removeprefix('torch.')}"
        loss = step_loss(name, [*settings, said], precision)
        streams: set[torch.dtype] = set()
        norms: set[torch.dtype] = set()

        def note(module: nn.Module, inputs: tuple, output: torch.Tensor, streams: set = streams) -> None:
            streams.update((inputs[0].dtype, output.dtype))

        for module in loss.network.modules():
            if isinstance(module, DiTBlock | SelfAttentionBlock | CrossAttentionBlock):
                module.register_forward_hook(note)
                for norm in module.children():
                    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
                        norm.register_forward_pre_hook(partial(take, norms))
        value = loss(batch_of(loss, 4, 5, 2))
        assert (streams, norms, value.dtype) == ({residual}, {torch.float32}, torch.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_a_stream_in_bfloat16_has_nearly_the_loss_and_gradients_of_float32(
    name: str, settings: list[str], precision: torch.dtype
):
    found = {}
    for residual in ("float32", "bfloat16"):
        loss = step_loss(name, [*settings, f"training.residual={residual}"], precision)
        value = loss(batch_of(loss, 4, 5, 2))
        value.backward()
        assert [n for n, p in loss.named_parameters() if p.grad is None or not p.grad.any()] == []
        gradients = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
        found[residual] = value.detach(), torch.cat(gradients)
    (plain, plain_gradient), (lower, lower_gradient) = found["float32"], found["bfloat16"]
    assert not torch.equal(plain_gradient, lower_gradient)
    torch.testing.assert_close(lower, plain, atol=0, rtol=2e-3)
    assert (lower_gradient - plain_gradient).norm() < 0.05 * plain_gradient.norm()


@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_the_prediction_leaves_in_float32_where_the_stream_is_in_less(name: str, settings: list[str]):
    loss = step_loss(name, [*settings, LOWER], torch.bfloat16)
    last = loss.network.get_submodule("patch_out" if name == "mini" else "map_tokens_to_patches.1")
    seen = []
    last.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    loss(batch_of(loss, 4, 5, 0))
    assert set(seen) == {torch.float32}


def test_float8_is_refused_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        check_float8(torch.bfloat16, True, "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UserError, match="A100 has no float8"):
        check_float8(torch.bfloat16, True, "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(UserError, match=r"training\.precision"):
        check_float8(torch.float32, True, "cuda:0")
    with pytest.raises(UserError, match=r"training\.compile"):
        check_float8(torch.bfloat16, False, "cuda:0")
    check_float8(torch.bfloat16, True, "cuda:0")
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"kilopix\[float8\]"):
        to_float8([nn.Linear(16, 16)], "rowwise")


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_float8_keeps_names_and_weights_and_comes_near(name: str, settings: list[str], scaling):
    """As torchao emulates it, where it is installed."""
    pytest.importorskip("torchao.float8")
    plain, lower = (step_loss(name, settings) for _ in range(2))
    weights = {n: p.data_ptr() for n, p in lower.named_parameters()}
    done, left = to_float8(blocks_of(lower.network), scaling, emulate=True)
    assert (done, left) == ((4, ["88 to 32"]) if name == "mini" else (21, []))
    assert {n: p.data_ptr() for n, p in lower.named_parameters()} == weights
    batch = batch_of(plain, 6, 7, 4)
    expected, found = plain(batch), lower(batch)
    found.backward()
    assert not torch.equal(expected, found)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-2)
    assert [n for n, p in lower.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_float8_of_a_network_without_fitting_layers_is_refused():
    pytest.importorskip("torchao.float8")
    block = nn.ModuleDict({"qkv": nn.Linear(24, 72)})
    with pytest.raises(UserError, match="24 to 72"):
        to_float8([block], "tensorwise")
