"""Weights and prompts to pictures: PNG files, one contact sheet, and a list of what is what.

In: a model, prompts. Out: a folder with `00000.png`, ..., `grid.png` and `samples.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilopix.data.pictures import grid, save_png, sheet
from kilopix.data.sources import open_image
from kilopix.diffusion.sampling import UNCHANGED, SamplingChanges, SamplingConfig
from kilopix.generator import Generator
from kilopix.runtime import progress_bar, read_json, say, write_json
from kilopix.types import UserError

LIST, GRID = "samples.json", "grid.png"
BATCH = 32


@dataclass(frozen=True)
class Sweep:
    """Values of settings that are all tried, on every prompt and seed; empty for the setting as it is."""

    guidance: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Job:
    """One picture."""

    prompt: str
    seed: int
    sampling: SamplingConfig


def run(
    model: Path | str,
    prompts: Sequence[str],
    out: Path,
    images_per_prompt: int = 1,
    seed: int = 0,
    changes: SamplingChanges = UNCHANGED,
    device: str = "auto",
    seeds: Sequence[int] = (),
    sweep: Sweep | None = None,
) -> list[Path]:
    """Make pictures of every prompt: of the seeds seed, seed + 1, ..., or of `seeds` if there are any.

    The same call again goes on where it was; another call on the same folder replaces what is there.
    """
    generator = Generator.from_pretrained(model, device)
    if note := generator.trained_on.note(prompts):
        say(note, stderr=True)
    own = generator.settings(changes)
    sweep = sweep or Sweep()
    settings = [
        generator.settings(SamplingChanges(steps=steps, guidance=scale), own)
        for steps in sweep.steps or (None,)
        for scale in sweep.guidance or (None,)
    ]
    seeds = seeds or range(seed, seed + images_per_prompt)
    jobs = [_Job(prompt, number, s) for prompt in prompts for number in seeds for s in settings]
    files = [out / f"{i:05d}.png" for i in range(len(jobs))]
    made = {
        "weights": str(generator.weights),
        "weights_sha256": generator.fingerprint,
        "sampling": own.model_dump(mode="json"),
        "images": [
            {"file": file.name, "prompt": job.prompt, "seed": job.seed, **_swept(job, sweep, own)}
            for file, job in zip(files, jobs, strict=True)
        ],
    }
    if not (out / LIST).exists():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out}: not empty, and not made by this command; choose another folder.")
        write_json(out / LIST, made)
    elif (before := read_json(out / LIST)) != made:
        for image in before["images"]:  # pictures of another call; this one takes their place
            (out / image["file"]).unlink(missing_ok=True)
        (out / GRID).unlink(missing_ok=True)
        write_json(out / LIST, made)
    elif (out / GRID).exists():
        say(f"{out / GRID}: already complete, {len(files)} pictures.")
        return files
    _make_missing(generator, jobs, files, settings)
    images = [open_image(file) for file in files]
    save_png(_contact_sheet(images, prompts, seeds, sweep), out / GRID)
    say(f"{out / GRID}: {len(files)} pictures.")
    return files


def _swept(job: _Job, sweep: Sweep, own: SamplingConfig) -> dict[str, Any]:
    """The settings of one picture that differ from picture to picture, or from those of the call."""
    values = {"guidance": (job.sampling.guidance.scale, own.guidance.scale)}
    values["steps"] = (job.sampling.steps, own.steps)
    return {
        k: value for k, (value, of_call) in values.items() if len(getattr(sweep, k)) > 1 or value != of_call
    }


def _make_missing(
    generator: Generator, jobs: list[_Job], files: list[Path], settings: list[SamplingConfig]
) -> None:
    missing = [i for i, file in enumerate(files) if not file.exists()]
    with progress_bar() as bar:
        task = bar.add_task("sample", total=len(files), completed=len(files) - len(missing), note="")
        for sampling in settings:
            alike = [i for i in missing if jobs[i].sampling is sampling]
            for start in range(0, len(alike), BATCH):
                batch = alike[start : start + BATCH]
                images = generator.generate([(jobs[i].prompt, jobs[i].seed) for i in batch], sampling, BATCH)
                for i, image in zip(batch, images, strict=True):
                    save_png(image, files[i])
                bar.advance(task, len(batch))


def _contact_sheet(images: list[Any], prompts: Sequence[str], seeds: Sequence[int], sweep: Sweep) -> Any:
    """A plain grid; or with a sweep, guidance from left to right, and all else from top to bottom."""
    scales = [f"guidance {scale:g}" for scale in sweep.guidance]
    steps = [f"{count} steps" for count in sweep.steps]
    if len(scales) < 2 and len(steps) < 2:
        return grid(images, prompts, len(seeds))
    columns, others = (scales, steps) if len(scales) > 1 else (steps, scales)
    rows = [
        "\n".join(part for part in (prompt, f"seed {seed}", other) if part)
        for prompt in prompts
        for seed in seeds
        for other in others or [""]
    ]
    return sheet(images, columns, rows)
