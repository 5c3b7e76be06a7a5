"""What one sampled image must not wait for, and that compiled sampling gives the same images.

A network without values, on the meta device, stands for one on a GPU: numbers cannot be read back from it at
all, and what is copied to it is seen.
"""

import jaxtyping
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kilopix import network as module
from kilopix.compiled_step import CompiledStep
from kilopix.config import parse
from kilopix.diffusion.guidance import (
    ConstantGuidance,
    LinearGuidance,
    ProjectedGuidance,
    ZeroStarGuidance,
)
from kilopix.diffusion.objective import ObjectiveConfig
from kilopix.diffusion.samplers import SAMPLERS
from kilopix.diffusion.sampling import Clamp, DynamicThreshold, NoThreshold, SamplingConfig
from kilopix.network import sample_latents
from kilopix.types import TextStates
from test_network import MODELS, OBJECTIVES, network, text

GUIDANCE = [
    ConstantGuidance(scale=1.0),
    ConstantGuidance(scale=3.0, start=0.9, stop=0.2),
    LinearGuidance(),
    ZeroStarGuidance(),
    ProjectedGuidance(norm=2.0),
]
SHAPE = (4, 8, 8)


class NothingIsWaitedFor(TorchDispatchMode):
    """Refuses copies between the CPU and the device, and numbers that are read from it."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        inputs = [value for value in args if isinstance(value, torch.Tensor)]
        made = out if isinstance(out, torch.Tensor) else None
        if made is None or not inputs:
            return out
        copied = made.device.type != "cpu" and all(value.device.type == "cpu" for value in inputs)
        assert not copied, f"{func} copies from the CPU, which is waited for"
        return out


def drawn(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Stands for the copy from pinned memory, which is not waited for."""
    return torch.empty_like(tensor, device=device)


@pytest.mark.parametrize("kind", MODELS)
def test_no_step_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch):
    net = network(kind).eval().to("meta")

    def listed(self: torch.Tensor, data: object, **_: object) -> None:
        raise AssertionError(f"{data} is copied from the CPU, which is waited for")

    monkeypatch.setattr(module, "to_device", drawn)
    monkeypatch.setattr(torch.Tensor, "new_tensor", listed)  # which no mode sees
    states = TextStates(torch.empty(1, 5, 12, device="meta"), torch.ones(1, 5, device="meta").bool())
    objective = parse(ObjectiveConfig, OBJECTIVES["flow"], "test")
    watch = NothingIsWaitedFor()
    predictor = module.sampling_predictor

    def watched(*arguments):
        predict = predictor(*arguments)  # the text is encoded before the walk

        def step(x, t):
            with watch:
                return predict(x, t)

        return step

    monkeypatch.setattr(module, "sampling_predictor", watched)
    for guidance in GUIDANCE:
        settings = SamplingConfig(steps=2, guidance=guidance)
        with torch.no_grad():  # in inference mode, torch shows no copies
            latents = sample_latents(net, objective, settings, states, states, [0], SHAPE)
    assert latents.shape == (1, *SHAPE)
    assert watch.calls > 100


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("threshold", [NoThreshold(), Clamp(), DynamicThreshold()], ids=lambda t: t.kind)
def test_no_sampler_waits_between_its_calls_of_the_network(sampler: str, threshold):
    path = parse(ObjectiveConfig, OBJECTIVES["ddpm"], "test").path
    noise = torch.empty(2, *SHAPE, device="meta")
    settings = SamplingConfig(sampler=sampler, steps=4, threshold=threshold)
    fresh = lambda: torch.empty(2, *SHAPE, device="meta")  # noqa: E731
    with NothingIsWaitedFor() as watch:
        module.sample(lambda x, t: x, noise, settings, path, "noise", fresh)
    assert watch.calls > 20


@pytest.fixture
def no_checks_of_shapes():
    """Dynamo does not follow the checks of shapes that tests add to every call."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch._dynamo.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("no_checks_of_shapes")
@pytest.mark.parametrize("kind", MODELS)
def test_compiled_sampling_gives_the_same_images(kind: str):
    net = network(kind).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    objective = parse(ObjectiveConfig, OBJECTIVES["flow"], "test")
    settings = SamplingConfig(steps=4, guidance=ConstantGuidance(scale=3, start=0.9, stop=0.3))
    step = CompiledStep(net, backend="aot_eager")
    for batch, seed in ((1, 3), (2, 4)):
        given = (text(batch), text(1, 1), list(range(seed, seed + batch)), SHAPE)
        with torch.inference_mode():
            plain = sample_latents(net, objective, settings, *given)
            quick = sample_latents(net, objective, settings, *given, run=step)
        assert step.works
        torch.testing.assert_close(quick, plain, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_compiled_is_said_once_and_computed_uncompiled(capsys: pytest.CaptureFixture[str]):
    def broken(graph, inputs):
        raise RuntimeError("Failed to find C compiler")

    net, x = torch.nn.Linear(2, 3), torch.randn(4, 2)
    step = CompiledStep(net, backend=broken)
    for _ in range(2):
        assert torch.equal(step(x), net(x))
    assert not step.works
    assert capsys.readouterr().err.count("goes on uncompiled") == 1
