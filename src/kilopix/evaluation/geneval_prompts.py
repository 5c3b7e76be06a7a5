"""GenEval's prompts: the official 553, and the same six tasks for any list of objects.

In: nothing, or objects, colors and the pairs of them that training has shown. Out: lists of `Prompt`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np

from kilopix.english import plural, with_article
from kilopix.evaluation.geneval import COLORS, RELATIONS, Clause, Prompt
from kilopix.runtime import seed_from
from kilopix.types import UserError

OBJECTS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon"),
    *("bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop"),
    *("computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster"),
    *("sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_DRAWS = 100  # prompts drawn for each task, before repeated ones are dropped
_SEED = 43

Noun = Callable[[str], str]
Item = TypeVar("Item")


def official_prompts() -> list[Prompt]:
    """The 553 prompts of GenEval, in order, by their published procedure.

    Every object once, then 100 draws for each of the other tasks, of which repeated ones are dropped.
    """
    rng = np.random.default_rng(_SEED)
    prompts = [_single(OBJECTS[i], _article) for i in rng.choice(len(OBJECTS), len(OBJECTS), replace=False)]
    for draw in (_draw_two, _draw_counting, _draw_color, _draw_position, _draw_color_attr):
        prompts.extend(draw(rng) for _ in range(_DRAWS))
    return list(dict.fromkeys(prompts))


def _draw_two(rng: np.random.Generator) -> Prompt:
    a, b = rng.choice(len(OBJECTS), 2, replace=False)
    return _two(OBJECTS[a], OBJECTS[b], _article)


def _draw_counting(rng: np.random.Generator) -> Prompt:
    name = OBJECTS[rng.choice(len(OBJECTS))]
    return _counting(name, int(rng.integers(2, 4, endpoint=True)), _many)


# A color is never asked of the first object, a person.
def _draw_color(rng: np.random.Generator) -> Prompt:
    name = OBJECTS[1 + rng.choice(len(OBJECTS) - 1)]
    return _color(name, COLORS[rng.choice(len(COLORS))], _article)


def _draw_position(rng: np.random.Generator) -> Prompt:
    a, b = rng.choice(len(OBJECTS), 2, replace=False)
    return _position(OBJECTS[a], RELATIONS[rng.choice(len(RELATIONS))], OBJECTS[b], _article)


def _draw_color_attr(rng: np.random.Generator) -> Prompt:
    names = [OBJECTS[1 + i] for i in rng.choice(len(OBJECTS) - 1, 2, replace=False)]
    colors = [COLORS[i] for i in rng.choice(len(COLORS), 2, replace=False)]
    return _color_attr((names[0], colors[0]), (names[1], colors[1]), _article)


def _article(noun: str) -> str:
    """The official prompts go by the first letter alone, and write `a skis`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _many(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def world_prompts(
    objects: Sequence[str],
    recolourable: Sequence[str],
    colors: Sequence[str],
    seen_pairs: Collection[tuple[str, str]],
    per_task: int,
    seed: int,
) -> list[Prompt]:
    """GenEval's six tasks over other objects: `per_task` prompts each, or as many different ones as exist.

    Single objects come once each, all of them. The two color tasks ask for recolourable objects only; half of
    their prompts, where there are enough, hold a pair (object, color) that is not in `seen_pairs`. Raises
    `UserError` if there are fewer than two objects, recolourable objects or colors.
    """
    _check_world(objects, recolourable, colors, per_task)
    rngs = [np.random.default_rng(seed_from(seed, "world prompts", task)) for task in range(6)]
    couples = [(a, b) for i, a in enumerate(objects) for b in objects[i + 1 :]]

    prompts = [_single(name, with_article) for name in _pick(rngs[0], objects, len(objects))]
    for couple in _pick(rngs[1], couples, per_task):
        a, b = _shuffled(rngs[1], *couple)
        prompts.append(_two(a, b, with_article))
    for name, number in _pick(rngs[2], [(name, n) for name in objects for n in _NUMBERS], per_task):
        prompts.append(_counting(name, number, plural))

    pairs = [(name, color) for name in recolourable for color in colors]
    known = set(seen_pairs)
    seen = np.array([pair in known for pair in pairs])
    for i in _pick_halves(rngs[3], seen, per_task):
        name, color = pairs[i]
        prompts.append(_color(name, color, with_article, seen=bool(seen[i])))

    ordered = [*couples, *(couple[::-1] for couple in couples)]
    placed = [(a, relation, b) for a, b in ordered for relation in RELATIONS]
    prompts.extend(_position(*one, with_article) for one in _pick(rngs[4], placed, per_task))

    one, other = np.triu_indices(len(pairs), 1)
    apart = (one // len(colors) != other // len(colors)) & (one % len(colors) != other % len(colors))
    one, other = one[apart], other[apart]
    both_seen = seen[one] & seen[other]
    for i in _pick_halves(rngs[5], both_seen, per_task):
        a, b = _shuffled(rngs[5], pairs[one[i]], pairs[other[i]])
        prompts.append(_color_attr(a, b, with_article, seen=bool(both_seen[i])))
    return prompts


def _check_world(
    objects: Sequence[str], recolourable: Sequence[str], colors: Sequence[str], per_task: int
) -> None:
    for what, names in (("objects", objects), ("recolourable", recolourable), ("colors", colors)):
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(f"{what}: name at least two, and each once (got {', '.join(names) or 'none'}).")
    strange = [name for name in recolourable if name not in objects]
    if strange:
        raise UserError(f"recolourable: {strange[0]!r} is not one of the objects.")
    if per_task < 1:
        raise UserError(f"per_task: ask for at least one prompt a task (got {per_task}).")


def _pick(rng: np.random.Generator, items: Sequence[Item], wanted: int) -> list[Item]:
    return [items[i] for i in rng.choice(len(items), min(wanted, len(items)), replace=False)]


def _pick_halves(rng: np.random.Generator, seen: np.ndarray, wanted: int) -> np.ndarray:
    """Distinct indices in random order, half of them of what is not seen where there is enough of both."""
    groups = [rng.permutation(np.flatnonzero(seen)), rng.permutation(np.flatnonzero(~seen))]
    unseen = min(len(groups[1]), max(wanted // 2, wanted - len(groups[0])))
    return rng.permutation(np.concatenate([groups[0][: wanted - unseen], groups[1][:unseen]]))


def _shuffled(rng: np.random.Generator, a: Item, b: Item) -> tuple[Item, Item]:
    return (a, b) if rng.random() < 0.5 else (b, a)


def _single(name: str, noun: Noun) -> Prompt:
    return Prompt("single_object", f"a photo of {noun(name)}", (Clause(name, 1),))


def _two(a: str, b: str, noun: Noun) -> Prompt:
    return Prompt("two_object", f"a photo of {noun(a)} and {noun(b)}", (Clause(a, 1), Clause(b, 1)))


def _counting(name: str, number: int, many: Noun) -> Prompt:
    text = f"a photo of {_NUMBERS[number]} {many(name)}"
    return Prompt("counting", text, (Clause(name, number),), (Clause(name, number + 1),))


def _color(name: str, color: str, noun: Noun, seen: bool | None = None) -> Prompt:
    text = f"a photo of {noun(f'{color} {name}')}"
    return Prompt("colors", text, (Clause(name, 1, color),), seen=seen)


def _position(a: str, relation: str, b: str, noun: Noun) -> Prompt:
    clauses = (Clause(b, 1), Clause(a, 1, position=(relation, 0)))
    return Prompt("position", f"a photo of {noun(a)} {relation} {noun(b)}", clauses)


def _color_attr(a: tuple[str, str], b: tuple[str, str], noun: Noun, seen: bool | None = None) -> Prompt:
    text = f"a photo of {noun(f'{a[1]} {a[0]}')} and {noun(f'{b[1]} {b[0]}')}"
    return Prompt("color_attr", text, (Clause(a[0], 1, a[1]), Clause(b[0], 1, b[1])), seen=seen)
