"""The study: every arm with every seed, from drawn pictures to cards; typed again, it goes on.

    python benchmarks/study/run.py runs/study                 # all that is left to do
    python benchmarks/study/run.py runs/study --only ta seed1 # parts of it
    python benchmarks/study/run.py runs/study --list          # what is done
    python benchmarks/study/run.py runs/study --curves        # scores kept checkpoints, for the curves

Every training is a process of its own with its share of the cores. What is scored is kept:
`benchmarks/results/study/ARM/seedN/card.json`, from which `tables.py` computes, and beside it the verdict on
every picture, the captions that it chooses (`choose.py`), the losses, and the scores of checkpoints.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import Arm, Study, load_study
from choose import choices
from methods import trained_by
from PIL import Image

from kilopix.generator import Generator
from kilopix.runtime import atomic_path, say, write_json
from kilopix.training.checkpoint import checkpoints, read_progress
from kilopix.validation import RECORD

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "results" / "study"
DEFAULT = HERE / "study.toml"
CURVES, FACTS, CHOICES, PICTURES = "checkpoints.json", "facts.json", "choices.json", "pictures.png"
STRIP_OF_A_TASK = 2
STYLES = {"plain": "scores", "placed": "placed"}
PLACED = "placed.json"


@dataclass(frozen=True)
class Part:
    """One training with its scores."""

    name: str
    arm: Arm
    seed: int

    @property
    def folder(self) -> Path:
        """Where it lies, below the study's folder and below that of the kept cards."""
        return Path(self.name) / f"seed{self.seed}"


def parts(study: Study) -> list[Part]:
    """The trainings, all arms with the first seed first: what there is can be compared at any time."""
    return [Part(name, arm, seed) for seed in study.seeds for name, arm in study.arms.items()]


def prepare(study: Study, out: Path) -> None:
    """Draw the pictures, caption, augment and encode them, once for all the arms that share them."""
    from kilopix.stages import augment, caption, encode, mini

    recipe = study.recipe(next(iter(study.arms.values())), study.seeds[0])
    world, size = recipe.world, recipe.data.image_size
    mini.run(out / "world", world.images_per_class, size, 0, world.classes, world.val_per_class)
    for captioner in ("structured", *{arm.captions for arm in study.arms.values()} - {"structured"}):
        caption.run(out / "world" / "train", out / f"{captioner}.parquet", captioner, 0)
        caption.run(out / "world" / "val", held_out(captioner, out), captioner, 0)
    for arm in study.arms.values():
        manifest = out / f"{arm.captions}.parquet"
        augmented = None
        if arm.augment != "none":
            folder = out / f"{arm.captions}_{arm.augment}"
            augment.run(manifest, folder, arm.augment, recipe.data.augment.setting, size, 0)
            augmented = folder / augment.MANIFEST
        shards, recipe = shards_of(arm, out), study.recipe(arm, 0)
        encode.run(manifest, shards, recipe, augmented)
        encode.run(held_out(arm.captions, out), held_out_shards_of(arm, out), recipe, codec=shards)


def held_out(captions: str, out: Path) -> Path:
    """The manifest of held-out pictures with captions of one kind."""
    return out / f"held_out_{captions}.parquet"


def shards_of(arm: Arm, out: Path) -> Path:
    """The shards that an arm trains on."""
    return out / f"shards_{arm.captions}_{arm.augment}{arm.encoding}"


def held_out_shards_of(arm: Arm, out: Path) -> Path:
    """Shards of held-out pictures, encoded as those that an arm trains on."""
    return out / f"held_out_{arm.captions}_{arm.augment}{arm.encoding}"


def train_and_score(study: Study, part: Part, out: Path, kept: Path) -> None:
    """One training, its scores, and what is kept of them."""
    from kilopix.stages import evaluate, train

    recipe = study.recipe(part.arm, part.seed)
    folder = out / part.folder
    shards, held_out_shards = shards_of(part.arm, out), held_out_shards_of(part.arm, out)
    with trained_by(part.arm.method, shards):
        if not train.run(shards, folder / "run", recipe, validation=held_out_shards):
            return
    for style in study.styles:
        settings = {**recipe.evaluation.model_dump(), "prompt_style": style}
        overrides = [f"evaluation.{key}={value}" for key, value in settings.items()]
        evaluate.run(folder / "run", held_out("structured", out), folder / STYLES[style], overrides=overrides)
    chosen = choices(Generator.from_pretrained(folder / "run", "cpu"))
    keep(part, folder, chosen, kept)


def keep(part: Part, folder: Path, chosen: dict[str, list[bool]], kept: Path) -> None:
    """Copy the card; write what the judge found, the captions chosen, losses, seams and some pictures."""
    target = kept / part.folder
    target.mkdir(parents=True, exist_ok=True)
    judged = read_lines(folder / "scores" / "judged.jsonl")
    verdicts = [
        [line["tag"], line["prompt"], int(line["correct"]), [one["name"] for one in line["found"]]]
        for line in judged
    ]
    with atomic_path(target / "verdicts.json") as temporary:
        temporary.write_text(
            "[\n" + ",\n".join(json.dumps(line) for line in verdicts) + "\n]\n", encoding="utf-8"
        )
    log = read_lines(folder / "run" / "log.jsonl")
    every = max(1, len(log) // 100)
    losses = [[line["images"], line["loss"], line["seconds"]] for line in log[::every]]
    facts = {"training": losses, "fixed": read_lines(folder / "run" / RECORD), "seam": seams(folder, judged)}
    write_json(target / FACTS, facts)
    # A digit for every question, 1 where the right caption was chosen.
    write_json(
        target / CHOICES, {task: "".join(str(int(r)) for r in rights) for task, rights in chosen.items()}
    )
    with atomic_path(target / PICTURES) as temporary:
        strip_of(folder / "scores", judged).save(temporary, format="png")
    if (folder / STYLES["placed"]).exists():
        shutil.copyfile(folder / STYLES["placed"] / "card.json", target / PLACED)
    with atomic_path(target / "card.json") as temporary:  # last: a part is done when its card is there
        shutil.copyfile(folder / "scores" / "card.json", temporary)


def seams(folder: Path, judged: list[dict[str, Any]]) -> list[float]:
    """How much of a seam pictures of one object have where pasted quarters have theirs: in the middle."""
    tags = ("single_object", "colors")
    files = [folder / "scores" / line["file"] for line in judged if line["tag"] in tags]
    return [round(middle_edge(np.asarray(Image.open(file).convert("L"), np.float32)), 3) for file in files]


def middle_edge(grey: np.ndarray) -> float:
    """Mean step in grey levels over the two middle lines, less that over the two lines 8 pixels beside each.

    Those beside are borders of the codec's patches just as the middle is, but no paste ends there.
    """
    middle = grey.shape[0] // 2
    steps = [np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis) for axis in (0, 1)]
    beside = [step[[middle - 9, middle + 7]].mean() for step in steps]
    return float(np.mean([step[middle - 1] - other for step, other in zip(steps, beside, strict=True)]))


def strip_of(scores: Path, judged: list[dict[str, Any]]) -> Image.Image:
    """Side by side, the first picture of the first prompts of every task."""
    chosen = []
    for tag in dict.fromkeys(line["tag"] for line in judged):
        lines = {line["prompt"]: line for line in reversed(judged) if line["tag"] == tag}
        chosen += list(reversed(lines.values()))[:STRIP_OF_A_TASK]
    pictures = [Image.open(scores / line["file"]) for line in chosen]
    side = pictures[0].width
    strip = Image.new("RGB", (side * len(pictures), side))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * side, 0))
    return strip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a record, none if it is not there."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def score_checkpoints(study: Study, part: Part, out: Path, kept: Path) -> None:
    """Score the kept checkpoints of one training with fewer pictures, and keep what comes out."""
    from kilopix.stages import evaluate

    folder = out / part.folder
    found = []
    for checkpoint in checkpoints(folder / "run" / "checkpoints"):
        images = read_progress(checkpoint).images_seen
        scores = folder / "checkpoints" / checkpoint.name
        card = evaluate.run(checkpoint, held_out("structured", out), scores, overrides=study.curves)
        found.append({"images": images, "scores": {score.name: score.value for score in card.scores}})
    write_json(kept / part.folder / CURVES, found)


def run_all(arguments: argparse.Namespace, study: Study, chosen: list[Part]) -> int:
    """Work through the parts, `--jobs` at a time; returns how many failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # trainings are stopped on the way out
    share = max(1, (os.cpu_count() or 1) // arguments.jobs)
    environment = {"OMP_NUM_THREADS": str(share), **os.environ}
    waiting, running, failed = list(chosen), {}, 0
    try:
        while waiting or running:
            while waiting and len(running) < arguments.jobs:
                part = waiting.pop(0)
                command = [sys.executable, __file__, *sys.argv[1:], "--one", part.name, str(part.seed)]
                log = arguments.out / part.folder / "log.txt"
                log.parent.mkdir(parents=True, exist_ok=True)
                with open(log, "a", encoding="utf-8") as file:
                    process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
                running[process] = part
                say(f"{part.folder}: begun ({len(waiting)} wait)")
            for process in [p for p in running if p.poll() is not None]:
                part = running.pop(process)
                failed += process.returncode != 0
                say(f"{part.folder}: {'done' if process.returncode == 0 else 'FAILED, see its log.txt'}")
            time.sleep(0.5)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def main() -> None:
    """Read the arguments and go on where the study is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for pictures, shards and runs")
    parser.add_argument("--study", type=Path, default=DEFAULT)
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the cards that are kept")
    parser.add_argument("--only", nargs="*", default=[], help="arms, and seeds as seed0")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes for all arms")
    parser.add_argument("--list", action="store_true", help="say what is done, and stop")
    parser.add_argument("--curves", action="store_true", help="score the kept checkpoints of what is done")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    study = load_study(arguments.study, tuple(arguments.set))
    every = parts(study)
    if arguments.one:
        name, seed = arguments.one
        part = next(part for part in every if (part.name, part.seed) == (name, int(seed)))
        work = score_checkpoints if arguments.curves else train_and_score
        work(study, part, arguments.out, arguments.kept)
        return
    seeds = {name for name in arguments.only if name.startswith("seed")}
    arms = set(arguments.only) - seeds
    chosen = [p for p in every if (not arms or p.name in arms) and (not seeds or f"seed{p.seed}" in seeds)]
    done = CURVES if arguments.curves else "card.json"
    left = [part for part in chosen if not (arguments.kept / part.folder / done).exists()]
    if arguments.list:
        for part in chosen:
            say(f"{part.folder}: {'to do' if part in left else 'done'}")
        return
    if left and not arguments.curves:
        prepare(study, arguments.out)
    failed = run_all(arguments, study, left)
    say(f"{len(chosen) - len(left)} were done, {len(left) - failed} done now, {failed} failed.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
