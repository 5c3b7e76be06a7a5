"""How right a detector is about a scene of the embedded world.

In: a `Scene` and the `Detection`s of its picture. Out: what of it is right.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kilopix.data.world.render import object_box
from kilopix.data.world.scenes import Scene
from kilopix.types import Detection


@dataclass(frozen=True)
class Verdict:
    """What was right; None where the scene does not ask it."""

    objects: bool
    count: bool
    position: bool | None
    color: bool | None

    @property
    def everything(self) -> bool:
        """Whether nothing was wrong."""
        return all(part is not False for part in (self.objects, self.count, self.position, self.color))


def judge_scene(scene: Scene, found: Sequence[Detection]) -> Verdict:
    """Compare detections with the truth.

    Objects: exactly the classes of the scene. Count: the right number of each. Position (two objects of
    different classes): the relation of the centres (left, right, above or below) along the axis on which they
    lie further apart. Colour: exactly the scene's pairs of class and hue.
    """
    truth = Counter(item.name for item in scene.objects)
    seen = Counter(item.name for item in found)
    hues = Counter((item.name, item.color) for item in scene.objects if item.color)
    seen_hues = Counter((item.name, item.color) for item in found if item.color)
    return Verdict(
        objects=set(truth) == set(seen),
        count=truth == seen,
        position=_position(scene, found) if len(scene.objects) == 2 and len(truth) == 2 else None,
        color=hues == seen_hues if hues else None,
    )


def _position(scene: Scene, found: Sequence[Detection]) -> bool:
    centres = []
    for item in scene.objects:
        same = [detection for detection in found if detection.name == item.name]
        if not same:
            return False
        best = max(same, key=lambda detection: detection.score)
        centres.append((_centre(object_box(item)), _centre(best.box)))
    (true_first, first), (true_second, second) = centres
    apart = [b - a for a, b in zip(true_first, true_second, strict=True)]
    axis = 0 if abs(apart[0]) >= abs(apart[1]) else 1
    return (second[axis] - first[axis]) * apart[axis] > 0


def _centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The share right of each part among the scenes that ask it, and of everything."""
    parts = {
        "object": [verdict.objects for verdict in verdicts],
        "count": [verdict.count for verdict in verdicts],
        "position": [verdict.position for verdict in verdicts],
        "color": [verdict.color for verdict in verdicts],
        "everything": [verdict.everything for verdict in verdicts],
    }
    asked = {name: [answer for answer in answers if answer is not None] for name, answers in parts.items()}
    return {name: sum(answers) / len(answers) for name, answers in asked.items()}
