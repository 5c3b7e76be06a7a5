"""Weights and prompts to pictures: PNG files, one grid, and a list of what is what.

In: a run, prompts. Out: a folder with `00000.png`, ..., `grid.png` and `samples.json`.
"""

from collections.abc import Sequence
from pathlib import Path

from kilopix.data.pictures import grid, save_png
from kilopix.data.sources import open_image
from kilopix.diffusion.sampling import UNCHANGED, SamplingChanges
from kilopix.generator import Generator
from kilopix.runtime import progress_bar, read_json, say, write_json
from kilopix.types import UserError

LIST, GRID = "samples.json", "grid.png"
BATCH = 32


def read_prompts(path: Path | None, text: str = "") -> list[str]:
    """One prompt a line, from a file or from text that was read; empty lines are left out."""
    if path is not None:
        if not path.is_file():
            raise UserError(f"{path}: no such file of prompts.")
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a text file of prompts.") from None
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
    """Make `images_per_prompt` pictures of every prompt, with the seeds seed, seed + 1, ...

    The same call again goes on where it was; another call on the same folder replaces what is there.
    """
    generator = Generator.from_pretrained(model, device)
    sampling = changes.apply(generator.recipe.sampling)
    jobs = [(prompt, seed + i) for prompt in prompts for i in range(images_per_prompt)]
    files = [out / f"{i:05d}.png" for i in range(len(jobs))]
    made = {
        "weights": str(generator.weights),
        "weights_sha256": generator.fingerprint,
        "sampling": sampling.model_dump(mode="json"),
        "images": [
            {"file": file.name, "prompt": prompt, "seed": seed}
            for file, (prompt, seed) in zip(files, jobs, strict=True)
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
    missing = [i for i, file in enumerate(files) if not file.exists()]
    with progress_bar() as bar:
        task = bar.add_task("sample", total=len(files), completed=len(files) - len(missing), note="")
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            images = generator.generate([jobs[i] for i in batch], sampling, BATCH)
            for i, image in zip(batch, images, strict=True):
                save_png(image, files[i])
            bar.advance(task, len(batch))
    save_png(grid([open_image(file) for file in files], prompts, images_per_prompt), out / GRID)
    say(f"{out / GRID}: {len(files)} pictures.")
    return files
