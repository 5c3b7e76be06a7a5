"""The figures of docs/study.md, which `python tools/figures.py` draws with the others.

In: cards, verdicts, losses and pictures that `benchmarks/study/run.py` kept below `benchmarks/results/study`.
Out: matplotlib figures.
"""

import json
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

STUDY = Path(__file__).resolve().parents[1] / "benchmarks" / "study"
sys.path.insert(0, str(STUDY))

from arms import load_study  # noqa: E402
from tables import CHOOSES, Results, over_seeds, read_results  # noqa: E402

from run import CURVES, DEFAULT, FACTS, KEPT, PICTURES  # noqa: E402

COLORS = {
    "aio": "#868e96",
    "ta": "#74c0fc",
    "ta_short": "#3b5bdb",
    "ta_cutmix": "#e8590c",
    "ta_cutmix_all": "#f59f00",
    "ta_cutmix_low": "#fcc419",
    "ta_cutmix_high": "#c92a2a",
    "ta_crop": "#2b8a3e",
    "cad_i": "#ae3ec9",
    "ta_short_long": "#1b2a6b",
    "ta_cutmix_long": "#8c3503",
}
SHOWN = {
    "mean of six tasks": "mean of six tasks, %",
    "single object": "single object, %",
    "colors": "colors, %",
    CHOOSES + "colors": "caption chosen: colors, %",
    CHOOSES + "two object": "caption chosen: two object, %",
    CHOOSES + "place": "caption chosen: place, %",
    CHOOSES + "position": "caption chosen: position, %",
    CHOOSES + "color attr": "caption chosen: color attr, %",
}
FOUND = ("both", "one of them", "neither, but others", "nothing")
SHADES = ("#2b8a3e", "#94d82d", "#fab005", "#ced4da")


def _results() -> Results:
    return read_results(load_study(DEFAULT), KEPT)


def _kept(results: Results, arm: str, name: str) -> list[Any]:
    """What was kept under a name, of every seed of an arm that has it."""
    files = [KEPT / arm / f"seed{seed}" / name for seed in sorted(results.scores[arm])]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def tasks() -> Figure:
    """The scores that tell arms apart: the mean over the seeds with Student's interval, and each seed."""
    results = _results()
    figure, axes = plt.subplots(
        2, 4, figsize=(10, 1.0 + 0.5 * len(results.scores)), sharey=True, layout="constrained"
    )
    for axis, (score, title) in zip(axes.flat, SHOWN.items(), strict=True):
        for row, arm in enumerate(results.scores):
            values = [100 * value for value in results.values(arm, score).values()]
            found = over_seeds(values)
            if len(values) > 1:
                ends = [max(found.low, 0), min(found.high, 100)]
                axis.plot(ends, [row, row], color=COLORS[arm], lw=2, alpha=0.5)
            axis.plot(values, [row] * len(values), "o", ms=3, color=COLORS[arm], alpha=0.5)
            axis.plot(found.value, row, "D", ms=5, color=COLORS[arm])
        if score.startswith(CHOOSES):
            axis.axvline(50, color="black", lw=0.7, ls=":")
            axis.set_xlim(15, 102)
        else:
            axis.set_xlim(left=-1)
        axis.set_title(title, fontsize=8)
        axis.grid(axis="x", lw=0.3)
    _name_rows(axes[0, 0], results)
    axes[1, 0].tick_params(axis="y", labelsize=7)
    return figure


def _name_rows(axis: Axes, results: Results) -> None:
    """A row for every arm, the first on top, with its title."""
    titles = [textwrap.fill(results.study.arms[arm].title, 26) for arm in results.scores]
    axis.set_yticks(range(len(titles)), titles, fontsize=7)
    axis.invert_yaxis()


def curves() -> Figure:
    """Scores against images seen, from the checkpoints that were scored; one line an arm, the seeds' mean."""
    results = _results()
    shown = ("mean of six tasks", "single object", "KID")
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 3.2), layout="constrained")
    for arm in results.scores:
        runs = _kept(results, arm, CURVES)
        if not runs:
            continue
        images = [point["images"] for point in runs[0]]
        for axis, score in zip(axes, shown, strict=True):
            scale = 1 if score == "KID" else 100
            values = np.mean([[point["scores"][score] * scale for point in run] for run in runs], axis=0)
            axis.plot(
                images, values, marker="o", ms=3, color=COLORS[arm], label=results.study.arms[arm].title
            )
    for axis, score in zip(axes, shown, strict=True):
        axis.set(xlabel="images seen", title=score if score == "KID" else f"{score}, %")
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=6)
    return figure


def found_of_two(verdicts: list[list[Any]]) -> Counter[str]:
    """Of pictures asked to show two objects, in how many the judge found both, one, others, nothing."""
    seen: Counter[str] = Counter()
    for tag, prompt, _, found in verdicts:
        if tag != "two_object":
            continue
        names = prompt.removeprefix("a photo of ").split(" and ")
        there = sum(any(name.endswith(one) for one in found) for name in names)
        seen[FOUND[0] if there == 2 else FOUND[1] if there else FOUND[2] if found else FOUND[3]] += 1
    return seen


def two_objects() -> Figure:
    """What the judge finds in pictures that were to show two objects, by arm."""
    results = _results()
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.34 * len(results.scores)), layout="constrained")
    for row, arm in enumerate(results.scores):
        seen = sum((found_of_two(run) for run in _kept(results, arm, "verdicts.json")), Counter())
        left = 0.0
        for kind, shade in zip(FOUND, SHADES, strict=True):
            share = 100 * seen[kind] / max(1, seen.total())
            axis.barh(row, share, left=left, color=shade, label=kind if row == 0 else None)
            left += share
    _name_rows(axis, results)
    axis.set(xlabel="% of pictures asked to show two objects", xlim=(0, 100))
    axis.legend(frameon=False, fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def losses() -> Figure:
    """The average's loss on training and on held-out pictures, by arm: a gap that grows is overfitting."""
    results = _results()
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.34 * len(results.scores)), layout="constrained")
    for row, arm in enumerate(results.scores):
        for facts in _kept(results, arm, FACTS):
            last = {line["set"]: line["loss"] for line in facts["fixed"] if line["weights"] == "average"}
            training, held_out = last["training"], last["held_out"]
            axis.plot([training, held_out], [row, row], "-", color=COLORS[arm], lw=1)
            axis.plot(training, row, "o", color=COLORS[arm], ms=4, mfc="white")
            axis.plot(held_out, row, "o", color=COLORS[arm], ms=4)
    _name_rows(axis, results)
    axis.set(xlabel="loss with the arm's own long captions: training (open), held-out (full)")
    return figure


def grid() -> Figure:
    """The same prompts and seeds across arms: the first picture of two prompts of every task."""
    results = _results()
    shown = [arm for arm in results.scores if (KEPT / arm / "seed0" / PICTURES).exists()]
    verdicts = json.loads((KEPT / shown[0] / "seed0" / "verdicts.json").read_text(encoding="utf-8"))
    prompts: dict[str, list[str]] = {}
    for tag, prompt, *_ in verdicts:
        if prompt not in prompts.setdefault(tag, []):
            prompts[tag].append(prompt)
    texts = [text.removeprefix("a photo of ") for several in prompts.values() for text in several[:2]]
    figure, axes = plt.subplots(len(shown), 1, figsize=(11, 0.98 * len(shown) + 0.6), layout="constrained")
    for axis, arm in zip(axes, shown, strict=True):
        _strip(axis, KEPT / arm / "seed0" / PICTURES, results.study.arms[arm].title)
    axes[0].xaxis.tick_top()
    places = (np.arange(len(texts)) + 0.5) * 64
    axes[0].set_xticks(places, [textwrap.fill(text, 15) for text in texts], fontsize=6)
    return figure


def _strip(axis: Axes, file: Path, title: str) -> None:
    axis.imshow(np.asarray(Image.open(file)), interpolation="bicubic")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_ylabel(
        title.replace(", ", ",\n").replace(" in place", "\nin place"),
        fontsize=6,
        rotation=0,
        ha="right",
        va="center",
    )


STUDY_FIGURES = {
    "study_tasks.svg": tasks,
    "study_curves.svg": curves,
    "study_two_objects.svg": two_objects,
    "study_losses.svg": losses,
    "study_grid.png": grid,
}
