import pytest
import torch
from torch import nn

from kilopix.training import parallel
from kilopix.training.speed import largest_that_fits, pick_precision, speed_up


@pytest.mark.parametrize(
    ("room", "expected"), [(1000, 100), (100, 100), (99, 50), (13, 13), (12, 7), (1, 1), (0, 0)]
)
def test_the_micro_batch_is_halved_until_it_fits(room: int, expected: int):
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    assert largest_that_fits(fits, 100) == expected
    assert tried == sorted(tried, reverse=True)


def test_precision_is_float32_on_a_cpu_unless_asked():
    assert pick_precision("auto", "cpu") == torch.float32
    assert pick_precision("bfloat16", "cpu") == torch.bfloat16


def test_a_gpu_that_only_imitates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch):
    """As V100 and T4: without being told, torch calls their imitation support."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert pick_precision("auto", "cuda") == torch.float32


def test_one_process_on_the_second_gpu_makes_it_the_current_one(monkeypatch: pytest.MonkeyPatch):
    chosen: list[str] = []
    monkeypatch.setattr(parallel, "pick_device", lambda name: name)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cuda:1", "cuda", "cpu"):
        with parallel.join_processes(device, "ddp", 1.0) as processes:
            assert processes.device == device
    assert chosen == ["cuda:1"]


def test_checkpointed_blocks_give_the_same_and_keep_less():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)) for _ in range(3)))
    x = torch.randn(5, 8)

    def kept_and_gradients() -> tuple[int, list[torch.Tensor]]:
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        net.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = net(x).square().sum()
        loss.backward()
        return kept, [p.grad.clone() for p in net.parameters() if p.grad is not None]

    before, gradients = kept_and_gradients()
    names = list(net.state_dict())
    speed_up(list(net), compiled=False, checkpointed=True)
    after, again = kept_and_gradients()
    assert after < before / 3
    assert list(net.state_dict()) == names
    assert len(again) == 12
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
