"""Steps on tensors without values, in a process of its own: compiled, and as on a GPU that is not there.

    python without_values.py compiled RECIPE      the share of activations that compiled blocks keep
    python without_values.py cuda                 a training step's forward pass on device "cuda"

A build of torch without CUDA knows no device guard for it, and ends the process at the first operation with
gradients; here it borrows that of device "meta", which does nothing either.
"""

import ctypes
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kilopix.budget import Encoded
from kilopix.memory import CudaAutocast, batch_as_loaded, longest_text, take_values, without_values
from kilopix.network import blocks_of, build_network
from kilopix.recipe import Recipe, load_recipe
from kilopix.step import StepBatch, StepLoss
from kilopix.training.speed import speed_up, uncompiled

CUDA, META, DEVICES = 1, 14, 21


def kept(loss: StepLoss, batch: StepBatch) -> int:
    """Bytes that a forward pass keeps for the backward one, weights left out."""
    own = {p.untyped_storage()._cdata for p in loss.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage  # held, so that its place is not given to another
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = loss(batch)
    out.backward()
    return sum(storage.nbytes() for storage in found.values())


def compiled_share(recipe: Recipe) -> float:
    """What compiled blocks keep of an image, over what uncompiled ones keep."""
    encoded = Encoded.of(recipe)
    given = encoded.channels, encoded.text_width
    keeps = [torch.ones(images, dtype=torch.bool) for images in (3, 6)]
    each = []
    for compiled in (False, True):
        with without_values(recipe, *given) as network, CudaAutocast():
            found = []
            blocks = blocks_of(network)
            speed_up(blocks, compiled, False, "aot_eager_decomp_partition")
            for keep in keeps:
                batch = batch_as_loaded(recipe, *given, len(keep), longest_text(recipe, True), keep)
                found.append(kept(StepLoss(network, recipe, torch.bfloat16), batch))
            assert not compiled or not uncompiled(blocks)
        each.append(found[1] - found[0])
    return each[1] / each[0]


def borrow_a_guard() -> None:
    """Let operations with gradients pass on device "cuda" in a build of torch without it, and autocast."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * DEVICES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA] = guards[CUDA] or guards[META]
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True


def forward_on_cuda(recipe: Recipe, precision: torch.dtype) -> Tensor:
    """The loss of a padded micro-batch, some of it self-conditioned, all of it on device "cuda"."""
    encoded = Encoded.of(recipe)
    keep = torch.arange(6) < 4
    with torch.device("meta"):
        network = build_network(recipe, encoded.channels, encoded.text_width).train()
    with FakeTensorMode(allow_non_fake_inputs=False):
        take_values(network, "cuda:0")
        given = recipe, encoded.channels, encoded.text_width, 6, longest_text(recipe, True), keep
        batch = batch_as_loaded(*given).moved_to("cuda:0")
        return StepLoss(network, recipe, precision)(batch)


SMALL = {
    "dit": ["model.width=64", "model.depth=3", "model.heads=2"],
    "routed": ["model.width=64", "model.depth=3", "model.heads=2", "model.routing.share=0.5"],
    "rin": ["model.latent_width=64", "model.token_width=32", "model.blocks=2", "model.layers=1"],
}
SMALL["routed"] += ["model.routing.min_tokens=1", "model.routing.first=1", "model.routing.after=1"]
SMALL["rin"] += ["model.read_write_heads=2", "model.compute_heads=2", "model.text_heads=2"]


def main() -> None:
    """Print what was asked for."""
    warnings.simplefilter("ignore")
    if sys.argv[1] == "compiled":
        print(compiled_share(load_recipe(sys.argv[2])))
        return
    borrow_a_guard()
    for name, settings in SMALL.items():
        recipe = load_recipe("cad_i_256_ta" if name == "rin" else "dit_i_256_ta", settings)
        for precision in (torch.bfloat16, torch.float32):
            loss = forward_on_cuda(recipe, precision)
            assert loss.grad_fn is not None
            print(name, precision, loss.device, loss.dtype)


if __name__ == "__main__":
    main()
