"""What only a GPU can say: one run of some minutes on one card, with bounds.

    python benchmarks/gpu_check.py OUT                         on a GPU
    python benchmarks/gpu_check.py OUT --tiny --device cpu     a rehearsal, which compiles nothing

Each section writes its numbers into OUT/gpu_check.json as it ends, and one that fails is named without
stopping the others; the table comes last. A number that has a bound is marked ok or BAD.
"""

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from engine import LARGE, SMALL, TOKENS, WIDTH, wait
from kilopix import engine
from kilopix.data.shards import Shards
from kilopix.diffusion.sampling import PRESETS
from kilopix.hardware import peak_flops
from kilopix.models.dit import DiTConfig
from kilopix.models.rin import RINConfig
from kilopix.network import compiled_of, sample_latents, training_flops_per_image
from kilopix.pretrained.autoencoder import SDAutoencoderConfig
from kilopix.pretrained.text_encoder import T5Config
from kilopix.recipe import DataConfig, Recipe, TrainingConfig
from kilopix.runtime import seed_from
from kilopix.step import StepBatch, synthetic_batch
from kilopix.training.parallel import join_processes
from kilopix.training.speed import uncompiled
from kilopix.types import TextStates
from loading import write_shards

GOAL = 0.45
"""Share of the card's dense bfloat16 peak that a training step is to reach."""
TINY = {
    "dit": DiTConfig(width=64, depth=2, heads=2, patch=4),
    "cad": RINConfig(
        latents=8, latent_width=64, token_width=32, blocks=2, layers=1, compute_heads=2
    ).model_copy(update={"read_write_heads": 2, "text_heads": 2, "patch": 4}),
}


class Check:
    """The numbers so far, and where they are written."""

    def __init__(self, out: Path, device: str, tiny: bool):
        self.out, self.device, self.tiny = out, device, tiny
        self.gpu = device.startswith("cuda")
        self.rows: list[dict[str, object]] = []
        out.mkdir(parents=True, exist_ok=True)

    def row(self, section: str, what: str, value: object, good: bool | None = None) -> None:
        """Note a number, and whether it is within its bound, if it has one."""
        value = round(value, 5) if isinstance(value, float) else value
        self.rows.append({"section": section, "what": what, "value": value, "good": good})
        (self.out / "gpu_check.json").write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        mark = {True: "ok", False: "BAD", None: ""}[good]
        print(f"{section:10} {what:52} {value} {mark}", flush=True)

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of a piece of work, waited for."""
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            work()
            wait(self.device)
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])


def recipe_of(check: Check, kind: str, batch: int) -> Recipe:
    """A recipe at 256 pixels, with the texts of Flan-T5-XL."""
    return Recipe(
        data=DataConfig(image_size=256),
        text=T5Config(max_tokens=TOKENS[1]),
        autoencoder=SDAutoencoderConfig(),
        model=(TINY if check.tiny else LARGE if check.gpu else SMALL)[kind],
        training=TrainingConfig(images=10**7, batch_size=batch, checkpoint_every=10**7, log_every=10**6),
    )


def environment(check: Check) -> None:
    """The card, and how fast its products are."""
    check.row("env", "torch", torch.__version__)
    if not check.gpu:
        return
    check.row("env", "card", torch.cuda.get_device_name())
    check.row("env", "cuDNN", torch.backends.cudnn.version())
    a = torch.randn(8192, 8192, device=check.device, dtype=torch.bfloat16)
    check.row("env", "TFLOP/s of an 8192^3 product", 2 * 8192**3 / check.seconds(lambda: a @ a) / 1e12)
    known = peak_flops(check.device, "bfloat16")
    check.row("env", "TFLOP/s by its data sheet", known and known / 1e12, known is not None)


def parity(check: Check) -> None:
    """Losses and gradients on the device against the CPU's, in float32 and in bfloat16."""
    from kilopix.network import build_network
    from kilopix.step import StepLoss

    for kind, config in (TINY if check.tiny else SMALL).items():
        recipe = recipe_of(check, kind, 8).model_copy(update={"model": config})
        torch.manual_seed(0)
        network = build_network(recipe, 4, WIDTH)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.03)
        found: dict[str, list[torch.Tensor]] = {}
        for name, device, precision in (
            ("cpu", "cpu", torch.float32),
            ("float32", check.device, torch.float32),
            ("bfloat16", check.device, torch.bfloat16),
        ):
            network = network.to(device)
            network.zero_grad()
            batch = _random(synthetic_batch(recipe, 8, 4, WIDTH, 40, torch.float32, "cpu")).moved_to(device)
            loss = StepLoss(network, recipe, precision)(batch)
            loss.backward()
            found[name] = [p.grad.float().cpu() for p in network.parameters() if p.grad is not None]
        network.to("cpu")
        for name, most in (("float32", 1e-3), ("bfloat16", 0.1)):
            off, size = (
                torch.stack([x.norm() for x in tensors]).norm()
                for tensors in (
                    [a - b for a, b in zip(found[name], found["cpu"], strict=True)],
                    found["cpu"],
                )
            )
            error = float(off / size)
            check.row("parity", f"{kind}, {name}: relative error of the gradients", error, error < most)


def _random(batch: StepBatch) -> StepBatch:
    generator = torch.Generator().manual_seed(0)
    for tensor in (batch.latents, batch.noise, batch.states):
        tensor.normal_(generator=generator)
    batch.t.uniform_(generator=generator)
    return batch


def training(check: Check, kind: str) -> None:
    """Steps of the real engine: images a second, memory, graphs, and that nothing waits for the device."""
    batch, steps = (16, 4) if check.tiny else (256, 12) if check.gpu else (32, 4)
    folder = check.out / f"work-{seed_from(kind, time.time_ns())}"
    (folder / "shards").mkdir(parents=True)
    write_shards(folder / "shards", 64 if not check.gpu else 512, "int8", WIDTH, TOKENS)
    recipe = recipe_of(check, kind, batch)
    with join_processes(check.device, "ddp", 1.0) as processes:
        began = time.perf_counter()
        run = engine.start(recipe, Shards(folder / "shards"), folder / "run", {}, processes)
        check.row(kind, "seconds to start, micro-batch found", time.perf_counter() - began)
        check.row(kind, "micro-batch", run.loader.micro_batch)
        batches = engine.batches_of(run)
        for _ in range(3):
            engine.take_step(run, next(batches), False)
        wait(check.device)
        slow = uncompiled(compiled_of(run.network)) if run.compiled else []
        check.row(kind, "parts that run uncompiled", len(slow), not slow)
        graphs = counters["stats"]["unique_graphs"]
        if check.gpu:
            torch.cuda.reset_peak_memory_stats()
        ready = [next(batches) for _ in range(2)]
        began = time.perf_counter()
        for _ in range(steps):
            taken = engine.take_step(run, next(batches), False)
        wait(check.device)
        rate = steps * batch / (time.perf_counter() - began)
        assert bool(torch.isfinite(taken.numbers).all())
        check.row(kind, "images a second", rate)
        again = counters["stats"]["unique_graphs"] - graphs
        check.row(kind, "graphs compiled after the first three steps", again, again == 0)
        if not check.gpu:
            return
        flops = training_flops_per_image(recipe, 4, WIDTH, sum(TOKENS) // 2)
        peak = peak_flops(check.device, "bfloat16")
        if peak:
            check.row(kind, "share of the peak", rate * flops / peak, rate * flops / peak >= GOAL)
        check.row(kind, "peak memory in GB", torch.cuda.max_memory_allocated() / 1e9)
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine.take_step(run, ready[0], False)
            check.row(kind, "a step waits for the device", "no", True)
        except RuntimeError as error:
            check.row(kind, "a step waits for the device", str(error).splitlines()[0], False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        _profile(check, kind, lambda: engine.take_step(run, ready[1], False))


def _profile(check: Check, kind: str, work: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        work()
        wait(check.device)
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=25)
    (check.out / f"profile_{kind}.txt").write_text(table, encoding="utf-8")


def sampling(check: Check) -> None:
    """Seconds to one sampled image's latents, by the recommended preset."""
    from kilopix.network import build_network

    for kind in ("dit", "cad"):
        recipe = recipe_of(check, kind, 8)
        network = build_network(recipe, 4, WIDTH).to(check.device).eval()
        text = TextStates(
            torch.randn(1, 40, WIDTH, device=check.device),
            torch.ones(1, 40, dtype=torch.bool, device=check.device),
        )
        settings = PRESETS["recommended"]
        if check.tiny:
            settings = settings.model_copy(update={"steps": 3})
        sample = partial(
            sample_latents,
            network,
            recipe.objective,
            settings,
            text,
            TextStates(text.states[:, :1], text.mask[:, :1]),
            [0],
            (4, recipe.latent_side, recipe.latent_side),
            precision=lambda: torch.autocast(torch.device(check.device).type, torch.bfloat16, check.gpu),
        )
        with torch.no_grad():
            check.row(
                "sampling", f"{kind}: seconds an image, {settings.steps} steps", check.seconds(sample, 3)
            )


def main() -> None:
    """Run the sections, and print what they found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    check = Check(given.out, given.device, given.tiny)
    sections: dict[str, Callable[[], None]] = {
        "env": lambda: environment(check),
        "parity": lambda: parity(check),
        "dit": lambda: training(check, "dit"),
        "cad": lambda: training(check, "cad"),
        "sampling": lambda: sampling(check),
    }
    wanted = [name for name in given.only.split(",") if name] or list(sections)
    failed = []
    for name in wanted:
        try:
            sections[name]()
        except Exception:  # noqa: BLE001 - the others are still to run
            traceback.print_exc()
            failed.append(name)
            check.row(name, "failed", True, False)
        if check.gpu:
            torch.cuda.empty_cache()
    bad = [row for row in check.rows if row["good"] is False]
    print(f"{len(check.rows)} numbers, {len(bad)} out of bounds" + (f", failed: {failed}" if failed else ""))
    raise SystemExit(bool(failed or (bad and check.gpu)))


if __name__ == "__main__":
    main()
