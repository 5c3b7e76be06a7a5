"""Two recipes on the same pictures, a thread each: how many minutes the second needs for what the first has
at its end.

    python benchmarks/study/race.py SHARDS HELD_OUT.parquet runs/race
    python benchmarks/study/race.py SHARDS HELD_OUT.parquet runs/race --images 40000 --score-every 8000

Both are trained at once, so that they have the same machine; then every checkpoint is scored. Only training
counts as time. Typed again, it goes on. What is kept: the cards in benchmarks/results/study/race, and
race.json beside it, from which `python tools/figures.py race.svg` draws the curves.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kilopix.evaluation.protocol import Card, read_card
from kilopix.recipe import load_recipe
from kilopix.runtime import read_json, say, write_json
from kilopix.training.checkpoint import checkpoints, read_progress

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "results" / "study" / "race.json"
LANES = {"base line": str(HERE / "base_line.toml"), "recommended": "mini"}
SCORES = {"mean of six tasks": "higher", "KID": "lower"}


def run_lane(name: str, arguments: argparse.Namespace) -> None:
    """Train one recipe, and score its checkpoints."""
    from kilopix.stages import evaluate, train

    every = arguments.score_every
    schedule = [f"training.images={arguments.images}", f"training.checkpoint_every={every}"]
    recipe = load_recipe(LANES[name], [*schedule, f"training.keep_every={every}", *arguments.set])
    folder = folder_of(arguments.out, name)
    if not train.run(arguments.shards, folder / "run", recipe):
        sys.exit(1)
    for checkpoint in scored(folder, every):
        settings = [f"evaluation.{key}={value}" for key, value in recipe.evaluation.model_dump().items()]
        evaluate.run(checkpoint, arguments.held_out, folder / "scores" / checkpoint.name, overrides=settings)


def folder_of(out: Path, name: str) -> Path:
    """Where a lane lies."""
    return out / name.replace(" ", "_")


def scored(folder: Path, every: int) -> list[Path]:
    """The checkpoints of a lane that are scored, oldest first; not those of a stop in between."""
    found = checkpoints(folder / "run" / "checkpoints")
    return [checkpoint for checkpoint in found if read_progress(checkpoint).images_seen % every == 0]


def points(folder: Path, every: int) -> list[dict[str, object]]:
    """What a lane scored: images, minutes of training, and each score with its interval."""
    found: list[dict[str, object]] = []
    for checkpoint in scored(folder, every):
        progress = read_progress(checkpoint)
        card = read_card(folder / "scores" / checkpoint.name / "card.json")
        scores = {score: interval_of(card, score) for score in SCORES}
        found.append({"images": progress.images_seen, "minutes": progress.seconds / 60, **scores})
    return found


def keep_cards(folder: Path, every: int) -> None:
    """Copy the cards of a lane to those that are kept."""
    target = KEPT.with_suffix("")
    target.mkdir(parents=True, exist_ok=True)
    for checkpoint in scored(folder, every):
        images = read_progress(checkpoint).images_seen
        card = folder / "scores" / checkpoint.name / "card.json"
        shutil.copyfile(card, target / f"{folder.name}_{images:08d}.json")


def interval_of(card: Card, score: str) -> list[float]:
    """Value, low and high end."""
    one = next(one for one in card.scores if one.name == score)
    return [one.value, one.low, one.high]


def minutes_to(lane: list[dict], score: str, goal: float) -> tuple[float, float] | None:
    """The minutes and images at the first checkpoint that is as good as the goal; None if none is."""
    for point in lane:
        value = point[score][0]
        if value >= goal if SCORES[score] == "higher" else value <= goal:
            return point["minutes"], point["images"]
    return None


def conclude(lanes: dict[str, list[dict]]) -> dict[str, dict[str, float] | None]:
    """For every score: the base line's at its end, and when the recommended recipe had it; None if it never
    had, or if the base line ends with no picture right, which needs no training.
    """
    base, ours = lanes["base line"], lanes["recommended"]
    verdict: dict[str, dict[str, float] | None] = {}
    for score in SCORES:
        goal, whole = base[-1][score][0], base[-1]["minutes"]
        reached = None if SCORES[score] == "higher" and goal <= 0 else minutes_to(ours, score, goal)
        verdict[score] = reached and {
            "goal": goal,
            "minutes_of_base_line": whole,
            "minutes": reached[0],
            "images": reached[1],
            "times_as_fast": whole / reached[0],
        }
    return verdict


def main() -> None:
    """Run both lanes, each in a process of its own, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--score-every", type=int, default=8_000)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes for both")
    parser.add_argument("--lane", choices=LANES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lane:
        run_lane(arguments.lane, arguments)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *sys.argv]
    running = {name: subprocess.Popen([*command, "--lane", name], env=environment) for name in LANES}
    failed = [name for name, process in running.items() if process.wait()]
    if failed:
        sys.exit(f"{', '.join(failed)}: not done; type the same command to go on.")
    lanes = {name: points(folder_of(arguments.out, name), arguments.score_every) for name in LANES}
    for name in LANES:
        keep_cards(folder_of(arguments.out, name), arguments.score_every)
    write_json(KEPT, {"lanes": lanes, "conclusion": conclude(lanes)})
    for score, found in read_json(KEPT)["conclusion"].items():
        say(f"{score}: {found or 'nothing to reach, or not reached'}")


if __name__ == "__main__":
    main()
