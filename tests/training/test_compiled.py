"""Compiled blocks: few graphs, which serve every batch; what is not compiled any more is told."""

import jaxtyping
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from kilopix.network import blocks_of, build_network, compiled_of, sample_latents
from kilopix.recipe import load_recipe
from kilopix.step import StepBatch, StepLoss, parts_of, synthetic_batch
from kilopix.training import speed
from kilopix.training.speed import speed_up, uncompiled
from kilopix.types import TextStates
from tiny import TINY

CAD = [
    *(setting for setting in TINY if not setting.startswith("model.")),
    *("model.latents=8", "model.latent_width=32", "model.token_width=32", "model.blocks=2", "model.layers=1"),
    *("model.read_write_heads=2", "model.compute_heads=2", "model.text_heads=2", "model.registers=2"),
    *("model.patch=1", "model.text_layers=1"),
]
TINY = [*TINY, "model.text_layers=1"]
NETWORKS = [("mini", TINY), ("mini_cad", CAD)]
MOST_GRAPHS = {"mini": 9, "mini_cad": 13}
"""With and without gradients, and while sampling: of blocks, refiner, keys and values."""
WIDTH = 16
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about its own insides


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """Nothing compiled before, and no checks of shapes inside what is compiled, as users have none."""
    limit = torch._dynamo.config.recompile_limit
    jaxtyping.config.update("jaxtyping_disable", True)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit
    jaxtyping.config.update("jaxtyping_disable", False)


def step_loss(name: str, settings: list[str], precision: torch.dtype = torch.float32) -> StepLoss:
    recipe = load_recipe(name, settings)
    torch.manual_seed(0)
    network = build_network(recipe, 4, WIDTH)
    for parameter in network.parameters():  # so that no gradient is zero for a start at zero
        nn.init.normal_(parameter, std=0.1)
    return StepLoss(network, recipe, precision)


def batch_of(loss: StepLoss, size: int, tokens: int, first: int, seed: int = 0) -> StepBatch:
    """Random images and texts, of which the first ones see the latents of a first pass."""
    made = synthetic_batch(loss.recipe, size, 4, WIDTH, tokens, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(seed)
    for tensor in (made.latents, made.noise, made.states):
        tensor.normal_(generator=generator)
    made.self_condition[:] = torch.arange(size) < first
    made.mask[0, tokens - 1] = False
    return made


def varied(loss: StepLoss, count: int) -> list[StepBatch]:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(6, 9, (count, 3), generator=generator).tolist()
    return [batch_of(loss, a, 3 + 2 * b % 11, min(a, c) - 1, i) for i, (a, b, c) in enumerate(sizes)]


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_after_a_few_batches_nothing_is_compiled_again(name: str, settings: list[str], checkpointed: bool):
    loss = step_loss(name, settings)
    blocks = compiled_of(loss.network)
    speed_up(blocks, compiled=True, checkpointed=checkpointed, backend="aot_eager")
    for size in (8, 4, 2):  # as the micro-batch is looked for
        loss(batch_of(loss, size, 12, size)).backward()
    batches = varied(loss, 30)
    for i, batch in enumerate(batches):
        loss(batch).backward()
        if i in (3, 20):  # as validation and previews ask the network
            with torch.no_grad():
                loss(batch)
            with torch.inference_mode():
                preview(loss, batch)
        if i == 4:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs
    assert graphs <= MOST_GRAPHS[name]
    assert not counters["graph_break"]
    assert uncompiled(blocks) == []


def preview(loss: StepLoss, batch: StepBatch) -> None:
    """Two guided steps of sampling."""
    text = TextStates(batch.states, batch.mask)
    without = TextStates(torch.zeros_like(batch.states[:, :1]), torch.ones_like(batch.mask[:, :1]))
    channels, height, width = batch.latents.shape[1:]
    seeds = list(range(len(batch)))
    sample_latents(
        loss.network,
        loss.recipe.objective,
        loss.recipe.sampling,
        text,
        without,
        seeds,
        (channels, height, width),
    )


@pytest.mark.parametrize(("name", "settings"), NETWORKS)
def test_compiled_and_checkpointed_gradients_are_those_of_neither(name: str, settings: list[str]):
    kept: dict[str, int] = {}
    gradients: dict[str, list[torch.Tensor]] = {}
    for what in ("neither", "compiled", "both"):
        loss = step_loss(name, settings)
        blocks = compiled_of(loss.network)
        compiled, checkpointed = what != "neither", what == "both"
        speed_up(blocks, compiled, checkpointed, backend="aot_eager")
        assert list(loss.network.state_dict()) == list(step_loss(name, settings).network.state_dict())
        counted = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal counted
            counted += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            value = loss(batch_of(loss, 6, 7, 4))
        value.backward()
        kept[what] = counted
        gradients[what] = [p.grad for p in loss.parameters() if p.grad is not None]
        assert uncompiled(blocks) == ([] if compiled else list(range(len(blocks))))
    assert kept["both"] < kept["compiled"]
    for what in ("compiled", "both"):
        for found, expected in zip(gradients[what], gradients["neither"], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_block_that_is_no_longer_compiled_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(speed, "GRAPHS", 1)
    torch._dynamo.config.recompile_limit = 1
    monkeypatch.setattr(speed, "_vary", lambda argument, dimensions: None)
    loss = step_loss("mini", TINY)
    blocks = blocks_of(loss.network)
    speed_up(blocks, compiled=True, checkpointed=False, backend="aot_eager")
    loss(batch_of(loss, 6, 7, 4)).backward()
    assert uncompiled(blocks) == []
    whole = loss(batch_of(loss, 4, 7, 4))
    whole.backward()
    assert uncompiled(blocks) == list(range(len(blocks)))
    assert "DiTBlock.forward: not compiled" in capsys.readouterr().err
    assert torch.equal(whole, step_loss("mini", TINY)(batch_of(loss, 4, 7, 4)))


class Breaks(nn.Linear):
    """Looks at what it computes, which no graph can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if float(y.sum()) > 0 else y + 0


def test_what_cannot_be_compiled_whole_is_named_and_computed(capsys: pytest.CaptureFixture[str]):
    breaks = Breaks(4, 4)
    expected = breaks(torch.ones(2, 4))
    speed_up([breaks], compiled=True, checkpointed=False, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(breaks(torch.ones(2, 4)), expected)
    assert uncompiled([breaks]) == [0]
    told = capsys.readouterr().err
    assert told.startswith("Breaks.forward: not compiled (")
    assert told.count("\n") == 1


def test_what_lacks_memory_to_be_compiled_is_tried_again_with_less():
    layer, asked = nn.Linear(4, 4), []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        asked.append(graph)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("as tuning of kernels may need")
        return graph

    speed_up([layer], compiled=True, checkpointed=False, backend=backend)
    with pytest.raises(torch.OutOfMemoryError, match="as tuning of kernels may need"):
        layer(torch.ones(8, 4))
    layer(torch.ones(4, 4))
    assert len(asked) == 2


@pytest.mark.parametrize(("name", "settings"), NETWORKS)
@pytest.mark.parametrize("first", [0, 2, 4])
def test_every_weight_has_a_gradient_in_bfloat16(name: str, settings: list[str], first: int):
    """Casts that were kept from a first pass without gradients would take them from the second."""
    loss = step_loss(name, settings, torch.bfloat16)
    loss(batch_of(loss, 4, 5, first)).backward()
    # Before a first pass, what maps its latents is asked with zeros alone.
    seen = {n: p for n, p in loss.network.named_parameters() if first or "previous" not in n}
    assert [n for n, p in seen.items() if p.grad is None or not p.grad.any()] == []


def test_parts_are_of_nearly_one_size():
    assert [len(range(*part.indices(10))) for part in parts_of(10, 3)] == [3, 3, 4]
