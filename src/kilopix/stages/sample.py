"""Weights and prompts to pictures: PNG files, one grid, and a list of what is what.

In: a run, prompts. Out: a folder with `00000.png`, ..., `grid.png` and `samples.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from kilopix.data.pictures import grid, save_png
from kilopix.diffusion.samplers import UNCHANGED, SamplingChanges
from kilopix.generator import Generator
from kilopix.runtime import progress_bar, say, write_json
from kilopix.types import UserError

LIST = "samples.json"


def read_prompts(path: Path | None, text: str = "") -> list[str]:
    """One prompt a line, from a file or from text that was read; empty lines are left out."""
    if path is not None:
        if not path.is_file():
            raise UserError(f"{path}: no such file of prompts.")
        text = path.read_text()
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"{path or 'standard input'}: no prompts in it; write one a line.")
    return prompts


def run(
    model: Path,
    prompts: Sequence[str],
    out: Path,
    images_per_prompt: int = 1,
    seed: int = 0,
    changes: SamplingChanges = UNCHANGED,
    device: str = "auto",
) -> list[Path]:
    """Make `images_per_prompt` pictures of every prompt, with the seeds seed, seed + 1, ..."""
    generator = Generator.from_pretrained(model, device)
    sampling = changes.apply(generator.recipe.sampling)
    seeds = [seed + i for i in range(images_per_prompt)]
    with progress_bar() as bar:
        task = bar.add_task("sample", total=len(prompts) * len(seeds), note="")
        images = generator(prompts, seeds, sampling, on_image=lambda n: bar.update(task, completed=n))
    files = [out / f"{i:05d}.png" for i in range(len(images))]
    for image, file in zip(images, files, strict=True):
        save_png(image, file)
    save_png(grid(images, prompts, len(seeds)), out / "grid.png")
    listed = [
        {"file": files[i].name, "prompt": prompts[i // len(seeds)], "seed": seeds[i % len(seeds)]}
        for i in range(len(images))
    ]
    how = {
        "weights": str(generator.weights),
        "weights_sha256": generator.fingerprint,
        "sampling": sampling.model_dump(),
    }
    write_json(out / LIST, {**how, "images": listed})
    say(f"{out / 'grid.png'}: {len(images)} pictures.")
    return files
