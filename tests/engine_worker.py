"""Trainings with faults of their own, in this process or, as a script, in those that torchrun starts.

As a script, its argument is a JSON list of jobs (or of an optimizer's steps), done one after the other.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import torch

import sharded_checks
from kilopix.recipe import load_recipe
from kilopix.stages.train import run
from kilopix.step import StepBatch, StepLoader
from kilopix.training import checkpoint
from kilopix.types import UserError
from optimizer_worker import Steps

RANK = int(os.environ.get("RANK", "0"))
LAST = int(os.environ.get("WORLD_SIZE", "1")) - 1
NEVER = 10**9


@dataclass
class Job:
    """A training, and at which image of the order the last process breaks, and how."""

    shards: str
    out: str
    recipe: str
    overrides: list[str] = field(default_factory=list)
    stop_at: int = NEVER
    die_at: int = NEVER
    hang_at: int = NEVER
    hang_seconds: float = 0.0
    killed_at_file: int = NEVER
    """The file of a checkpoint, all counted, at which the process is killed when it is written."""
    check: list[str] = field(default_factory=list)
    """What is looked at in place of a training (`sharded_checks.check`), for a file `OUT-RANK.json`."""

    @property
    def found(self) -> list[dict]:
        """What the check found in each of two processes."""
        return [json.loads(Path(f"{self.out}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]

    def ids(self, rank: int) -> Path:
        """Where a process writes down which samples it was given."""
        return Path(f"{self.out}-ids-{rank}.jsonl")

    def sample_ids(self, ranks: int) -> dict[int, list[str]]:
        """Of every batch's place, the ids of its samples in order, all processes together."""
        ids: dict[int, list[str]] = {}
        for rank in range(ranks):
            if self.ids(rank).exists():
                mine = map(json.loads, self.ids(rank).read_text(encoding="utf-8").splitlines())
                for position, paths in {line["position"]: line["ids"] for line in mine}.items():
                    ids[position] = ids.get(position, []) + paths
        return ids

    def do(self) -> bool:
        """Train; as `run` does. Or look at what there is to look at."""
        if self.check:
            name, style, *more = self.check
            found = sharded_checks.check(name, style, self.recipe, self.overrides, *more)
            Path(f"{self.out}-{RANK}.json").write_text(json.dumps(found), encoding="utf-8")
            return True
        load = StepLoader.load

        def broken(loader: StepLoader, place: tuple[int, int]) -> StepBatch:
            batch = load(loader, place)
            with open(self.ids(RANK), "a", encoding="utf-8") as file:
                file.write(json.dumps({"position": batch.position, "ids": batch.paths}) + "\n")
            if RANK == LAST:
                self._break(place[0])
            return batch

        StepLoader.load = broken
        hashed, files = checkpoint._synced_hash, itertools.count(1)

        def hash_or_die(path: Path) -> str:
            if next(files) >= self.killed_at_file:
                with open(path, "rb+") as file:  # a file is as long as it came to be
                    file.truncate(path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return hashed(path)

        checkpoint._synced_hash = hash_or_die
        try:
            return run(Path(self.shards), Path(self.out), load_recipe(self.recipe, self.overrides), "cpu")
        finally:
            StepLoader.load, checkpoint._synced_hash = load, hashed

    def _break(self, position: int) -> None:
        if position >= self.die_at:
            os._exit(9)
        if position >= self.hang_at:
            self.hang_at = NEVER
            time.sleep(self.hang_seconds)
        if position >= self.stop_at:
            self.stop_at = NEVER
            os.kill(os.getpid(), signal.SIGTERM)


def command(jobs: Sequence[Job | Steps]) -> list[str]:
    """The command line that does the jobs in one process."""
    return [sys.executable, __file__, json.dumps([asdict(job) for job in jobs])]


def in_processes(jobs: Sequence[Job | Steps], processes: int = 2) -> subprocess.CompletedProcess[str]:
    """What torchrun gives for the jobs in so many processes."""
    python, *rest = command(jobs)
    start = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *rest], capture_output=True, text=True, timeout=300, env=environment)


def main() -> None:
    """Do the jobs of the command line."""
    if LAST:
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
    for values in json.loads(sys.argv[1]):
        try:
            (Steps if "style" in values else Job)(**values).do()
        except UserError as error:
            print(f"Error: {error}", file=sys.stderr, flush=True)
            os._exit(2)


if __name__ == "__main__":
    main()
