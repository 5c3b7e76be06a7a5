"""GenEval's decision rules: a prompt and what a detector found in its picture give right or wrong, and why.

In: prompts (`Prompt`, or lines in the form of the official `evaluation_metadata.jsonl`) and detections, which
carry the colour that a classifier answered. Out: a `Verdict` a picture. The rules, their thresholds and the
lines of reasons are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513, section 3).
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from kilopix.config import Config
from kilopix.types import Detection, UserError

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

# The published rules join the relations that hold in no fixed order; one order makes the lines repeatable.
_RELATIONS_AS_LISTED = ("below", "left of", "right of", "above")
_DIAGONAL = 0.5  # a relation holds when its share of the distance between the centres is more than this


class GenevalOptions(Config):
    """Thresholds of GenEval; the defaults are the official ones."""

    threshold: float = Field(default=0.3, ge=0, le=1)
    counting_threshold: float = Field(default=0.9, ge=0, le=1)
    max_objects: int = Field(default=16, ge=1)
    max_overlap: float = Field(default=1.0, ge=0, le=1)
    position_threshold: float = Field(default=0.1, ge=0)


OFFICIAL = GenevalOptions()


@dataclass(frozen=True)
class Clause:
    """`count` objects of one name, of a color if any; `position` is (relation, index of another clause)."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt with what its picture must hold and must not hold.

    `seen` says whether all its pairs of object and color occur in the training set; None: not known.
    """

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    seen: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows its prompt, and one line for every clause that it misses."""

    correct: bool
    reason: tuple[str, ...]


def judge(prompt: Prompt, detections: Sequence[Detection], options: GenevalOptions = OFFICIAL) -> Verdict:
    """Decide whether the objects found in a picture satisfy its prompt."""
    kept = keep_detections(detections, prompt.tag, options)
    reason: list[str] = []
    groups: list[list[Detection] | None] = []  # the objects that satisfy each clause so far
    for clause in prompt.include:
        found = kept.get(clause.name, [])[: clause.count]
        lines = _faults(clause, found, groups, options)
        groups.append(None if lines else found)
        reason.extend(lines)
    for clause in prompt.exclude:
        found = kept.get(clause.name, [])
        if len(found) >= clause.count:
            reason.append(f"expected {clause.name}<{clause.count}, found {len(found)}")
    return Verdict(not reason, tuple(reason))


def keep_detections(
    detections: Iterable[Detection], tag: str, options: GenevalOptions = OFFICIAL
) -> dict[str, list[Detection]]:
    """The detections that count, by name and best first.

    Those above the threshold of the task, then the best `max_objects` of each name, then none that overlaps a
    better one by `max_overlap` or more (1 switches this off, whatever the overlap).
    """
    threshold = options.counting_threshold if tag == "counting" else options.threshold
    by_name: dict[str, list[Detection]] = {}
    for detection in detections:
        if detection.score > threshold:
            by_name.setdefault(detection.name, []).append(detection)
    kept = {}
    for name, found in by_name.items():
        # The published sort is ascending and then reversed: among equal scores the later comes first.
        order = sorted(range(len(found)), key=lambda i: (found[i].score, i), reverse=True)
        best = [found[i] for i in order[: options.max_objects]]
        kept[name] = best if options.max_overlap == 1 else _suppress(best, options.max_overlap)
    return kept


def overlap(a: Detection, b: Detection) -> float:
    """Intersection over union of two boxes whose corners are inclusive pixels."""
    corner = [max(a.box[i], b.box[i]) for i in (0, 1)]
    opposite = [min(a.box[i], b.box[i]) for i in (2, 3)]
    shared = _area((*corner, *opposite))
    union = _area(a.box) + _area(b.box) - shared
    return shared / union if union else 0.0


def relations(a: Detection, b: Detection, options: GenevalOptions = OFFICIAL) -> tuple[str, ...]:
    """How `a` lies from `b`: none, one or two of left of, right of, above and below.

    The offset of the centres is shortened along each axis by `position_threshold` times the sum of the boxes'
    sides, and what remains of it is compared with its whole length.
    """
    offset, shortened = [], []
    for low, high in ((0, 2), (1, 3)):
        side = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        distance = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        rest = max(abs(distance) - options.position_threshold * side, 0.0)
        offset.append(distance)
        shortened.append(math.copysign(rest, distance))
    if all(abs(value) < 1e-3 for value in shortened):
        return ()
    dx, dy = (value / math.hypot(*offset) for value in shortened)
    holds = {
        "left of": dx < -_DIAGONAL,
        "right of": dx > _DIAGONAL,
        "above": dy < -_DIAGONAL,
        "below": dy > _DIAGONAL,
    }
    return tuple(name for name in _RELATIONS_AS_LISTED if holds[name])


def _faults(
    clause: Clause, found: list[Detection], groups: list[list[Detection] | None], options: GenevalOptions
) -> list[str]:
    """The reason lines of one clause: the first of count, color and position that fails."""
    if len(found) < clause.count:
        return [f"expected {clause.name}>={clause.count}, found {len(found)}"]
    if clause.color is not None:
        colors = [one.color for one in found if one.color is not None]
        right = colors.count(clause.color)
        if right < clause.count:
            listed = [c for c in (*COLORS, *sorted(set(colors) - set(COLORS))) if c in colors]
            tally = ", ".join(f"{colors.count(color)} {color}" for color in listed)
            wanted = f"{clause.color} {clause.name}>={clause.count}"
            return [f"expected {wanted}, found {right} {clause.color}; and {tally}"]
    if clause.position is None:
        return []
    relation, target = clause.position
    targets = groups[target]
    if targets is None:
        return [f"no target for {clause.name} to be {relation}"]
    for one in found:
        for other in targets:
            holding = relations(one, other, options)
            if relation not in holding:
                return [f"expected {clause.name} {relation} target, found {' and '.join(holding)} target"]
    return []


def _suppress(best_first: list[Detection], max_overlap: float) -> list[Detection]:
    kept: list[Detection] = []
    for one in best_first:
        if all(overlap(better, one) < max_overlap for better in kept):
            kept.append(one)
    return kept


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)


def prompts_to_text(prompts: Iterable[Prompt]) -> str:
    """The prompts as JSON lines, byte for byte in the official form; `seen` is added where it is known."""
    return "".join(json.dumps(_prompt_to_json(prompt)) + "\n" for prompt in prompts)


def prompts_from_text(text: str, origin: str) -> list[Prompt]:
    """Read prompts from JSON lines; `origin` is what a `UserError` about a bad line names as the source."""
    # Not splitlines: a prompt may hold U+2028 and the like.
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
    return [_prompt_from_line(line, f"{origin}, line {number}") for number, line in lines if line.strip()]


def _prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    out: dict[str, Any] = {"tag": prompt.tag, "include": [_clause_to_json(one) for one in prompt.include]}
    if prompt.exclude:
        out["exclude"] = [_clause_to_json(one) for one in prompt.exclude]
    out["prompt"] = prompt.text
    if prompt.seen is not None:
        out["seen"] = prompt.seen
    return out


def _clause_to_json(clause: Clause) -> dict[str, Any]:
    out: dict[str, Any] = {"class": clause.name, "count": clause.count}
    if clause.color is not None:
        out["color"] = clause.color
    if clause.position is not None:
        out["position"] = list(clause.position)
    return out


def _prompt_from_line(line: str, where: str) -> Prompt:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with the keys tag, include and prompt.")
    return prompt_from_values(values, where)


def prompt_from_values(values: dict[str, Any], where: str) -> Prompt:
    """The prompt that an object of JSON describes; `where` is what a `UserError` names."""
    _known(values, ("tag", "include", "exclude", "prompt", "seen"), where)
    seen = values.get("seen")
    if seen is not None and not isinstance(seen, bool):
        raise UserError(f"{where}: 'seen' must be true or false, not {seen!r}.")
    return Prompt(
        tag=_get(values, "tag", str, where),
        text=_get(values, "prompt", str, where),
        include=_clauses(_get(values, "include", list, where), f"{where}: include"),
        exclude=_clauses(values.get("exclude", []), f"{where}: exclude"),
        seen=seen,
    )


def _clauses(items: Any, where: str) -> tuple[Clause, ...]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{where}: expected a list of objects with the keys class and count.")
    return tuple(_clause(item, index, f"{where}[{index}]") for index, item in enumerate(items))


def _clause(item: dict[str, Any], index: int, where: str) -> Clause:
    _known(item, ("class", "count", "color", "position"), where)
    position = item.get("position")
    if position is not None:
        if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
            raise UserError(f"{where}: 'position' must be [relation, clause], relation of {RELATIONS}.")
        if type(position[1]) is not int or not 0 <= position[1] < index:
            raise UserError(f"{where}: 'position' must name an earlier clause, not {position[1]!r}.")
        position = (position[0], position[1])
    color = None if item.get("color") is None else _get(item, "color", str, where)
    return Clause(_get(item, "class", str, where), _get(item, "count", int, where), color, position)


def _get(values: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in values:
        raise UserError(f"{where}: the key {key!r} is missing.")
    if type(values[key]) is not kind:
        raise UserError(f"{where}: {key!r} must be a {kind.__name__}, not {values[key]!r}.")
    return values[key]


def _known(values: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(values) - set(keys))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(keys)}.")
