"""The velocity's loss of a trained network at given noise levels, for `probe.py` and `choose.py`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kilopix.diffusion.paths import expand
from kilopix.generator import Generator
from kilopix.network import encode_text, training_predictor
from kilopix.runtime import torch_generator
from kilopix.types import TextStates


@torch.inference_mode()
def velocity_losses(
    generator: Generator, data: Tensor, text: TextStates, levels: Sequence[float], seed: str
) -> Tensor:
    """The loss of every level and sample, `levels x B`, whatever the network predicts.

    The noise depends on `seed` and the level alone, so that two texts are compared with the same.
    """
    objective, network, count = generator.recipe.objective, generator.network, len(data)
    window = torch.tensor((0.0, 0.0, 1.0, 1.0)).expand(count, 4)
    context = encode_text(network, text, torch.ones(count))
    predict = training_predictor(
        network, objective.path, context, window, torch.zeros(count, dtype=torch.bool)
    )
    found = []
    for level in levels:
        t = torch.full((count,), level)
        noise = torch.randn(data.shape, generator=torch_generator(seed, round(level * 100)))
        point = objective.path.at(expand(t))
        x = point.mix(data, noise)
        velocity = point.velocity(*point.data_and_noise(objective.prediction, predict(x, t), x))
        found.append((velocity - point.target("velocity", data, noise)).square().mean((1, 2, 3)))
    return torch.stack(found)
