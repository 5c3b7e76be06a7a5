"""No command replaces what it did not make, a failed one blocks nothing, and Ctrl-C loses nothing."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kilopix import demo
from kilopix.jobs import PARTS, Folder, differences, open_job, write_report
from kilopix.stages import augment, encode, evaluate, mini, sample, train
from kilopix.training import stopping
from kilopix.training.checkpoint import checkpoints
from kilopix.types import UserError
from tiny import TINY, Cli

KIND = Folder(("*.png",), ("list.txt",))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_difference_is_named_by_its_key_and_both_values():
    before = {
        "seed": 1,
        "text": {"kind": "tiny", "width": 8},
        "prompts": ["a"],
        "images": "0" * 64,
        "old": "",
    }
    assert differences(before, json.loads(json.dumps(before))) == []
    assert differences(before, {**before, "new": None, "old": False}) == [], "both are nothing"
    assert differences({"limit": 0}, {"limit": None}) == ["limit: 0, here none"]
    now = {**before, "seed": 2, "text": {"kind": "t5", "name": "x"}, "prompts": ["b"], "images": "1" * 64}
    assert differences(before, now) == [
        "seed: 1, here 2",
        "text.kind: tiny, here t5",
        "prompts: a, here b",
        "images changed since",
    ]
    assert differences({"captioner": "aio"}, {"captioner": {"kind": "hub", "name": "x"}}) == [
        "captioner: aio, here hub"
    ]
    assert differences({"codec": "0" * 64}, {}) == ["codec: 00000000, here none"], "what is left out counts"
    assert differences({"p": ["a", "b"]}, {"p": ["a", "c"]}) == ["p[1]: b, here c"]
    assert differences({"p": ["a", "b"]}, {"p": ["a"]}) == ["p: 2 of them, here 1"]
    long = "a prompt of a great many words which goes on and on, and "
    (told,) = differences({"p": long + "ends"}, {"p": long + "goes on"})
    assert "ends" in told
    assert "goes on" in told.partition("here")[2]
    assert len(told) < 120


def test_a_folder_is_taken_gone_on_with_refused_or_replaced(tmp_path: Path):
    folder, first, second = tmp_path / "a", {"stage": "x", "size": 64}, {"stage": "x", "size": 32}
    open_job(folder, KIND, first)
    open_job(folder, KIND, first)
    (folder / "list.txt").touch()
    open_job(folder, KIND, second)  # nothing was finished in it, so it was nobody's
    assert [f.name for f in folder.iterdir()] == ["job.json"]
    (folder / "1.png").write_bytes(b"a picture")
    (folder / ".2.png.77.tmp").touch()
    made = contents(folder)
    with pytest.raises(UserError, match=r"a was made by another job \(size: 32, here 64\).*--overwrite"):
        open_job(folder, KIND, first)
    with pytest.raises(UserError, match="made by `kilopix x`"):
        open_job(folder, KIND, {"stage": "y", "size": 32}, overwrite=True)
    (folder / "mine.txt").touch()
    with pytest.raises(UserError, match=r"it holds mine.txt"):
        open_job(folder, KIND, first, overwrite=True)
    (folder / "mine.txt").unlink()
    assert contents(folder) == made
    open_job(folder, KIND, second, overwrite=True)
    assert contents(folder) == made, "its own results are gone on with"
    open_job(folder, KIND, first, overwrite=True)
    assert [f.name for f in folder.iterdir()] == ["job.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_something_else_is_never_taken(tmp_path: Path, overwrite: bool):
    (tmp_path / "photos" / "2019").mkdir(parents=True)
    open_job(tmp_path / "photos", KIND, {"seed": 1}, overwrite)  # it held an empty folder alone
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "photos" / "2019").mkdir(parents=True)
    (tmp_path / "photos" / "2019" / "1.png").touch()
    with pytest.raises(UserError, match=r"not made by this command \(it holds 2019/1.png\)"):
        open_job(tmp_path / "photos", KIND, {"seed": 1}, overwrite)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "photos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="it holds photos"):
        open_job(tmp_path / "linked", KIND, {"seed": 1}, overwrite)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file is there"):
        open_job(tmp_path / "file", KIND, {"seed": 1}, overwrite)


def test_a_report_is_written_again_and_nothing_else_is_written_over(tmp_path: Path):
    for name, report in (("a.html", "<p>one"), ("a.md", "one"), ("a.json", {"one": 1})):
        write_report(tmp_path / name, report, "report")
        write_report(tmp_path / name, report, "report")
        with pytest.raises(UserError, match="not made by `kilopix compare`"):
            write_report(tmp_path / name, report, "compare")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["one"] == 1
    (tmp_path / "mine.html").write_text("<p>my page", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.html: is there, and not made by"):
        write_report(tmp_path / "mine.html", "<p>one", "report")
    assert (tmp_path / "mine.html").read_text(encoding="utf-8") == "<p>my page"


def test_every_file_that_a_command_leaves_is_known_as_its_own(tiny_demo: Path):
    folders = {
        "world": mini.FOLDER,
        "augmented": augment.FOLDER,
        "shards": encode.FOLDER,
        "run": train.FOLDER,
        "pictures": sample.FOLDER,
        "scores": evaluate.FOLDER,
        ".": demo.FOLDER,
    }
    for name, kind in folders.items():
        assert (tiny_demo / name / kind.record).is_file()
        assert kind.foreign(tiny_demo / name) == []
        assert not kind.unfinished(tiny_demo / name)
    assert PARTS.foreign(tiny_demo / "shards") == [], "all in a folder of parts is kilopix's"


@pytest.fixture(scope="module")
def made(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo's folder that commands may try to write over."""
    return shutil.copytree(tiny_demo, tmp_path_factory.mktemp("lost") / "made")


WORLD = ["--classes", 4, "--size", 32, "--val-per-class", 6]
AGAIN: dict[str, tuple[list[object], str]] = {
    "mini": (["mini", "world", *WORLD, "--images-per-class", 13], r"images_per_class: 12, here 13"),
    "caption": (["caption", "world/train", "captions.parquet"], r"captioner: structured, here aio"),
    "augment": (
        ["augment", "captions.parquet", "augmented", "--size", 32, "--kind", "crop"],
        r"kind: cutmix, here crop",
    ),
    "encode": (
        ["encode", "captions.parquet", "shards", *TINY, "data.image_size=64"],
        r"image_size: 32, here 64",
    ),
    "train": (
        ["train", "shards", "run", *TINY, "training.images=192"],
        r"\(training.images: 96, here 192\).*--start-from run",
    ),
    "train, other settings": (
        ["train", "shards", "run", *TINY, "model.depth=3", "optimizer.lr=0.5"],
        r"\(model.depth: 2, here 3; optimizer.lr: [0-9.]+, here 0.5\)",
    ),
    "sample": (["sample", "run", "a photo of a dog", "--out", "pictures"], r"prompts: 4 of them, here 1"),
    "evaluate": (
        [
            "evaluate",
            "run",
            "held_out.parquet",
            *[v for v in TINY if v.startswith("evaluation")],
            "--seed",
            5,
        ],
        r"seed: 0, here 5.*--out",
    ),
    "demo": (["demo", ".", *TINY, "training.images=192"], r"training.images: 96, here 192"),
    "a run into shards": (["train", "shards", "world", *TINY], r"world: not empty, and not made by this"),
    "shards into scores": (["encode", "captions.parquet", "scores", *TINY], r"made by `kilopix evaluate`"),
    "scores into shards": (["geneval", "pictures", "--out", "scores"], r"scores: not empty"),
    "samples into a run": (["sample", "run", "a dog", "--out", "run"], r"run: not empty"),
    "a report over a card": (["report", "run", "scores/card.json"], r"ending in \.html"),
    "a page over a manifest": (["inspect", "shards", "captions.parquet"], r"ending in \.html"),
    "faults over a manifest": (
        ["captions", "captions.parquet", "--out", "captions.parquet"],
        r"ending in \.json",
    ),
}


def test_a_page_that_was_not_written_by_the_command_stays(made: Path, cli: Cli, tmp_path: Path):
    calls = (
        ("report", made / "run", tmp_path / "page.html"),
        ("inspect", made / "shards", tmp_path / "page.html"),
        ("captions", made / "captions.parquet", "--out", tmp_path / "faults.json"),
    )
    for *arguments, file in calls:
        Path(file).write_text("mine", encoding="utf-8")
        done = cli(*arguments, file)
        assert done.code == 2, arguments
        assert f"not made by `kilopix {arguments[0]}`" in done.err
        assert Path(file).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", AGAIN)
def test_a_second_call_with_other_settings_says_which_and_changes_nothing(
    made: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(made)
    arguments, said = AGAIN[name]
    before = contents(made)
    done = cli(*arguments)
    assert done.code == 2, done.out
    assert re.search(said, done.err), done.err
    assert "{" not in done.err, "no dumped dict"
    assert contents(made) == before


def test_overwrite_replaces_what_the_same_command_made(
    tiny_demo: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(tiny_demo, tmp_path / "made")
    monkeypatch.chdir(folder)
    for name in ("mini", "caption", "augment", "sample"):
        arguments, _ = AGAIN[name]
        done = cli(*arguments, "--overwrite")
        assert done.code == 0, done.err
        assert "already" in cli(*arguments).out, "the same command without it finds its own"
    assert not (folder / "augmented" / "cutmix").exists()
    assert sorted(f.name for f in (folder / "pictures").iterdir()) == [
        "00000.png",
        "grid.png",
        "hashes.json",
        "samples.json",
    ]
    assert len(list((folder / "world" / "train").rglob("*.jpg"))) == 4 * 13
    # What the new run begins from may be the run that it replaces.
    arguments = [*AGAIN["train"][0], "--start-from", "run"]
    done = cli(*arguments, "--overwrite", "--device", "cpu")
    assert done.code == 0, done.err
    assert json.loads((folder / "run" / "recipe.json").read_text(encoding="utf-8"))["started_from"]
    assert [int(f.name) for f in checkpoints(folder / "run" / "checkpoints")][-1] == 192


def test_an_export_of_other_settings_is_refused_and_an_own_text_kept(
    tiny_demo: Path, tmp_path: Path, cli: Cli
):
    export = ["export", tiny_demo / "run", tmp_path / "out", "--prompt", "a car", "--steps"]
    assert cli(*export, 2).code == 0
    (tmp_path / "out" / "README.md").write_text("my own words", encoding="utf-8")
    assert "already complete" in cli(*export, 2).out
    (tmp_path / "out" / "config.json").write_text("{}", encoding="utf-8")
    assert "missing or changed, and made anew: config.json" in cli(*export, 2).out
    refused = cli(*export, 3)
    assert refused.code == 2
    assert "sampling.steps: 2, here 3" in refused.err
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "my own words"
    assert cli(*export, 3, "--overwrite").code == 0
    assert "my own words" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_command_that_failed_before_its_first_part_blocks_no_other(
    tiny_demo: Path, tmp_path: Path, cli: Cli
):
    out, images = tmp_path / "captions.parquet", tiny_demo / "world" / "train"
    failed = cli("caption", images, out, "--captioner", "model", "--model", tmp_path, "--device", "cpu")
    assert failed.code == 2
    assert (tmp_path / ".captions.parts" / "job.json").exists(), "nothing would have blocked the next"
    assert cli("caption", images, out).code == 0
    assert not (tmp_path / ".captions.parts").exists()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    longer = ["lengthen", tmp_path / "longer.jsonl", "--prompts", prompts, "--device", "cpu", "--model"]
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        failed = cli(*longer, tmp_path / model)
        assert failed.code == 2
        assert "another job" not in failed.err
    settings = [*TINY, "--device", "cpu", "--workers", 1]
    unknown = [*settings, "text.kind=t5", f"text.name={tmp_path}"]
    assert cli("encode", out, tmp_path / "shards", *unknown).code == 2
    assert (tmp_path / "shards" / "job.json").exists(), "nothing would have blocked the next"
    done = cli("encode", out, tmp_path / "shards", *settings)
    assert done.code == 0, done.err


def test_parts_that_another_job_began_are_told_of_by_the_place_that_was_named(
    tiny_demo: Path, tmp_path: Path, cli: Cli
):
    out = tmp_path / "captions.parquet"
    parts = tmp_path / ".captions.parts"
    open_job(parts, PARTS, {"stage": "caption", "captioner": "structured", "seed": 0})
    (parts / "part-00000.arrow").touch()
    refused = cli("caption", tiny_demo / "world" / "train", out)
    assert refused.code == 2
    assert f"{out} was begun by another job" in refused.err
    assert "captioner: structured, here aio" in refused.err
    assert cli("caption", tiny_demo / "world" / "train", out, "--overwrite").code == 0


def test_a_second_interrupt_that_comes_soon_is_answered_and_a_late_one_stops(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def until(there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not there():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def interrupt_and_wait() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: False)

    said: list[str] = []
    monkeypatch.setattr(stopping, "say", said.append)
    with stopping.stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        until(lambda: len(said) == 1)
        monkeypatch.setattr(stopping, "PATIENCE", 1e9)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: len(said) == 2)
        os.kill(os.getpid(), signal.SIGTERM)  # which is no impatience
        monkeypatch.setattr(stopping, "PATIENCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            interrupt_and_wait()
    assert "Stopping after this step, and saving" in said[0]
    assert "nothing is lost" in said[1]
    assert "without saving; the same command goes on from the last checkpoint" in said[2]
    assert len(said) == 3
    with stopping.stop_on_signal(quiet=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert len(said) == 3


class Terminal:
    """A command in a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments: object):
        self.printed = ""
        own, its = pty.openpty()
        os.set_inheritable(its, True)
        command = [sys.executable, "-m", "kilopix.cli", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            env=environment,
            preexec_fn=lambda: _make_controlling(its),
        )
        os.close(its)
        self._own = own

    def read(self, there: Callable[[], bool]) -> None:
        """Read what is printed until something is there, or the command ends."""
        deadline = time.monotonic() + 240
        while not there():
            assert time.monotonic() < deadline, self.printed[-2000:]
            if select.select([self._own], [], [], 0.05)[0]:
                try:
                    new = os.read(self._own, 65536)
                except OSError:  # the other end is closed
                    return
                self.printed += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", new.decode(errors="replace"))

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        os.write(self._own, b"\x03")

    def close(self) -> int:
        """Close the window; the exit code."""
        os.close(self._own)
        return self.process.wait(60)

    def code(self) -> int:
        """Read to the end; the exit code."""
        self.read(lambda: False)
        return self.process.wait(60)


def _make_controlling(terminal: int) -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell ignore it
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_ctrl_c_twice_in_a_terminal_loses_nothing_of_a_run(tiny_demo: Path, tmp_path: Path):
    run = tmp_path / "run"
    long = [*TINY, "training.images=3200000", "training.checkpoint_every=3200000", "--device", "cpu"]
    train = Terminal("train", tiny_demo / "shards", run, *long)
    train.read((run / "log.jsonl").exists)
    train.interrupt()
    train.read(lambda: "Stopping after this step" in train.printed)
    train.interrupt()
    assert train.code() in (0, 130), "the second may come when all is saved"
    assert "without saving;" not in train.printed
    (kept,) = checkpoints(run / "checkpoints")
    seen = int(kept.name)
    assert seen > 0
    assert f"stopped at {seen:,} images; the same command goes on" in train.printed


def test_a_lost_terminal_stops_a_run_unless_nohup_started_it(monkeypatch: pytest.MonkeyPatch):
    from kilopix.training import stopping

    monkeypatch.setattr(stopping, "leave_terminal", lambda: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stopping.stop_on_signal(quiet=True) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stopping.stop_on_signal(quiet=True) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_long_command_that_is_stopped_says_that_it_is_gone_on_with(tmp_path: Path, number: signal.Signals):
    drawing = Terminal("mini", tmp_path / "world", "--images-per-class", 500, "--workers", 2)
    drawing.read(lambda: any((tmp_path / "world").rglob("*.jpg")))
    drawing.interrupt() if number == signal.SIGINT else drawing.process.send_signal(number)
    assert drawing.code() == 128 + number
    assert "Stopped; the same command goes on from here." in drawing.printed
    assert "Traceback" not in drawing.printed
