"""A recipe to what it costs: parameters, FLOPs, disk, memory of a device, hours.

In: a recipe, a kind of device or one of this machine, and if you like, the shards, or what `make gpu-check`
measured on a card. Out: lines of text. What is assumed rather than known or measured is called so.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kilopix.budget import IMAGENET, Budget, Encoded
from kilopix.data.checked_batches import mean_text_tokens
from kilopix.data.shards import Shards
from kilopix.english import counted
from kilopix.hardware import Device, Precision, device_named, this_device
from kilopix.measuring import Speed, measured_speed
from kilopix.memory import Memory
from kilopix.progress import working
from kilopix.recipe import Recipe, check_shards
from kilopix.runtime import Record, pick_device, read_json, say
from kilopix.training.speed import MOST_ON_CPU, pick_precision
from kilopix.types import UserError

ASSUMED = {"dit": 0.40, "rin": 0.25}
"""Share of a GPU's peak that a network is taken to reach where nobody has measured it: RIN's many small
attentions reach less than DiT's products."""
_HERE = ("cpu", "cuda", "mps")
_SAMPLES = 1000


@dataclass(frozen=True)
class Question:
    """What a plan is asked for; None, or no device, where it is left to be found."""

    device: str = "h100-sxm"
    devices: int = 0
    images: int | None = None
    utilisation: float | None = None
    micro_batch: int | None = None
    precision: Precision | None = None
    tokens: int | None = None
    shards: Path | None = None
    measured: Path | None = None


def run(name: str, recipe: Recipe, question: Question) -> None:
    """Print the plan of a recipe."""
    for line in plan(name, recipe, question):
        say(line)


def plan(name: str, recipe: Recipe, question: Question) -> list[str]:
    """The lines of a plan; raises `UserError` for a device or shards that do not go with the recipe."""
    here = question.device.partition(":")[0] in _HERE
    device = pick_device(question.device) if here else question.device
    question = replace(question, devices=question.devices or _count(device, question.device))
    kind = this_device(device) if here else device_named(device)
    precision = question.precision or _precision(recipe, device if here else None, kind)
    pictures, encoded, source = _data(recipe, question)
    budget = Budget(recipe, encoded, pictures, precision, not here or device.startswith("cuda"))
    found = None if question.measured is None else _measured(question.measured, recipe)
    training, steps = recipe.training, -(-recipe.training.images // recipe.training.batch_size)
    lines = [
        f"{name}: {budget.parameters / 1e6:.1f} million parameters, {counted(training.images, 'image')} in "
        f"{counted(steps, 'step')} of {training.batch_size:,}",
        _line("FLOPs", f"{_flops(budget.flops_per_image)} an image trained, with {encoded.tokens} tokens of "
        f"text ({source}); {budget.flops:.3g} FLOP the run"),
        _line("shards", _shards(budget, question)),
        _line("checkpoint", f"{_size(budget.checkpoint_bytes)}; the run holds "
        f"{training.keep_checkpoints}, and one more while it writes: "
        f"{_size((training.keep_checkpoints + 1) * budget.checkpoint_bytes)}"),
    ]  # fmt: skip
    share = max(1, training.batch_size // question.devices)
    with working("count memory"):
        memory, micro = budget.memory, question.micro_batch
    if micro is None:
        micro = min(share, MOST_ON_CPU) if kind is None else memory.largest(kind.memory, share)
    lines.append(_line("memory", _memory(memory, budget, kind)))
    if not micro:
        assert kind is not None
        return [*lines, _line("", f"not one image fits on one {kind.name}; shard the weights (FSDP)")]
    rounds = -(-training.batch_size // (micro * question.devices))
    lines.append(
        _line("", f"{_size(memory.peak(micro, share))} at a micro-batch of {micro}, {rounds} of them a step"
        + (f" on each of {question.devices}" if question.devices > 1 else ""))
    )  # fmt: skip
    if found is not None:
        lines.append(_line("encoding", _encoding(found, budget, question.devices)))
    return [*lines, _line("time", _time(budget, question, device if here else None, kind, found))]


def _count(device: str, asked: str) -> int:
    """The devices of this machine, of its kind; a node's where it is another one."""
    if device.startswith("cuda") and ":" not in asked:
        return torch.cuda.device_count()
    return 1 if asked.partition(":")[0] in _HERE else 8


def _precision(recipe: Recipe, here: str | None, kind: Device | None) -> Precision:
    """The precision in which training computes there."""
    wanted = recipe.training.precision
    if wanted != "auto":
        return wanted
    if here is not None:
        lower = pick_precision("auto", here.partition(":")[0]) == torch.bfloat16
        return "bfloat16" if lower else "float32"
    return "bfloat16" if kind is None or kind.bfloat16 else "float32"


def _data(recipe: Recipe, question: Question) -> tuple[int, Encoded, str]:
    """How many pictures, what the encoders make of them, and how that is known."""
    if question.shards is None:
        known = "given" if question.tokens else f"assumed of captions of kind {recipe.data.captioner!r}"
        return question.images or _usual(recipe), Encoded.of(recipe, question.tokens), known
    shards = Shards(question.shards)
    index = shards.index
    check_shards(recipe, question.shards, index.text_encoder, index.autoencoder, index.image_size)
    tokens = question.tokens or mean_text_tokens(shards, _SAMPLES)
    encoded = Encoded(index.latent_shape[0], index.text_width, tokens)
    return question.images or index.plain, encoded, f"measured in {question.shards}"


def _usual(recipe: Recipe) -> int:
    """The pictures that a recipe is made for, where nobody says how many: the world's, or ImageNet's."""
    drawn = recipe.data.captioner == "structured"
    return recipe.world.classes * recipe.world.images_per_class if drawn else IMAGENET


def _shards(budget: Budget, question: Question) -> str:
    if question.shards is not None:
        files = Shards(question.shards).index.files
        held = sum((question.shards / name).stat().st_size for name in files)
        return f"{_size(float(held))} in {question.shards}"
    usual = "as many as ImageNet has" if budget.pictures == IMAGENET else "as many as are drawn"
    what = f"{counted(budget.pictures, 'picture')}" + ("" if question.images else f" ({usual}; --images)")
    times = " and their augmented versions" if budget.rows > budget.pictures else ""
    return f"{_size(budget.shard_bytes)}: {what}{times}, {_size(budget.row_bytes())} a row"


def _memory(memory: Memory, budget: Budget, kind: Device | None) -> str:
    own = f" (of {_size(kind.memory)})" if kind else ""
    half = budget.precision != "float32"
    casts = f"{_size(memory.casts)} copies in {budget.precision}, and " if half else "and "
    kept = "compiled" if budget.compiled else "uncompiled"
    if budget.recipe.training.activation_checkpointing:
        kept = "computed anew where they are large"
    return (
        f"{_size(memory.weights)} weights, {_size(memory.gradients)} gradients, {_size(memory.optimizer)} "
        f"optimizer, {_size(memory.averages)} averages, {casts}"
        f"{_size(memory.per_image)} of activations an image, {kept}{own}"
    )


def _measured(path: Path, recipe: Recipe) -> Record:
    """What was measured on a card, of the network's kind."""
    found = read_json(path)
    if recipe.model.kind not in found["training"]:
        raise UserError(f"{path}: nothing was measured with a network of kind {recipe.model.kind!r}.")
    return found


def _encoding(found: Record, budget: Budget, devices: int) -> str:
    """Hours of encoding the rows, at the rates that were measured."""
    rates = found["encoding"]
    if not rates:
        return "not measured"
    text, images = rates["texts_per_second"], rates["images_per_second"]
    hours = budget.rows * (1 / text + 1 / images) / 3600
    return _hours(
        hours, devices, f"{images:.3g} images and {text:.3g} texts a second, measured on {found['card']}"
    )


def _time(
    budget: Budget, question: Question, here: str | None, kind: Device | None, found: Record | None
) -> str:
    """Hours, and where the utilisation comes from."""
    if question.utilisation is None and found is None and here is not None:
        return _timed(budget, question, here)
    if kind is None:
        raise UserError(f"device {question.device!r}: its peak is not known, so a utilisation says nothing.")
    used, origin = ASSUMED[budget.recipe.model.kind], "assumed, not measured"
    if found is not None:
        used, origin = (
            found["training"][budget.recipe.model.kind]["utilisation"],
            f"measured on {found['card']}",
        )
        if used is None:
            raise UserError(
                f"{question.measured}: the peak of {found['card']} was not known, so it has no share."
            )
    if question.utilisation is not None:
        used, origin = question.utilisation, "as given"
    peak = (kind.peak(budget.precision) or 0) / 1e12
    hours = budget.device_hours(kind, used)
    return _hours(hours, question.devices, f"{used:.0%} ({origin}) of {kind.name}'s {peak:,.0f} TFLOP/s")


def _timed(budget: Budget, question: Question, here: str) -> str:
    """Hours by some steps of one device's share, as it would train it."""
    if budget.precision == "float16":
        raise UserError("precision float16: training has none; measure with bfloat16 or float32.")
    recipe = budget.recipe
    share = max(1, recipe.training.batch_size // question.devices)
    changes = {"batch_size": share, "precision": budget.precision}
    if question.micro_batch is not None:
        changes["micro_batch"] = min(question.micro_batch, share)
    training = recipe.training.model_copy(update=changes)
    shards = None if question.shards is None else Shards(question.shards)
    encoded = budget.encoded
    given = encoded.channels, encoded.text_width, encoded.tokens
    with working("measure some steps"):
        speed: Speed = measured_speed(recipe.model_copy(update={"training": training}), *given, here, shards)
    part = speed.utilisation(budget.flops_per_image, here, budget.precision)
    said = [f"{speed.rate:.3g} images a second"]
    said += [f"{part:.0%} of the peak"] if part else []
    said += [f"{speed.micro_batch} at once", "compiled" if speed.compiled else "uncompiled"]
    said += [f"{_size(speed.peak_bytes)} at the peak"] if speed.peak_bytes else []
    hours = recipe.training.images / speed.rate / 3600
    return _hours(hours, question.devices, f"{', '.join(said)}, measured on {here} now")


def _hours(hours: float, devices: int, why: str) -> str:
    if devices == 1:
        return f"{60 * hours:.1f} minutes: {why}" if hours < 1 else f"{hours:,.1f} hours: {why}"
    if hours < 1:
        return f"{60 * hours:.1f} minutes on one device, {60 * hours / devices:.1f} on {devices}: {why}"
    return f"{hours:,.1f} device hours, {hours / devices:,.1f} hours on {devices}: {why}"


def _line(title: str, text: str) -> str:
    return f"  {title:<11}{text}"


def _flops(value: float) -> str:
    return f"{value / 1e12:.3f} TFLOP" if value >= 1e11 else f"{value / 1e9:.2f} GFLOP"


def _size(value: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"
