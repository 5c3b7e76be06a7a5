"""One owner of a folder: who is refused, who waits, and what is taken over from the dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kilopix.artefacts import locks
from kilopix.artefacts.locks import (
    FOLDER_LOCK,
    Owner,
    delete_temporary,
    own_file,
    own_folder,
    temporary_beside,
)
from kilopix.errors import UserError
from tiny import temporary_of_dead_process

HOLD = """
import sys, time
from pathlib import Path
from kilopix.artefacts.locks import own_folder
with own_folder(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that owns `tmp_path / "run"`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def elsewhere(folder: Path, age: float = 0.0) -> Owner:
    """Lock a folder as a process of another machine would, `age` seconds ago."""
    owner = replace(Owner.here("train"), machine="another boot", host="node7", process=4711)
    folder.mkdir(exist_ok=True)
    lock = folder / FOLDER_LOCK
    lock.write_text(json.dumps(asdict(owner)), encoding="utf-8")
    os.utime(lock, (time.time() - age, time.time() - age))
    return owner


def test_a_second_process_is_refused_with_the_owners_name(tmp_path, holder):
    with pytest.raises(UserError) as refused, own_folder(tmp_path / "run", "sample"):
        pass
    assert f"run: in use by `kilopix train` (process {holder.pid}, since 20" in str(refused.value)
    assert (tmp_path / "run" / FOLDER_LOCK).exists()


def test_a_killed_owners_folder_is_taken_over_and_cleaned(tmp_path, holder):
    left = temporary_beside(tmp_path / "run" / "checkpoints" / "000000000064")
    litter = left.with_name(left.name.replace(str(os.getpid()), str(holder.pid)))
    litter.mkdir(parents=True)
    holder.kill()  # and not yet waited for: a zombie is dead, too
    time.sleep(0.2)
    with own_folder(tmp_path / "run", "train"):
        assert not litter.exists()
    assert not (tmp_path / "run" / FOLDER_LOCK).exists()


def test_an_owner_that_stands_still_keeps_its_folder_on_its_own_machine(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / "run" / FOLDER_LOCK, (0, 0))
    with pytest.raises(UserError, match="in use by"), own_folder(tmp_path / "run", "train"):
        pass


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    with own_folder(tmp_path, "train"):
        lock = tmp_path / FOLDER_LOCK
        ours = json.loads(lock.read_text("utf-8"))
        lock.write_text(json.dumps(ours | {"start": "1"}), encoding="utf-8")
        taken = threading.Thread(target=lambda: _take_and_release(tmp_path))
        taken.start()
        taken.join()
        assert not lock.exists()


def _take_and_release(folder: Path) -> None:
    locks._held.clear()
    with own_folder(folder, "train"):
        pass
    locks._held[folder.resolve() / FOLDER_LOCK] = 0


def test_an_owner_on_another_machine_that_has_been_silent_for_long_is_dead(tmp_path):
    elsewhere(tmp_path, age=locks.PATIENCE + 5)
    with own_folder(tmp_path, "train"):
        assert json.loads((tmp_path / FOLDER_LOCK).read_text("utf-8"))["process"] == os.getpid()


def test_an_owner_on_another_machine_that_beats_is_alive(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(locks, "POLL", 0.05)
    elsewhere(tmp_path, age=20)
    beat = threading.Timer(0.3, lambda: os.utime(tmp_path / FOLDER_LOCK))
    beat.start()
    with pytest.raises(UserError, match=r"process 4711 on node7, since"), own_folder(tmp_path, "train"):
        pass
    assert capfd.readouterr().err.count("waiting to see whether it is alive (180 s at most)") == 1


def test_a_silent_owner_on_another_machine_is_given_patience_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.05)
    elsewhere(tmp_path, age=locks.PATIENCE - 0.5)
    began = time.monotonic()
    with own_folder(tmp_path, "train"):
        assert time.monotonic() - began > 0.3


def test_who_may_wait_comes_next(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.05)
    threading.Timer(0.3, holder.kill).start()
    with own_folder(tmp_path / "run", "fidelity", wait=True):
        assert holder.wait() == -signal.SIGKILL


def test_a_damaged_lock_holds_for_as_long_as_a_silent_owner(tmp_path, monkeypatch):
    (tmp_path / FOLDER_LOCK).write_text("[]", encoding="utf-8")
    os.utime(tmp_path / FOLDER_LOCK, (1, 1))
    with own_folder(tmp_path, "train"):
        pass


def test_a_lock_that_may_not_be_read_is_waited_for_and_not_spun_on(tmp_path, monkeypatch):
    """As one of another user: it is seen when it was touched, not whose it is."""
    monkeypatch.setattr(locks, "POLL", 0.05)
    elsewhere(tmp_path, age=20)
    monkeypatch.setattr(locks, "_read", lambda lock: None)
    real = open

    def refused(path, *more, **how):
        if str(path).endswith(FOLDER_LOCK):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **how)

    monkeypatch.setattr("builtins.open", refused)
    threading.Timer(0.3, lambda: os.utime(tmp_path / FOLDER_LOCK)).start()
    with pytest.raises(UserError, match="in use by another process"), own_folder(tmp_path, "train"):
        pass


def test_an_owner_that_lost_its_folder_ends_at_once(tmp_path):
    slow = HOLD.replace("with own", "from kilopix.artefacts import locks\nlocks.BEAT = 0.1\nwith own")
    with subprocess.Popen(
        [sys.executable, "-c", slow, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        elsewhere(tmp_path)
        error = process.communicate(timeout=20)[1]
        assert process.returncode == 2
        assert "was taken over by `kilopix train` (process 4711 on node7" in error
    assert json.loads((tmp_path / FOLDER_LOCK).read_text("utf-8"))["host"] == "node7"


def test_a_lock_removed_by_hand_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with own_folder(tmp_path, "train"):
        (tmp_path / FOLDER_LOCK).unlink()
        for _ in range(200):
            if (tmp_path / FOLDER_LOCK).exists():
                break
            time.sleep(0.02)
        assert (tmp_path / FOLDER_LOCK).exists()


def test_of_many_that_see_a_dead_owner_one_takes_over(tmp_path):
    elsewhere(tmp_path, age=locks.PATIENCE + 5)
    code = HOLD.replace("time.sleep(60)", "time.sleep(1.5)")
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=-3)
        for _ in range(6)
    ]
    got = [process.communicate()[0] for process in several]
    assert got.count(b"held\n") == 1, got


def test_a_command_within_a_command_owns_what_the_outer_one_owns(tmp_path):
    with own_folder(tmp_path, "demo"):
        with own_folder(tmp_path, "train"):
            pass
        assert (tmp_path / FOLDER_LOCK).exists()


def test_folders_that_stay_empty_are_removed_again(tmp_path):
    with own_folder(tmp_path / "a" / "b", "train"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written_to_can_still_be_looked_at(tmp_path, monkeypatch):
    def refuse(lock, owner):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks, "_make", refuse)
    with own_folder(tmp_path, "sample"):
        pass


def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with own_folder(tmp_path, "train"):
        lock = json.loads((tmp_path / FOLDER_LOCK).read_text("utf-8"))
        assert lock["process"] == os.getpid()
        assert not locks._make(tmp_path / FOLDER_LOCK, Owner.here("train"))


def test_a_file_is_locked_beside_it_whatever_its_name(tmp_path):
    file = tmp_path / f"{'é' * 120}.parquet"
    with own_file(file, "caption"):
        (lock,) = tmp_path.iterdir()
        assert lock.name.endswith(".lock")
        left = temporary_of_dead_process(file)
        left.touch()
    with own_file(file, "caption"):
        assert not left.exists()


def test_what_others_are_writing_or_named_themselves_is_not_cleaned_away(tmp_path):
    there = [temporary_beside(tmp_path / "a.png"), tmp_path / ".mine.tmp", tmp_path / ".b.png.0a1b2c-3.tmp"]
    old = tmp_path / ".c.png.0a1b2c-3.tmp"
    for file in (*there, old):
        file.touch()
    os.utime(old, (1, 1))
    with own_folder(tmp_path, "sample"):
        assert [file.exists() for file in (*there, old)] == [True, True, True, False]


def test_temporary_names_are_the_process_own_and_short_enough(tmp_path):
    long, like = (temporary_beside(tmp_path / f"{'x' * 240}{end}") for end in "ab")
    assert str(os.getpid()) in long.name
    assert long != like
    long.touch()


def test_what_a_killed_writer_of_tensors_leaves_goes_with_the_next_command(tmp_path: Path):
    """Also what the library itself writes first, under a name of its own."""
    code = """
import os, sys
from pathlib import Path
import safetensors.torch, torch
from kilopix.runtime import write_tensors

def killed(tensors, path, metadata):
    (Path(path).parent / ".tmpAb12Cd").write_bytes(b"half")
    os._exit(9)

safetensors.torch.save_file = killed
write_tensors(Path(sys.argv[1]) / "a.safetensors", {"x": torch.zeros(2)})
"""
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert ended.returncode == 9
    assert list(tmp_path.rglob(".tmp*"))
    delete_temporary(tmp_path)
    assert list(tmp_path.iterdir()) == []
