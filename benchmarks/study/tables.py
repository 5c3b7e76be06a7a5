"""From kept cards to tables: every number with its interval, every claim with what is shown of it.

    python benchmarks/study/tables.py            # prints them
    python benchmarks/study/tables.py docs/study.md   # puts them between the page's markers

The interval of an arm, and of the difference of two arms, is Student's over the seeds: each seed draws its
own weights, order and prompts, so it holds all three kinds of chance. Under one seed two arms meet the same
prompts, so differences are paired.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from arms import Claim, Study, load_study

from kilopix.evaluation.protocol import Card, read_card
from kilopix.evaluation.statistics import Interval
from kilopix.runtime import atomic_path
from kilopix.types import UserError
from run import DEFAULT, KEPT

# Two-sided 95% points of Student's t by degrees of freedom (Fisher and Yates, table III).
STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Results:
    """The cards of a study by arm and seed."""

    study: Study
    cards: dict[str, dict[int, Card]]

    def values(self, arm: str, score: str) -> dict[int, float]:
        """A score of an arm by seed."""
        found = {}
        for seed, card in self.cards.get(arm, {}).items():
            for one in card.scores:
                if one.name == score:
                    found[seed] = one.value
        return found


def read_results(study: Study, kept: Path) -> Results:
    """The kept cards; cards of one study must be of one protocol but for weights and prompts."""
    cards: dict[str, dict[int, Card]] = {}
    for arm in study.arms:
        for seed in study.seeds:
            path = kept / arm / f"seed{seed}" / "card.json"
            if path.exists():
                cards.setdefault(arm, {})[seed] = read_card(path)
    if not cards:
        raise UserError(f"{kept}: no cards; run benchmarks/study/run.py first.")
    return Results(study, cards)


def over_seeds(values: list[float]) -> Interval:
    """Mean and 95% interval of Student; without an end where there is one seed."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Interval(mean, -math.inf, math.inf)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = STUDENT[min(n - 1, len(STUDENT) - 1)] * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def difference(results: Results, better: str, base: str, score: str) -> tuple[Interval, int] | None:
    """The paired difference of two arms over the seeds that both have, and how many those are."""
    a, b = results.values(better, score), results.values(base, score)
    seeds = sorted(a.keys() & b.keys())
    return (over_seeds([a[seed] - b[seed] for seed in seeds]), len(seeds)) if seeds else None


def verdict(claim: Claim, found: tuple[Interval, int] | None) -> str:
    """Whether a claim is confirmed: only where three seeds or more, and the interval, say so."""
    if found is None or found[1] < 3:
        return "open: fewer than three seeds"
    interval, _ = found
    if interval.low > 0:
        return "confirmed"
    return "contradicted" if interval.high < 0 else "not shown"


def percent(interval: Interval) -> str:
    """`12.3 (10.0 to 14.6)`, in points."""
    value = f"{100 * interval.value:.1f}"
    return (
        value
        if math.isinf(interval.low)
        else f"{value} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    )


def scores_table(results: Results, scores: list[str]) -> str:
    """One row an arm, one column a score, in percent."""
    lines = ["| Arm | seeds | " + " | ".join(scores) + " |", "|---" * (2 + len(scores)) + "|"]
    for name, arm in results.study.arms.items():
        cells = []
        for score in scores:
            values = list(results.values(name, score).values())
            cells.append(percent(over_seeds(values)) if values else "")
        lines.append(f"| {arm.title} | {len(results.cards.get(name, {}))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def claims_table(results: Results) -> str:
    """One row a claim: the difference in points, and what is shown."""
    lines = ["| Claim | Difference in points | Shown |", "|---|---|---|"]
    for claim in results.study.claims:
        found = difference(results, claim.better, claim.base, claim.score)
        cell = percent(found[0]) if found else ""
        lines.append(f"| {claim.text} | {cell} | {verdict(claim, found)} |")
    return "\n".join(lines)


def fill(page: str, name: str, text: str) -> str:
    """Put `text` between the markers `<!-- name -->` and `<!-- /name -->` of a page."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in page or end not in page:
        raise UserError(f"the page has no markers {begin} and {end}.")
    return page[: page.index(begin) + len(begin)] + "\n" + text + "\n" + page[page.index(end) :]


def score_names(results: Results) -> list[str]:
    """The tasks of the cards, the mean of them first; splits by seen pairs and KID are left to the cards."""
    first = next(iter(next(iter(results.cards.values())).values()))
    return [score.name for score in first.scores if score.name != "KID" and "pairs" not in score.name]


def main() -> None:
    """Print the tables, or fill a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--study", type=Path, default=DEFAULT)
    parser.add_argument("--kept", type=Path, default=KEPT)
    arguments = parser.parse_args()
    results = read_results(load_study(arguments.study), arguments.kept)
    tables = {"scores": scores_table(results, score_names(results)), "claims": claims_table(results)}
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
