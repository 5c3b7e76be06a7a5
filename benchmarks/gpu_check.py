"""What only a GPU can say: one run of under eight minutes on one card, with bounds.

    python benchmarks/gpu_check.py OUT                         on a GPU
    python benchmarks/gpu_check.py OUT --tiny --device cpu     a rehearsal, which compiles nothing

Each number is in OUT/gpu_check.json as soon as it is there, what `kilopix plan --measured` reads in
OUT/measured.json, the kernels that take most in OUT/profile_*.txt; the table comes last. A section that fails
is named and does not stop the others. A number that has a bound is marked ok or BAD. Every section has its
share of the time: it repeats less where that runs out, and what is not begun in time is said to be left out.
"""

import argparse
import gc
import json
import shutil
import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from encoders import encoder_works
from engine import LARGE, SMALL, TOKENS, WIDTH, wait
from kilopix import engine
from kilopix.budget import Budget, Encoded
from kilopix.data.shards import Shards
from kilopix.diffusion.sampling import PRESETS
from kilopix.hardware import peak_flops
from kilopix.measuring import timed_steps
from kilopix.models.dit import DiTConfig
from kilopix.models.rin import RINConfig
from kilopix.network import build_network, compiled_of, sample_latents
from kilopix.pretrained.autoencoder import SDAutoencoderConfig
from kilopix.pretrained.text_encoder import T5Config
from kilopix.recipe import DataConfig, Recipe, TrainingConfig
from kilopix.runtime import write_json
from kilopix.step import StepBatch, StepLoss, synthetic_batch
from kilopix.training.checkpoint import checkpoints
from kilopix.training.parallel import Processes
from kilopix.training.speed import uncompiled
from kilopix.types import TextStates
from loading import write_shards

GOAL = 0.45
"""Share of the card's dense bfloat16 peak that a training step is to reach."""
MEMORY = 0.15
"""By what share the peak memory of training may differ from the plan."""
SECONDS = 450.0
TINY = {
    "dit": DiTConfig(width=64, depth=2, heads=2, patch=4),
    "cad": RINConfig(
        latents=8, latent_width=64, token_width=32, blocks=2, layers=1, compute_heads=2
    ).model_copy(update={"read_write_heads": 2, "text_heads": 2, "patch": 4}),
}


class Check:
    """The numbers so far, where they are written, and the time that is left."""

    def __init__(self, out: Path, device: str, tiny: bool, seconds: float = SECONDS):
        self.out, self.device, self.tiny = out, device, tiny
        self.gpu = device.startswith("cuda")
        self.rows: list[dict[str, object]] = []
        self.measured: dict[str, Any] = {"card": device, "torch": torch.__version__}
        self.measured |= {"training": {}, "encoding": {}}
        self.ends = self.section_ends = time.perf_counter() + seconds
        out.mkdir(parents=True, exist_ok=True)

    def begin(self, seconds: float) -> bool:
        """Begin a section that may take so long; whether half of that is left."""
        now = time.perf_counter()
        self.section_ends = min(self.ends, now + seconds)
        return self.tiny or self.section_ends - now >= seconds / 2

    def left(self) -> float:
        """Seconds that the section has."""
        return self.section_ends - time.perf_counter()

    def row(self, section: str, what: str, value: object, good: bool | None = None) -> None:
        """Note a number, and whether it is within its bound, if it has one."""
        value = float(f"{value:.4g}") if isinstance(value, float) else value
        self.rows.append({"section": section, "what": what, "value": value, "good": good})
        (self.out / "gpu_check.json").write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
        print(_line(self.rows[-1]), flush=True)

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of a piece of work, waited for; repeated less where the time runs out."""
        times: list[float] = []
        while len(times) <= repeats and (len(times) < 2 or self.left() > 2 * times[-1]):
            began = time.perf_counter()
            work()
            wait(self.device)
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])


def _line(row: dict[str, object]) -> str:
    mark = {True: "ok", False: "BAD", None: ""}[row["good"]]  # pyright: ignore[reportArgumentType]
    return f"{row['section']:10} {row['what']:58} {row['value']} {mark}"


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
    check.measured["card"] = torch.cuda.get_device_name(check.device)
    check.row("env", "card", check.measured["card"])
    check.row("env", "cuDNN", torch.backends.cudnn.version())
    a = torch.randn(8192, 8192, device=check.device, dtype=torch.bfloat16)
    check.row("env", "TFLOP/s of an 8192^3 product", 2 * 8192**3 / check.seconds(lambda: a @ a) / 1e12)
    known = peak_flops(check.device, "bfloat16")
    check.row("env", "TFLOP/s by its data sheet", known and known / 1e12, known is not None)


def parity(check: Check) -> None:
    """Losses and gradients on the device against the CPU's, in float32 and in bfloat16."""
    torch.backends.cudnn.allow_tf32 = False
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


def run_of(check: Check, kind: str, recipe: Recipe, name: str, newest: Path | None = None) -> engine.Run:
    """A run of the engine over random shards, in a folder of this call."""
    shards = check.out / "work" / "shards"
    if not shards.exists():
        shards.mkdir(parents=True)
        write_shards(shards, 512 if check.gpu else 64, "int8", WIDTH, TOKENS)
    out = check.out / "work" / f"{kind}-{name}"
    out.mkdir(exist_ok=True)
    processes = Processes(device=check.device)
    return engine.start(recipe, Shards(shards), out, {}, processes, newest=newest)


def training(check: Check, kind: str) -> None:
    """Steps of the real engine: images a second, memory, graphs, and that nothing waits for the device."""
    batch = 16 if check.tiny else 256 if check.gpu else 32
    recipe = recipe_of(check, kind, batch)
    began = time.perf_counter()
    run = run_of(check, kind, recipe, "speed")
    check.row(kind, "seconds to start, micro-batch found", time.perf_counter() - began)
    check.row(kind, "micro-batch", run.loader.micro_batch)
    batches = engine.batches_of(run)
    first = timed_steps(run, batches, 1)  # and before it those in which all is compiled
    slow = uncompiled(compiled_of(run.network)) if run.compiled else []
    check.row(kind, "parts that run uncompiled", len(slow), not slow)
    graphs = counters["stats"]["unique_graphs"]
    ready = [next(batches) for _ in range(3)]
    steps = max(2, min(12, int(check.left() / 3 / first.seconds)))
    speed = timed_steps(run, batches, steps, warm_up=0)
    numbers = engine.take_step(run, ready[2], False).numbers
    check.row(kind, "loss and gradients are finite", bool(torch.isfinite(numbers).all()), True)
    check.row(kind, f"images a second, {steps} steps of {batch}", speed.rate)
    again = counters["stats"]["unique_graphs"] - graphs
    check.row(kind, "graphs compiled after the warm-up", again, again == 0)
    encoded = Encoded(4, WIDTH, sum(TOKENS) // 2)
    budget = Budget(recipe, encoded, precision="bfloat16", on_gpu=True)
    used = speed.utilisation(budget.flops_per_image, check.device, "bfloat16") if check.gpu else None
    check.measured["training"][recipe.model.kind] = {
        "images_per_second": speed.rate,
        "utilisation": used,
        "micro_batch": speed.micro_batch,
        "peak_bytes": speed.peak_bytes,
    }
    planned = budget.memory.peak(speed.micro_batch, batch) - budget.memory.context
    check.row(kind, "peak memory by the plan, GB", planned / 1e9)
    if not check.gpu:
        return
    if used:
        check.row(kind, "share of the peak", used, used >= GOAL)
    assert speed.peak_bytes is not None
    off = speed.peak_bytes / planned - 1
    check.row(kind, "peak memory, GB", speed.peak_bytes / 1e9)
    check.row(kind, "peak memory over the plan", off, abs(off) <= MEMORY)
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


def resume(check: Check) -> None:
    """Two equal runs, and one that goes on from a checkpoint of the first: how far their weights differ."""
    for kind, config in (TINY if check.tiny else SMALL).items():
        recipe = recipe_of(check, kind, 16).model_copy(update={"model": config})
        changes = {"images": 96, "checkpoint_every": 48, "log_every": 16}
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})

        def trained(
            name: str, recipe: Recipe = recipe, kind: str = kind, newest: Path | None = None
        ) -> Tensor:
            run = run_of(check, kind, recipe, name, newest)
            if newest is not None:
                engine.go_on_from(run, newest)
            assert engine.train(run)
            return torch.cat([p.detach().float().flatten().cpu() for p in run.network.parameters()])

        whole, again = trained("whole"), trained("again")
        middle = checkpoints(check.out / "work" / f"{kind}-whole" / "checkpoints")[0]
        resumed = trained("resumed", newest=middle)
        equal, apart = (float((x - whole).norm() / whole.norm()) for x in (again, resumed))
        check.row(
            "resume", f"{kind}: two equal runs differ by", equal, equal == 0 or (check.gpu and equal < 1e-2)
        )
        bound = max(3 * equal, 1e-6 if check.gpu else 0.0)
        check.row("resume", f"{kind}: a resumed run differs by", apart, apart <= bound)


def sampling(check: Check) -> None:
    """Seconds to one sampled image's latents, and to sixteen, by the recommended preset."""
    settings = PRESETS["recommended"]
    if check.tiny:
        settings = settings.model_copy(update={"steps": 3})
    for kind in ("dit", "cad"):
        recipe = recipe_of(check, kind, 8)
        network = build_network(recipe, 4, WIDTH).to(check.device).eval()
        for count in (1, 2 if check.tiny else 16):
            states = torch.randn(count, 40, WIDTH, device=check.device)
            text = TextStates(states, torch.ones(count, 40, dtype=torch.bool, device=check.device))
            sample = partial(
                sample_latents,
                network,
                recipe.objective,
                settings,
                text,
                TextStates(text.states[:, :1], text.mask[:, :1]),
                range(count),
                (4, recipe.latent_side, recipe.latent_side),
                precision=lambda: torch.autocast(torch.device(check.device).type, torch.bfloat16, check.gpu),
            )
            with torch.no_grad():
                seconds = check.seconds(sample, 3)
            check.row("sampling", f"{kind}: seconds, {settings.steps} steps, {count} at once", seconds)


def encoders(check: Check) -> None:
    """Texts and images a second, with random weights of the real sizes."""
    folder = check.out / "work"
    folder.mkdir(exist_ok=True)
    rates = {}
    for name, work, count in encoder_works(folder, check.device, check.tiny, sum(TOKENS) // 2):
        rates[name] = count / check.seconds(work, 3)
        check.row("encoders", name.replace("_", " "), rates[name])
    check.measured["encoding"] = rates


SECTIONS: dict[str, tuple[Callable[[Check], None], float]] = {
    "env": (environment, 15),
    "parity": (parity, 25),
    "dit": (partial(training, kind="dit"), 110),
    "cad": (partial(training, kind="cad"), 120),
    "sampling": (sampling, 40),
    "encoders": (encoders, 70),
    "resume": (resume, 70),
}
"""The sections, and how many seconds each may take on a card of the H100 class."""


def main() -> None:
    """Run the sections, and print what they found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="", help="sections, joined by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all sections")
    given = parser.parse_args()
    check = Check(given.out, given.device, given.tiny, given.seconds)
    if check.gpu:
        torch.cuda.set_device(torch.device(check.device).index or 0)
    shutil.rmtree(check.out / "work", ignore_errors=True)
    failed = []
    for name in [name for name in given.only.split(",") if name] or list(SECTIONS):
        work, seconds = SECTIONS[name]
        if not check.begin(seconds):
            check.row(name, "left out, the time is up", True)
            continue
        began = time.perf_counter()
        try:
            work(check)
        except Exception:  # noqa: BLE001 - the others are still to run
            traceback.print_exc()
            failed.append(name)
            check.row(name, "failed", True, False)
        check.row(name, "seconds of the section", time.perf_counter() - began)
        write_json(check.out / "measured.json", check.measured)
        gc.collect()
        if check.gpu:
            torch.cuda.empty_cache()
    shutil.rmtree(check.out / "work", ignore_errors=True)
    bad = [row for row in check.rows if row["good"] is False]
    print("\n" + "\n".join(_line(row) for row in check.rows))
    print(f"{len(check.rows)} numbers, {len(bad)} out of bounds" + (f", failed: {failed}" if failed else ""))
    raise SystemExit(bool(failed or (bad and check.gpu)))


if __name__ == "__main__":
    main()
