"""Scores while training goes on: a checkpoint's averaged weights to pictures to a card.

In: `average.safetensors` of a checkpoint, and the manifest of held-out pictures. Out: a folder with pictures
and their scores. It reads files alone, so that training can call it between two steps, or another process
that watches the checkpoints; a call that was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kilopix.data.manifest import read_manifest
from kilopix.data.picture_sets import SAMPLES
from kilopix.errors import UserError
from kilopix.evaluation.protocol import Card
from kilopix.generator import Generator
from kilopix.jobs import check_same_job
from kilopix.progress import Progress
from kilopix.runtime import read_json, write_json
from kilopix.stages.fidelity import run
from kilopix.training.watching import ScoresConfig
from kilopix.watch import ScoreAverage

SAMPLED_AT_ONCE = 32


def score_average(
    average: Path,
    held_out: Path,
    out: Path,
    count: int = 1000,
    seed: int = 0,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    cache: Path | None = None,
    device: str = "auto",
) -> Card:
    """Make `count` pictures of held-out captions with averaged weights, and score them.

    Picture i has the seed `seed` + i; the captions are spread evenly over the manifest.
    """
    generator = Generator.from_pretrained(average, device)
    rows = read_manifest(held_out).rows
    chosen = [rows[i * len(rows) // count] for i in range(count)] if count < len(rows) else rows
    folder = out / "pictures"
    jobs = [(f"{i:05d}.png", row.caption, seed + i) for i, row in enumerate(chosen)]
    sampling = generator.recipe.sampling
    made = {
        "weights": str(average),
        "weights_sha256": generator.fingerprint,
        "sampling": sampling.model_dump(mode="json"),
        "images": [{"file": file, "prompt": prompt, "seed": number} for file, prompt, number in jobs],
    }
    if (folder / SAMPLES).exists():
        check_same_job(read_json(folder / SAMPLES), made, folder, instead="Choose another folder.")
    else:
        write_json(folder / SAMPLES, made)
    missing = [job for job in jobs if not (folder / job[0]).exists()]
    with Progress("sample for scores", len(jobs), len(jobs) - len(missing)) as shown:
        wanted = [(folder / file, prompt, number) for file, prompt, number in missing]
        generator.write(wanted, sampling, SAMPLED_AT_ONCE, shown)
    return run(folder, held_out, out / "scores", overrides, only, cache=cache, device=device)


def average_scorer(held_out: Path, config: ScoresConfig, seed: int, device: str) -> ScoreAverage:
    """What a run calls between two steps: it scores a file of averaged weights in a folder."""
    if not read_manifest(held_out).rows:
        raise UserError(f"{held_out}: no pictures in it to score against.")

    def score(average: Path, folder: Path) -> Mapping[str, int | float]:
        card = score_average(
            average, held_out, folder, config.images, seed, config.settings, config.only, device=device
        )
        return {score.name: score.value for score in card.scores}

    return score
