import math

import pytest
import torch

from kilopix.training.checkpoint import allocate_states, set_skipped
from kilopix.training.guard import Guard, GuardConfig
from kilopix.training.lamb import LambConfig
from kilopix.training.muon import AdamWConfig, MuonConfig
from kilopix.training.optim import build_optimizer, set_lr


def judged(guard: Guard, loss: float, norm: float) -> bool:
    return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))


def usual(guard: Guard, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss, norm = (1 + 0.2 * torch.rand(2, generator=generator)).tolist()
        assert judged(guard, loss, norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_left_out_from_the_first_step(bad: float):
    guard = Guard(GuardConfig(), "cpu")
    assert not judged(guard, bad, 1.0)
    assert not judged(guard, 1.0, bad)
    assert guard.statistics.tolist() == [0.0] * 5
    assert judged(guard, 1.0, 1.0)


def test_a_spike_is_left_out_and_forgotten():
    guard = Guard(GuardConfig(warmup=20), "cpu")
    usual(guard, 60)
    before = guard.statistics.clone()
    assert not judged(guard, 1.1, 30.0)
    assert not judged(guard, 9.0, 1.1)
    assert torch.equal(guard.statistics, before)
    assert judged(guard, 1.1, 8.0), "within the factor"
    assert judged(guard, 0.001, 0.001), "low is no spike"


def test_no_spike_is_seen_before_the_warmup_is_over():
    guard = Guard(GuardConfig(warmup=20), "cpu")
    usual(guard, 10)
    assert judged(guard, 100.0, 1000.0)


def test_statistics_are_the_mean_and_variance_of_logs():
    guard = Guard(GuardConfig(window=1000), "cpu")
    norms = torch.rand(50, generator=torch.Generator().manual_seed(1)) + 0.5
    for norm in norms.tolist():
        judged(guard, 1.0, norm)
    assert guard.statistics[0] == 50
    assert guard.statistics[1] == pytest.approx(float(norms.log().mean()), abs=1e-5)
    assert guard.statistics[2] == pytest.approx(float(norms.log().var(correction=0)), abs=1e-5)


def test_what_to_do_after_some_in_a_row():
    guard = Guard(GuardConfig(patience=3, returns=1), "cpu")
    assert [guard.count(False), guard.count(False)] == ["go on", "go on"]
    assert guard.count(True) == "go on"
    assert [guard.count(False) for _ in range(3)] == ["go on", "go on", "go back"]
    guard.in_a_row, guard.went_back = 0, 1
    assert [guard.count(False) for _ in range(3)] == ["go on", "go on", "give up"]


@pytest.mark.parametrize("config", [AdamWConfig(), MuonConfig(), LambConfig()])
def test_a_step_left_out_changes_nothing(config):
    torch.manual_seed(0)
    network = torch.nn.Module()
    network.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 4), torch.nn.LayerNorm(4)])
    optimizer = build_optimizer(config, network)
    set_lr(optimizer, 1.0)
    start = [p.detach().clone() for p in network.parameters()]
    allocate_states(optimizer)

    def values() -> list[torch.Tensor]:
        states = [value for p in network.parameters() for value in optimizer.state[p].values()]
        return [*network.parameters(), *states]

    def step(skipped: float, gradient: float) -> None:
        for p in network.parameters():
            p.grad = torch.full_like(p, gradient)
        set_skipped(optimizer, torch.tensor(skipped))
        optimizer.step()

    assert len(values()) > 4
    assert all(torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))
    step(0.0, 0.5)
    before = [value.detach().clone() for value in values()]
    assert not torch.equal(before[0], start[0])
    step(1.0, math.nan)
    assert [i for i, (a, b) in enumerate(zip(before, values(), strict=True)) if not torch.equal(a, b)] == []
    step(0.0, 0.5)
    assert not torch.equal(before[0], values()[0])
