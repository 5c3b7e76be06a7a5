"""Faults while training: what cannot be trained on is named and left out; what was saved stays."""

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine_worker import Job
from kilopix.data.shards import INDEX
from kilopix.errors import UserError
from kilopix.runtime import read_json, sha256_of_file, write_json
from kilopix.step import StepBatch, StepLoader, StepLoss
from kilopix.training.checkpoint import checkpoints, fault_of, newest_checkpoint, read_weights
from tiny import TINY

RUN = [*TINY, "training.images=320", "training.checkpoint_every=64"]


def job(demo: Path, out: Path, *settings: str, shards: Path | None = None) -> Job:
    return Job(str(shards or demo / "shards"), str(out), "mini", [*RUN, *settings])


def skipped(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    tensors = read_weights(out / "model.safetensors")[0]
    assert len(tensors) > 10
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    return tensors


def loss_is(monkeypatch: pytest.MonkeyPatch, factor) -> None:
    """Multiply the loss of the batch at each place by what `factor(place)` says."""
    forward = StepLoss.forward
    monkeypatch.setattr(
        StepLoss, "forward", lambda self, batch: forward(self, batch) * factor(batch.position)
    )


def test_a_batch_whose_loss_is_no_number_is_left_out(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = job(tiny_demo, tmp_path / "run")
    loss_is(monkeypatch, lambda place: float("nan") if place == 96 else 1.0)
    assert run.do()
    (line,) = skipped(tmp_path / "run")
    assert line["position"] == 96
    assert line["reason"] == "the loss was nan"
    assert line["samples"] == run.sample_ids(1)[96]
    assert len(line["samples"]) == 16
    weights(tmp_path / "run")


def test_a_run_that_ends_between_batches_left_out_says_so(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    loss_is(monkeypatch, lambda place: float("nan") if place >= 32 else 1.0)
    assert job(tiny_demo, tmp_path / "run", "training.images=64").do()
    assert "the last 2 batches could not be trained on" in capsys.readouterr().out
    weights(tmp_path / "run")


def test_a_spike_is_left_out(tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = job(tiny_demo, tmp_path / "run", "training.guard.warmup=5")
    loss_is(monkeypatch, lambda place: 1000.0 if place == 160 else 1.0)
    assert run.do()
    (line,) = skipped(tmp_path / "run")
    assert line["position"] == 160
    assert "far above the usual" in line["reason"]


def test_after_some_in_a_row_the_run_goes_back_and_moves_on(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = job(tiny_demo, tmp_path / "run", "training.guard.patience=3", "training.guard.returns=1")
    loss_is(monkeypatch, lambda place: float("inf") if 112 <= place < 160 else 1.0)
    assert run.do()
    assert [line["position"] for line in skipped(tmp_path / "run")] == [112, 128, 144]
    assert "back to 64 images; the data go on from image 160." in capsys.readouterr().out
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["images"] for line in lines] == list(range(16, 321, 16))
    # 64 images, and then those from 160 on.
    assert sorted(place for place in run.sample_ids(1) if place >= 160) == list(range(160, 416, 16))
    weights(tmp_path / "run")


def test_a_run_that_gets_no_further_gives_up_with_advice(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = job(tiny_demo, tmp_path / "run", "training.guard.patience=2", "training.guard.returns=2")
    loss_is(monkeypatch, lambda place: float("nan") if place >= 96 else 1.0)
    with pytest.raises(UserError, match=r"went back 2 times without getting past.*lower optimizer\.lr"):
        run.do()
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert int(newest.name) == 64
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_going_back_is_the_same_after_a_stop(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = ["training.guard.patience=3"]
    loss_is(monkeypatch, lambda place: float("nan") if 112 <= place < 160 else 1.0)
    whole, stopped = (job(tiny_demo, tmp_path / name, *settings) for name in ("whole", "stopped"))
    assert whole.do()
    stopped.stop_at = 128
    assert stopped.do() is False
    stopped.stop_at = 10**9
    assert stopped.do()
    ours, theirs = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.fixture
def broken_shards(tiny_demo: Path, tmp_path: Path) -> tuple[Path, str]:
    """Shards with an infinite latent in one plain sample, and its id; hashes are those of the broken file."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in (tiny_demo / "shards").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "plain-00000.arrow"
    with pa.memory_map(str(tiny_demo / "shards" / path.name)) as source:
        table = pa.ipc.open_file(source).read_all()
    means = [np.frombuffer(blob.as_py(), np.float16).copy() for blob in table.column("mean")]
    means[5][3] = np.inf
    column = pa.array([mean.tobytes() for mean in means], pa.large_binary())
    table = table.set_column(table.schema.get_field_index("mean"), "mean", column).combine_chunks()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    index = read_json(folder / INDEX)
    index["files"][path.name] = sha256_of_file(path)
    write_json(folder / INDEX, index)
    return folder, table.column("path")[5].as_py()


def test_a_sample_with_infinite_latents_is_named_and_not_trained_on(
    tiny_demo: Path, tmp_path: Path, broken_shards: tuple[Path, str]
):
    folder, name = broken_shards
    off = ["objective.augment_probability=0"]
    assert job(tiny_demo, tmp_path / "run", *off, shards=folder).do()
    lines = skipped(tmp_path / "run")
    assert len(lines) in (320 // 48, 320 // 48 + 1), "once in every epoch"
    for line in lines:
        assert line["faults"] == [[name, "latents or text states are not finite"]]
        assert name in line["samples"]
    weights(tmp_path / "run")


def test_a_sample_that_cannot_be_read_is_named(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kilopix.data.shards import Shards

    plain = Shards.plain

    def unreadable(self, i: int, short: bool = False, draw: int = 0):
        if i == 7:
            raise OSError(5, "Input/output error")
        return plain(self, i, short, draw)

    monkeypatch.setattr(Shards, "plain", unreadable)
    assert job(tiny_demo, tmp_path / "run").do()
    lines = skipped(tmp_path / "run")
    assert lines
    assert all(len(line["faults"]) == 1 for line in lines)
    assert all("Input/output error" in line["faults"][0][1] for line in lines)
    weights(tmp_path / "run")


def test_a_damaged_shard_is_named_before_anything_is_trained_on(tiny_demo: Path, tmp_path: Path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in (tiny_demo / "shards").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / "augmented-00000.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "augmented-00000.arrow").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: augmented-00000\.arrow"):
        job(tiny_demo, tmp_path / "run", shards=folder).do()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert job(tiny_demo, tmp_path / "run", "training.verify_shards=false", shards=folder).do()


def test_a_full_disk_is_a_clear_error_and_the_last_checkpoint_is_intact(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = job(tiny_demo, tmp_path / "run")
    load, limits = StepLoader.load, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full_after_100(self: StepLoader, place: tuple[int, int]) -> StepBatch:
        if place[0] >= 96:  # files can be no larger from here on, as on a disk that is full
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        return load(self, place)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(StepLoader, "load", full_after_100)
    try:
        with pytest.raises(UserError, match=r"checkpoint could not be written.*the last one is kept"):
            run.do()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = tmp_path / "run" / "checkpoints"
    assert [f.name for f in folder.iterdir()] == [f"{64:012d}"]
    assert fault_of(folder / f"{64:012d}") is None
    monkeypatch.undo()
    assert run.do()
    whole = job(tiny_demo, tmp_path / "whole")
    assert whole.do()
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_how_a_run_is_computed_may_change_under_it_but_not_what_it_learns(tiny_demo: Path, tmp_path: Path):
    run = job(tiny_demo, tmp_path / "run")
    run.stop_at = 96
    assert run.do() is False
    changed = job(tiny_demo, tmp_path / "run", "training.batch_size=8")
    with pytest.raises(UserError, match=r"another job \(training.batch_size: 16, here 8\)"):
        changed.do()
    again = ["training.micro_batch=8", "training.keep_every=128", "training.activation_checkpointing=true"]
    assert job(tiny_demo, tmp_path / "run", *again).do()
    kept = [int(f.name) for f in checkpoints(tmp_path / "run" / "checkpoints")]
    assert 128 in kept
    assert 320 in kept


def test_a_step_that_does_not_fit_says_what_to_do_and_the_run_goes_on_with_less(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = job(tiny_demo, tmp_path / "run")
    forward = StepLoss.forward

    def no_room(self, batch: StepBatch):
        if batch.position >= 128 and len(batch) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch)

    monkeypatch.setattr(StepLoss, "forward", no_room)
    with pytest.raises(UserError, match=r"no memory for 16 images at once.*goes on .* with 8, if"):
        run.do()
    assert run.do()
    weights(tmp_path / "run")
