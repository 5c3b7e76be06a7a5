"""The engine: a run's state, and the loop that trains it.

In: a recipe, shards, and the processes that train. Out: trained averages, checkpoints, and a log. The loop
reads from top to bottom: `train`, `Stretch.ended`, `take_step`.
"""

import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kilopix.computing import Computing, build, no_room, say_how
from kilopix.data.loader import prefetch
from kilopix.data.shards import Shards
from kilopix.english import counted
from kilopix.model_files import CHECKPOINTS
from kilopix.progress import Progress as Shown
from kilopix.progress import working
from kilopix.recipe import Recipe
from kilopix.runtime import say
from kilopix.step import BatchFacts, StepBatch, on_device
from kilopix.training.checkpoint import (
    Progress,
    Trained,
    last_good_checkpoint,
    load_checkpoint,
    save_checkpoint,
    set_skipped,
)
from kilopix.training.guard import Guard, Outcome
from kilopix.training.logs import LOG, SKIPPED, LogWindow, cut_log, note_skipped
from kilopix.training.optim import lr_factor, set_lr
from kilopix.training.parallel import Processes, clip_gradients
from kilopix.training.stopping import Stop, stop_on_signal
from kilopix.training.watchdog import Watchdog
from kilopix.types import UserError
from kilopix.watch import ScoreAverage, Watch, open_watch

SETTLED = 3
"""Steps after which a run computes as it will to its end."""
LATE = {"cuda": 1}
"""Steps by which the host reads losses and norms late, so that a GPU always has its next step to do. On other
devices a step is done when they are there, and its time would be told of the one before."""


@dataclass
class Run(Computing):
    """What a run carries from step to step."""

    shards: Shards
    out: Path
    header: dict[str, Any]
    guard: Guard
    images_seen: int = 0
    moved: int = 0
    seconds: float = 0.0
    log: dict[str, float] = field(default_factory=dict)
    watch: Watch = field(init=False)

    @property
    def trained(self) -> Trained:
        """What a checkpoint of the run holds."""
        return Trained(self.network, self.average.networks, self.optimizer, self.guard.statistics)


@dataclass(frozen=True)
class Step:
    """A step that was started: its numbers (loss, norm, taken, stop), which may not have arrived yet."""

    batch: BatchFacts
    images_seen: int
    numbers: Tensor
    arrived: torch.cuda.Event | None
    lr: float


def start(
    recipe: Recipe,
    shards: Shards,
    out: Path,
    header: dict[str, Any],
    processes: Processes,
    weights: dict[str, Tensor] | None = None,
    newest: Path | None = None,
) -> Run:
    """Everything as it is before the first step; `weights` are those of another run, to begin from.

    `newest` is the checkpoint from which the run will go on, whose micro-batch is kept.
    """
    computing = build(recipe, shards, out, processes, weights, newest)
    guard = Guard(recipe.training.guard, processes.device)
    return Run(**vars(computing), shards=shards, out=out, header=header, guard=guard)


def go_on_from(run: Run, checkpoint: Path) -> None:
    """Take up what a checkpoint holds."""
    progress = load_checkpoint(checkpoint, run.trained, run.processes)
    run.images_seen, run.moved, run.seconds = progress.images_seen, progress.moved, progress.seconds
    run.guard.in_a_row, run.guard.went_back = progress.bad_in_a_row, progress.went_back
    run.log = progress.log


def train(run: Run, validation: Path | None = None, score: ScoreAverage | None = None) -> bool:
    """Train to the end or to a signal; returns whether it came to the end.

    `validation` names shards of held-out pictures; `score` scores a file of averaged weights.
    """
    run.watch = watch_over(run, validation, score)
    with closing(run.watch):
        return _train(run)


def watch_over(run: Run, validation: Path | None = None, score: ScoreAverage | None = None) -> Watch:
    """All that is looked at while the run trains."""
    facts = run.recipe, run.shards, run.out, run.header, run.processes
    return open_watch(*facts, run.precision, run.images_seen, validation, score)


def _train(run: Run) -> bool:
    training, processes = run.recipe.training, run.processes
    who = processes.rank, processes.count
    watchdog = Watchdog(training.watchdog, run.out / "processes", *who, run.compiled)
    shown = Shown("train", training.images, run.images_seen, quiet=not processes.main)
    with stop_on_signal(quiet=not processes.main) as stop, shown, watchdog.watching():
        while not (stretch := Stretch(run, stop, watchdog, shown)).ended():
            assert stretch.back_to is not None
            _go_back(run, *stretch.back_to)
    return run.images_seen >= training.images


class Stretch:
    """The loop, from one place of the data order on: until the end, a signal, or a return to a checkpoint."""

    def __init__(self, run: Run, stop: Stop, watchdog: Watchdog, shown: Shown) -> None:
        self.run = run
        self.stop = stop
        self.watchdog = watchdog
        self.shown = shown
        log, every = run.out / LOG if run.processes.main else None, run.recipe.training.log_every
        self.window = LogWindow(log, every, run.log, run.watch.work, run.watch.logged)
        self.back_to: tuple[Path, int] | None = None
        self._late = LATE.get(run.processes.device_type, 0)
        self._steps = 0
        self._waiting: deque[Step] = deque()
        self._stopping = False
        self._since = time.perf_counter()

    def ended(self) -> bool:
        """Train; False where the run has to go back to `back_to` first."""
        run, training = self.run, self.run.recipe.training
        with closing(batches_of(run)) as batches:
            while run.images_seen < training.images and not self._stopping:
                self.watchdog.step(run.images_seen)
                self.watchdog.enter("waiting for data")
                batch = next(batches)
                self.watchdog.enter("computing, or waiting for the other processes")
                before = run.images_seen
                try:
                    self._waiting.append(take_step(run, batch, self.stop.asked))
                except torch.OutOfMemoryError as error:
                    raise UserError(no_room(run, run.out)) from error
                due = run.images_seen // training.checkpoint_every > before // training.checkpoint_every
                look = run.watch.due(before, run.images_seen)
                self._settle(0 if due or look or run.images_seen >= training.images else self._late)
                if self.back_to:
                    return False
                if look:
                    self._look(before)
                if due:
                    self._save()
            self._settle(0)
            if self.back_to:
                return False
            if run.images_seen >= training.images:
                self.window.flush(run.images_seen, run.optimizer.param_groups[0]["lr"], run.seconds)
            if run.images_seen < training.images or run.images_seen % training.checkpoint_every:
                self._save()
        return True

    def _settle(self, late: int) -> None:
        """Take note of steps whose numbers have arrived, all but the last `late`."""
        while len(self._waiting) > late and not self.back_to:
            self.watchdog.enter("waiting for the device")
            step = self._waiting.popleft()
            if step.arrived is not None:
                step.arrived.synchronize()
            loss, norm, taken, stop = step.numbers.tolist()
            self._steps += 1
            ends = step.images_seen >= self.run.recipe.training.images
            if self._steps == SETTLED or (ends and self._steps < SETTLED):
                with self.shown.paused():
                    self.window.notes["computing"] = say_how(self.run)
            self._stopping |= stop > 0
            now = time.perf_counter()
            seconds, self._since = now - self._since, now
            self.run.seconds += seconds
            outcome = Outcome(loss, norm, taken > 0)
            count = step.batch.count
            if self.window.add(step.images_seen, loss, norm, outcome.taken, count, seconds):
                self.window.flush(step.images_seen, step.lr, self.run.seconds)
            notes = self.run.watch.work.notes(self.window.loss, self.shown.rate, self.run.seconds)
            self.shown.update(step.images_seen, notes)
            if not outcome.taken:
                _name_samples(self.run, step.batch, step.images_seen, outcome)
            action = self.run.guard.count(outcome.taken)
            if action != "go on":
                self.back_to = _place_to_go_back_to(self.run, step, action == "give up", outcome)

    def _look(self, before: int) -> None:
        """Validate, sample, score, store: what is due; the time for it is not training's."""
        run, started = self.run, time.perf_counter()
        self.watchdog.aside("validating, sampling or scoring")
        quiet = not run.processes.main
        with self.shown.paused(), working("validate, sample or score", quiet):
            run.watch.step(run.network, run.average, before, run.images_seen)
        self._since += time.perf_counter() - started

    def _save(self) -> None:
        run, training = self.run, self.run.recipe.training
        self.watchdog.enter("saving a checkpoint")
        guard = run.guard
        if guard.in_a_row == 0:
            guard.went_back = 0
        progress = Progress(
            run.images_seen,
            run.seconds,
            run.moved,
            guard.in_a_row,
            guard.went_back,
            run.loader.micro_batch,
            run.processes.count,
            self.window.state(),
        )
        folder, keep, every = run.out / CHECKPOINTS, training.keep_checkpoints, training.keep_every
        save_checkpoint(folder, run.trained, progress, run.header, keep, every, run.processes)


def batches_of(run: Run) -> Generator[StepBatch, None, None]:
    """The batches from here to the end, on the device; for a GPU they are loaded ahead in a thread."""
    training = run.recipe.training
    starts = range(run.images_seen, training.images, training.batch_size)
    places = ((start + run.moved, min(training.batch_size, training.images - start)) for start in starts)
    if run.processes.device_type == "cpu":
        # A thread that loads has OpenMP threads of its own, which take the network's cores from it: with
        # them a step took a fifth longer, and loading takes a two-hundredth of it.
        return (run.loader.load(place) for place in places)
    return on_device(prefetch(run.loader.load, places), run.processes.device)


def take_step(run: Run, batch: StepBatch, stop: bool) -> Step:
    """One optimizer step, taken only where the guard lets it; nothing here is waited for."""
    training, processes, optimizer = run.recipe.training, run.processes, run.optimizer
    numbers = torch.zeros(2)
    numbers[1] = float(stop)
    numbers = numbers.to(processes.device, non_blocking=True)
    parts = run.loader.micro_batches(batch.count)
    for i, part in enumerate(batch.micro_batches(parts)):
        with processes.accumulate(run.loss, last=i == parts - 1):
            loss = run.loss(part)
            loss.backward()
        numbers[0] += loss.detach()
    processes.sum(numbers)
    norm = clip_gradients(list(run.network.parameters()), training.clip_norm)
    taken = processes.all_agree(run.guard.judge(numbers[0], norm))
    images_seen = run.images_seen + batch.count
    set_lr(optimizer, lr_factor(training.schedule, images_seen, training.images))
    set_skipped(optimizer, 1 - taken)
    # MPS' fused steps do not heed what they are told (pytorch PR 186360), so there it is waited for.
    if processes.device_type != "mps" or bool(taken):
        optimizer.step()
    optimizer.zero_grad()
    run.images_seen = images_seen
    run.average.update(run.network, images_seen, batch.count, taken)
    facts = torch.stack([numbers[0], norm, taken, numbers[1]])
    arrived = None
    if processes.device_type == "cuda":
        facts = facts.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
    return Step(batch.facts, images_seen, facts, arrived, optimizer.param_groups[0]["lr"])


def _name_samples(run: Run, batch: BatchFacts, images_seen: int, outcome: Outcome) -> None:
    """Write down a batch that was left out, with its samples; all processes bring theirs."""
    mine = {"samples": batch.paths, "faults": [[fault.sample, fault.error] for fault in batch.faults]}
    shares = run.processes.gather(mine)
    if not run.processes.main:
        return
    faults = [fault for share in shares for fault in share["faults"]]
    reason = f"{faults[0][0]} {faults[0][1]}" if faults else outcome.reason
    say(f"Left out the batch at image {batch.position:,}: {reason}. Its samples are in {run.out / SKIPPED}.")
    line = {
        "images": images_seen,
        "position": batch.position,
        "reason": reason,
        "loss": repr(outcome.loss),
        "grad_norm": repr(outcome.norm),
        "faults": faults,
        "samples": [sample for share in shares for sample in share["samples"]],
    }
    note_skipped(run.out / SKIPPED, line)


def _place_to_go_back_to(run: Run, step: Step, give_up: bool, outcome: Outcome) -> tuple[Path, int]:
    """The last good checkpoint, and how many images were seen after the last batch that was left out."""
    patience = run.recipe.training.guard.patience
    advice = "lower optimizer.lr or training.clip_norm, or set a longer training.schedule.warmup_images"
    ending = f"{patience} batches in a row could not be trained on; of the last, {outcome.reason}."
    if give_up:
        raise UserError(
            f"{run.out}: {ending} The run went back {run.guard.went_back} times without getting "
            f"past. Look at {run.out / SKIPPED} for the samples; or {advice}, in a new folder."
        )
    good = run.processes.once(lambda: last_good_checkpoint(run.out / CHECKPOINTS))
    if good is None:
        raise UserError(f"{run.out}: {ending} There is no good checkpoint yet: {advice}.")
    return good, step.batch.position + step.batch.count


def _go_back(run: Run, checkpoint: Path, position: int) -> None:
    """Take up a checkpoint again, with the data order moved on to image number `position`."""
    went_back = run.guard.went_back + 1
    go_on_from(run, checkpoint)
    run.guard.in_a_row, run.guard.went_back = 0, went_back
    run.moved = position - run.images_seen
    if run.processes.main:
        cut_log(run.out / LOG, run.images_seen)
        run.watch.go_back(run.images_seen)
        say(
            f"{run.out}: back to {counted(run.images_seen, 'image')}; the data go on from image {position:,}."
        )
