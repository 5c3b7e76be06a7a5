"""Disk and hours for the whole of ImageNet, from rates: measured ones, and assumptions named as such.

    python benchmarks/imagenet_budget.py [rate=value ...]

docs/data.md holds what it prints. Put in the rates of your machine, for example `cutmix=300`.
"""

import sys
from dataclasses import dataclass, fields, replace

PICTURES = 1_281_167
"""Training images of ImageNet-1k."""


@dataclass(frozen=True)
class Rates:
    """Per second: on one core, or on one GPU of the H100 class; and sizes."""

    cutmix: float = 200  # measured, one core
    load: float = 430  # measured, one core: decoding and resizing to 256 pixels
    caption: float = 8  # assumed: LLaVA-NeXT of 8 billion weights in true batches, 90 words, a GPU
    autoencoder: float = 450  # assumed, a GPU in bfloat16
    text: float = 600  # assumed, a GPU in bfloat16: Flan-T5-XL's encoder, 130 tokens
    tokens: float = 130  # assumed: 90 words of a long caption
    cutmix_tokens: float = 130  # assumed
    short_tokens: float = 10  # assumed: a class name
    width: int = 2048
    cores_per_gpu: int = 16
    jpeg_256: float = 45e3  # assumed, bytes: 256 x 256 at quality 95 without subsampling


@dataclass(frozen=True)
class Machine:
    """So many GPUs, each with its cores."""

    name: str
    gpus: int


MACHINES = (Machine("1 GPU", 1), Machine("8 GPUs", 8), Machine("cluster of 64", 64))


def hours(rate: float, machine: Machine, count: float = PICTURES) -> float:
    """Hours for `count` pictures at `rate` a second and GPU."""
    return count / (rate * machine.gpus) / 3600


def together(*rates: float) -> float:
    """The rate of steps done one after the other."""
    return 1 / sum(1 / rate for rate in rates)


def shard_bytes(rates: Rates, token_bytes: float, versions: int = 2) -> float:
    """Bytes of the shards, by the bytes of one value of a text state."""
    latents = 2 * 2 * 4 * 32 * 32  # mean and standard deviation in float16
    states = rates.tokens + rates.short_tokens + (versions - 1) * rates.cutmix_tokens
    return PICTURES * (versions * latents + states * rates.width * token_bytes)


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
    online = [hours(encode, machine, 2 * PICTURES) for machine in MACHINES]
    online = [h + hours(rates.caption, m) for h, m in zip(online, MACHINES, strict=True)]
    print("| all, CutMix online | " + " | ".join(f"{value:.1f} h" for value in online) + " |")
    print()
    for name, size in (("bfloat16 or float16", 2.0), ("int8", 1 + 4 / rates.width)):
        print(f"shards with text in {name}: {shard_bytes(rates, size) / 1e12:.2f} TB")
    print(f"CutMix pictures as JPEG: {PICTURES * rates.jpeg_256 / 1e9:.0f} GB")


if __name__ == "__main__":
    main(sys.argv[1:])
