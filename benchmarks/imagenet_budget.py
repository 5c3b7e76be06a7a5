"""Disk and hours for the whole of ImageNet, from rates: measured ones, and assumptions named as such.

    python benchmarks/imagenet_budget.py [rate=value ...]

docs/data.md holds what it prints. Put in the rates of your machine, for example `cutmix=300`.
"""

import sys
from dataclasses import dataclass, fields, replace

from kilopix.budget import IMAGENET, TOKENS, Budget, Encoded
from kilopix.recipe import load_recipe

RECIPE = "dit_i_256_ta_cutmix"


@dataclass(frozen=True)
class Rates:
    """Per second: on one core, or on one GPU of the H100 class; and sizes."""

    cutmix: float = 200  # measured, one core
    load: float = 430  # measured, one core: decoding and resizing to 256 pixels
    caption: float = 8  # assumed: LLaVA-NeXT of 8 billion weights in true batches, 90 words, a GPU
    autoencoder: float = 450  # assumed, a GPU in bfloat16
    text: float = 600  # assumed, a GPU in bfloat16: Flan-T5-XL's encoder, captions of so many tokens:
    tokens: float = TOKENS["model"]  # assumed
    cores_per_gpu: int = 16
    jpeg_256: float = 45e3  # assumed, bytes: 256 x 256 at quality 95 without subsampling


@dataclass(frozen=True)
class Machine:
    """So many GPUs, each with its cores."""

    name: str
    gpus: int


MACHINES = (Machine("1 GPU", 1), Machine("8 GPUs", 8), Machine("cluster of 64", 64))


def hours(rate: float, machine: Machine, count: float = IMAGENET) -> float:
    """Hours for `count` pictures at `rate` a second and GPU."""
    return count / (rate * machine.gpus) / 3600


def together(*rates: float) -> float:
    """The rate of steps done one after the other."""
    return 1 / sum(1 / rate for rate in rates)


def shard_bytes(rates: Rates, storage: str, composed: bool) -> float:
    """Bytes of the shards of every image and its CutMix image, as `kilopix plan` counts them.

    A CutMix image's caption that is composed of two is as long as both; a model's is as long as others.
    """
    recipe = load_recipe(RECIPE, [f"data.text_storage={storage}"])
    budget = Budget(recipe, Encoded.of(recipe, int(rates.tokens)))
    return budget.shard_bytes if composed else 2 * IMAGENET * budget.row_bytes()


def main(settings: list[str]) -> None:
    """Print the tables."""
    rates = Rates()
    kinds = {field.name: field.type for field in fields(rates)}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in kinds:
            sys.exit(f"unknown rate {name!r}; known are {', '.join(kinds)}.")
        rates = replace(rates, **{name: float(value)})
    cores = rates.cores_per_gpu
    encode = min(together(rates.autoencoder, rates.text), rates.load * cores)
    steps = (
        ("caption the pictures", rates.caption),
        ("CutMix, written as JPEG", rates.cutmix * cores),
        ("caption the CutMix pictures", rates.caption),
        ("encode the pictures", encode),
        ("encode the CutMix pictures", encode),
    )
    print("| Step | " + " | ".join(machine.name for machine in MACHINES) + " |")
    print("|---|" + "---:|" * len(MACHINES))
    totals = [0.0] * len(MACHINES)
    for name, rate in steps:
        row = [hours(rate, machine) for machine in MACHINES]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        print(f"| {name} | " + " | ".join(f"{value:.1f} h" for value in row) + " |")
    print("| all | " + " | ".join(f"{value:.1f} h" for value in totals) + " |")
    online = [hours(encode, machine, 2 * IMAGENET) for machine in MACHINES]
    online = [h + hours(rates.caption, m) for h, m in zip(online, MACHINES, strict=True)]
    print("| all, CutMix online | " + " | ".join(f"{value:.1f} h" for value in online) + " |")
    print()
    for composed, captions in ((False, ""), (True, ", `--online`")):
        for storage, name in (("int8", "int8"), ("bfloat16", "bfloat16 or float16")):
            size = shard_bytes(rates, storage, composed) / 1e9
            print(f"| shards, text in {name}{captions} | {size:,.0f} GB |")
    print(f"| CutMix images as JPEG | {IMAGENET * rates.jpeg_256 / 1e9:.0f} GB |")


if __name__ == "__main__":
    main(sys.argv[1:])
