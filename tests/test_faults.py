"""What the machine refuses: one line that names file, the system's words and what to do; no bug is hidden."""

import errno
import io
import os
import re
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from safetensors import SafetensorError

from kilopix.errors import UserError
from kilopix.faults import explain, first_line, named
from kilopix.runtime import atomic_path, write_json
from kilopix.stages import verify
from tiny import Cli


def failure(number: int, name: str | None = "run/log.jsonl") -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (failure(errno.ENOSPC), r"run/log\.jsonl: No space left on device\. Make room; the same command"),
        (failure(errno.ENOSPC, None), r"^No space left on device\. Make room"),
        (failure(errno.EROFS), r"run/log\.jsonl: Read-only file system\. Choose a place"),
        (failure(errno.EMFILE), r"Too many open files\. Raise the limit \(`ulimit -n 65536`\)"),
        (failure(errno.ESTALE), r"Mount the file system anew"),
        (failure(errno.EOVERFLOW), r"run/log\.jsonl: Value too large for defined data type\.$"),
        (OSError("cannot identify image file"), r"^cannot identify image file$"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), r"^No space left on device\."),
        (
            RuntimeError("unable to open file </a/b> in read-only mode: Stale file handle (116)"),
            r"^/a/b: Stale",
        ),
        (RuntimeError("Symlink loop from '/a/b'"), r"^/a/b: .*symbolic links lead in a circle"),
        (RuntimeError("can't start new thread"), r"No thread could be started.*ulimit -u"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            r"^Out of memory \(.*smaller batch",
        ),
        (MemoryError(), r"^Out of memory\. Close other programs"),
    ],
)
def test_an_error_of_the_machine_is_one_line(error: Exception, line: str):
    told = explain(error)
    assert told is not None
    assert re.search(line, told), told
    assert "\n" not in told


def test_an_error_that_torch_collected_is_the_first_of_them():
    class Collected(Exception):
        failures: ClassVar = {1: (failure(errno.ENOSPC), None)}

    assert explain(Collected()) == explain(failure(errno.ENOSPC))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        RuntimeError("shapes differ"),
        SafetensorError("invalid header"),
        failure(errno.EBADF, None),
    ],
)
def test_a_mistake_of_the_program_is_none_of_the_machine(error: Exception):
    assert explain(error) is None


def test_a_file_where_a_folder_is_wanted_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        (tmp_path / "file" / "more" / "out").mkdir(parents=True)
    assert f"{tmp_path / 'file'} is a file, where a folder is wanted" in (explain(caught.value) or "")


def test_what_a_file_was_written_for_is_named_and_nothing_is_left(tmp_path: Path):
    place = tmp_path / "out.safetensors"
    for error in (failure(errno.ENOSPC, None), SafetensorError("(os error 28)")):
        with pytest.raises(OSError) as caught, atomic_path(place):
            raise error
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place))
    with pytest.raises(OSError) as caught, atomic_path(place):
        raise failure(errno.EIO, "another")
    assert caught.value.filename == "another"
    assert list(tmp_path.iterdir()) == []
    mistake = KeyError("a")
    assert named(mistake, place) is mistake


@pytest.fixture
def verifying(monkeypatch: pytest.MonkeyPatch, cli: Cli):
    """Calls `kilopix verify`, which does what it is told."""

    def call(what):
        monkeypatch.setattr(verify, "run", lambda _: what())
        return cli("verify", "shards")

    return call


def throw(error: BaseException):
    raise error


def test_every_command_ends_with_one_line_and_code_2(verifying):
    done = verifying(lambda: throw(failure(errno.EDQUOT)))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: run/log.jsonl: Disk quota exceeded. Make room")
    assert done.err.count("\n") == 1


def test_a_bug_gives_its_traceback(verifying, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyError):
        verifying(lambda: throw(KeyError("a")))
    monkeypatch.setenv("KILOPIX_TRACEBACK", "1")
    with pytest.raises(OSError):
        verifying(lambda: throw(failure(errno.EDQUOT)))


def test_a_thread_that_the_machine_ends_is_one_line(verifying):
    def run() -> None:
        thread = threading.Thread(target=throw, args=(failure(errno.ENOSPC),))
        thread.start()
        thread.join()

    before = threading.excepthook
    try:
        done = verifying(run)
    finally:
        threading.excepthook = before
    assert done.code == 0
    assert done.err.startswith("Warning: run/log.jsonl: No space left on device.")
    assert "Traceback" not in done.err


def test_names_that_are_not_utf_8_are_refused_in_one_line(cli: Cli):
    done = cli("verify", "shards\udcff")
    assert done.code == 2
    assert "a name or text that is not UTF-8" in done.err


def test_what_cannot_be_printed_is_said(verifying, monkeypatch: pytest.MonkeyPatch):
    class Full(io.StringIO):
        def flush(self) -> None:
            raise failure(errno.ENOSPC, None)

    monkeypatch.setattr("os.dup2", lambda *_: None)
    monkeypatch.setattr("kilopix.cli._print_any_name", lambda: monkeypatch.setattr(sys, "stdout", Full()))
    done = verifying(lambda: None)
    assert done.code == 2
    assert "standard output cannot be written to. No space left on device." in done.err


def test_json_on_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "index.json"
    write_json(place, 1)
    monkeypatch.setattr("os.fsync", lambda _: throw(failure(errno.ENOSPC, None)))
    with pytest.raises(OSError, match=r"index\.json") as caught:
        write_json(place, 2)
    assert not isinstance(caught.value, UserError)
    assert place.read_text(encoding="utf-8") == "1\n"


@pytest.mark.parametrize(
    ("said", "line"), [("", "ValueError"), ("\n", "ValueError"), ("\n a\nb", "a"), ("x" * 400, "x" * 300)]
)
def test_an_error_without_words_is_told_by_its_kind(said: str, line: str):
    assert first_line(ValueError(said)) == line
