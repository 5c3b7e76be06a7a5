"""Run by torchrun in the tests: one training after another, each with faults of its own.

The argument is a JSON list of jobs: shards, out, recipe, overrides, and what to break. Every process writes
the ids of the samples that it is given to `ids-RANK.jsonl` beside the run.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from kilopix.recipe import load_recipe
from kilopix.stages.train import run
from kilopix.step import StepBatch, StepLoader
from kilopix.types import UserError

RANK = int(os.environ.get("RANK", "0"))
load = StepLoader.load


def logged(self: StepLoader, place: tuple[int, int]) -> StepBatch:
    """Load as always, and write down what was loaded; end or hang where the job says so."""
    batch = load(self, place)
    with open(JOB["ids"].format(RANK), "a") as file:
        file.write(json.dumps({"position": batch.position, "rank": RANK, "ids": batch.paths}) + "\n")
    if RANK == 1 and place[0] >= JOB.get("die_at", 1e9):
        os._exit(9)
    if RANK == 1 and place[0] >= JOB.get("hang_at", 1e9):
        time.sleep(JOB["hang_seconds"])
    return batch


StepLoader.load = logged
JOB: dict = {}
if RANK or int(os.environ.get("WORLD_SIZE", "1")) > 1:
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))

for JOB in json.loads(sys.argv[1]):
    JOB["ids"] = JOB["out"] + "-ids-{}.jsonl"
    try:
        run(Path(JOB["shards"]), Path(JOB["out"]), load_recipe(JOB["recipe"], JOB["overrides"]), "cpu")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
