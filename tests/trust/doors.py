"""Every command that writes, on small inputs: what the trials of trust start, interrupt and start again."""

import contextlib
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from chat import completion, serve, text_of
from kilopix.evaluation.geneval_folder import metadata_path, metadata_text, sample_path
from kilopix.evaluation.geneval_prompts import official_prompts
from test_dpg_run import CATEGORIES, HEADER, NAMES
from tiny import TINY
from tiny_models import save_clip, save_detector, save_vlm

Arguments = list[object]
POWER = ["training.average.kind=power", "training.average.snapshot_every=32"]
CHANGING = {"times.json", "log.jsonl"}
"""Files that hold how long something took; of the log, everything else is compared."""


@dataclass(frozen=True)
class Door:
    """A command, given where it is to write: a folder, or a file of that ending."""

    arguments: Callable[[Path], Arguments]
    ending: str = ""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    said: str


class Running:
    """A command in a process of its own, forked from this one, which has imported everything already."""

    def __init__(self, arguments: Arguments, said: Path, delay: float = 0.0):
        self.said = said
        self.process = os.fork()
        if self.process == 0:
            os.setpgid(0, 0)
            _become(arguments, said, delay)

    def signal(self, number: int) -> bool:
        """Send a signal; whether the command still ran."""
        if os.waitpid(self.process, os.WNOHANG)[0]:
            self.process = 0
            return False
        os.kill(self.process, number)
        return True

    def wait(self, patience: float = 300) -> Ended:
        """Wait for its end."""
        deadline = time.monotonic() + patience
        status = 0
        while self.process:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(self.process, 9)
                os.waitpid(self.process, 0)
                return Ended(-1, f"hangs\n{self.said.read_text('utf-8', 'replace')}")
            time.sleep(0.01)
        return Ended(os.waitstatus_to_exitcode(status), self.said.read_text("utf-8", "replace"))


def _become(arguments: Arguments, said: Path, delay: float) -> None:
    """In a forked process: be the command, and never return."""
    from kilopix.cli import main

    code: object = 1
    try:
        with open(said, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - until the end
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv = ["kilopix", *map(str, arguments)]
        time.sleep(delay)
        main()
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 - shown, as the interpreter would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def contents(place: Path) -> dict[str, str]:
    """SHA-256 of everything that a command wrote, by its path from the place; times are left out."""
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    found = {}
    for file in files:
        if file.is_file():
            name = str(file.relative_to(place.parent))
            found[name] = hashlib.sha256(_without_times(file)).hexdigest()
    assert found, f"{place}: nothing was written"
    return found


def _without_times(file: Path) -> bytes:
    if file.name == "times.json":
        return b""
    if file.name == "log.jsonl":
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        return json.dumps([(line.get("images"), line.get("loss")) for line in lines]).encode()
    if file.name == "state.json":
        return b""  # of a checkpoint: how long it took, and a hash of that
    if file.name == "report.html":
        return b""  # of the demo: shows times
    return file.read_bytes()


def noise(file: Path, seed: int, side: int = 40) -> None:
    """An image of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file)


def build(root: Path, kilopix: Callable[..., object]) -> dict[str, Door]:
    """Make the inputs of all commands below `root`, by `kilopix(*arguments)`, and say how each is called."""
    world, captions = root / "world", root / "captions.parquet"
    sizes = ["--classes", 4, "--images-per-class", 12, "--val-per-class", 6, "--size", 32, "--workers", 1]
    kilopix("mini", world, *sizes)
    kilopix("caption", world / "train", captions, "--captioner", "structured", "--workers", 1)
    kilopix("caption", world / "val", root / "held_out.parquet", "--captioner", "structured", "--workers", 1)
    kilopix("augment", captions, root / "augmented", "--size", 32, "--workers", 1)
    augmented = ["--augmented", root / "augmented" / "manifest.parquet"]
    settings = [*TINY, *POWER]
    small = ["--part-rows", 8, "--workers", 1, "--device", "cpu"]
    kilopix("encode", captions, root / "shards", *settings, *augmented, *small)
    kilopix("train", root / "shards", root / "run", *settings, "--device", "cpu")
    kilopix("sample", root / "run", "a red car", "a cat", "--out", root / "samples", "-n", 4)
    kilopix("evaluate", root / "run", root / "held_out.parquet", "--out", root / "scores")
    write_benchmarks(root)
    models = root / "models"
    seen = ["--detector", models / "detector", "--clip", models / "clip", "--any-prompts", "--device", "cpu"]
    asked = ["--questions", root / "questions.csv", "--model", models / "vlm", "--device", "cpu"]
    features = [root / "held_out.parquet", "--only", "efficientnet-lite0", "--workers", 1]
    return {
        "mini": Door(lambda out: ["mini", out, *sizes]),
        "caption": Door(lambda out: ["caption", world / "train", out, "--workers", 1], ".parquet"),
        "captions": Door(lambda out: ["captions", captions, "--out", out], ".json"),
        "augment": Door(
            lambda out: ["augment", captions, out, "--size", 32, "--part-rows", 8, "--workers", 1]
        ),
        "encode": Door(lambda out: ["encode", captions, out, *settings, *augmented, *small]),
        "inspect": Door(lambda out: ["inspect", root / "shards", out], ".html"),
        "train": Door(lambda out: ["train", root / "shards", out, *settings, "--device", "cpu"]),
        "average": Door(
            lambda out: ["average", root / "run", "--sigma-rel", 0.08, "--out", out], ".safetensors"
        ),
        "sample": Door(lambda out: ["sample", root / "run", "a red car", "a cat", "--out", out, "-n", 8]),
        "export": Door(lambda out: ["export", root / "run", out, "--device", "cpu"]),
        "evaluate": Door(lambda out: ["evaluate", root / "run", root / "held_out.parquet", "--out", out]),
        "fidelity": Door(lambda out: ["fidelity", root / "samples", *features, "--out", out]),
        "geneval": Door(lambda out: ["geneval", root / "geneval", "--out", out, *seen]),
        "dpg": Door(lambda out: ["dpg", root / "dpg", "--out", out, *asked]),
        "sample-benchmark": Door(
            lambda out: ["sample-benchmark", "dpg", root / "run", out, "-n", 1, *asked[:2], "--device", "cpu"]
        ),
        "lengthen": Door(
            lambda out: [
                "lengthen",
                out,
                "--model",
                "big",
                "--server",
                SERVER[0],
                "--prompts",
                root / "prompts.txt",
            ],
            ".jsonl",
        ),
        "fetch-dpg": Door(lambda out: ["fetch-dpg", out, "--url", (root / "questions.csv").as_uri()], ".csv"),
        "compare": Door(lambda out: ["compare", root / "scores", "--out", out]),
        "report": Door(lambda out: ["report", root / "run", out, "--scores", root / "scores"], ".html"),
        "demo": Door(lambda out: ["demo", out, *TINY]),
    }


SERVER: list[str] = []
"""The address of the chat server, while there is one."""


@contextlib.contextmanager
def chat_server() -> Iterator[None]:
    """What lengthens prompts."""
    with serve(lambda body: completion(f"Longer: {text_of(body)[-40:]}.")) as (url, _):
        SERVER[:] = [url]
        yield


def write_benchmarks(root: Path, seed: int = 0) -> None:
    """Images as GenEval and DPG-Bench take them, prompts, questions, and small models that look at them."""
    import csv

    for number, prompt in enumerate(official_prompts()[::60]):
        noise(sample_path(root / "geneval", number, 0), seed + number)
        metadata_path(root / "geneval", number).write_text(metadata_text(prompt), encoding="utf-8")
    for number, name in enumerate(NAMES):
        noise(root / "dpg" / f"{name}.png", seed + number, 64)
    models = root / "models"
    save_detector(models / "detector"), save_clip(models / "clip"), save_vlm(models / "vlm")
    (root / "prompts.txt").write_text("".join(f"a {name}\n" for name in NAMES), encoding="utf-8")
    with open(root / "questions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for name in NAMES:
            text = f"Is there car {seed} in {name}?"
            writer.writerow([name, f"a {name}", "", 1, "0", "x", "y", f"{CATEGORIES[0]} (a)", text])
