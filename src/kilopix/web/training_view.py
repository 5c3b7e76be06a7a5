"""A training run as it goes: the lines of its log, and pictures by its newest checkpoint.

In: a run folder that another process may be writing, or has yet to begin. Out: numbers, a curve, pictures of
the same prompts and seeds after every checkpoint.
"""

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.errors import UserError
from kilopix.generator import Generator
from kilopix.runtime import read_json, say
from kilopix.training.checkpoint import checkpoints
from kilopix.training.logs import LOG, lines_of_log, skipped_lines
from kilopix.web.curve import Point
from kilopix.web.models import ServedModel, share_encoders
from kilopix.web.worker import Closing, QueueFull, Ticket, Worker

SHOWN = 6
"""Pictures after each checkpoint."""
_KEPT = 8
_POINTS = 600
_SMOOTHING = 40  # the mean runs over the lines about each point, one part in so many of the log
_STILL_GOING = 120.0


@dataclass(frozen=True)
class Milestone:
    """Pictures after so many images seen."""

    images_seen: int
    pictures: list[Image.Image]


class TrainingView:
    """A run folder that is looked at again and again."""

    def __init__(self, folder: Path, worker: Worker, like: ServedModel):
        self.folder = folder
        self.worker = worker
        self.like = like
        if not self.begun():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(f"{folder}: no run there; give a folder that `kilopix train` writes.")
            say(f"{folder}: no run there yet; the Training tab waits for one to begin.")
        self.prompts = prompts_to_try(like.generator.trained_on, SHOWN)
        self.milestones: deque[Milestone] = deque(maxlen=_KEPT)
        self._sampling: Ticket[Any] | None = None
        self._seen: Path | None = None
        self._skipped = 0

    def begun(self) -> bool:
        """Whether there is a run; its recipe is what `kilopix train` writes first."""
        return (self.folder / "recipe.json").is_file()

    def total(self) -> int:
        """How many images the run is to see, by its recipe as it is now."""
        return read_json(self.folder / "recipe.json")["recipe"]["training"]["images"]

    def log(self) -> list[dict[str, Any]]:
        """The whole lines of the log; one that is being written is left for the next look."""
        path = self.folder / LOG
        lines, skipped, _ = lines_of_log(path) if path.is_file() else ([], 0, False)
        if skipped > self._skipped:
            say(skipped_lines(path, skipped))
        self._skipped = skipped
        return lines

    def age(self) -> float | None:
        """Seconds since the log was last written to."""
        path = self.folder / "log.jsonl"
        return time.time() - path.stat().st_mtime if path.is_file() else None

    def going(self) -> bool:
        """Whether the run seems to be at work."""
        age = self.age()
        return age is not None and age < _STILL_GOING and not (self.folder / "model.safetensors").is_file()

    def curve(self) -> list[Point]:
        """Points of the loss and of its running mean, few enough to draw."""
        log = [line for line in self.log() if line["loss"] is not None]
        losses = [float(line["loss"]) for line in log]
        step = max(1, len(log) // _POINTS)
        reach = max(1, len(log) // (2 * _SMOOTHING))
        points = []
        for i in range(0, len(log), step):
            near = min(reach, i, len(log) - 1 - i)  # as many before as after, so that the ends do not lean
            part = losses[i - near : i + near + 1]
            points.append(Point(log[i]["images"], losses[i], sum(part) / len(part)))
        return points

    def look_for_pictures(self) -> None:
        """Have pictures made with the newest checkpoint, if there is one that was not yet looked at."""
        if self._sampling is not None and not self._sampling.future.done():
            return
        found = checkpoints(self.folder / "checkpoints")
        if not found or found[-1] == self._seen:
            return
        newest = found[-1]
        try:
            self._sampling = self.worker.call(lambda: self._sample(newest))
        except (QueueFull, Closing):
            return  # visitors come first; the next look asks again
        self._seen = newest

    def _sample(self, checkpoint: Path) -> None:
        """On the worker's thread: load the checkpoint, and make its pictures."""
        try:
            generator = Generator.from_pretrained(checkpoint, self.like.generator.device)
        except UserError as error:
            say(f"{checkpoint}: no pictures of it ({error})")  # it may be deleted for a newer one meanwhile
            return
        share_encoders(generator, self.like.generator)
        model = ServedModel("newest", generator)
        jobs = [(prompt, seed) for seed, prompt in enumerate(self.prompts)]
        pictures = model.make(jobs, model.offer.sampling)
        self.milestones.append(Milestone(generator.images_seen, pictures))
