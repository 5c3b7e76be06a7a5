"""What sharing Muon's work among processes brings, in one run.

    torchrun --nproc-per-node 2 benchmarks/muon.py      seconds of a step; on GPUs where there are as many
    python benchmarks/muon.py --flops                   operations of each process, for the networks at scale

The step is that of a DiT-I's matrices with drawn gradients. `each alone` is every process for itself, which
orthogonalises all matrices; `shared` is what training does. The two take turns; medians are compared.
"""

import argparse
import statistics
import time

import torch
from torch import nn

from kilopix.models.dit import DiTConfig
from kilopix.network import build_network
from kilopix.recipe import load_recipe
from kilopix.training.muon import MuonConfig, flops
from kilopix.training.optim import build_optimizer
from kilopix.training.parallel import Processes, join_processes
from kilopix.training.spread import rounds

STEPS = 7
RECIPES = {"dit_i_256_ta": (32, 2048), "cad_i_256_ta": (4, 2048)}


def print_flops() -> None:
    """Newton-Schulz of the process that has most to do, in 1 to 64 processes, and over their mean."""
    for name, encoded in RECIPES.items():
        with torch.device("meta"):
            network = build_network(load_recipe(name), *encoded)
        groups = build_optimizer(MuonConfig(), network).param_groups
        shapes = tuple((p.shape[0], p.shape[1]) for g in groups if g["muon"] for p in g["params"])
        for count in (1, 2, 8, 64):
            plan = rounds(shapes, flops, count, 2**27)
            loads = [sum(flops(shapes[i]) for sent in plan for i in sent[rank]) for rank in range(count)]
            most, mean = max(loads), sum(loads) / count
            print(f"{name}: {count:2} processes: {most / 1e12:6.3f} TFLOP, {most / mean:.3f} of the mean")


def measure(processes: Processes, width: int) -> None:
    """Print the medians of both ways' steps, and their ratio."""
    recipe = load_recipe("mini").model_copy(
        update={"model": DiTConfig(width=width, depth=6, heads=4, patch=2)}
    )
    torch.manual_seed(0)
    network: nn.Module = build_network(recipe, 16, 384).to(processes.device)
    ways = {
        "each alone": build_optimizer(MuonConfig(), network),
        "shared": build_optimizer(MuonConfig(), network, processes),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    for step in range(STEPS + 1):
        for way, optimizer in ways.items():
            _wait(processes)
            started = time.perf_counter()
            optimizer.step()
            _wait(processes)
            if step:
                seconds[way].append(time.perf_counter() - started)
    alone, shared = (statistics.median(each) for each in seconds.values())
    if processes.main:
        print(
            f"{processes.count} processes, width {width}: {alone * 1e3:.1f} ms each alone, "
            f"{shared * 1e3:.1f} ms shared: {alone / shared:.2f} times as fast"
        )


def _wait(processes: Processes) -> None:
    if processes.device_type == "cuda":
        torch.cuda.synchronize()
    processes.wait()


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flops", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    if arguments.flops:
        print_flops()
        return
    with join_processes(arguments.device, "ddp", 5.0) as processes:
        measure(processes, arguments.width)


if __name__ == "__main__":
    main()
