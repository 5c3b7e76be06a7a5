import json
from pathlib import Path

import pytest
import torch
from torch import nn

from kilopix.errors import UserError
from kilopix.training.checkpoint import (
    Progress,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_weights,
    save_checkpoint,
    save_weights,
)
from kilopix.training.muon import AdamWConfig, MuonConfig
from kilopix.training.optim import build_optimizer, set_lr


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3)])

    def forward(self, x):
        return self.blocks[0](x)


def trained(config, steps: int, network=None, optimizer=None):
    torch.manual_seed(0)
    network = network or Net()
    optimizer = optimizer or build_optimizer(config, network)
    set_lr(optimizer, 1.0)
    for step in range(steps):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    return network, optimizer


def save(folder: Path, images: int, network, optimizer, keep: int = 2) -> Path:
    return save_checkpoint(folder, network, [network], optimizer, Progress(images, 1.5), {"recipe": {}}, keep)


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig()])
def test_going_on_from_a_checkpoint_is_going_on(tmp_path: Path, config):
    network, optimizer = trained(config, 3)
    folder = save(tmp_path, 300, network, optimizer)
    other, average = Net(), Net()
    other_optimizer = build_optimizer(config, other)
    assert load_checkpoint(folder, other, [average], other_optimizer) == Progress(300, 1.5)
    assert torch.equal(average.blocks[0].weight, network.blocks[0].weight)
    trained(config, 4, network, optimizer)
    trained(config, 4, other, other_optimizer)
    assert torch.equal(network.blocks[0].weight, other.blocks[0].weight)
    assert torch.equal(network.blocks[0].bias, other.blocks[0].bias)


def test_the_newest_that_verifies_is_taken_and_old_ones_go(tmp_path: Path):
    network, optimizer = trained(AdamWConfig(), 1)
    for images in (100, 200, 300):
        save(tmp_path, images, network, optimizer)
    assert [int(c.name) for c in checkpoints(tmp_path)] == [200, 300]
    damaged = tmp_path / f"{300:012d}" / "network.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert int(newest.name) == 200
    (newest / "state.json").unlink()
    with pytest.raises(UserError, match="every checkpoint in it is damaged"):
        newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(tmp_path: Path, monkeypatch):
    network, optimizer = trained(AdamWConfig(), 1)
    save(tmp_path, 100, network, optimizer)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kilopix.training.checkpoint.write_json", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(tmp_path, 200, network, optimizer)
    assert [f.name for f in tmp_path.iterdir()] == [f"{100:012d}"]
    assert newest_checkpoint(tmp_path) is not None


def test_weights_carry_their_header_and_others_are_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_weights(path, Net(), {"recipe": {"seed": 3}})
    tensors, header = read_weights(path)
    assert header == {"recipe": {"seed": 3}}
    assert set(tensors) == {"blocks.0.weight", "blocks.0.bias"}
    path.write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        read_weights(path)
