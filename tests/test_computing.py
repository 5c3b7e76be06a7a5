"""How a run computes where there is one process to try it in: micro-batches, compilers."""

from pathlib import Path

import pytest
import torch

from kilopix import computing
from kilopix.computing import compiles, gathered_in, sent_in, stand_in
from kilopix.data.shards import Shards
from kilopix.network import build_network
from kilopix.recipe import Recipe, load_recipe
from kilopix.step import StepLoss, synthetic_batch
from kilopix.training.parallel import Processes
from kilopix.types import UserError
from test_distributed import KINDS

SIZES = 4, 16
FLOAT, HALF = torch.float32, torch.bfloat16
SHARED = Processes(1, 8, "cpu", "fsdp")


def recipe_of(kind: str, *settings: str) -> Recipe:
    name, overrides = KINDS[kind]
    return load_recipe(name, [*overrides, *settings])


def kept_by(loss: StepLoss, recipe: Recipe) -> int:
    """Bytes that a forward pass keeps for the backward one, beside weights."""
    own = {p.untyped_storage().data_ptr() for p in loss.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that its place is not given to another
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = loss(synthetic_batch(recipe, 4, *SIZES, 8, FLOAT, "cpu"))
    del out
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("kind", "deep"), [("dit", "model.depth=5"), ("cad", "model.blocks=5")])
def test_a_stand_in_keeps_as_much_as_the_network_with_one_block_s_weights(kind: str, deep: str):
    recipe = recipe_of(kind, deep)
    whole = StepLoss(build_network(recipe, *SIZES).train(), recipe, FLOAT)
    tried = stand_in(recipe, SIZES, FLOAT, FLOAT, compiled=False, device="cpu")
    kept, expected = (kept_by(loss, recipe) for loss in (tried, whole))
    assert kept == expected
    held, all_of_it = (sum(p.nbytes for p in loss.parameters()) for loss in (tried, whole))
    assert held < all_of_it / 2


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("kind", ["dit", "cad"])
def test_a_stand_in_computes_with_blocks_as_they_are_gathered(kind: str):
    recipe = recipe_of(kind)
    tried = stand_in(recipe, SIZES, HALF, HALF, compiled=False, device="cpu")
    loss = tried(synthetic_batch(recipe, 3, *SIZES, 8, HALF, "cpu"))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in tried.parameters())
    assert {p.dtype for p in tried.parameters()} == {FLOAT, HALF}


def test_processes_that_share_a_network_try_micro_batches_each_by_itself(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There are no other processes here, so that to wait for one would be an error."""
    recipe, shards = recipe_of("dit", "training.batch_size=64"), Shards(tiny_demo / "shards")
    sizes = shards.index.latent_shape[0], shards.index.text_width
    tried: list[int] = []

    def fits(work, reserve: int) -> bool:
        work()
        assert reserve > 0
        tried.append(reserve)
        return len(tried) == 3

    monkeypatch.setattr(Processes, "device_type", "cuda")
    monkeypatch.setattr(Processes, "smallest", lambda self, value: value)
    monkeypatch.setattr(computing, "fits_on_gpu", fits)
    loss = StepLoss(build_network(recipe, *sizes), recipe, FLOAT)
    before = [p.clone() for p in loss.parameters()]
    found = computing._micro_batch(loss, recipe, shards, SHARED, None, tmp_path, compiled=False)
    assert found == 2, "8 and 4 did not fit"
    assert len(set(tried)) == 1
    assert all(
        torch.equal(p, old) and p.grad is None for p, old in zip(loss.parameters(), before, strict=True)
    )


def test_what_is_sent_is_lower_by_itself_only_between_gpus_that_share(monkeypatch: pytest.MonkeyPatch):
    assert sent_in("auto", HALF, SHARED) == FLOAT
    assert sent_in("bfloat16", FLOAT, SHARED) == HALF
    assert gathered_in(HALF, FLOAT) == gathered_in(FLOAT, HALF) == FLOAT
    assert gathered_in(HALF, HALF) == HALF
    monkeypatch.setattr(Processes, "device_type", "cuda")
    assert sent_in("auto", HALF, SHARED) == HALF
    assert sent_in("auto", FLOAT, SHARED) == FLOAT
    assert sent_in("auto", HALF, Processes(0, 8, "cuda", "ddp")) == FLOAT
    assert sent_in("float32", HALF, SHARED) == FLOAT


@pytest.mark.parametrize("lacking", ["compiler", "triton", "age"])
def test_what_a_machine_lacks_to_compile_is_told(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1) if lacking == "age" else (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old one")
    monkeypatch.setattr(computing, "find_spec", lambda name: None if lacking == "triton" else name)
    monkeypatch.setattr(computing.shutil, "which", lambda name: None if lacking == "compiler" else name)
    said = {"compiler": "no C compiler", "triton": "no package triton", "age": "an old one is older"}[lacking]
    assert compiles("auto", "cuda") is False
    assert said in capsys.readouterr().err
    assert compiles("auto", "cuda", tell=False) is False
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=f"training.compile: .*{said}"):
        compiles(True, "cuda")
    assert compiles(False, "cuda") is False


def test_a_machine_that_has_all_compiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(computing, "find_spec", lambda name: name)
    monkeypatch.setattr(computing.shutil, "which", lambda name: name if name == "clang" else None)
    assert compiles("auto", "cuda") is compiles(True, "cuda") is True
    assert compiles("auto", "cpu") is False
    assert capsys.readouterr().err == ""
