"""A curve that grows, as HTML: lines that stretch to the width of the page, numbers that keep their size.

In: points. Out: HTML for `gr.HTML`, styled by style.css. It is drawn anew whenever the page asks, so a curve
that begins without a point is drawn as one with points is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kilopix.web import markup

_MOST_TICKS = 5


@dataclass(frozen=True)
class Point:
    """The loss of one stretch of training, and the mean of the stretches about it."""

    images: int
    loss: float
    mean: float


def curve_html(points: Sequence[Point]) -> str:
    """Loss and running mean against images seen; a line of text where there is no point yet."""
    if not points:
        return markup.note("The curve of the loss begins with the first line of the log.")
    losses = [point.loss for point in points]
    low, high = _widened(min(losses), max(losses))
    right = max(1, points[-1].images)

    def path(kind: str, values: Sequence[float]) -> str:
        places = [
            f"{100 * point.images / right:.2f} {100 * (high - value) / (high - low):.2f}"
            for point, value in zip(points, values, strict=True)
        ]
        if len(places) == 1:  # a stroke of no length, whose round ends make a dot
            return f'<path class="kp-{kind} kp-dot" d="M{places[0]}h0"/>'
        return f'<path class="kp-{kind}" d="M{"L".join(places)}"/>'

    lines = path("loss", losses) + path("mean", [point.mean for point in points])
    down = "".join(
        f'<i style="bottom:{100 * (value - low) / (high - low):.2f}%"><span>{text}</span></i>'
        for value, text in ticks(low, high)
    )
    along = "".join(
        f'<b style="left:{100 * value / right:.2f}%"><span>{text}</span></b>'
        for value, text in ticks(0.0, float(right), whole=True)
    )
    told = f"loss {losses[-1]:.4f} after {points[-1].images:,} images"
    return (
        '<div class="kp-curve"><p><span class="kp-of-loss">loss</span> <span class="kp-of-mean">its running '
        f'mean</span></p><div>{down}{along}<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{told}"><title>{told}</title>{lines}</svg></div><p class="kp-x">images seen</p></div>'
    )


def ticks(low: float, high: float, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers from `low` to `high`, a few, each with its text."""
    rough = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        step = max(1.0, step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(number * step, f"{number * step:,.{decimals}f}") for number in range(first, last + 1)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """The ends with some room, also where they are one."""
    room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - room, high + room
