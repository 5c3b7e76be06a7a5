"""Each network learns under each objective, and sampling predictors carry what they should."""

import itertools

import pytest
import torch

from kilopix.config import parse
from kilopix.diffusion.guidance import ConstantGuidance
from kilopix.diffusion.objective import ObjectiveConfig, loss_per_sample
from kilopix.diffusion.sampling import SamplingConfig
from kilopix.network import build_network, encode_text, sampling_predictor, training_predictor
from kilopix.recipe import Recipe
from kilopix.types import TextStates

MODELS = {
    "dit": {"kind": "dit", "width": 32, "depth": 2, "heads": 2, "patch": 2, "registers": 2},
    "rin": {
        "kind": "rin",
        "latents": 8,
        "latent_width": 32,
        "token_width": 32,
        "blocks": 2,
        "layers": 1,
        "read_write_heads": 2,
        "compute_heads": 2,
        "text_heads": 2,
        "registers": 2,
    },
}
OBJECTIVES = {
    "flow": {"path": {"kind": "straight"}, "prediction": "velocity"},
    "ddpm": {"path": {"kind": "gamma", "schedule": "linear"}, "prediction": "noise"},
    "edm": {
        "path": {"kind": "edm"},
        "prediction": "velocity",
        "time": {"kind": "lognormal_sigma"},
    },
}


def network(kind: str):
    recipe = parse(Recipe, {"model": MODELS[kind], "data": {"image_size": 64}}, "test")
    return build_network(recipe, channels=4, text_width=12).train()


def text(batch: int, seed: int = 0) -> TextStates:
    generator = torch.Generator().manual_seed(seed)
    return TextStates(torch.randn(batch, 5, 12, generator=generator), torch.ones(batch, 5).bool())


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        pytest.param(*pair, marks=pytest.mark.slow if pair in (("rin", "ddpm"), ("rin", "edm")) else ())
        for pair in itertools.product(MODELS, OBJECTIVES)
    ],
)
def test_overfits_one_batch(kind, objective):
    net, config = network(kind), parse(ObjectiveConfig, OBJECTIVES[objective], "test")
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    t, states, keep = torch.tensor([0.2, 0.4, 0.6, 0.8]), text(4), torch.tensor([True, True, False, True])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(200):
        context = encode_text(net, states, torch.ones(4))
        predict = training_predictor(net, config.path, context, torch.tensor([[0.0, 0, 1, 1]] * 4), keep)
        loss = loss_per_sample(config, predict, latents, noise, t).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


class Recorder:
    """Counts what a RIN is asked."""

    def __init__(self, net):
        self.trunks, self.previous = 0, []
        encode, forward = net.encode_text, net.forward

        def counted(*given):
            self.trunks += 1
            return encode(*given)

        def seen(x, gamma, context, previous=None):
            self.previous.append(None if previous is None else previous.clone())
            prediction, latents = forward(x, gamma, context, previous)
            self.last = latents
            return prediction, latents

        net.encode_text, net.forward = counted, seen


def test_text_is_encoded_once_and_latents_are_carried():
    net = network("rin").eval()
    seen = Recorder(net)
    path = parse(ObjectiveConfig, OBJECTIVES["ddpm"], "test").path
    config = SamplingConfig(guidance=ConstantGuidance(scale=3, start=0.9, stop=0.3))
    predict = sampling_predictor(net, path, "noise", text(2), text(1, seed=1), config)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predict(x, torch.tensor(1.0))
        first = seen.last
        predict(x, torch.tensor(0.8))
        second = seen.last
        predict(x, torch.tensor(0.6))
        third = seen.last
        predict(x, torch.tensor(0.1))
    assert seen.trunks == 1
    assert seen.previous[0] is None
    assert torch.equal(seen.previous[1], torch.cat([first, first]))  # one memory for both branches
    assert torch.equal(seen.previous[2], second)
    assert torch.equal(seen.previous[3], third[:2])


def test_latents_are_left_behind_where_asked():
    net = network("rin").eval()
    seen = Recorder(net)
    config = SamplingConfig(carry_latents=False)
    path = parse(ObjectiveConfig, OBJECTIVES["ddpm"], "test").path
    predict = sampling_predictor(net, path, "noise", text(1), text(1), config)
    for t in (1.0, 0.5):
        predict(torch.zeros(1, 4, 8, 8), torch.tensor(t))
    assert seen.previous == [None, None]


@pytest.mark.parametrize("kind", MODELS)
def test_guidance_in_one_call_is_guidance_in_two(kind):
    net = network(kind).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    path = parse(ObjectiveConfig, OBJECTIVES["ddpm"], "test").path
    x, t = torch.randn(2, 4, 8, 8), torch.tensor(0.5)

    def predicted(with_text: TextStates, scale: float, coherence: float) -> torch.Tensor:
        config = SamplingConfig(guidance=ConstantGuidance(scale=scale), coherence=coherence)
        with torch.no_grad():
            return sampling_predictor(net, path, "noise", with_text, text(1, 1), config)(x, t)

    empty = TextStates(text(1, 1).states.expand(2, -1, -1), text(1, 1).mask.expand(2, -1))
    cond, uncond = predicted(text(2), 1.0, 1.0), predicted(empty, 1.0, 0.0)
    expected = uncond + 4 * (cond - uncond)
    torch.testing.assert_close(predicted(text(2), 4.0, 1.0), expected, atol=1e-4, rtol=1e-4)
