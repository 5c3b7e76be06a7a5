"""Curves of a run as SVG: the loss, the validation loss of every noise level, scores while training.

In: the lines of `log.jsonl`, `validation.jsonl` and `scores.jsonl`. Out: SVG texts whose letters take the
page's colour.
"""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kilopix.plain_text import isolated

LONGEST = 2000
"""Points of a curve; more cannot be told apart."""
COLUMNS = 4
COLORS = {"held_out": "#e8590c", "training": "#4c6ef5"}
NAMES = {"held_out": "held-out pictures", "training": "training pictures"}


def training_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """Loss against images seen; empty where fewer than two stretches have one."""
    taken = [line for line in log if line["loss"] is not None]
    if len(taken) < 2:
        return ""
    step = max(1, len(taken) // LONGEST)
    images = [line["images"] for line in taken][::step]
    losses = [line["loss"] for line in taken][::step]
    with _figure(1, 1, 3.2) as (figure, axes):
        axis = axes[0]
        axis.plot(images, losses, color=COLORS["training"], linewidth=1.8)
        axis.fill_between(images, losses, min(losses), color=COLORS["training"], alpha=0.08)
        axis.set(xlabel="images seen", ylabel="loss")
        return _svg(figure)


def validation_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Loss of the average against images seen at every time, on held-out and on training samples.

    Empty where there are fewer than two moments. Every time has a scale of its own, since losses differ
    more between times than within one.
    """
    ours = [line for line in lines if line["weights"] == "average"]
    if len({line["images"] for line in ours}) < 2:
        return ""
    times = ours[-1]["t"]
    rows = -(-len(times) // COLUMNS)
    with _figure(rows, min(COLUMNS, len(times)), 2.1 * rows + 0.4) as (figure, axes):
        for level, (axis, t) in enumerate(zip(axes, times, strict=False)):
            for name, color in COLORS.items():
                points = [(line["images"], line["losses"][level]) for line in ours if line["set"] == name]
                axis.plot(*zip(*points, strict=True), color=color, linewidth=1.6, label=NAMES[name])
            axis.set_title(f"t = {t:.2f}", fontsize=9)
        for axis in axes[len(times) :]:
            axis.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
        return _svg(figure)


def score_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Every score against images seen; empty where there are fewer than two moments."""
    names = [name for name in (lines[-1] if lines else {}) if name != "images"]
    if len(lines) < 2 or not names:
        return ""
    rows = -(-len(names) // COLUMNS)
    with _figure(rows, min(COLUMNS, len(names)), 2.1 * rows) as (figure, axes):
        for axis, name in zip(axes, names, strict=False):
            points = [(line["images"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), color=COLORS["held_out"], linewidth=1.6)
            axis.set_title(isolated(name), fontsize=9, parse_math=False)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        return _svg(figure)


@contextmanager
def _figure(rows: int, columns: int, height: float):
    """A figure and its axes, row by row, in the style of all curves; closed afterwards."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    size = 10 if rows * columns == 1 else 8
    # With a salt the names inside of a curve are not drawn anew: equal runs give equal pages.
    with plt.rc_context({"font.size": size, "svg.fonttype": "none", "svg.hashsalt": "kilopix"}):
        figure, grid = plt.subplots(rows, columns, figsize=(8, height), layout="constrained", squeeze=False)
        axes = list(grid.flat)
        for axis in axes:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.xaxis.set_major_formatter(FuncFormatter(_short if len(axes) > 1 else _long))
            if len(axes) > 1:
                axis.xaxis.set_major_locator(MaxNLocator(3))
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def _long(value: float, _: int | None) -> str:
    return f"{value:,.0f}"


def _short(value: float, _: int | None) -> str:
    """3k, 1.5M: what fits under a small curve."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
