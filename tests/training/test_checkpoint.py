import copy
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from kilopix.errors import UserError
from kilopix.runtime import read_json, write_json
from kilopix.training.checkpoint import (
    AVERAGE,
    STATE,
    Progress,
    Trained,
    allocate_states,
    checkpoints,
    fault_of,
    last_good_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    read_progress,
    read_weights,
    save_checkpoint,
    save_weights,
    set_skipped,
    thinned,
)
from kilopix.training.lamb import LambConfig
from kilopix.training.muon import AdamWConfig, MuonConfig
from kilopix.training.optim import build_optimizer, set_lr
from tiny import temporary_of_dead_process


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, x):
        return self.blocks[0](x)


def fresh(config) -> Trained:
    network = Net()
    optimizer = build_optimizer(config, network)
    allocate_states(optimizer)
    return Trained(network, [copy.deepcopy(network) for _ in range(2)], optimizer, torch.zeros(5))


def train(trained: Trained, steps: range) -> None:
    set_lr(trained.optimizer, 1.0)
    for step in steps:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        trained.network(x).square().sum().backward()
        set_skipped(trained.optimizer, torch.zeros(()))
        trained.optimizer.step()
        trained.optimizer.zero_grad()
        trained.guard.add_(1)


def trained_by(config, steps: int) -> Trained:
    torch.manual_seed(0)
    trained = fresh(config)
    train(trained, range(steps))
    for number, average in enumerate(trained.averages):
        average.load_state_dict({k: v + number for k, v in trained.network.state_dict().items()})
    return trained


def save(folder: Path, images: int, trained: Trained, keep: int = 2, **progress) -> Path:
    return save_checkpoint(folder, trained, Progress(images, 1.5, **progress), {"recipe": {}}, keep)


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig(), LambConfig()])
def test_going_on_from_a_checkpoint_is_going_on(tmp_path: Path, config):
    trained = trained_by(config, 3)
    told = {"moved": 7, "bad_in_a_row": 2, "went_back": 1, "micro_batch": 4, "log": {"loss": 0.1}}
    folder = save(tmp_path, 300, trained, **told)
    other = fresh(config)
    assert load_checkpoint(folder, other) == Progress(300, 1.5, **told)
    train(trained, range(3, 5))
    train(other, range(3, 5))
    assert trained.tensors().keys() == other.tensors().keys()
    for name, value in trained.tensors().items():
        assert torch.equal(value, other.tensors()[name]), name
    for ours, theirs in zip(trained.averages, other.averages, strict=True):
        assert torch.equal(ours.blocks[0].weight, theirs.blocks[0].weight)
    assert not torch.equal(trained.averages[0].blocks[0].weight, trained.averages[1].blocks[0].weight)


def test_no_pickle_is_among_the_files(tmp_path: Path):
    folder = save(tmp_path, 300, trained_by(AdamWConfig(), 1))
    files = sorted(f.name for f in folder.iterdir())
    assert len(files) == 3
    assert [f for f in files if not f.endswith(".safetensors")] == [STATE]
    assert all(read_weights(folder / f)[0] for f in files if f != STATE and not f.startswith("shard"))
    assert read_weights(folder / AVERAGE)[1] == {"recipe": {}, "images_seen": 300}


def test_the_newest_that_verifies_is_taken_and_old_ones_go(tmp_path: Path):
    trained = trained_by(AdamWConfig(), 1)
    for images in (100, 200, 300):
        save(tmp_path, images, trained)
    assert [int(c.name) for c in checkpoints(tmp_path)] == [200, 300]
    (damaged,) = (tmp_path / f"{300:012d}").glob("shard-*")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert int(newest.name) == 200
    (newest / STATE).unlink()
    with pytest.raises(UserError, match="every checkpoint in it is damaged"):
        newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path / "none") is None


def test_the_first_of_every_stretch_stays(tmp_path: Path):
    found = [tmp_path / f"{images:012d}" for images in (40, 90, 110, 160, 230, 310)]
    assert [int(c.name) for c in thinned(found, 1, 100)] == [40, 90, 160]
    assert [int(c.name) for c in thinned(found, 2)] == [40, 90, 110, 160]


def test_the_last_good_one_is_not_from_between_bad_steps(tmp_path: Path):
    trained = trained_by(AdamWConfig(), 1)
    save(tmp_path, 100, trained, keep=9)
    save(tmp_path, 200, trained, keep=9, bad_in_a_row=2)
    good = last_good_checkpoint(tmp_path)
    assert good is not None
    assert int(good.name) == 100
    assert [int(c.name) for c in checkpoints(tmp_path)] == [100], "the run would go on from the bad one"


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(tmp_path: Path, monkeypatch):
    trained = trained_by(AdamWConfig(), 1)
    save(tmp_path, 100, trained)

    def full(*_):
        raise OSError(28, "No space left on device")

    for place in ("kilopix.training.checkpoint.write_json", "safetensors.torch.save_file", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(UserError, match=r"No space left on device.*the last one is kept"):
                save(tmp_path, 200, trained)
        assert [f.name for f in tmp_path.iterdir()] == [f"{100:012d}"]
    assert newest_checkpoint(tmp_path) is not None


def test_what_a_killed_process_left_is_not_taken_and_goes(tmp_path: Path):
    trained = trained_by(AdamWConfig(), 1)
    whole = save(tmp_path, 100, trained)
    unfinished = temporary_of_dead_process(tmp_path / f"{200:012d}")
    unfinished.mkdir()
    os.link(whole / AVERAGE, unfinished / AVERAGE)
    assert newest_checkpoint(tmp_path) == whole
    save(tmp_path, 200, trained)
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"{100:012d}", f"{200:012d}"]
    assert fault_of(tmp_path / f"{200:012d}") is None


def test_a_checkpoint_of_another_network_or_version_is_refused(tmp_path: Path):
    folder = save(tmp_path, 100, trained_by(AdamWConfig(), 1))
    with pytest.raises(UserError, match="does not fit the recipe"):
        load_checkpoint(folder, fresh(MuonConfig()))
    write_json(folder / STATE, read_json(folder / STATE) | {"format": 1})
    with pytest.raises(UserError, match="earlier version of kilopix"):
        read_progress(folder)


def test_weights_carry_their_header_and_others_are_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_weights(path, Net(), {"recipe": {"seed": 3}})
    tensors, header = read_weights(path)
    assert header == {"recipe": {"seed": 3}}
    assert set(tensors) == {"blocks.0.weight", "blocks.0.bias"}
    path.write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        read_weights(path)
