"""Tables of trials: what every change brings over the arm of the study that it changes.

    python benchmarks/study/trials.py                     # prints them
    python benchmarks/study/trials.py benchmarks/log.md   # puts them between the page's markers

In: the cards of the trials, and those of the study. Out: of every trial its difference from the arm with the
same seeds, with a 95% interval. How far chance alone drives apart two trainings under one seed is taken from
the arms of the study that are trained as long on the same pictures, so that one seed tells large differences;
small ones need more. More is better, in points; of KID less is, in thousandths.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arms import Study, load_study
from scipy import stats
from tables import CHOOSES, Results, over_seeds, print_or_fill, read_results, told

from kilopix.evaluation.statistics import Interval
from run import DEFAULT, HERE, KEPT

FILES = ("trials.toml", "trials_cad_i.toml")
CARDS = HERE.parent / "results" / "trials"
SCORES = ("KID", CHOOSES + "mean", CHOOSES + "colors", "single object", "mean of six tasks")
ALIKE = ("ta", "ta_short", "ta_cutmix", "ta_cutmix_all", "ta_cutmix_low", "ta_cutmix_high", "ta_crop")


def spread(values: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The standard deviation of values, arms x seeds, around what both explain; degrees of freedom."""
    table = np.asarray(values, np.float64)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    return math.sqrt(float((rest**2).sum()) / degrees), degrees


def chance(study: Results, score: str) -> tuple[float, int]:
    """The spread of a score among the arms that are trained alike, of the seeds that all of them have."""
    found = [study.values(arm, score) for arm in ALIKE]
    seeds = sorted(set.intersection(*(set(one) for one in found)))
    return spread([[one[seed] for seed in seeds] for one in found])


def difference(trials: Results, study: Results, arm: str, score: str) -> Interval:
    """What a trial has more than the arm that it changes, over the seeds that both have."""
    ours, base = trials.values(arm, score), study.values(trials.study.against, score)
    apart = [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]
    value = sum(apart) / len(apart)
    deviation, degrees = chance(study, score)
    half = float(stats.t.ppf(0.975, degrees)) * deviation * math.sqrt(2 / len(apart))
    return Interval(value, value - half, value + half)


def table(trials: Results, study: Results) -> str:
    """One row a trial, by how much of KID it takes away; the arm's own values come first.

    What is told from nothing is bold.
    """
    lines = ["| Change | Seeds | " + " | ".join(SCORES) + " |", "|---" * (2 + len(SCORES)) + "|"]
    own = [list(study.values(trials.study.against, score).values()) for score in SCORES]
    cells = [told(over_seeds(values), score) for values, score in zip(own, SCORES, strict=True)]
    lines.append(f"| none: what it has | {len(own[0])} | " + " | ".join(cells) + " |")
    rows = {arm: [difference(trials, study, arm, score) for score in SCORES] for arm in trials.scores}
    for arm in sorted(rows, key=lambda arm: rows[arm][0].value):
        cells = [cell(found, score) for found, score in zip(rows[arm], SCORES, strict=True)]
        lines.append(
            f"| {trials.study.arms[arm].title} | {len(trials.scores[arm])} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def cell(found: Interval, score: str) -> str:
    """`+1.2 (-0.5 to 2.9)`, bold where nothing lies outside."""
    text = ("+" if found.value > 0 else "") + told(found, score)
    return text if found.low <= 0 <= found.high else f"**{text}**"


def load_trials(file: str) -> Study:
    """One of the files of trials."""
    return load_study(HERE / file)


def main() -> None:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?")
    arguments = parser.parse_args()
    study = read_results(load_study(DEFAULT), KEPT)
    tables = {Path(file).stem: table(read_results(load_trials(file), CARDS), study) for file in FILES}
    print_or_fill(arguments.page, tables)


if __name__ == "__main__":
    main()
