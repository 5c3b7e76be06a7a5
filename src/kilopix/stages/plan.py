"""A recipe to what it costs: parameters, FLOPs, disk, memory of a device, hours.

In: a recipe, a kind of device or one of this machine, and if you like, the shards. Out: lines of text. What
is assumed rather than known or measured is called so.
"""

from dataclasses import dataclass
from pathlib import Path

from kilopix.budget import IMAGENET, Budget, Encoded, Memory, Speed, measured_speed
from kilopix.data.checked_batches import mean_text_tokens
from kilopix.data.shards import Shards
from kilopix.english import counted
from kilopix.hardware import Device, Precision, device_named, this_device
from kilopix.progress import working
from kilopix.recipe import Recipe, check_shards
from kilopix.runtime import pick_device, say
from kilopix.types import UserError

ASSUMED = {"dit": 0.40, "rin": 0.25}
"""Share of a GPU's peak that a network is taken to reach where nobody has measured it: RIN's many small
attentions reach less than DiT's products."""
_HERE = ("cpu", "cuda", "mps")
_SAMPLES = 1000


@dataclass(frozen=True)
class Question:
    """What a plan is asked for; None where it is left to be found."""

    device: str = "h100-sxm"
    devices: int = 8
    images: int | None = None
    utilisation: float | None = None
    micro_batch: int | None = None
    precision: Precision | None = None
    tokens: int | None = None
    shards: Path | None = None


def run(name: str, recipe: Recipe, question: Question) -> None:
    """Print the plan of a recipe."""
    for line in plan(name, recipe, question):
        say(line)


def plan(name: str, recipe: Recipe, question: Question) -> list[str]:
    """The lines of a plan; raises `UserError` for a device or shards that do not go with the recipe."""
    here = question.device.partition(":")[0] in _HERE
    device = pick_device(question.device) if here else question.device
    kind = this_device(device) if here else device_named(device)
    precision = question.precision or _precision(device if here else None, kind)
    pictures, encoded, source = _data(recipe, question)
    budget = Budget(recipe, encoded, pictures, precision)
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
    memory, micro = budget.memory, question.micro_batch
    share = max(1, training.batch_size // question.devices)
    if micro is None:
        micro = share if kind is None else memory.largest(kind.memory, share)
    lines.append(_line("memory", _memory(memory, precision, kind)))
    if not micro:
        assert kind is not None
        return [*lines, _line("", f"not one image fits on one {kind.name}; shard the weights (FSDP)")]
    rounds = -(-training.batch_size // (micro * question.devices))
    needed = memory.peak(micro) - (memory.context if device == "cpu" else 0)
    lines.append(
        _line("", f"{_size(needed)} at a micro-batch of {micro}, {rounds} of them a step on each of "
        f"{question.devices}")
    )  # fmt: skip
    return [*lines, _line("time", _time(budget, question, device if here else None, kind, micro))]


def _precision(device: str | None, kind: Device | None) -> Precision:
    if device == "cpu" or (device and kind is None):
        return "float32"
    return "bfloat16" if kind is None or kind.bfloat16 else "float16"


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


def _memory(memory: Memory, precision: Precision, kind: Device | None) -> str:
    own = f" (of {_size(kind.memory)})" if kind else ""
    return (
        f"{_size(memory.weights)} weights, {_size(memory.gradients)} gradients, {_size(memory.optimizer)} "
        f"optimizer, {_size(memory.averages)} averages, {_size(memory.casts)} copies in {precision}, and "
        f"{_size(memory.per_image)} of activations an image, uncompiled{own}"
    )


def _time(budget: Budget, question: Question, here: str | None, kind: Device | None, micro: int) -> str:
    """Hours, and where the utilisation comes from."""
    if question.utilisation is None and here is not None:
        with working("measure some steps"):
            speed: Speed = measured_speed(budget, here, micro)
        hours = budget.recipe.training.images / speed.images * speed.seconds / 3600
        share = f", {speed.utilisation:.0%} of the peak" if speed.utilisation else ""
        rate = speed.images / speed.seconds
        return _hours(hours, question.devices, f"{rate:.3g} images a second{share}, measured on {here} now")
    if kind is None:
        raise UserError(f"device {question.device!r}: its peak is not known, so a utilisation says nothing.")
    assumed = ASSUMED[budget.recipe.model.kind]
    used = question.utilisation or assumed
    origin = "as given" if question.utilisation else "assumed, not measured"
    peak = (kind.peak(budget.precision) or 0) / 1e12
    hours = budget.device_hours(kind, used)
    return _hours(hours, question.devices, f"{used:.0%} ({origin}) of {kind.name}'s {peak:,.0f} TFLOP/s")


def _hours(hours: float, devices: int, why: str) -> str:
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
