"""From kept cards to tables: every number with its interval, every claim with what is shown of it.

    python benchmarks/study/tables.py            # prints them
    python benchmarks/study/tables.py docs/study.md   # puts them between the page's markers

The interval of an arm, and of the difference of two arms, is Student's over the seeds: each seed draws its
own weights, order and prompts, so it holds all three kinds of chance. Under one seed two arms meet the same
prompts, so differences are paired.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arms import Claim, Study, load_study

from kilopix.evaluation.protocol import read_card
from kilopix.evaluation.statistics import Interval
from kilopix.runtime import atomic_path, read_json
from kilopix.types import UserError
from run import CHOICES, DEFAULT, FACTS, KEPT, PLACED

# Two-sided 95% points of Student's t by degrees of freedom (Fisher and Yates, table III).
STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


CHOOSES, STANDS = "chooses ", "placed "
TASKS = ("single object", "two object", "counting", "colors", "position", "color attr")
JUDGED = ("mean of six tasks", *TASKS)
TOGETHER = ("two object", "position", "color attr")


@dataclass(frozen=True)
class Results:
    """Every score of a study by arm and seed: those of the cards, of the choices, and the seam."""

    study: Study
    scores: dict[str, dict[int, dict[str, float]]]

    def values(self, arm: str, score: str) -> dict[int, float]:
        """A score of an arm by seed."""
        return {seed: found[score] for seed, found in self.scores.get(arm, {}).items() if score in found}


def read_results(study: Study, kept: Path) -> Results:
    """What was kept of the study's arms."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for arm in study.arms:
        for seed in study.seeds:
            folder = kept / arm / f"seed{seed}"
            if (folder / "card.json").exists():
                scores.setdefault(arm, {})[seed] = _scores_in(folder)
    if not scores:
        raise UserError(f"{kept}: no cards; run benchmarks/study/run.py first.")
    return Results(study, scores)


def _scores_in(folder: Path) -> dict[str, float]:
    found = {score.name: score.value for score in read_card(folder / "card.json").scores}
    if (folder / PLACED).exists():
        found |= {STANDS + score.name: score.value for score in read_card(folder / PLACED).scores}
    if (folder / CHOICES).exists():
        right = {
            task: answers.count("1") / len(answers) for task, answers in read_json(folder / CHOICES).items()
        }
        found |= {CHOOSES + task: share for task, share in right.items()}
        found[CHOOSES + "mean"] = sum(right.values()) / len(right)
    if (folder / FACTS).exists():
        seams = read_json(folder / FACTS)["seam"]
        found["seam"] = sum(seams) / len(seams)
    return found


def over_seeds(values: list[float]) -> Interval:
    """Mean and 95% interval of Student; without an end where there is one seed."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = STUDENT[min(n - 1, len(STUDENT) - 1)] * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def difference(results: Results, claim: Claim) -> tuple[Interval, int] | None:
    """The paired difference of a claim's arms over the seeds that both have, and how many those are."""
    a, b = (results.values(arm, claim.score) for arm in (claim.better, claim.base))
    seeds = sorted(a.keys() & b.keys())
    return (over_seeds([a[seed] - b[seed] for seed in seeds]), len(seeds)) if seeds else None


def verdict(claim: Claim, found: tuple[Interval, int] | None) -> str:
    """Whether a claim is confirmed: only where three seeds or more, and the interval, say so."""
    if found is None or found[1] < 3:
        return "open: fewer than three seeds"
    low, high = found[0].low, found[0].high
    if claim.lower:
        low, high = -high, -low
    return "confirmed" if low > 0 else "contradicted" if high < 0 else "not shown"


def told(interval: Interval, score: str) -> str:
    """`12.3 (10.0 to 14.6)`: in points, KID in thousandths, and a seam in grey levels."""
    scale, digits = {"KID": (1000, 0), "seam": (1, 2)}.get(score, (100, 1))
    value, low, high = (f"{scale * v:.{digits}f}" for v in (interval.value, interval.low, interval.high))
    return value if math.isinf(interval.low) else f"{value} ({low} to {high})"


def scores_table(results: Results, scores: Sequence[str]) -> str:
    """One row an arm, one column a score."""
    heads = [score.removeprefix(CHOOSES).removeprefix(STANDS) for score in scores]
    lines = ["| Arm | seeds | " + " | ".join(heads) + " |", "|---" * (2 + len(scores)) + "|"]
    for name in results.scores:
        cells = []
        for score in scores:
            values = list(results.values(name, score).values())
            cells.append(told(_within(over_seeds(values), score), score) if values else "")
        seeds = len(results.scores[name])
        lines.append(f"| {results.study.arms[name].title} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _within(interval: Interval, score: str) -> Interval:
    """An interval cut where a share ends: Student's knows nothing of 0% and 100%."""
    if score in ("KID", "seam") or math.isinf(interval.low):
        return interval
    return Interval(interval.value, max(interval.low, 0.0), min(interval.high, 1.0))


def claims_table(results: Results) -> str:
    """One row a claim: the difference, and what is shown."""
    lines = ["| Claim | Score | Difference | Shown |", "|---|---|---|---|"]
    for claim in results.study.claims:
        found = difference(results, claim)
        cell = told(found[0], claim.score) if found else ""
        lines.append(f"| {claim.text} | {claim.score} | {cell} | {verdict(claim, found)} |")
    return "\n".join(lines)


def fill(page: str, name: str, text: str) -> str:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of a page."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in page or end not in page:
        raise UserError(f"the page has no markers {begin} and {end}.")
    return page[: page.index(begin) + len(begin)] + "\n" + text + "\n" + page[page.index(end) :]


def print_or_fill(path: Path | None, tables: dict[str, str]) -> None:
    """Print tables, or put each between the page's markers of its name."""
    if path is None:
        print("\n\n".join(tables.values()))
        return
    page = path.read_text(encoding="utf-8")
    for name, text in tables.items():
        page = fill(page, name, text)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def main() -> None:
    """Print the tables, or fill a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--study", type=Path, default=DEFAULT)
    parser.add_argument("--kept", type=Path, default=KEPT)
    arguments = parser.parse_args()
    results = read_results(load_study(arguments.study), arguments.kept)
    tables = {
        "scores": scores_table(results, JUDGED),
        "placed": scores_table(results, [STANDS + task for task in TOGETHER]),
        "choices": scores_table(results, [CHOOSES + task for task in ("mean", *TASKS, "place")]),
        "seams": scores_table(results, ["seam", "KID"]),
        "claims": claims_table(results),
    }
    print_or_fill(arguments.page, tables)


if __name__ == "__main__":
    main()
