"""Weights and prompts to pictures: PNG files, one contact sheet, and a list of what is what.

In: a model, prompts. Out: a folder with `00000.png`, ..., `grid.png` and `samples.json`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilopix.artefacts.locks import owns
from kilopix.data.checked import HASHES, delete_changed, write_hashes
from kilopix.data.pictures import grid, save_png, sheet
from kilopix.data.sources import open_image
from kilopix.diffusion.sampling import UNCHANGED, SamplingChanges, SamplingConfig
from kilopix.english import counted
from kilopix.generator import Generator
from kilopix.jobs import OPTION, Folder, clear, state_of
from kilopix.progress import Progress
from kilopix.runtime import is_whole, name_some, read_json, say, write_json
from kilopix.types import UserError

LIST, GRID = "samples.json", "grid.png"
BATCH = 32
FOLDER = Folder(("[0-9]*.png", GRID), (HASHES,), record=LIST, instead=OPTION)


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


@owns("out")
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
    overwrite: bool = False,
) -> list[Path]:
    """Make pictures of every prompt: of the seeds seed, seed + 1, ..., or of `seeds` if there are any.

    The same call again goes on where it was; the folder of another one is replaced only with `overwrite`.
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
        # From here, so that both may be moved together, and equal calls elsewhere give equal files.
        "weights": os.path.relpath(generator.weights.resolve(), out.resolve()),
        "weights_sha256": generator.fingerprint,
        "sampling": own.model_dump(mode="json"),
        "images": [
            {"file": file.name, "prompt": job.prompt, "seed": job.seed, **_swept(job, sweep, own)}
            for file, job in zip(files, jobs, strict=True)
        ],
    }
    state = state_of(out, FOLDER, _told(made, out), overwrite, lambda file: _told(read_json(file), file))
    if state == "other":
        clear(out, FOLDER)
    if state != "same":
        write_json(out / LIST, made)
    elif (out / GRID).exists():
        delete_changed(out)
        lost = [file.name for file in (*files, out / GRID) if not is_whole(file)]
        if not lost:
            say(f"{out / GRID}: already complete, {counted(len(files), 'picture')}.")
            return files
        say(f"{out}: was complete, but these are missing or damaged, and made anew: {name_some(lost)}.")
    _make_missing(generator, jobs, files, settings)
    images = [open_image(file) for file in files]
    save_png(_contact_sheet(images, prompts, seeds, sweep), out / GRID)
    write_hashes(out, [*(file.name for file in files), LIST])
    say(f"{out / GRID}: {counted(len(files), 'picture')}.")
    return files


def _told(made: Any, place: Path) -> dict[str, Any]:
    """What a list of samples says of the call that it is of, in the words of the command line."""
    try:
        images = made["images"]
        told = {
            "model": f"{Path(made['weights']).name} ({str(made['weights_sha256'])[:8]})",
            "prompts": list(dict.fromkeys(image["prompt"] for image in images)),
            "seeds": list(dict.fromkeys(image["seed"] for image in images)),
        }
        for key in ("steps", "guidance"):
            told[key] = list(dict.fromkeys(image[key] for image in images if key in image))
        return {**told, "sampling": made["sampling"], "images": len(images)}
    except (KeyError, TypeError):
        raise UserError(f"{place}: not a list of samples by this command; choose another folder.") from None


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
    missing = [i for i, file in enumerate(files) if not is_whole(file)]
    with Progress("sample", len(files), len(files) - len(missing)) as shown:
        for sampling in settings:
            alike = [i for i in missing if jobs[i].sampling is sampling]
            wanted = [(files[i], jobs[i].prompt, jobs[i].seed) for i in alike]
            generator.write(wanted, sampling, BATCH, shown)


def _contact_sheet(images: list[Any], prompts: Sequence[str], seeds: Sequence[int], sweep: Sweep) -> Any:
    """A plain grid; or with a sweep, guidance from left to right, and all else from top to bottom."""
    scales = [f"guidance {scale:g}" for scale in sweep.guidance]
    steps = [counted(count, "step") for count in sweep.steps]
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
