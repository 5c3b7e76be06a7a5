"""Draw the figures of the documentation: `python tools/figures.py` writes docs/figures/.

In: the code itself (paths, time distributions, the embedded world, CutMix), the installed model, and what
`benchmarks/seams.py` and the study measured. Out: SVG and PNG files, the same bytes every
time on one machine.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from kilopix.data.cutmix import choose_paste, paste
from kilopix.data.world.render import render
from kilopix.data.world.scenes import one_object_scene
from kilopix.demo import prompts_for
from kilopix.diffusion.objective import LogitNormalTime, ObjectiveConfig, UniformTime, draw
from kilopix.diffusion.paths import EDMPath, GammaPath, StraightPath
from kilopix.generator import Generator
from kilopix.runtime import atomic_path
from study_figures import STUDY_FIGURES

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "figures"
SEAMS = ROOT / "benchmarks" / "results" / "seams.json"
RACE = ROOT / "benchmarks" / "results" / "study" / "race.json"
TWO_OBJECTS = (
    "a photo of a cat and a banana",
    "a photo of a penguin and a pizza",
    "A photo of a green car. In the top right corner, a pink balloon.",
)
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BLUE, ORANGE, GREY, GREEN = "#3b5bdb", "#e8590c", "#868e96", "#2b8a3e"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "kilopix",  # so that the names inside an SVG are the same every time
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "svg.fonttype": "path",
}


def noise_levels() -> Figure:
    """A picture and its CutMix version at six noise levels."""
    side = 64
    base = render(one_object_scene("car", 0, "train", "figure_5"), side)
    partner = render(one_object_scene("cat", 0, "train", "figure_1"), side)
    where = choose_paste("1/4", side, random.Random(3))
    small = Image.fromarray(partner).resize(
        (where.partner_side, where.partner_side), Image.Resampling.LANCZOS
    )
    mixed = paste(base.copy(), np.asarray(small), where)
    noise = torch.randn(side, side, 3, generator=torch.Generator().manual_seed(0)).numpy()
    figure, axes = plt.subplots(2, len(LEVELS), figsize=(9, 3.3), layout="constrained")
    for row, (name, picture) in enumerate((("plain", base), ("CutMix", mixed))):
        data = picture.astype(np.float32) / 127.5 - 1
        for column, t in enumerate(LEVELS):
            point = StraightPath().at(torch.tensor(t))
            # On the scale of the state's own deviation, so that contrast does not fall with it.
            state = float(point.alpha) * data + float(point.sigma) * noise
            shown = state / np.hypot(float(point.alpha), float(point.sigma))
            axis: Axes = axes[row, column]
            axis.imshow(((shown + 1.6) / 3.2).clip(0, 1) if t else (data + 1) / 2, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(t > 0.4)
                spine.set_color(ORANGE)
                spine.set_linewidth(1.5)
            if row == 0:
                axis.set_title(f"t = {t:g}", color=ORANGE if t > 0.4 else "black")
            if column == 0:
                axis.set_ylabel(name)
    return figure


def seams() -> Figure:
    """How often a small network finds the seam, and names the object, at each noise level."""
    found: dict[str, Any] = json.loads(SEAMS.read_text(encoding="utf-8"))
    rows = found["levels"]
    figure, axis = plt.subplots(figsize=(6, 3.1), layout="constrained")
    axis.axvspan(0.4, 1, color=ORANGE, alpha=0.09, lw=0)
    axis.text(0.985, 1.0, "CutMix pictures are used here", ha="right", va="top", color=ORANGE)
    marks = (
        ("class", 1 / found["classes"], GREEN, "names the object"),
        ("seam", 0.5, BLUE, "finds the seam"),
    )
    for key, chance, color, label in marks:
        times = [row["t"] for row in rows]
        # 0 is guessing, 1 is always right: two questions of unlike difficulty on one axis.
        skill = [(row[key] - chance) / (1 - chance) for row in rows]
        low = [
            s - (row[f"{key}_interval"][0] - chance) / (1 - chance)
            for s, row in zip(skill, rows, strict=True)
        ]
        high = [
            (row[f"{key}_interval"][1] - chance) / (1 - chance) - s
            for s, row in zip(skill, rows, strict=True)
        ]
        errors = np.abs(np.array([low, high]))
        axis.errorbar(times, skill, yerr=errors, color=color, marker="o", ms=4, capsize=2, label=label)
    axis.axhline(0, color=GREY, lw=0.8, ls=":")
    axis.set(xlabel="noise level t", ylabel="skill (0 is guessing, 1 is perfect)", ylim=(-0.08, 1.02))
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.33))
    return figure


def paths() -> Figure:
    """How much signal and noise a state holds along each path, and which times training draws."""
    t = torch.linspace(0, 1, 400)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.4, 2.9), layout="constrained")
    known = (
        ("straight", StraightPath(), BLUE),
        ("DDPM, linear", GammaPath(), ORANGE),
        ("DDPM, cosine", GammaPath(schedule="cosine"), GREY),
        ("EDM", EDMPath(), GREEN),
    )
    for name, path, color in known:
        point = path.at(t)
        left.plot(t, point.gamma, color=color, label=name)
        middle.plot(t[1:-1], (point.alpha.log() - point.sigma.log())[1:-1], color=color)
    left.set(xlabel="t (0 is data, 1 is noise)", ylabel="share of the signal in the variance")
    left.legend(frameon=False, loc="lower left")
    middle.set(xlabel="t", ylabel="log(alpha / sigma)", ylim=(-6, 6))
    times = (
        ("uniform: CAD-I", ObjectiveConfig(time=UniformTime()), ORANGE),
        ("logit-normal: DiT-I", ObjectiveConfig(time=LogitNormalTime()), BLUE),
        ("logit-normal, shift 2", ObjectiveConfig(time=LogitNormalTime(), time_shift=2.0), GREY),
    )
    for name, objective, color in times:
        drawn = draw(objective, 200_000, torch.Generator().manual_seed(0)).t.numpy()
        density, edges = np.histogram(drawn, bins=50, range=(0, 1), density=True)
        share = float((drawn > objective.augment_above).mean()) * objective.augment_probability
        right.plot((edges[1:] + edges[:-1]) / 2, density, color=color, label=f"{name} ({share:.0%} CutMix)")
    right.axvline(0.4, color=GREY, lw=0.8, ls=":")
    right.set(xlabel="t", ylabel="how often training draws it", ylim=(0, 2.9))
    right.legend(frameon=False, loc="upper left", fontsize=7.5)
    return figure


Box = tuple[float, float, float, float]


def _box(axis: Axes, box: Box, text: str, color: str, bold: bool = False) -> None:
    x, y, width, height = box
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=f"{color}22", ec=color, lw=1.2
    )
    axis.add_patch(shape)
    weight = "bold" if bold else "normal"
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8, fontweight=weight)


def _arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, text: str = ""
) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, lw=1.2))
    if text:
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axis.text(*middle, text, fontsize=7, color=color, ha="center", va="bottom")


def networks() -> Figure:
    """DiT-I and CAD-I side by side: where text, time and patches go in."""
    figure, (dit, rin) = plt.subplots(1, 2, figsize=(9.4, 4.6), layout="constrained")
    for axis, title in (
        (dit, "DiT-I: all patches see each other"),
        (rin, "CAD-I: patches meet in a few latents"),
    ):
        axis.set(xlim=(0, 10), ylim=(0, 10))
        axis.set_title(title)
        axis.axis("off")
    _draw_dit(dit)
    _draw_rin(rin)
    return figure


def _draw_dit(axis: Axes) -> None:
    _box(axis, (3.2, 0.2, 3.6, 0.9), "patches of the noisy latents\n+ where each lies", GREY)
    axis.add_patch(
        FancyBboxPatch(
            (2.6, 2.0), 4.8, 5.5, boxstyle="round,pad=0,rounding_size=0.1", fc="none", ec=GREY, ls="--"
        )
    )
    axis.text(7.3, 7.6, "x depth", ha="right", va="bottom", fontsize=8, color=GREY)
    _box(axis, (3.2, 2.5, 3.6, 1.1), "self-attention\nrotary positions, QK-norm", BLUE, bold=True)
    _box(axis, (3.2, 4.2, 3.6, 1.1), "cross-attention\nto the text's tokens", ORANGE, bold=True)
    _box(axis, (3.2, 5.9, 3.6, 1.1), "SwiGLU", BLUE, bold=True)
    _box(axis, (3.2, 8.6, 3.6, 0.9), "velocity for every patch", GREY)
    for start, end in ((1.1, 2.5), (3.6, 4.2), (5.3, 5.9), (7.0, 8.6)):
        _arrow(axis, (5, start), (5, end), GREY)
    _box(axis, (0.0, 4.2, 2.2, 1.1), "text, from a\nfrozen encoder", ORANGE)
    _arrow(axis, (2.2, 4.75), (3.2, 4.75), ORANGE)
    _box(axis, (8.0, 4.2, 1.9, 1.1), "time\n+ pooled text", GREEN)
    for y in (3.05, 6.45):
        _arrow(axis, (8.0, 4.75), (6.8, y), GREEN)
    axis.text(8.95, 5.4, "scales, shifts\nand gates", ha="center", va="bottom", fontsize=7, color=GREEN)
    _box(axis, (0.1, 0.2, 2.2, 0.9), "register tokens", GREY)
    _arrow(axis, (2.3, 0.65), (3.2, 0.65), GREY)


def _draw_rin(axis: Axes) -> None:
    _box(axis, (0.1, 0.2, 3.2, 0.9), "patches of the\nnoisy latents", GREY)
    _box(axis, (6.2, 0.2, 3.7, 0.9), "256 learned latents\n+ those of the last step", BLUE)
    axis.add_patch(
        FancyBboxPatch(
            (0.0, 1.9), 9.95, 6.0, boxstyle="round,pad=0,rounding_size=0.1", fc="none", ec=GREY, ls="--"
        )
    )
    axis.text(9.9, 8.0, "x 4 blocks", ha="right", va="bottom", fontsize=8, color=GREY)
    _box(axis, (6.2, 2.2, 3.7, 1.0), "latents attend to time,\ncoherence, registers, text", ORANGE, bold=True)
    _box(axis, (6.2, 3.7, 3.7, 0.9), "latents read the patches", BLUE, bold=True)
    _box(axis, (6.2, 5.1, 3.7, 0.9), "4 self-attention layers", BLUE, bold=True)
    _box(axis, (6.2, 6.5, 3.7, 0.9), "patches read the latents\n(write)", BLUE, bold=True)
    _box(axis, (0.1, 8.6, 3.2, 0.9), "noise for every patch", GREY)
    _box(axis, (6.2, 8.6, 3.7, 0.9), "new latents\nfor the next step", BLUE)
    for start, end in ((1.1, 2.2), (3.2, 3.7), (4.6, 5.1), (6.0, 6.5), (7.4, 8.6)):
        _arrow(axis, (8.05, start), (8.05, end), BLUE)
    _arrow(axis, (1.7, 1.1), (1.7, 8.6), GREY)
    _arrow(axis, (1.7, 4.15), (6.2, 4.15), GREY, "read")
    _arrow(axis, (6.2, 6.95), (1.7, 6.95), BLUE, "write")
    _box(axis, (2.6, 2.2, 2.6, 1.0), "text, time,\ncoherence", ORANGE)
    _arrow(axis, (5.2, 2.7), (6.2, 2.7), ORANGE)


def race() -> Figure:
    """The scores of two recipes over the minutes that they trained, with intervals."""
    lanes = json.loads(RACE.read_text(encoding="utf-8"))["lanes"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, (score, better) in zip(axes, (("mean of six tasks", "higher"), ("KID", "lower")), strict=True):
        for (name, lane), color in zip(lanes.items(), (GREY, BLUE), strict=True):
            minutes = [point["minutes"] for point in lane]
            value, low, high = zip(*(point[score] for point in lane), strict=True)
            axis.plot(minutes, value, marker="o", markersize=4, color=color, label=name)
            axis.fill_between(minutes, low, high, color=color, alpha=0.15, lw=0)
        axis.axhline(lanes["base line"][-1][score][0], color=ORANGE, lw=0.9, ls=":")
        axis.set(xlabel="minutes of training", title=f"{score} ({better} is better)")
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    return figure


def installed_model() -> Figure:
    """What the installed model makes of the demo's prompts and three more: the seeds 0 to 3, none chosen."""
    generator = Generator.from_pretrained("mini", "cpu")
    prompts = [*prompts_for(generator.recipe), *TWO_OBJECTS]
    figure, axes = plt.subplots(5, 3, figsize=(9, 5.4), layout="constrained")
    for axis, prompt in zip(axes.flat, prompts, strict=True):
        pictures = [np.asarray(image) for image in generator(prompt, num_images=4)]
        gap = np.full((pictures[0].shape[0], 3, 3), 255, np.uint8)
        strip = [part for picture in pictures for part in (picture, gap)][:-1]
        axis.imshow(np.concatenate(strip, axis=1), interpolation="bicubic")
        axis.set_xlabel(prompt[len("a photo of ") :], fontsize=8, labelpad=3)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "noise_levels.png": noise_levels,
    "seams.svg": seams,
    "paths.svg": paths,
    "networks.svg": networks,
    "race.svg": race,
    "installed_model.png": installed_model,
    **STUDY_FIGURES,
}


def save(name: str, folder: Path) -> None:
    """Draw one figure into the folder."""
    with matplotlib.rc_context(STYLE):
        figure = FIGURES[name]()
        metadata = {"Date": None} if name.endswith(".svg") else {"Software": None}
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format=name[-3:], dpi=110, metadata=metadata)
        plt.close(figure)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for asked in sys.argv[1:] or FIGURES:
        save(asked, OUT)
        print(OUT / asked)
