"""A DiT that is trained on crops and told their windows knows the whole picture, which it has never seen."""

import pytest
import torch
from torch import Tensor

from kilopix.diffusion.objective import ObjectiveConfig, loss_per_sample
from kilopix.models.dit import DiT, DiTConfig
from kilopix.types import TextStates

SIDE = 4
WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
TEXT = TextStates(torch.ones(1, 1, 8), torch.ones(1, 1).bool())


def scene(window: Tensor) -> Tensor:
    """What a window shows of a picture that is dark on the left, bright on the right."""
    columns = (torch.arange(SIDE) + 0.5) / SIDE
    across = window[:, 0, None] + (window[:, 2] - window[:, 0])[:, None] * columns
    return (4 * across - 2)[:, None, None, :].expand(-1, 1, SIDE, -1)


def trained(told: bool) -> DiT:
    torch.manual_seed(0)
    net = DiT(DiTConfig(width=32, depth=1, heads=2, patch=1, text_layers=0, registers=1), 1, 8)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(120):
        start = torch.rand(16, generator=generator) * 0.5  # windows of half the width, anywhere
        window = torch.stack([start, torch.zeros(16), start + 0.5, torch.ones(16)], dim=1)
        noise = torch.randn(16, 1, SIDE, SIDE, generator=generator)
        t = torch.rand(16, generator=generator)
        context = net.encode_text(TextStates(TEXT.states.expand(16, -1, -1), TEXT.mask.expand(16, -1)))
        seen = window if told else torch.tensor([WHOLE]).expand(16, 4)
        losses = loss_per_sample(
            ObjectiveConfig(), lambda x, t, c=context, w=seen: net(x, t, c, w), scene(window), noise, t
        )
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def imagined(net: DiT, window: tuple[float, float, float, float] | None) -> Tensor:
    """The columns of the picture that the network sees in pure noise."""
    noise = torch.randn(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    context = net.encode_text(TextStates(TEXT.states.expand(8, -1, -1), TEXT.mask.expand(8, -1)))
    told = None if window is None else torch.tensor([window]).expand(8, 4)
    with torch.no_grad():
        velocity = net(noise, torch.ones(8), context, told)
    return (noise - velocity).mean(dim=(0, 1, 2))


@pytest.fixture(scope="module")
def told() -> DiT:
    return trained(told=True)


def test_left_and_right_are_told_apart(told: DiT):
    left, right = imagined(told, LEFT), imagined(told, RIGHT)
    assert left.mean() == pytest.approx(-1, abs=0.35)
    assert right.mean() == pytest.approx(1, abs=0.35)


def test_the_whole_that_sampling_asks_for_has_both_ends(told: DiT):
    columns = imagined(told, None)
    assert torch.equal(columns, imagined(told, WHOLE))
    assert columns[0] < -0.9
    assert columns[-1] > 0.9


def test_without_windows_the_whole_is_one_more_crop():
    columns = imagined(trained(told=False), None)
    assert columns[-1] - columns[0] < 2.2  # a crop of half the width spans 1.75, the whole 3.5
    assert abs(columns.mean().item()) < 0.5
