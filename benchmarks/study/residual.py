"""Does a residual stream in bfloat16 cost anything: the study's two networks, with it and without.

    python benchmarks/study/residual.py runs/residual                                   # prints the table
    python benchmarks/study/residual.py runs/residual benchmarks/results/residual.md    # puts it there

In: the embedded world. Out: for each network and seed one training with a stream in float32 and one in
bfloat16, and a table of the loss on held-out pictures by noise level, with the difference of the two and its
interval over the seeds. What was done is not done again. Products are in float32 on both sides, which
a CPU is fast at: what differs is the stream and its gradient alone, rounded to bfloat16 after every addition.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from arms import Study, load_study
from scipy import stats
from tables import print_or_fill

from kilopix.runtime import say, write_json
from kilopix.validation import RECORD
from run import HERE, held_out_shards_of, prepare, read_lines, shards_of

STREAMS = ("float32", "bfloat16")
NETWORKS = {"DiT-I": "ta_cutmix", "CAD-I": "cad_i"}


def settings(images: int) -> tuple[str, ...]:
    """What the trainings have other than the study's."""
    return (
        f"training.images={images}",
        f"training.checkpoint_every={images}",
        f"validation.every={images}",
        "training.compile=false",
        "training.precision=float32",
        "validation.samples=288",
        "validation.levels=4",
    )


def losses(study: Study, network: str, seed: int, stream: str, out: Path) -> dict[str, Any]:
    """Held-out losses of the average at the end of one training, which is done if it was not."""
    from kilopix.stages import train

    arm = study.arms[NETWORKS[network]]
    arm = arm.model_copy(update={"overrides": (*arm.overrides, f"training.residual={stream}")})
    recipe, folder = study.recipe(arm, seed), out / f"{NETWORKS[network]}_{stream}_seed{seed}"
    say(f"{network}, stream in {stream}, seed {seed}")
    train.run(shards_of(arm, out), folder, recipe, validation=held_out_shards_of(arm, out))
    kept = ("held_out", "average", recipe.training.images)
    lines = read_lines(folder / RECORD)
    last = [line for line in lines if (line["set"], line["weights"], line["images"]) == kept][-1]
    return {"network": network, "seed": seed, "stream": stream, **last}


def row(network: str, name: str, plain: Sequence[float], lower: Sequence[float]) -> str:
    """A line of the table: losses of both, one a seed, and their difference by Student's t."""
    apart = np.subtract(lower, plain)
    half = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5)
    cells = [f"{np.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in (plain, lower)]
    mean = apart.mean()
    told = f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
    return f"| {network} | {name} | {cells[0]} | {cells[1]} | {told} |"


def table(found: Sequence[dict[str, Any]]) -> str:
    """The table of both networks by noise level, of the seeds that have both streams."""
    head = ["Network", "t", "Stream in float32", "in bfloat16", "Difference, 95% interval"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for network in NETWORKS:
        plain, lower = (
            {one["seed"]: one for one in found if (one["network"], one["stream"]) == (network, stream)}
            for stream in STREAMS
        )
        seeds = sorted(plain.keys() & lower.keys())
        if len(seeds) < 2:
            continue
        for i, t in enumerate(plain[seeds[0]]["t"]):
            lines.append(row(network, f"{t}", *([s[n]["losses"][i] for n in seeds] for s in (plain, lower))))
        lines.append(row(network, "mean", *([s[n]["loss"] for n in seeds] for s in (plain, lower))))
    return "\n".join(lines)


def main() -> None:
    """Train what is left, keep the losses, and print the table or put it into its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=8_000)
    arguments = parser.parse_args()
    study = load_study(HERE / "study.toml", settings(arguments.images))
    study = study.model_copy(update={"arms": {name: study.arms[name] for name in NETWORKS.values()}})
    prepare(study, arguments.out)
    found = []
    for network, seed, stream in product(NETWORKS, study.seeds, STREAMS):
        found.append(losses(study, network, seed, stream, arguments.out))
        write_json(arguments.out / "losses.json", {"of": found})
    print_or_fill(arguments.page, {"residual": table(found)})


if __name__ == "__main__":
    main()
