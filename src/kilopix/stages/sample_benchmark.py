"""Weights to the pictures of a benchmark: GenEval's 553 prompts or DPG-Bench's, laid out for scoring.

In: a run, and for DPG-Bench its questions. Out: a folder that `kilopix geneval` or `kilopix dpg` scores, with
`made.json` on how it was made.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kilopix.artefacts.locks import owns
from kilopix.data.checked import HASHES, delete_changed, write_hashes
from kilopix.diffusion.sampling import UNCHANGED, SamplingChanges
from kilopix.english import counted
from kilopix.evaluation.dpg_questions import read_questions
from kilopix.evaluation.geneval import prompts_to_text
from kilopix.evaluation.geneval_folder import metadata_path, metadata_text, sample_path
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.evaluation.lengthened import lengthened_from_lines
from kilopix.evaluation.made import MADE, PLAIN, Made, write_made
from kilopix.generator import Generator
from kilopix.jobs import Folder, clear, state_of
from kilopix.progress import Progress
from kilopix.runtime import atomic_path, is_whole, name_some, read_lines, say, sha256_of_text
from kilopix.types import UserError

Benchmark = Literal["geneval", "dpg"]
BATCH = 32
FOLDER = Folder(("*/[0-9]*.png",), ("*/metadata.jsonl", HASHES), record=MADE)


@dataclass(frozen=True)
class _Asked:
    """A prompt's text as the model gets it, and the files of its pictures below the folder."""

    text: str
    files: tuple[Path, ...]


@owns("out")
def run(
    benchmark: Benchmark,
    model: Path | str,
    out: Path,
    per_prompt: int = 4,
    seed: int = 0,
    changes: SamplingChanges = UNCHANGED,
    lengthened: Path | None = None,
    questions: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Make `per_prompt` pictures of every prompt, with the seeds seed, seed + 1, ... for each prompt.

    The same command again goes on where it was.
    """
    asked, style, sha256 = _asked(benchmark, per_prompt, lengthened, questions)
    generator = Generator.from_pretrained(model, device)
    if note := generator.trained_on.note([one.text for one in asked]):
        say(note, stderr=True)
    sampling = changes.apply(generator.recipe.sampling)
    _begin(
        out,
        Made(
            checkpoint=generator.weights.name,
            checkpoint_sha256=generator.fingerprint,
            recipe_sha256=generator.recipe.fingerprint(),
            prompt_style=style,
            prompts_sha256=sha256,
            seeds=tuple(range(seed, seed + per_prompt)),
            sampler=sampling.sampler,
            steps=sampling.steps,
            guidance=sampling.guidance.scale,
        ),
        overwrite,
    )
    if benchmark == "geneval":
        _write_metadata(out)
    jobs = [(out / file, one.text, seed + i) for one in asked for i, file in enumerate(one.files)]
    missing = [job for job in jobs if not is_whole(job[0])]
    if (out / HASHES).exists() and missing:
        lost = [str(file.relative_to(out)) for file, *_ in missing]
        say(f"{out}: was complete, but these are missing or damaged, and made anew: {name_some(lost)}.")
    with Progress("sample", len(jobs), len(jobs) - len(missing)) as shown:
        generator.write(missing, sampling, BATCH, shown)
    write_hashes(out, [*(file.as_posix() for one in asked for file in one.files), MADE])
    say(f"{out}: {counted(len(jobs), 'picture')} of {counted(len(asked), 'prompt')}, {style}.")
    return out


def _asked(
    benchmark: Benchmark, per_prompt: int, lengthened: Path | None, questions: Path | None
) -> tuple[list[_Asked], str, str]:
    """What is asked for, the style of the prompts and the hash of the texts."""
    if benchmark == "geneval":
        prompts = official_prompts()
        plain = [prompt.text for prompt in prompts]
        root = Path()
        files = [
            tuple(sample_path(root, number, i) for i in range(per_prompt)) for number in range(len(prompts))
        ]
        sha256 = sha256_of_text(prompts_to_text(prompts))
    else:
        if questions is None:
            raise UserError("DPG-Bench's prompts are in its questions; give the file with --questions.")
        items = read_questions(questions).items
        plain = [item.prompt for item in items]
        files = [tuple(Path(item.name) / f"{i:04d}.png" for i in range(per_prompt)) for item in items]
        sha256 = sha256_of_text("\n".join(plain))
    if lengthened is None:
        texts, style = plain, PLAIN
    else:
        longer = lengthened_from_lines(read_lines(lengthened), str(lengthened))
        texts, style, sha256 = longer.of(plain), longer.style, longer.sha256
    return [_Asked(text, names) for text, names in zip(texts, files, strict=True)], style, sha256


def _begin(out: Path, made: Made, overwrite: bool) -> None:
    """Record how the pictures are made, or refuse a folder whose pictures are made in another way."""
    state = state_of(out, FOLDER, made.model_dump(mode="json"), overwrite)
    if state == "other":
        clear(out, FOLDER)
    if state != "same":
        write_made(out, made)
    else:
        delete_changed(out)


def _write_metadata(out: Path) -> None:
    for number, prompt in enumerate(official_prompts()):
        path = metadata_path(out, number)
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text(metadata_text(prompt), encoding="utf-8")
