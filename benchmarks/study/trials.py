"""Tables of trials: what every change brings over the arm of the study that it changes.

    python benchmarks/study/trials.py                     # prints them
    python benchmarks/study/trials.py benchmarks/log.md   # puts them between the page's markers

In: the cards of the trials, and those of the study. Out: of every trial the mean of its differences from the
arm with the same seed, with Student's interval where there are three seeds or more, and with the differences
themselves where there are two. More is better, in points; of KID less is, in thousandths.
"""

import argparse
from pathlib import Path

from arms import Study, load_study
from tables import CHOOSES, Results, fill, over_seeds, read_results, told

from kilopix.runtime import atomic_path
from run import DEFAULT, HERE, KEPT

FILES = ("trials.toml", "trials_cad_i.toml")
CARDS = HERE.parent / "results" / "trials"
SCORES = ("KID", CHOOSES + "mean", CHOOSES + "colors", "single object", "mean of six tasks")
ENOUGH = 3


def differences(trials: Results, study: Results, arm: str, score: str) -> list[float]:
    """What a trial has more than the arm that it changes, of every seed that both have."""
    ours, base = trials.values(arm, score), study.values(trials.study.against, score)
    return [ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())]


def cell(values: list[float], score: str) -> str:
    """`-12 (-20 to -4)` of three seeds, `-12 (-20, -4)` of two, `-12` of one."""
    scale, digits = (1000, 0) if score == "KID" else (100, 1)
    if len(values) >= ENOUGH:
        sign = "+" if sum(values) > 0 else ""
        return sign + told(over_seeds(values), score)
    shown = [f"{scale * value:+.{digits}f}" for value in (sum(values) / len(values), *values)]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]}, {shown[2]})"


def table(trials: Results, study: Results) -> str:
    """One row a trial, by how much of KID it takes away; the arm's own values come first."""
    lines = ["| Change | Seeds | " + " | ".join(SCORES) + " |", "|---" * (2 + len(SCORES)) + "|"]
    own = [list(study.values(trials.study.against, score).values()) for score in SCORES]
    cells = [told(over_seeds(values), score) for values, score in zip(own, SCORES, strict=True)]
    lines.append(f"| none: what it has | {len(own[0])} | " + " | ".join(cells) + " |")
    rows = {arm: [differences(trials, study, arm, score) for score in SCORES] for arm in trials.scores}
    for arm in sorted(rows, key=lambda arm: sum(rows[arm][0]) / len(rows[arm][0])):
        cells = [cell(values, score) for values, score in zip(rows[arm], SCORES, strict=True)]
        lines.append(f"| {trials.study.arms[arm].title} | {len(rows[arm][0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    if arguments.page is None:
        print("\n\n".join(tables.values()))
        return
    page = arguments.page.read_text()
    for name, text in tables.items():
        page = fill(page, name, text)
    with atomic_path(arguments.page) as temporary:
        temporary.write_text(page)


if __name__ == "__main__":
    main()
