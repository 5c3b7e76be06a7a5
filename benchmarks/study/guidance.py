"""Guidance at sampling: how much, over which noise levels, and of which kind; nothing is trained.

    python benchmarks/study/guidance.py runs/study                # the three trainings of `ta_short_long`
    python benchmarks/study/guidance.py runs/study --arm ta_short

In: trainings of the study. Out: a table of differences from the recipe's guidance, paired over the trainings,
with Student's intervals, and the cards, by the number of the setting, in benchmarks/results/study/guidance.
Typed again, it goes on.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arms import load_study
from tables import over_seeds, told

from kilopix.config import merge, parse
from kilopix.diffusion.sampling import SamplingChanges, SamplingConfig
from kilopix.evaluation.protocol import Card, write_card
from run import DEFAULT, KEPT, held_out

OWN = "the recipe's: 3 at every level"
SETTINGS: dict[str, dict[str, Any]] = {
    OWN: {},
    "none": {"scale": 1.0},
    "2": {"scale": 2.0},
    "5": {"scale": 5.0},
    "3, none above t = 0.9": {"start": 0.9},
    "3, none below t = 0.3": {"stop": 0.3},
    "5, from t = 0.9 down to 0.3": {"scale": 5.0, "start": 0.9, "stop": 0.3},
    "CFG-Zero*": {"kind": "cfg_zero_star"},
    "APG": {"kind": "apg"},
}
SCORES = ("KID", "single object", "colors", "mean of six tasks")


@dataclass(frozen=True)
class Guided(SamplingChanges):
    """Another guidance, and all else as the model has it."""

    values: dict[str, Any] = field(default_factory=dict)

    def apply(self, config: SamplingConfig) -> SamplingConfig:
        """The settings with this guidance."""
        changed = merge(config.model_dump(), {"guidance": self.values})
        return parse(SamplingConfig, changed, "guidance")


def score(run: Path, manifest: Path, out: Path, values: dict[str, Any], settings: list[str]) -> Card:
    """The card of a training with a guidance."""
    from kilopix.stages import evaluate

    return evaluate.run(run, manifest, out, changes=Guided(values=values), overrides=settings)


def table(cards: dict[str, list[Card]]) -> str:
    """One row a setting: the recipe's values, then differences from them."""
    found = {
        name: [{one.name: one.value for one in card.scores} for card in of_seeds]
        for name, of_seeds in cards.items()
    }
    lines = ["| Guidance | " + " | ".join(SCORES) + " |", "|---" * (1 + len(SCORES)) + "|"]
    for name, rows in found.items():
        cells = []
        for key in SCORES:
            values = [row[key] for row in rows]
            if name != OWN:
                values = [value - row[key] for value, row in zip(values, found[OWN], strict=True)]
            sign = "+" if name != OWN and sum(values) > 0 else ""
            cells.append(sign + told(over_seeds(values), key))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Score every setting with every seed, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the study's runs")
    parser.add_argument("--arm", default="ta_short_long")
    arguments = parser.parse_args()
    study = load_study(DEFAULT)
    arm = study.arms[arguments.arm]
    cards: dict[str, list[Card]] = {name: [] for name in SETTINGS}
    for seed in study.seeds:
        folder = arguments.out / arguments.arm / f"seed{seed}"
        settings = study.recipe(arm, seed).evaluation.model_dump()
        overrides = [f"evaluation.{key}={value}" for key, value in settings.items()]
        for number, (name, values) in enumerate(SETTINGS.items()):
            scores = folder / "guidance" / str(number)
            manifest = held_out("structured", arguments.out)
            card = score(folder / "run", manifest, scores, values, overrides)
            write_card(KEPT / "guidance" / f"{arguments.arm}_seed{seed}_{number}.json", card)
            cards[name].append(card)
    print(table(cards))


if __name__ == "__main__":
    main()
