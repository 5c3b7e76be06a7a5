"""Every artefact that a command reads, damaged in every way: named before use, or passed by with a word.

Two small worlds are made once, the second with other seeds. Each case takes a copy of the first, damages one
file and calls one command that reads it. With `-s` a table of counts is printed, in Markdown.
"""

import os
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from doors import SERVER, chat_server, write_benchmarks

from kilopix.cli import main
from kilopix.demo import run as run_demo
from tiny import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7000)]
POWER = ["training.average.kind=power", "training.average.snapshot_every=32"]


@dataclass(frozen=True)
class Artefact:
    """A file, by the pattern of its path in the world, and the commands that read it.

    `first` is deleted before, so that the command needs the file. `again` are those that hold a valid other
    file against what they know: to the rest it is another input, as good as the first.
    """

    name: str
    pattern: str
    commands: tuple[str, ...]
    again: tuple[str, ...] | None = None
    first: tuple[str, ...] = ()


RECIPE = ["--recipe", "mini", *TINY]
FAST = ["--steps", "1", "--device", "cpu"]
RECIPES = ("encode again", "train", "train again", "start from")
JUDGING = [setting for setting in TINY if setting.startswith("evaluation.")]
KID = ["--only", "efficientnet-lite0", "kid_subset_size=2", "neighbours=1"]
SEEN = ["--detector", "{models}/detector", "--clip", "{models}/clip", "--any-prompts"]
ASKED = ["--questions", "questions.csv", "--model", "{models}/vlm", "--device", "cpu"]
MADE = ["-n", "1", "--questions", "questions.csv", "--device", "cpu"]
LENGTHENED = ["--lengthened", "longer.jsonl"]
LONGER = ["--model", "big", "--server", "{server}", "--prompts", "prompts.txt"]
COMMANDS: dict[str, list[str]] = {
    "augment": ["augment", "captions.parquet", "new"],
    "augment again": ["augment", "captions.parquet", "augmented", "--size", "32"],
    "encode": ["encode", "captions.parquet", "new", *RECIPE],
    "encode again": ["encode", "captions.parquet", "shards", "--augmented", "augmented/manifest.parquet"],
    "train": ["train", "shards", "new"],
    "train again": ["train", "shards", "run"],
    "inspect": ["inspect", "shards", "page.html"],
    "verify": ["verify", "shards"],
    "sample": ["sample", "run", "a photo of a cat", "--out", "new", *FAST],
    "sample again": ["sample", "run", "a photo of a cat", "a car", "a banana", "--out", "pictures", *FAST],
    "sample exported": ["sample", "exported", "a photo of a cat", "--out", "new", *FAST],
    "export": ["export", "run", "new", "--steps", "1"],
    "export again": ["export", "run", "exported", "--steps", "1"],
    "average": ["average", "power", "--sigma-rel", "0.1", "--out", "new.safetensors"],
    "start from": ["train", "shards", "new", "--start-from", "run"],
    "report": ["report", "run", "page.html", "--scores", "scores", "--samples", "pictures"],
    "report augmented": ["report", "run", "page.html", "--augmented", "augmented/manifest.parquet"],
    "compare": ["compare", "scores", "others/scores", "--out", "new"],
    "evaluate": ["evaluate", "run", "held_out.parquet", "--out", "new", *JUDGING],
    "evaluate again": ["evaluate", "run", "held_out.parquet", "--out", "scores", *JUDGING],
    "fidelity": ["fidelity", "pictures", "world/val", "--out", "new", *KID],
    "fidelity again": ["fidelity", "pictures", "world/val", "--out", "distances", *KID],
    "geneval again": ["geneval", "geneval", "--out", "detected", *SEEN],
    "dpg again": ["dpg", "dpg", "--out", "answered", *ASKED],
    "dpg made": ["dpg", "made", "--out", "new", "--layout", "folders", *ASKED],
    "sample-benchmark again": ["sample-benchmark", "dpg", "run", "made", *MADE],
    "sample-benchmark longer": ["sample-benchmark", "dpg", "run", "new", *MADE, *LENGTHENED],
    "lengthen again": ["lengthen", "longer.jsonl", *LONGER],
    "fetch-dpg again": ["fetch-dpg", "fetched.csv", "--url", "file://{place}/questions.csv"],
    "caption again": ["caption", "world/train", "captions.parquet", "--captioner", "structured"],
}  # fmt: skip
MADE_ONCE = (
    *("sample again", "fidelity again", "geneval again", "dpg again", "lengthen again", "fetch-dpg again"),
    "sample-benchmark again",
)
SCORED = ("distances/card.json", "distances/scores/efficientnet-lite0.json")
LAST = "run/checkpoints/*96"
ENDED = ("run/model.safetensors",)
ARTEFACTS = [
    Artefact("captions", "captions.parquet", ("augment", "encode", "caption again"), ("encode again",)),
    Artefact("held-out captions", "held_out.parquet", ("evaluate",), ("evaluate again",)),
    Artefact("augmented manifest", "augmented/manifest.parquet", ("encode again", "report augmented"),
             ("encode again",)),
    Artefact("job of augment", "augmented/job.json", ("augment again",), (), ("augmented/manifest.parquet",)),
    Artefact("job of encode", "shards/job.json", ("encode again",)),
    Artefact("index of shards", "shards/index.json", ("train", "inspect", "verify"), ("train", "verify")),
    Artefact("codec of shards", "shards/codec.safetensors", ("train", "inspect", "verify", "encode again")),
    Artefact("empty text", "shards/empty_text.safetensors", ("train", "inspect", "verify")),
    Artefact("shard", "shards/plain-00000.arrow", ("train", "inspect", "verify")),
    Artefact("augmented shard", "shards/augmented-00000.arrow", ("train", "inspect", "verify")),
    Artefact("record of a run", "run/recipe.json", ("train again", "report"), ("train again",)),
    Artefact("model of a run", "run/model.safetensors",
             ("sample", "train again", "export", "evaluate", "start from")),
    Artefact("digest of the model", "run/finished.json", ("sample", "train again")),
    Artefact("codec of a run", "run/codec.safetensors", ("sample", "evaluate")),
    Artefact("log", "run/log.jsonl", ("report", "train again"), (), ENDED),
    Artefact("state of a checkpoint", f"{LAST}/state.json", ("train again", "sample"), None, ENDED),
    Artefact("average of a checkpoint", f"{LAST}/average.*", ("train again", "sample"), None, ENDED),
    Artefact("shard of a checkpoint", f"{LAST}/shard-*", ("train again", "sample"), None, ENDED),
    Artefact("snapshot of an average", "power/averages/*96-0.05*", ("average",), ()),
    Artefact("exported model", "exported/model.safetensors", ("sample exported", "export again"),
             ("export again",)),
    Artefact("record of an export", "exported/job.json", ("export again",)),
    Artefact("list of samples", "pictures/samples.json", ("sample again", "report", "fidelity"),
             ("sample again",)),
    Artefact("hashes of images", "pictures/hashes.json", ("fidelity",)),
    Artefact("image", "pictures/00000.png", ("fidelity", "report", "sample again")),
    Artefact("card", "scores/card.json", ("compare", "report"), ("compare",)),
    Artefact("verdicts", "scores/judged.jsonl", ("compare", "report", "evaluate again")),
    Artefact("job of evaluate", "scores/job.json", ("evaluate again",)),
    Artefact("features of images", "distances/features/*/part-00000.arrow", ("fidelity again",), None,
             SCORED),
    Artefact("moments of features", "distances/features/*/moments.safetensors", ("fidelity again",), None,
             SCORED),
    Artefact("job of features", "distances/features/*/job.json", ("fidelity again",), None, SCORED),
    Artefact("features in the cache", "cache/features/*/part-00000.arrow", ("fidelity",)),
    Artefact("moments in the cache", "cache/features/*/moments.safetensors", ("fidelity",)),
    Artefact("scores of a network", "distances/scores/*.json", ("fidelity again",), None,
             ("distances/card.json",)),
    Artefact("job of fidelity", "distances/job.json", ("fidelity again",)),
    Artefact("detections", "detected/detections.jsonl", ("geneval again",)),
    Artefact("GenEval's metadata", "geneval/00003/metadata.jsonl", ("geneval again",)),
    Artefact("answers", "answered/answers.jsonl", ("dpg again",)),
    Artefact("questions", "questions.csv", ("dpg again",)),
    Artefact("fetched questions", "fetched.csv", ("fetch-dpg again",)),
    Artefact("lengthened prompts", "longer.jsonl", ("sample-benchmark longer", "lengthen again"),
             ("lengthen again",)),
    Artefact("list of benchmark images", "made/made.json", ("sample-benchmark again", "dpg made")),
    Artefact("benchmark image", "made/*/0000.png", ("sample-benchmark again", "dpg made")),
]  # fmt: skip


def flipped(low: float, high: float) -> Callable[[bytes, random.Random], bytes]:
    """A bit flipped somewhere between two places, in parts of the file."""

    def damage(content: bytes, rng: random.Random) -> bytes:
        at = rng.randrange(
            int(low * len(content)), max(int(high * len(content)), int(low * len(content)) + 1)
        )
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]

    return damage


FAULTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "byte in the header": flipped(0.0, 0.02),
    "byte in the body": flipped(0.05, 0.95),
    "byte at the end": flipped(0.98, 1.0),
    "cut short": lambda content, rng: content[: rng.randrange(1, len(content))],
    "emptied": lambda content, rng: b"",
}
REPLACED = "another valid one"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two worlds, `one` and `two`."""
    root = tmp_path_factory.mktemp("worlds")
    with chat_server():
        make_worlds(root)
        yield root
    print(table())


def make_worlds(root: Path) -> None:
    """Both worlds, by the demo and a few commands more."""
    for name, more in (("one", []), ("two", ["seed=1", "world.images_per_class=10", "data.captioner=aio"])):
        folder = root / name
        run_demo(folder, "mini", [*TINY, *more])
        call(folder, ["train", "shards", "power", *RECIPE, *POWER, *more])
        shutil.rmtree(folder / "pictures")
        write_benchmarks(folder, 100 * len(more))
        shutil.rmtree(root / "models", ignore_errors=True)
        shutil.move(folder / "models", root / "models")
        for command in (*MADE_ONCE, "fidelity"):
            code, said = call(folder, COMMANDS[command])
            assert code == 0, said
        shutil.rmtree(folder / "new")
        call(folder, COMMANDS["export again"])


def call(place: Path, command: list[str], ask: str = "") -> tuple[int, str]:
    """Call a command in a folder: its exit code and what it printed; a traceback is printed and -1."""
    import contextlib
    import io
    import sys

    if ask in RECIPES:
        command = [*command, *RECIPE]
    facts = {"models": (place.parent / "models").resolve(), "place": place, "server": SERVER[0]}
    command = [part.format(**facts) for part in command]
    os.environ["KILOPIX_CACHE"] = str(place / "cache")
    printed, before = io.StringIO(), sys.argv
    with contextlib.chdir(place), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        sys.argv = ["kilopix", *command]
        try:
            main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
        except Exception:  # noqa: BLE001 - which is what is looked for
            return -1, printed.getvalue() + traceback.format_exc()
        finally:
            sys.argv = before
    return (code if isinstance(code, int) else 0 if code is None else 1), printed.getvalue()


COUNTS: Counter[tuple[str, str, str]] = Counter()
WORDS = ("damaged", "made anew", "taken instead", "skipped", "cut short", "Looking at", "fault", "no line")


def outcome(code: int, said: str, path: Path) -> str:
    """What became of it: named, passed by, a traceback, or silent."""
    if code == -1 or "Traceback" in said:
        return "traceback"
    # Where another valid file is held against a job, the message names that job's folder and what changed.
    names = path.name in said or path.parent.name in said or "changed since" in said
    if code:
        lines = [line for line in said.splitlines() if line.startswith("Error:")]
        return "named" if len(lines) == 1 and names else f"unnamed ({code})"
    return "passed by" if names and any(word in said for word in WORDS) else "silent"


def table() -> str:
    """The counts, artefact by fault: named / passed by."""
    faults = [*FAULTS, REPLACED]
    lines = ["| Artefact | " + " | ".join(faults) + " |", "|---" * (len(faults) + 1) + "|"]
    for artefact in ARTEFACTS:
        cells = []
        for fault in faults:
            of = {k[2]: n for k, n in COUNTS.items() if k[:2] == (artefact.name, fault)}
            cells.append(f"{of.get('named', 0)} named, {of.get('passed by', 0)} passed by" if of else "-")
        lines.append(f"| {artefact.name} | " + " | ".join(cells) + " |")
    return "\n" + "\n".join(lines)


def copied(worlds: Path, folder: Path) -> Path:
    """A copy of the first world, with the models beside it."""
    if not (folder / "models").exists():
        (folder / "models").symlink_to(worlds / "models")
    return shutil.copytree(worlds / "one", folder / "here")


@pytest.mark.parametrize("artefact", ARTEFACTS, ids=lambda one: one.name)
def test_a_damaged_artefact_is_named_or_passed_by(worlds: Path, artefact: Artefact, tmp_path: Path):
    wrong: list[str] = []
    for fault in [*FAULTS, REPLACED]:
        again = artefact.commands if artefact.again is None else artefact.again
        for command in again if fault == REPLACED else artefact.commands:
            place = copied(worlds, tmp_path)
            if command == "compare":
                (place / "others").mkdir()
                shutil.copytree(worlds / "one" / "scores", place / "others" / "scores")
            for name in artefact.first:
                (place / name).unlink()
            path = next(place.glob(artefact.pattern))
            if fault == REPLACED:
                other = next((worlds / "two").glob(artefact.pattern)).read_bytes()
                if other == path.read_bytes():  # as the states of the empty text are, by one encoder
                    shutil.rmtree(place)
                    continue
                path.write_bytes(other)
            else:
                rng = random.Random(f"{artefact.name} {fault} {command}")
                path.write_bytes(FAULTS[fault](path.read_bytes(), rng))
            code, said = call(place, COMMANDS[command], command)
            found = outcome(code, said, path)
            COUNTS[artefact.name, fault, found] += 1
            if found not in ("named", "passed by"):
                wrong.append(f"{fault}, {command}: {found}\n{said[-1500:]}")
            shutil.rmtree(place)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_said_of_a_sound_world(worlds: Path, command: str, tmp_path: Path):
    """Without which no outcome above would mean anything."""
    place = copied(worlds, tmp_path)
    if command == "compare":
        shutil.copytree(worlds / "one" / "scores", place / "others" / "scores")
    code, said = call(place, COMMANDS[command], command)
    assert code == 0, said
    assert not any(word in said for word in WORDS), said
