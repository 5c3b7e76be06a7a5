"""How many CutMix pictures does the judge find right? No network taught by them can be asked for more.

    kilopix augment captions.parquet augmented --size 64
    python benchmarks/study/ceiling.py augmented

In: a folder that `kilopix augment` wrote from pictures of the embedded world. Out: for every setting the
share of pictures in which the judge finds the first object, the pasted one, and both.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kilopix.data.cutmix import SETTINGS
from kilopix.data.manifest import Row, read_manifest
from kilopix.evaluation.statistics import wilson_interval
from kilopix.pretrained.judge import load_judge
from kilopix.types import UserError


def found(root: Path, rows: list[Row]) -> list[tuple[bool, bool]]:
    """Of every picture, whether the judge finds its first object, and the pasted one."""
    pictures = np.stack([np.asarray(Image.open(root / row.path).convert("RGB")) for row in rows])
    detections = load_judge().detect(torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())
    answers = []
    for row, several in zip(rows, detections, strict=True):
        names = {one.name for one in several}
        partner = Path(row.partner).parent.name.replace("_", " ")
        answers.append((row.class_name in names, partner in names))
    return answers


def main() -> None:
    """Print a line for every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("augmented", type=Path)
    parser.add_argument("--count", type=int, default=600, help="pictures of a setting")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.augmented / "manifest.parquet")
    rows = [row for row in manifest.rows if row.kind == "cutmix"]
    if not rows:
        raise UserError(f"{arguments.augmented}: no CutMix pictures in it.")
    random.Random(0).shuffle(rows)
    for setting in SETTINGS:
        chosen = [row for row in rows if row.setting == setting][: arguments.count]
        if chosen:
            answers = found(manifest.root, chosen)
            first, pasted = (sum(one) / len(answers) for one in zip(*answers, strict=True))
            both = wilson_interval(sum(a and b for a, b in answers) / len(answers), len(answers))
            interval = f"{both.value:.1%} ({both.low:.1%} to {both.high:.1%})"
            print(f"{setting}: first {first:.1%}, pasted {pasted:.1%}, both {interval} of {len(answers)}")


if __name__ == "__main__":
    main()
