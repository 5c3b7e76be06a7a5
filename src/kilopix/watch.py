"""All that is looked at while a run trains, in one object that the loop calls after every step.

In: the network and its averages after a step, and how far the run is. Out, in the run's folder:

    validation.jsonl   losses on fixed noise             previews/   sheets of the same prompts
    averages/          snapshots of power averages       scores/     scores of the average, and scores.jsonl
    tensorboard/       the same numbers, if asked for

Nothing here draws from a random state that training uses, so a run learns the same with or without it.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kilopix.data.checked_batches import mean_text_tokens
from kilopix.data.shards import Shards
from kilopix.english import counted
from kilopix.faults import explain
from kilopix.hardware import peak_flops
from kilopix.models.dit import DiT
from kilopix.models.rin import RIN
from kilopix.network import Network, build_network, training_flops_per_image
from kilopix.recipe import Recipe
from kilopix.runtime import say
from kilopix.sheets import FOLDER as PREVIEWS
from kilopix.sheets import Preview, open_preview
from kilopix.training.averages import Average, PowerAverages
from kilopix.training.checkpoint import AVERAGE, save_weights, whole_tensors
from kilopix.training.logs import append_line, cut_log
from kilopix.training.parallel import Processes
from kilopix.training.posthoc import Profile
from kilopix.training.progress import Work
from kilopix.training.snapshots import FOLDER as AVERAGES
from kilopix.training.snapshots import is_due as snapshot_is_due
from kilopix.training.snapshots import thin_snapshots, write_snapshot
from kilopix.training.tracking import Tracker, open_trackers
from kilopix.training.watching import is_due
from kilopix.types import UserError
from kilopix.validation import RECORD, FixedSet, held_out_set, level_losses, level_times

SCORES = "scores"
TEXTS_LOOKED_AT = 64

ScoreAverage = Callable[[Path, Path], Mapping[str, int | float]]
"""From a file of averaged weights, and a folder to work in, to named scores."""


@dataclass
class Watch:
    """What the recipe asks to be looked at, opened once."""

    recipe: Recipe
    out: Path
    header: dict[str, Any]
    processes: Processes
    precision: torch.dtype
    sets: dict[str, FixedSet]
    score: ScoreAverage | None
    work: Work
    preview: Preview | None = None
    trackers: list[Tracker] = field(default_factory=list)

    def due(self, before: int, images_seen: int) -> bool:
        """Whether there is anything to do after the step that led from `before` to `images_seen`."""
        return any(self._due(before, images_seen))

    def _due(self, before: int, images_seen: int) -> tuple[bool, bool, bool, bool]:
        """Whether snapshot, validation, preview and scores are due; at the end of a run all are."""
        recipe, average = self.recipe, self.recipe.training.average
        ended = images_seen >= recipe.training.images

        def due(every: int) -> bool:
            return every > 0 and (ended or is_due(every, before, images_seen))

        snapshot = average.kind == "power" and (ended or snapshot_is_due(average, before, images_seen))
        validate = bool(self.sets) and due(recipe.validation.every)
        return snapshot, validate, due(recipe.preview.every), due(recipe.scores.every)

    def step(self, network: nn.Module, average: Average, before: int, images_seen: int) -> None:
        """Do what is due after a step; all processes call it, and wait for the one that is busy."""
        snapshot, validate, show, score = self._due(before, images_seen)
        if snapshot and isinstance(average, PowerAverages):
            self._snapshot(average, images_seen)
        if validate:
            self._validate(self._whole(network), "network", images_seen)
        if validate or show or score:
            whole = self._whole(average.network)
            if validate:
                self._validate(whole, "average", images_seen)
            if show and self.preview is not None and whole is not None:
                path = self.preview.write(whole, self.out / PREVIEWS, images_seen)
                self._tell(lambda tracker: tracker.picture("preview", path, images_seen))
            if score and self.score is not None and whole is not None and self.processes.main:
                self._score(self.score, whole, images_seen)
        if any((snapshot, validate, show, score)):
            self.processes.wait_for_main()

    def go_back(self, images_seen: int) -> None:
        """Drop what was recorded after this moment, since the run goes on from there."""
        if not self.processes.main:
            return
        for record in (RECORD, f"{SCORES}.jsonl"):
            cut_log(self.out / record, images_seen)
        for sheet in (self.out / PREVIEWS).glob("[0-9]*.png"):
            if int(sheet.stem) > images_seen:
                sheet.unlink()
        for folder in (self.out / SCORES).glob("[0-9]*"):
            if int(folder.name) > images_seen:
                shutil.rmtree(folder)
        average = self.recipe.training.average
        if average.kind == "power" and (self.out / AVERAGES).is_dir():
            thin_snapshots(self.out / AVERAGES, average, images_seen)

    def logged(self, line: Mapping[str, int | float]) -> None:
        """Pass a line of the log on to the trackers."""
        values = {name: value for name, value in line.items() if name != "images"}
        self._track("training", values, line["images"])

    def close(self) -> None:
        """Close the trackers."""
        self._tell(lambda tracker: tracker.close())

    def _whole(self, network: nn.Module) -> Network | None:
        """A network as one process has it; where each holds a part, one that is put together by the first."""
        if not self.processes.sharded:
            assert isinstance(network, DiT | RIN)
            return network
        tensors = whole_tensors(network, self.processes.main)
        if not self.processes.main:
            return None
        whole = build_network(self.recipe, self.header["latent_channels"], self.header["text_width"])
        whole.load_state_dict(tensors)
        return whole.to(self.processes.device)

    def _snapshot(self, average: PowerAverages, images_seen: int) -> None:
        folder = self.out / AVERAGES
        for network, width in zip(average.networks, average.config.sigma_rel, strict=True):
            tensors = whole_tensors(network, self.processes.main)
            if self.processes.main:
                profile = Profile(images_seen, width)
                write_snapshot(folder, tensors, profile, average.config, self.header)
        if self.processes.main:
            thin_snapshots(folder, average.config, images_seen)

    def _validate(self, network: Network | None, weights: str, images_seen: int) -> None:
        config, processes = self.recipe.validation, self.processes
        for name, samples in self.sets.items():
            count = len(samples.numbers)
            share = range(count) if processes.sharded else processes.share(count)
            sums = torch.zeros(config.levels, dtype=torch.float64)
            if network is not None:
                objective, device = self.recipe.objective, processes.device
                sums = level_losses(network, samples, objective, config, device, share, self.precision)
            sums = sums if processes.sharded else _summed(sums, processes)
            if not processes.main:
                continue
            losses = (sums / len(samples.numbers)).tolist()
            mean = sum(losses) / len(losses)
            line = {"images": images_seen, "set": name, "weights": weights, "samples": len(samples.numbers)}
            line |= {"loss": mean, "t": level_times(config).tolist(), "losses": losses}
            append_line(self.out / RECORD, line)
            levels = {f"{weights}/t={t:.3f}": loss for t, loss in zip(line["t"], losses, strict=True)}
            self._track(f"validation/{name}", {f"{weights}/loss": mean, **levels}, images_seen)

    def _score(self, score: ScoreAverage, network: Network, images_seen: int) -> None:
        folder = self.out / SCORES / f"{images_seen:012d}"
        weights = folder / AVERAGE
        save_weights(weights, network, {**self.header, "images_seen": images_seen})
        if self.processes.device_type == "cuda":
            torch.cuda.empty_cache()  # what scores loads networks of its own
        try:
            found = dict(score(weights, folder))
        except UserError as error:  # scores are not worth a run
            say(f"scores at {counted(images_seen, 'image')}: {error} Training goes on without scores.")
            self.score = None
            return
        finally:
            weights.unlink()  # a run's disk holds many scores, and few copies of a network
        append_line(self.out / f"{SCORES}.jsonl", {"images": images_seen, **found})
        self._track(SCORES, found, images_seen)

    def _track(self, group: str, values: Mapping[str, int | float], images_seen: int | float) -> None:
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._tell(lambda tracker: tracker.numbers(named, int(images_seen)))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        """Pass something on to all trackers; one that fails is not worth a run, and told no more."""
        for tracker in list(self.trackers):
            try:
                what(tracker)
            except OSError as error:
                say(f"training.track: {explain(error)} From here on the run is not tracked there.")
                self.trackers.remove(tracker)


def _summed(sums: Tensor, processes: Processes) -> Tensor:
    return sums if processes.count == 1 else processes.sum(sums.to(processes.device)).cpu()


def training_work(recipe: Recipe, shards: Shards, precision: torch.dtype, processes: Processes) -> Work:
    """What an image costs with texts as long as the shards' are, and what the devices can do."""
    index, tokens = shards.index, mean_text_tokens(shards, TEXTS_LOOKED_AT)
    flops = training_flops_per_image(recipe, index.latent_shape[0], index.text_width, tokens)
    peak = peak_flops(processes.device, "bfloat16" if precision == torch.bfloat16 else "float32")
    return Work(flops, processes.count, peak)


def open_watch(
    recipe: Recipe,
    shards: Shards,
    out: Path,
    header: dict[str, Any],
    processes: Processes,
    precision: torch.dtype,
    images_seen: int,
    validation: Path | None = None,
    score: ScoreAverage | None = None,
) -> Watch:
    """Open all that the recipe asks for, and drop what was recorded after `images_seen`.

    All processes call it; the first one writes, shows and scores.
    """
    if recipe.scores.every and score is None:
        raise UserError("scores.every is set: give held-out pictures with --score HELD_OUT.parquet.")
    sets: dict[str, FixedSet] = {}
    if validation is not None:
        sets["held_out"] = held_out_set(validation, shards, recipe)
        sets["training"] = FixedSet.of(shards, recipe.validation.samples, shards.whitening)
    work = training_work(recipe, shards, precision, processes)
    watch = Watch(recipe, out, header, processes, precision, sets, score, work)
    watch.go_back(images_seen)
    if not processes.main:
        return watch
    how = shards.whitening, shards.index.latent_shape, processes.device, precision
    watch.preview = open_preview(recipe, shards.folder, out, header, *how)
    watch.trackers = open_trackers(recipe.training.track, out, recipe.model_dump(mode="json"), images_seen)
    if sets:
        held_out, training = (len(samples.numbers) for samples in sets.values())
        times = recipe.validation.levels
        say(f"validation: {held_out} held-out and {training} training samples at {times} times.")
    return watch
