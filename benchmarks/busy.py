"""What other programs cost: training and sampling on an idle and on a busy machine, as ratios in one run.

    python benchmarks/busy.py                                      torch as it is, and as kilopix sets it
    python benchmarks/busy.py --rounds 5 "3000:GOMP_SPINCOUNT=3000" "passive:OMP_WAIT_POLICY=passive"

Each setting has a process of its own, all started first and stopped (SIGSTOP); then they take turns, a few
seconds each, first alone, then beside as many processes as there are cores that each keep one core busy. So
whatever slows the machine for a while slows all alike. A turn in which yet other programs took more than a
sixth of a core is tried again. A fair share of a busy machine is half of what the machine gives idle. Linux.
"""

import argparse
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

HOG = [sys.executable, "-c", "while True: pass"]
KILOPIX = "kilopix"
RECORD = struct.Struct("dd")
SETTLING = {"idle": 0.3, "busy": 1.5}
"""Seconds of each turn that are not counted; on a busy machine kilopix looks at the load first."""
OTHERS, TRIES = 1 / 6, 6
"""Cores that yet other programs may take in a turn, and how often one is tried."""


def train(folder: Path) -> Iterator[int]:
    """Steps of `kilopix train -r mini`, on a small world; yields the images of each."""
    from contextlib import closing

    from kilopix import engine
    from kilopix.data.shards import Shards
    from kilopix.recipe import load_recipe
    from kilopix.training.parallel import Processes

    recipe = load_recipe("mini", ["training.images=100_000_000"])
    run = engine.start(recipe, Shards(folder / "shards"), folder, {}, Processes(device="cpu"))
    with closing(engine.batches_of(run)) as batches:
        for batch in batches:
            engine.take_step(run, batch, False).numbers.tolist()
            yield batch.count


def sample(folder: Path) -> Iterator[int]:
    """Images of the installed model, four at a time, of four steps each."""
    from kilopix import Generator

    generator = Generator.from_pretrained("mini", device="cpu")
    while True:
        yield len(generator("a photo of a cat", num_images=4, steps=4))


WORKS = {"train": train, "sample": sample}


def make_shards(folder: Path) -> None:
    """A small world and its shards."""
    from kilopix.recipe import load_recipe
    from kilopix.stages import augment, caption, encode, mini

    mini.run(folder / "world", 20, 64, 0, 8, 4)
    caption.run(folder / "world" / "train", folder / "captions.parquet", "structured", 0)
    recipe, captions = load_recipe("mini"), folder / "captions.parquet"
    kind, setting = recipe.data.augment.kind, recipe.data.augment.setting
    augment.run(captions, folder / "augmented", kind, setting, 64, 0)
    encode.run(captions, folder / "shards", recipe, folder / "augmented" / augment.MANIFEST)


@dataclass(frozen=True)
class Worker:
    """A process that works under one setting, and the file in which it notes what it did when."""

    name: str
    process: subprocess.Popen
    notes: Path

    def done(self) -> list[tuple[float, float]]:
        """The time and the number of images of every piece of work so far."""
        data = self.notes.read_bytes() if self.notes.exists() else b""
        return list(RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]))


def start(work: str, folder: Path, name: str, environment: dict[str, str]) -> Worker:
    """A worker that is warm, and stopped."""
    notes = folder / f"{work}-{name.replace('/', '_')}"
    command = [sys.executable, __file__, "--worker", work, name, str(folder), str(notes)]
    worker = Worker(name, subprocess.Popen(command, env={**os.environ, **environment}), notes)
    while len(worker.done()) < 3:
        if worker.process.poll() is not None:
            raise SystemExit(f"{name}: its process ended")
        time.sleep(0.05)
    os.kill(worker.process.pid, signal.SIGSTOP)
    return worker


def work_on(work: str, name: str, folder: Path, notes: Path) -> None:
    """What a worker does, until it is killed."""
    if name == KILOPIX:
        from kilopix.threads import watch_load

        watch_load(os.environ)
    with open(notes, "ab", buffering=0) as file:
        for count in WORKS[work](folder):
            file.write(RECORD.pack(time.perf_counter(), count))


def seconds_of(processes: list[subprocess.Popen]) -> tuple[float, float]:
    """Seconds of all cores that were used so far, and that these processes used."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:])
    stats = [Path(f"/proc/{p.pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split() for p in processes]
    own = sum(int(fields[11]) + int(fields[12]) for fields in stats)
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system) / tick, own / tick


def turn(worker: Worker, all_of: list[subprocess.Popen], seconds: float, settling: float) -> float | None:
    """Images a second of one turn; None if other programs disturbed it."""
    before = seconds_of(all_of)
    os.kill(worker.process.pid, signal.SIGCONT)
    began = time.perf_counter()
    time.sleep(seconds)
    os.kill(worker.process.pid, signal.SIGSTOP)
    used, own = (b - a for a, b in zip(before, seconds_of(all_of), strict=True))
    if used - own > OTHERS * seconds:
        return None
    done = [(at, count) for at, count in worker.done() if at > began + settling]
    if len(done) < 2:
        # Slower than can be seen: at most one piece of work in all that time.
        return sum(count for _, count in done) / (seconds - settling)
    return sum(count for _, count in done[1:]) / (done[-1][0] - done[0][0])


def measure(
    workers: list[Worker], hogs: list[subprocess.Popen], rounds: int, seconds: float, load: str
) -> dict[str, list[float | None]]:
    """Images a second of all turns, by setting."""
    for hog in hogs:
        os.kill(hog.pid, signal.SIGCONT if load == "busy" else signal.SIGSTOP)
    all_of = [*hogs, *(worker.process for worker in workers)]
    rates: dict[str, list[float | None]] = {worker.name: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            tries = (turn(worker, all_of, seconds, SETTLING[load]) for _ in range(TRIES))
            rates[worker.name].append(next((rate for rate in tries if rate is not None), None))
    return rates


def show(load: str, rates: dict[str, list[float | None]], base: float) -> None:
    """A line for each setting: images a second, its ratio to `base`, and the ratios of the extreme turns."""
    for name, each in rates.items():
        kept = [rate for rate in each if rate is not None]
        if not kept:
            print(f"| {load} | {name} | no quiet turn | |", flush=True)
            continue
        middle, low, high = (x / base for x in (statistics.median(kept), min(kept), max(kept)))
        left_out = f", {len(each) - len(kept)} turns left out" if len(kept) < len(each) else ""
        print(
            f"| {load} | {name} | {statistics.median(kept):.1f} | "
            f"{middle:.2f} ({low:.2f} to {high:.2f}{left_out}) |",
            flush=True,
        )


def compare(work: str, settings: dict[str, dict[str, str]], folder: Path, given: argparse.Namespace) -> None:
    """Print the table of one kind of work."""
    with ExitStack() as stack:
        workers, hogs = [], []
        for name, environment in settings.items():
            workers.append(start(work, folder, name, environment))
            stack.callback(end, workers[-1].process)
        for _ in range(os.cpu_count() or 1):
            hogs.append(subprocess.Popen(HOG))
            stack.callback(end, hogs[-1])
        idle = measure(workers, hogs, given.rounds, given.seconds, "idle")
        # The settings differ least where nothing else runs; torch's own is the measure.
        alone = [rate for rate in next(iter(idle.values())) if rate]
        base = statistics.median(alone) if alone else float("nan")
        print(f"\n{work}: images a second, and as a share of torch's own on the idle machine\n")
        print("| Machine | Setting | Images/s | Share (extreme turns) |\n|---|---|---|---|")
        show("idle", idle, base)
        show("busy", measure(workers, hogs, given.rounds, given.busy_seconds, "busy"), base)
        print(f"\nA fair share of the busy machine is 0.50, {base / 2:.1f} images/s.")


def end(process: subprocess.Popen) -> None:
    """Kill a process, stopped or not."""
    process.kill()
    process.wait()


def main() -> None:
    """Measure all, or be one worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="*", help="more of them: NAME:KEY=VALUE,KEY=VALUE")
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3, help="of a turn on the idle machine")
    parser.add_argument("--busy-seconds", type=float, default=6, help="of a turn on the busy machine")
    parser.add_argument("--shards", type=Path, help="folder that holds shards/, in place of a small world")
    parser.add_argument("--worker", nargs=4)
    given = parser.parse_args()
    if given.worker:
        work, name, folder, notes = given.worker
        work_on(work, name, Path(folder), Path(notes))
        return
    settings: dict[str, dict[str, str]] = {"torch": {}, KILOPIX: {}}
    for text in given.settings:
        name, _, pairs = text.partition(":")
        settings[name] = dict(pair.split("=", 1) for pair in pairs.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.shards:
            (folder / "shards").symlink_to((given.shards / "shards").resolve())
        elif "train" in given.works:
            make_shards(folder)
        for work in given.works:
            compare(work, settings, folder, given)


if __name__ == "__main__":
    main()
