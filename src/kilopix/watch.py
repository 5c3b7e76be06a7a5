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

from torch import nn

from kilopix.data.shards import Shards
from kilopix.hardware import Precision, peak_flops
from kilopix.network import Network, training_flops_per_image
from kilopix.preview import FOLDER as PREVIEWS
from kilopix.preview import Preview, open_preview
from kilopix.recipe import Recipe
from kilopix.runtime import say
from kilopix.training.averages import Average, PowerAverages
from kilopix.training.checkpoint import AVERAGE, save_weights
from kilopix.training.lines import append_line, cut_lines
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
Gather = Callable[[nn.Module], Network | None]
"""From a network that may be sharded to a whole one on this device; None on all ranks but the first."""


@dataclass
class Watch:
    """What the recipe asks to be looked at, opened once."""

    recipe: Recipe
    out: Path
    header: dict[str, Any]
    device: str
    sets: dict[str, FixedSet]
    preview: Preview | None
    score: ScoreAverage | None
    gather: Gather
    trackers: list[Tracker] = field(default_factory=list)

    def step(self, network: nn.Module, average: Average, before: int, images_seen: int) -> None:
        """Do what is due after the step that led from `before` to `images_seen`; all ranks call it."""
        recipe, ended = self.recipe, images_seen >= self.recipe.training.images
        if isinstance(average, PowerAverages) and (
            ended or snapshot_is_due(average.config, before, images_seen)
        ):
            self._snapshot(average, images_seen)
        validate = bool(self.sets) and (ended or is_due(recipe.validation.every, before, images_seen))
        show = recipe.preview.every > 0 and (ended or is_due(recipe.preview.every, before, images_seen))
        score = recipe.scores.every > 0 and (ended or is_due(recipe.scores.every, before, images_seen))
        if validate and (whole := self.gather(network)) is not None:
            self._validate(whole, "network", images_seen)
        if validate or show or score:
            whole = self.gather(average.network)
            if whole is None:
                return
            if validate:
                self._validate(whole, "average", images_seen)
            if show and self.preview is not None:
                path = self.preview.write(whole, self.out / PREVIEWS, images_seen)
                for tracker in self.trackers:
                    tracker.picture("preview", path, images_seen)
            if score and self.score is not None:
                self._score(self.score, whole, images_seen)

    def logged(self, line: Mapping[str, int | float]) -> None:
        """Pass a line of the log on to the trackers."""
        values = {name: value for name, value in line.items() if name != "images"}
        self._track("training", values, line["images"])

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            tracker.close()

    def _snapshot(self, average: PowerAverages, images_seen: int) -> None:
        folder = self.out / AVERAGES
        for network, width in zip(average.networks, average.config.sigma_rel, strict=True):
            whole = self.gather(network)
            if whole is not None:
                profile = Profile(images_seen, width)
                write_snapshot(folder, whole.state_dict(), profile, average.config, self.header)
                thin_snapshots(folder, average.config, images_seen)

    def _validate(self, network: Network, weights: str, images_seen: int) -> None:
        config = self.recipe.validation
        for name, samples in self.sets.items():
            sums = level_losses(network, samples, self.recipe.objective, config, self.device)
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
        found = dict(score(weights, folder))
        weights.unlink()  # a run's disk holds many scores, and few copies of a network
        append_line(self.out / f"{SCORES}.jsonl", {"images": images_seen, **found})
        self._track(SCORES, found, images_seen)

    def _track(self, group: str, values: Mapping[str, int | float], images_seen: int | float) -> None:
        for tracker in self.trackers:
            tracker.numbers({f"{group}/{name}": value for name, value in values.items()}, int(images_seen))


def training_work(
    recipe: Recipe, shards: Shards, device: str, precision: Precision = "float32", devices: int = 1
) -> Work:
    """What an image costs with texts as long as the shards' are, and what the devices can do."""
    count = min(len(shards), TEXTS_LOOKED_AT)
    lengths = [len(shards.plain(i * len(shards) // count).text) for i in range(count)]
    index, tokens = shards.index, round(sum(lengths) / count)
    flops = training_flops_per_image(recipe, index.latent_shape[0], index.text_width, tokens)
    return Work(flops, devices, peak_flops(device, precision))


def open_watch(
    recipe: Recipe,
    shards: Shards,
    out: Path,
    header: dict[str, Any],
    device: str,
    images_seen: int,
    gather: Gather,
    validation: Path | None = None,
    score: ScoreAverage | None = None,
    first: bool = True,
) -> Watch:
    """Open all that the recipe asks for, and drop what was recorded after `images_seen`.

    `first` is false on all ranks but the first, which write nothing.
    """
    if recipe.scores.every and score is None:
        raise UserError("scores.every is set: give held-out pictures with --score HELD_OUT.parquet.")
    sets: dict[str, FixedSet] = {}
    if validation is not None:
        sets["held_out"] = held_out_set(validation, shards, recipe)
        sets["training"] = FixedSet.of(shards, recipe.validation.samples, shards.whitening)
    watch = Watch(recipe, out, header, device, sets, None, score, gather)
    if not first:
        return watch
    for record in (RECORD, f"{SCORES}.jsonl"):
        cut_lines(out / record, images_seen)
    for sheet in (out / PREVIEWS).glob("[0-9]*.png"):
        if int(sheet.stem) > images_seen:
            sheet.unlink()
    for folder in (out / SCORES).glob("[0-9]*"):
        if int(folder.name) > images_seen:
            shutil.rmtree(folder)
    average = recipe.training.average
    if average.kind == "power" and (out / AVERAGES).is_dir():
        thin_snapshots(out / AVERAGES, average, images_seen)
    shape = shards.index.latent_shape
    watch.preview = open_preview(recipe, shards.folder, out, header, shards.whitening, shape, device)
    watch.trackers = open_trackers(recipe.training.track, out, header["recipe"], images_seen)
    if sets:
        held_out, training = (len(samples.numbers) for samples in sets.values())
        times = recipe.validation.levels
        say(f"validation: {held_out} held-out and {training} training samples at {times} times.")
    return watch
