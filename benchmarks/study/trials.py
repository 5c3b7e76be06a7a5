"""The trials' table: what every change brings over the study's arm `ta_cutmix`, seed by seed.

    python benchmarks/study/trials.py                     # prints it
    python benchmarks/study/trials.py benchmarks/log.md   # puts it between the page's markers

In: the cards of the trials, and those of the study. Out: of every trial the mean of its differences from the
arm with the same seed, with Student's interval where there are three seeds or more, and the smallest and the
largest where there are fewer. Better is more, in points; for KID less, in thousandths.
"""

import argparse
from pathlib import Path

from arms import load_study
from tables import CHOOSES, Results, fill, over_seeds, read_results, told

from kilopix.runtime import atomic_path
from run import DEFAULT, HERE, KEPT

BASE = "ta_cutmix"
SCORES = ("KID", CHOOSES + "mean", CHOOSES + "colors", "mean of six tasks")
TRIALS, CARDS = HERE / "trials.toml", HERE.parent / "results" / "trials"
ENOUGH = 3


def differences(trials: Results, study: Results, arm: str, score: str) -> list[float]:
    """What a trial has more than the base arm, of every seed that both have."""
    ours, base = trials.values(arm, score), study.values(BASE, score)
    return [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]


def cell(values: list[float], score: str) -> str:
    """`-12 (-20 to -4)`, signed."""
    if not values:
        return ""
    if len(values) >= ENOUGH:
        return told(over_seeds(values), score)
    scale, digits = (1000, 0) if score == "KID" else (100, 1)
    shown = [
        f"{scale * value:+.{digits}f}" for value in (sum(values) / len(values), min(values), max(values))
    ]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]}, {shown[2]})"


def table(trials: Results, study: Results) -> str:
    """One row a trial, by how much of KID it takes away; the base arm's own values come first."""
    lines = [
        "| Change | Seeds | KID | chooses mean | chooses colors | Mean of six tasks |",
        "|---|---|---|---|---|---|",
    ]
    own = [list(study.values(BASE, score).values()) for score in SCORES]
    told_own = [told(over_seeds(values), score) for values, score in zip(own, SCORES, strict=True)]
    lines.append(f"| none: its own values | {len(own[0])} | " + " | ".join(told_own) + " |")
    rows = {arm: [differences(trials, study, arm, score) for score in SCORES] for arm in trials.scores}
    for arm in sorted(rows, key=lambda arm: sum(rows[arm][0]) / len(rows[arm][0])):
        cells = [cell(values, score) for values, score in zip(rows[arm], SCORES, strict=True)]
        lines.append(f"| {trials.study.arms[arm].title} | {len(rows[arm][0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?")
    arguments = parser.parse_args()
    study = read_results(load_study(DEFAULT), KEPT)
    made = table(read_results(load_study(TRIALS), CARDS), study)
    if arguments.page is None:
        print(made)
        return
    with atomic_path(arguments.page) as temporary:
        temporary.write_text(fill(arguments.page.read_text(), "trials", made))


if __name__ == "__main__":
    main()
