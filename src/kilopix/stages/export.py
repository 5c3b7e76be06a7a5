"""A model to a folder for others: for the Hugging Face hub, or a pipeline of diffusers.

In: a model, protocol cards. Out: a folder with a model card, samples and weights; complete or absent.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from kilopix.artefacts.locks import owns, temporary_beside
from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.diffusion.sampling import UNCHANGED, SamplingChanges
from kilopix.evaluation.protocol import read_card
from kilopix.export.diffusers_folder import INDEX, write_pipeline
from kilopix.export.model_card import About, Sample, model_card, read_cards
from kilopix.export.weights_file import header_of, write_weights
from kilopix.generator import Generator
from kilopix.jobs import Folder, state_of
from kilopix.model_files import CONFIG, WEIGHTS
from kilopix.progress import Progress
from kilopix.runtime import name_some, read_json, say, sha256_of_file, sha256_of_text, write_json
from kilopix.types import UserError

Format = Literal["hub", "diffusers"]
SAMPLES_ON_CARD = 3
CARD, SAMPLES = "README.md", "samples"
FOLDER = Folder(
    (
        CARD,
        WEIGHTS,
        CONFIG,
        INDEX,
        "*.py",
        "*/*.json",
        "*/*.safetensors",
        "*/*.py",
        f"{SAMPLES}/*",
        "text_encoder/*",
        "tokenizer/*",
    )
)
MADE_BY = "kilopix export"


@owns("out", file=True)  # a lock beside it, since the folder is replaced whole
def run(
    model: Path | str,
    out: Path,
    kind: Format = "hub",
    scores: Sequence[Path] = (),
    about: About | None = None,
    prompts: Sequence[str] = (),
    seed: int = 0,
    changes: SamplingChanges = UNCHANGED,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Write the folder; the same command again says that it is done.

    `changes` become the exported model's own sampling settings. Without `prompts`, its samples are of what it
    was trained on. Without `scores`, the card has those that lie in the run or beside it. Raises
    `UserError` for scores of other weights, and for a folder that something else made.
    """
    generator = Generator.from_pretrained(model, device, dtype="float32")
    scores = scores or scores_beside(generator)
    cards = read_cards(scores)
    for path, card in zip(scores, cards, strict=True):
        if card.checkpoint_sha256 not in (None, generator.fingerprint):
            raise UserError(f"{path}: scores of other weights than {generator.weights}.")
    prompts = prompts or prompts_to_try(generator.trained_on, SAMPLES_ON_CARD)
    if note := generator.trained_on.note(prompts):
        say(note, stderr=True)
    sampling = generator.settings(changes)
    generator = replace(generator, recipe=generator.recipe.model_copy(update={"sampling": sampling}))
    about = about or About(out.resolve().name)
    job = {
        "stage": "export",
        "format": kind,
        "weights": generator.fingerprint,
        "sampling": sampling.model_dump(mode="json"),
        "scores": [sha256_of_text(card.model_dump_json()) for card in cards],
        "about": asdict(about),
        "prompts": list(prompts),
        "seed": seed,
    }
    state = state_of(out, FOLDER, job, overwrite, lambda record: {**read_json(record), "files": {}})
    if state == "same":
        files: dict[str, str] = read_json(out / FOLDER.record)["files"]
        changed = [n for n, h in files.items() if not (out / n).is_file() or sha256_of_file(out / n) != h]
        lost = [name for name in changed if name != CARD or not (out / CARD).is_file()]
        if not lost:
            say(f"{out}: already complete, {_how_to_load(kind, out)}")
            return
        say(f"{out}: was complete, but these are missing or changed, and made anew: {name_some(lost)}.")
    temporary = temporary_beside(out)
    try:
        temporary.mkdir(parents=True)
        if kind == "diffusers":
            write_pipeline(generator, temporary)
        else:
            write_weights(generator, temporary / WEIGHTS)
            write_json(temporary / CONFIG, {"made_by": MADE_BY, **header_of(generator)}, seal=False)
        samples = [Sample(f"{SAMPLES}/{i:02d}.png", text, seed) for i, text in enumerate(prompts)]
        wanted = [(temporary / s.file, s.prompt, s.seed) for s in samples]
        with Progress("sample for the card", len(wanted)) as shown:
            generator.write(wanted, sampling, 32, shown)
        text = model_card(generator, about, cards, samples, kind == "diffusers")
        own = state == "same" and (out / CARD).is_file()  # which may hold words of the user
        (temporary / CARD).write_bytes((out / CARD).read_bytes() if own else text.encode())
        made = sorted(file for file in temporary.rglob("*") if file.is_file())
        files = {file.relative_to(temporary).as_posix(): sha256_of_file(file) for file in made}
        write_json(temporary / FOLDER.record, {**job, "files": files})
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size / 1e6:.1f} MB, {_how_to_load(kind, out)}")


def scores_beside(generator: Generator) -> list[Path]:
    """The cards of exactly these weights in their run, or in a folder beside it; each is named."""
    run = generator.weights.resolve().parent
    found = []
    inside = [path for pattern in ("*/card.json", "scores/*/scores/card.json") for path in run.glob(pattern)]
    for path in sorted({*inside, *run.parent.glob("*/card.json")}):
        try:
            card = read_card(path)
        except UserError:
            continue  # a file of this name that is something else
        if card.checkpoint_sha256 == generator.fingerprint:
            say(f"{path}: scores of these weights, put on the model card.")
            found.append(path)
    return found


def _how_to_load(kind: Format, out: Path) -> str:
    if kind == "diffusers":
        return f"loads with DiffusionPipeline.from_pretrained({str(out)!r}, trust_remote_code=True)."
    return f"loads with Generator.from_pretrained({str(out)!r}); upload it with `hf upload NAME {out}`."
