"""The demo's recipe made tiny, and what calling the command line gives."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kilopix.artefacts.locks import temporary_beside

TINY = [
    "world.classes=4",
    "data.augment.setting=all",
    "world.images_per_class=12",
    "world.val_per_class=6",
    "data.image_size=32",
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "model.patch=1",
    "training.images=96",
    "training.batch_size=16",
    "training.log_every=16",
    "training.checkpoint_every=32",
    "training.schedule.warmup_images=16",
    "sampling.steps=2",
    "evaluation.prompts_per_task=3",
    "evaluation.images_per_prompt=1",
    "evaluation.fidelity_images=16",
]


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def temporary_of_dead_process(path: Path) -> Path:
    """The name under which a process that has ended would have written `path`."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    temporary = temporary_beside(path)
    return temporary.with_name(temporary.name.replace(str(os.getpid()), str(ended.pid)))
