"""What the engine costs over the bare network step, in one run: time and memory.

    python benchmarks/engine.py                 on a CPU: a DiT-I and a CAD-I of some million weights
    python benchmarks/engine.py --device cuda   on a GPU: DiT-I L and CAD-I L; its utilisation, too

The bare step is network, loss, backward, clipping, optimizer and average, on one batch that lies on the
device. The engine's is the loop of `kilopix train` itself: batches read from shards, checked, drawn and
copied; guard, watchdog and log. The two take turns, a stretch each, on the same weights; the medians of a
step are compared. Memory is the peak of a process of its own for each. The shards are random, and as large a
sample as with Flan-T5-XL's states.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from kilopix import engine
from kilopix.data.shards import Shards
from kilopix.models.dit import DIT_SIZES, DiTConfig
from kilopix.models.rin import RIN_SIZES, RINConfig
from kilopix.network import flops_per_image
from kilopix.pretrained.autoencoder import SDAutoencoderConfig
from kilopix.pretrained.text_encoder import T5Config
from kilopix.progress import Progress
from kilopix.recipe import DataConfig, Recipe, TrainingConfig
from kilopix.step import StepBatch
from kilopix.training.checkpoint import set_skipped
from kilopix.training.parallel import Processes, clip_gradients
from kilopix.training.stopping import Stop
from kilopix.training.watchdog import Watchdog
from loading import write_shards

# Few samples, read again and again: mapped pages of the shards count as memory of the process.
WIDTH, TOKENS, SAMPLES = 2048, (40, 128), 16
SMALL = {
    "dit": DiTConfig(width=256, depth=6, heads=4, patch=2),
    "cad": RINConfig(latents=64, latent_width=256, token_width=128, compute_heads=4, read_write_heads=4),
}
LARGE = {"dit": DIT_SIZES["L"], "cad": RIN_SIZES["L"]}


def start(folder: Path, kind: str, device: str, batch: int) -> engine.Run:
    """A run as `kilopix train` has it before its first step, of more images than will be seen."""
    sizes = LARGE if device.startswith("cuda") else SMALL
    recipe = Recipe(
        data=DataConfig(image_size=256),
        text=T5Config(max_tokens=TOKENS[1]),
        autoencoder=SDAutoencoderConfig(),
        model=sizes[kind],
        training=TrainingConfig(
            images=10**7, batch_size=batch, checkpoint_every=10**7, log_every=100 * batch
        ),
    )
    processes = Processes(device=device)
    return engine.start(recipe, Shards(folder / "shards"), folder / "run", {}, processes)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def bare_steps(run: engine.Run, batch: StepBatch, steps: int) -> list[float]:
    """Seconds of each step that is nothing but the network's; waited for once, at the end, on a GPU."""
    set_skipped(run.optimizer, torch.zeros((), device=run.processes.device))
    parameters = list(run.network.parameters())
    wait(run.processes.device)
    began = [time.perf_counter()]
    for _ in range(steps):
        for part in batch.micro_batches(run.loader.micro_batches(batch.count)):
            run.loss(part).backward()
        clip_gradients(parameters, run.recipe.training.clip_norm)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.average.update(run.network, run.images_seen + 1, batch.count)
        began.append(time.perf_counter())
    wait(run.processes.device)
    return _each(began, time.perf_counter(), run.processes.device)


def engine_steps(run: engine.Run, steps: int) -> list[float]:
    """Seconds of each step of the training loop, from its second on."""
    stop, ended = Stop(), [0.0]

    class Timed(Progress):
        """A bar that is shown nowhere and notes when it is told of a step."""

        def update(self, done: float, notes: Sequence[str] | None = None) -> None:
            super().update(done, notes)
            ended.append(time.perf_counter())
            stop.asked = len(ended) > steps

    run.watch = engine.watch_over(run)
    watchdog = Watchdog(run.recipe.training.watchdog, run.out)
    with watchdog.watching():
        shown = Timed("train", run.recipe.training.images, quiet=True)
        stretch = engine.Stretch(run, stop, watchdog, shown)
        stretch._save = lambda: None
        assert stretch.ended()
    return _each(ended[1:], ended[-1], run.processes.device)


def _each(times: list[float], end: float, device: str) -> list[float]:
    """The steps between these times; on a GPU, which runs behind the host, all are given the mean."""
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if device.startswith("cuda"):
        return [(end - times[0]) / len(steps)] * len(steps)
    return steps


def one_batch(run: engine.Run) -> StepBatch:
    """The first batch, on the device."""
    return run.loader.load((0, run.recipe.training.batch_size)).moved_to(run.processes.device)


def peak(device: str) -> float:
    """This process's peak memory in GB; `getrusage` would count the parent's, from which it was forked."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    (line,) = [
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) * 1024 / 1e9


def memory_of(folder: Path, which: str, kind: str, device: str, batch: int) -> float:
    """Peak memory in GB of a few steps, in a process of its own."""
    command = [sys.executable, __file__, "--memory", which, kind, "--folder", str(folder)]
    command += ["--device", device, "--batch", str(batch)]
    out = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    return float(out.stdout.split()[-1])


def compare(folder: Path, kind: str, device: str, batch: int, rounds: int, steps: int, rate: float) -> None:
    """Print one network's step in the engine and bare."""
    run = start(folder, kind, device, batch)
    fixed = one_batch(run)
    bare_steps(run, fixed, 2)
    engine_steps(run, 4)
    bare: list[float] = []
    ours_of: list[float] = []
    for _ in range(rounds):
        bare += bare_steps(run, fixed, steps)
        ours_of += engine_steps(run, steps + 3)[2:]
    ours, least = statistics.median(ours_of), statistics.median(bare)
    parameters = sum(p.numel() for p in run.network.parameters()) / 1e6
    print(
        f"{kind}: {parameters:.0f}M weights, batch {batch}, micro-batch {run.loader.micro_batch}: "
        f"{ours:.4f} s a step in the engine, {least:.4f} s bare, {100 * (ours / least - 1):+.1f}%",
        flush=True,
    )
    if device.startswith("cuda"):
        flops = 3 * flops_per_image(run.recipe, 4, WIDTH, TOKENS[1]) * batch
        print(
            f"{kind}: {batch / ours:.0f} images/s, {flops / ours / 1e12:.0f} TFLOP/s, "
            f"{flops / ours / rate:.1%} of {rate / 1e12:.0f}; a first pass of CAD-I's is not counted"
        )
    del run, fixed
    bare_memory, engine_memory = (memory_of(folder, w, kind, device, batch) for w in ("bare", "engine"))
    print(
        f"{kind}: peak memory {engine_memory:.3f} GB in the engine, {bare_memory:.3f} GB bare, "
        f"{100 * (engine_memory / bare_memory - 1):+.1f}%",
        flush=True,
    )


def main() -> None:
    """Measure all, or print the peak memory of one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--kinds", nargs="*", default=["dit", "cad"])
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, in bfloat16")
    parser.add_argument("--memory", nargs=2)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    batch = given.batch or (128 if given.device.startswith("cuda") else 8)
    if given.memory:
        which, kind = given.memory
        run = start(given.folder, kind, given.device, batch)
        if which == "bare":
            bare_steps(run, one_batch(run), 4)
        else:
            engine_steps(run, 4)
        print(peak(given.device))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "shards").mkdir()
        (folder / "run").mkdir()
        write_shards(folder / "shards", max(SAMPLES, 2 * batch), "bfloat16", WIDTH, TOKENS)
        print(f"torch {torch.__version__}, {given.device}, {torch.get_num_threads()} threads")
        for kind in given.kinds:
            rate = given.peak_tflops * 1e12
            compare(folder, kind, given.device, batch, given.rounds, given.steps, rate)


if __name__ == "__main__":
    main()
