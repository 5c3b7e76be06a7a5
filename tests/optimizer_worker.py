"""Steps of an optimizer with gradients that are drawn, not computed: the same in any number of processes."""

import copy
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from kilopix.runtime import torch_generator
from kilopix.training import muon
from kilopix.training.checkpoint import (
    Progress,
    Trained,
    allocate_states,
    load_checkpoint,
    save_checkpoint,
    set_skipped,
)
from kilopix.training.lamb import LambConfig
from kilopix.training.muon import AdamWConfig, MuonConfig
from kilopix.training.optim import build_optimizer, set_lr
from kilopix.training.parallel import Processes, Style, clip_gradients, is_sharded, join_processes
from kilopix.training.sharding import shard

CONFIGS = {"muon": MuonConfig(), "lamb": LambConfig(lr=0.01), "adamw": AdamWConfig(lr=0.01)}
SKIPPED = 7
GATHER = "all_gather_single" if hasattr(torch.distributed, "all_gather_single") else "all_gather_into_tensor"
COLLECTIVES = (GATHER, "all_to_all_single", "broadcast", "all_reduce")


class Uneven(nn.Module):
    """Matrices that no number of processes divides, one with fewer rows than there are processes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 7)
        shapes = [(7, 5), (5, 7), (7, 5), (3, 3), (4, 1), (7, 5), (9, 2)]
        self.blocks = nn.ModuleList([nn.Linear(*shape) for shape in shapes])
        self.norm = nn.LayerNorm(5)


def trained_in(processes: Processes, kind: str) -> Trained:
    """A new network, shared by the processes as a run shares it."""
    torch.manual_seed(0)
    network = Uneven()
    average = copy.deepcopy(network)
    if processes.sharded:
        shard(average, [], processes)
        shard(network, [[block] for block in network.blocks], processes)
    optimizer = build_optimizer(CONFIGS[kind], network, processes)
    allocate_states(optimizer)
    return Trained(network, [average], optimizer)


def take_steps(trained: Trained, steps: range) -> None:
    """Steps with drawn gradients, one of them with NaN, which is skipped."""
    set_lr(trained.optimizer, 1.0)
    for step in steps:
        generator = torch_generator("gradients", step)
        for p in trained.network.parameters():
            p.grad = _like(torch.randn(p.shape, generator=generator), p)
        if step == SKIPPED:
            for p in trained.network.parameters():
                p.grad = p.grad * math.nan
        clip_gradients(list(trained.network.parameters()), 1.0)
        set_skipped(trained.optimizer, torch.tensor(float(step == SKIPPED)))
        trained.optimizer.step()


def _like(whole: Tensor, p: Tensor) -> Tensor:
    if not is_sharded(p):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(p, DTensor)
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


@dataclass
class Steps:
    """Steps `first` to `last` from a checkpoint, or from the start; ends with a checkpoint below `out`."""

    out: str
    kind: str
    style: Style
    first: int
    last: int
    begin: str = ""
    at_once: int = 64

    def do(self) -> bool:
        """Take the steps, in these processes; what they sent one another is counted in `sent.json`."""
        counts: Counter[str] = Counter()
        with (
            join_processes("cpu", self.style, 2.0) as processes,
            mock.patch.object(muon, "_AT_ONCE", self.at_once),
        ):
            trained = trained_in(processes, self.kind)
            if self.begin:
                load_checkpoint(Path(self.begin), trained, processes)
            with _counted(counts):
                take_steps(trained, range(self.first, self.last))
            if not processes.sharded:
                weights = [p.tolist() for p in trained.network.parameters()]
                assert len({json.dumps(each) for each in processes.gather(weights)}) == 1, "replicas differ"
            out = Path(self.out)
            save_checkpoint(out, trained, Progress(self.last, 1.0), {"recipe": {}}, 9, processes=processes)
            if processes.main:
                (out / "sent.json").write_text(json.dumps(counts), encoding="utf-8")
        return True

    @property
    def checkpoint(self) -> str:
        """Where the checkpoint is."""
        return str(Path(self.out) / f"{self.last:012d}")

    def tensors(self) -> dict[str, Tensor]:
        """What the checkpoint holds, whole."""
        trained = trained_in(Processes(), self.kind)
        load_checkpoint(Path(self.checkpoint), trained)
        return trained.tensors()

    def sent(self) -> dict[str, int]:
        """How many collectives of each kind there were."""
        return json.loads((Path(self.out) / "sent.json").read_text(encoding="utf-8"))


class _counted:
    def __init__(self, counts: Counter[str]):
        self.patches = []
        for name in COLLECTIVES:
            real = getattr(torch.distributed, name)

            def call(*args, _real=real, _name=name, **kwargs):
                counts[_name] += 1
                return _real(*args, **kwargs)

            self.patches.append(mock.patch.object(torch.distributed, name, call))

    def __enter__(self):
        for patch in self.patches:
            patch.start()

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()
