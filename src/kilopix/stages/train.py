"""Shards to a run: the training loop.

In: a recipe and shards. Out: a run folder:

    recipe.json        the resolved recipe          log.jsonl          loss, rate, images/s
    checkpoints/       from which it goes on        codec.safetensors  the patch codec, if one is used
    model.safetensors  the averaged weights at the end, with the recipe in the header

Every random decision of a step is drawn from (seed, images seen), so a run that was stopped and started
again is the run that was not.
"""

import json
import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from kilopix.data.loader import Batch, SampleOrder, load_batch
from kilopix.data.shards import CODEC, INDEX, Shards, read_index
from kilopix.diffusion.objective import draw, drop_text, loss_per_sample
from kilopix.models.dit import DiT
from kilopix.models.rin import RIN
from kilopix.network import (
    Network,
    build_network,
    encode_text,
    flops_per_image,
    training_predictor,
)
from kilopix.recipe import Recipe, check_shards
from kilopix.runtime import (
    atomic_path,
    pick_device,
    read_json,
    say,
    sha256_of_file,
    torch_generator,
    write_json,
)
from kilopix.training.averages import Average, build_average
from kilopix.training.checkpoint import (
    Progress,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_weights,
)
from kilopix.training.lines import append_line, cut_lines
from kilopix.training.optim import build_optimizer, lr_factor, set_lr
from kilopix.training.progress import Meter, shown_progress
from kilopix.types import LatentMoments, UserError
from kilopix.watch import ScoreAverage, Watch, open_watch, training_work

AFTER_TRAINING = ("sampling", "evaluation", "validation", "preview", "scores")
"""Sections of a recipe that training does not depend on, so that they may change under a run."""
MODEL, LOG, RECIPE, CHECKPOINTS = "model.safetensors", "log.jsonl", "recipe.json", "checkpoints"


@dataclass
class Run:
    """What a run carries from step to step."""

    network: Network
    average: Average
    optimizer: torch.optim.Optimizer
    images_seen: int
    seconds: float


def run(
    shards_folder: Path,
    out: Path,
    recipe: Recipe,
    device: str = "auto",
    validation: Path | None = None,
    score: ScoreAverage | None = None,
) -> bool:
    """Train; the same command again goes on from the newest checkpoint, or says that it is done.

    `validation` names shards of held-out pictures; `score` scores a file of averaged weights. Returns whether
    training is finished; False after a signal that asked it to stop.
    """
    if shards_folder.resolve() == out.resolve():
        raise UserError(f"{out}: holds the shards; choose another folder for the run.")
    shards = Shards(shards_folder)
    index = shards.index
    check_shards(recipe, shards_folder, index.text_encoder, index.autoencoder, index.image_size)
    header = {"recipe": recipe.model_dump(mode="json"), "shards": sha256_of_file(shards_folder / INDEX)}
    header |= {
        "latent_channels": index.latent_shape[0],
        "text_width": index.text_width,
        "text_fingerprint": index.text_fingerprint,
        "autoencoder_fingerprint": index.autoencoder_fingerprint,
        "latent_whitening": asdict(shards.whitening) if shards.whitening else None,
    }
    _open_run(out, header)
    if (out / MODEL).exists():
        say(f"{out}: already trained on {recipe.training.images:,} images.")
        return True
    if (shards_folder / CODEC).exists():
        with atomic_path(out / CODEC) as temporary:
            shutil.copyfile(shards_folder / CODEC, temporary)
    device = pick_device(device)
    state = _start(recipe, index.latent_shape[0], index.text_width, device)
    if newest := newest_checkpoint(out / CHECKPOINTS):
        progress = load_checkpoint(newest, state.network, state.average.networks, state.optimizer)
        state.images_seen, state.seconds = progress.images_seen, progress.seconds
        say(f"{out}: going on from {state.images_seen:,} images.")
    cut_lines(out / LOG, state.images_seen)
    watch = open_watch(
        recipe, shards, out, header, device, state.images_seen, _whole, validation=validation, score=score
    )
    try:
        finished = _train(state, shards, out, recipe, header, device, watch)
    finally:
        watch.close()
    if finished:
        save_weights(out / MODEL, state.average.network, {**header, "images_seen": state.images_seen})
        say(f"{out / MODEL}: trained on {state.images_seen:,} images in {state.seconds / 60:.1f} minutes.")
    else:
        say(f"{out}: stopped at {state.images_seen:,} images; the same command goes on from there.")
    return finished


def describe(shards_folder: Path, recipe: Recipe) -> None:
    """Print the resolved recipe, the network's parameters, and the FLOPs of a picture and of the run."""
    index = read_index(shards_folder)
    check_shards(recipe, shards_folder, index.text_encoder, index.autoencoder, index.image_size)
    network = build_network(recipe, index.latent_shape[0], index.text_width)
    parameters = sum(p.numel() for p in network.parameters())
    forward = flops_per_image(recipe, index.latent_shape[0], index.text_width, text_tokens=64)
    say(json.dumps(recipe.model_dump(mode="json"), indent=1))
    say(f"parameters: {parameters / 1e6:.2f} million")
    say(f"FLOPs: {3 * forward / 1e9:.2f} billion a picture trained (64 text tokens)")
    say(f"run: {3 * forward * recipe.training.images:.2e} FLOPs on {recipe.training.images:,} pictures")


def _open_run(out: Path, header: dict[str, object]) -> None:
    """Record what the run is, or refuse the folder of another run."""
    record = out / RECIPE
    if not record.exists():
        write_json(record, header)
        return
    before = read_json(record)
    sections = header["recipe"]
    assert isinstance(sections, dict)
    trained = [key for key in sections if key not in AFTER_TRAINING]
    changed = [key for key in trained if before["recipe"].get(key) != sections[key]]
    if changed:
        raise UserError(
            f"{out}: a run of another recipe lives there ({', '.join(changed)} differ); choose another."
        )
    if before["shards"] != header["shards"]:
        raise UserError(f"{out}: this run was begun on other shards; choose another folder for the new run.")


def _start(recipe: Recipe, channels: int, text_width: int, device: str) -> Run:
    network = build_network(recipe, channels, text_width).to(device).train()
    average = build_average(network, recipe.training.average)
    return Run(network, average, build_optimizer(recipe.optimizer, network), 0, 0.0)


def _train(
    state: Run,
    shards: Shards,
    out: Path,
    recipe: Recipe,
    header: dict[str, object],
    device: str,
    watch: Watch,
) -> bool:
    """The loop; returns whether it came to its end rather than to a signal."""
    training = recipe.training
    order = SampleOrder(len(shards), recipe.seed)
    window = LogWindow(out / LOG, training.log_every, watch, Meter(training_work(recipe, shards, device)))
    with stop_on_signal() as stop, shown_progress(training.images, state.images_seen) as shown:
        while state.images_seen < training.images and not stop.asked:
            started = time.perf_counter()
            before, count = state.images_seen, min(training.batch_size, training.images - state.images_seen)
            loss, norm, batch = _step(state, shards, order, recipe, count, device)
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise UserError(
                    f"{out}: loss {loss} and gradient norm {norm} after {before:,} images, on the samples "
                    f"{', '.join(batch.paths[:4])}, ... The last checkpoint is intact; lower optimizer.lr "
                    "or training.clip_norm, and go on in a new folder."
                )
            state.seconds += time.perf_counter() - started
            window.add(state, loss, norm, count, time.perf_counter() - started)
            shown.update(state.images_seen, window.note)
            watch.step(state.network, state.average, before, state.images_seen)
            if state.images_seen // training.checkpoint_every > before // training.checkpoint_every:
                _save(state, out, header, training.keep_checkpoints)
        if state.images_seen >= training.images:
            window.flush(state)
        if state.images_seen < training.images or training.images % training.checkpoint_every:
            _save(state, out, header, training.keep_checkpoints)
    return state.images_seen >= training.images


def _step(
    state: Run, shards: Shards, order: SampleOrder, recipe: Recipe, count: int, device: str
) -> tuple[float, float, Batch]:
    """One optimizer step on the next `count` images; returns loss and gradient norm."""
    objective, training = recipe.objective, recipe.training
    generator = torch_generator("step", recipe.seed, state.images_seen)
    decisions = draw(objective, count, generator)
    versions = decisions.augmented.tolist(), decisions.short.tolist()
    batch = load_batch(shards, order, state.images_seen, *versions)
    latents = sample_latents(batch.moments, generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    text = drop_text(batch.text, shards.empty_text, decisions.drop_text).to(device)
    windows, t = batch.window.to(device), decisions.t.to(device)

    context = encode_text(state.network, text, (~decisions.drop_text).float().to(device))
    seen_again = decisions.self_condition  # stays on the CPU: to look at it elsewhere would be to wait
    predict = training_predictor(state.network, objective.path, context, windows, seen_again, generator)
    losses = loss_per_sample(objective, predict, latents, noise, t)
    loss = losses.mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), training.clip_norm)
    set_lr(state.optimizer, lr_factor(training.schedule, state.images_seen + count, training.images))
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.images_seen += count
    state.average.update(state.network, state.images_seen, count)
    return loss.item(), norm.item(), batch


def sample_latents(moments: LatentMoments, generator: torch.Generator) -> torch.Tensor:
    """Latents drawn anew from their mean and standard deviation."""
    return moments.mean + moments.std * torch.randn(moments.mean.shape, generator=generator)


def _save(state: Run, out: Path, header: dict[str, object], keep: int) -> None:
    progress = Progress(state.images_seen, state.seconds)
    folder = out / CHECKPOINTS
    save_checkpoint(folder, state.network, state.average.networks, state.optimizer, progress, header, keep)


class LogWindow:
    """Means over the last stretch of images, written as one JSON line when the stretch is full."""

    def __init__(self, path: Path, every: int, watch: Watch, meter: Meter):
        self.path = path
        self.every = every
        self.watch = watch
        self.meter = meter
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.images = 0
        self.seconds = 0.0
        self.note = ""

    def add(self, state: Run, loss: float, norm: float, images: int, seconds: float) -> None:
        """Take in one step."""
        self.losses.append(loss * images)
        self.norms.append(norm)
        self.images += images
        self.seconds += seconds
        self.meter.add(images, seconds)
        left = self.watch.recipe.training.images - state.images_seen
        self.note = self.meter.note(sum(self.losses) / self.images, state.seconds, left)
        if state.images_seen // self.every > (state.images_seen - images) // self.every:
            self.flush(state)

    def flush(self, state: Run) -> None:
        """Write the line of what was taken in since the last."""
        if not self.images:
            return
        line = {
            "images": state.images_seen,
            "loss": sum(self.losses) / self.images,
            "grad_norm": sum(self.norms) / len(self.norms),
            "lr": state.optimizer.param_groups[0]["lr"],
            "images_per_second": self.images / self.seconds,
            "seconds": state.seconds,
            "device_hours": self.meter.work.device_hours(state.seconds),
        }
        if (utilisation := self.meter.work.utilisation(self.images / self.seconds)) is not None:
            line["model_flop_utilisation"] = utilisation
        append_line(self.path, line)
        self.watch.logged(line)
        self.images, self.seconds = 0, 0.0
        self.losses, self.norms = [], []


def _whole(network: nn.Module) -> Network:
    """A network of one process is whole as it is."""
    assert isinstance(network, DiT | RIN)
    return network


@dataclass
class Stop:
    """Whether the user, or the cluster, asked the run to stop."""

    asked: bool = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Inside, an interrupt or SIGTERM lets the step finish; a second interrupt stops at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
