"""Which of two captions does a network think a picture has? What it knows of two objects, before it can draw.

    python benchmarks/study/choose.py RUN [RUN ...]

In: a run, and pictures of the embedded world that no training set has: two objects, several of a kind, or
one. Each is shown noisy to the network, once with its caption and once with a wrong one, and the caption with
the smaller loss is chosen (a diffusion classifier; Li et al. 2023, arXiv 2303.16203). Out: for every task the
share of right choices, of which half come by chance. In position and color attr both captions have the same
words, so that whoever only knows what is there gets half.

Nothing is sampled, so that a run of ten minutes can be told from another, whose pictures a detector does not
know yet.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from levels import velocity_losses
from torch import Tensor

from kilopix.data.world.backgrounds import random_background
from kilopix.data.world.lights import LIGHTS
from kilopix.data.world.objects import HUES, OBJECTS, training_colors
from kilopix.data.world.render import render
from kilopix.data.world.scenes import LARGEST_TILT, Scene, SceneObject
from kilopix.english import plural, with_article
from kilopix.evaluation.statistics import wilson_interval
from kilopix.generator import Generator
from kilopix.runtime import seed_from

COUNT = 192
LEVELS = (0.3, 0.45, 0.6, 0.75)
NUMBERS = {2: "two", 3: "three", 4: "four"}
Pair = tuple[str, str | None]


@dataclass(frozen=True)
class Question:
    """A picture's scene, its caption, and a wrong caption."""

    task: str
    scene: Scene
    right: str
    wrong: str


def _item(
    pair: Pair, place: tuple[float, float], size: tuple[float, float], rng: random.Random
) -> SceneObject:
    x, y = (round(value + rng.uniform(-0.06, 0.06), 4) for value in place)
    tilt = round(rng.uniform(-LARGEST_TILT, LARGEST_TILT), 2)
    return SceneObject(*pair, x, y, round(rng.uniform(*size), 4), tilt, rng.random() < 0.5)


def _scene(items: list[SceneObject], rng: random.Random) -> Scene:
    ground = random_background(rng, [(item.name, item.color) for item in items])
    return Scene(tuple(items), ground, rng.choice(tuple(LIGHTS)))


def _any_color(name: str, rng: random.Random) -> Pair:
    return name, rng.choice(training_colors(name))


def _single(names: list[str], rng: random.Random) -> Question:
    name, other = rng.sample(names, 2)
    scene = _scene([_item(_any_color(name, rng), (0.5, 0.5), (0.45, 0.9), rng)], rng)
    return Question("single object", scene, with_article(name), with_article(other))


def _colored(names: list[str], rng: random.Random) -> Question:
    name = rng.choice(names)
    color, other = rng.sample(HUES, 2)
    scene = _scene([_item((name, color), (0.5, 0.5), (0.45, 0.9), rng)], rng)
    return Question("colors", scene, with_article(f"{color} {name}"), with_article(f"{other} {name}"))


SIDE_BY_SIDE = ((0.26, 0.5), (0.74, 0.5))
ONE_ABOVE_THE_OTHER = ((0.5, 0.26), (0.5, 0.74))


def _two_in_a_scene(pairs: list[Pair], rng: random.Random) -> tuple[Scene, str]:
    """A scene of two objects, and how the first lies from the second."""
    places, relations = rng.choice(
        [(SIDE_BY_SIDE, ("left of", "right of")), (ONE_ABOVE_THE_OTHER, ("above", "below"))]
    )
    turned = rng.random() < 0.5
    order = places[::-1] if turned else places
    items = [_item(pair, place, (0.34, 0.48), rng) for pair, place in zip(pairs, order, strict=True)]
    return _scene(items, rng), relations[turned]


def _two(names: list[str], rng: random.Random) -> Question:
    first, second, other = rng.sample(names, 3)
    scene, _ = _two_in_a_scene([_any_color(first, rng), _any_color(second, rng)], rng)
    right, wrong = (f"{with_article(first)} and {with_article(name)}" for name in (second, other))
    return Question("two object", scene, right, wrong)


def _position(names: list[str], rng: random.Random) -> Question:
    first, second = rng.sample(names, 2)
    scene, relation = _two_in_a_scene([_any_color(first, rng), _any_color(second, rng)], rng)
    a, b = with_article(first), with_article(second)
    return Question("position", scene, f"{a} {relation} {b}", f"{b} {relation} {a}")


CORNERS = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
OPPOSITE = dict(zip(CORNERS, reversed(CORNERS), strict=True))


def _placed(names: list[str], rng: random.Random) -> Question:
    first, second = rng.sample(names, 2)
    corner, (x, y) = rng.choice(list(CORNERS.items()))
    large = _item(_any_color(first, rng), (1 - 0.8 * x - 0.1, 1 - 0.8 * y - 0.1), (0.45, 0.6), rng)
    small = _item(_any_color(second, rng), (x, y), (0.26, 0.4), rng)
    a, b = with_article(first), with_article(second)
    scene = _scene([large, small], rng)
    # The other corner, not the other order: a network may take whatever is named first for the large one.
    right, wrong = (f"{a}. In the {where} corner, {b}." for where in (corner, OPPOSITE[corner]))
    return Question("place", scene, right, wrong)


def _attributes(names: list[str], rng: random.Random) -> Question:
    first, second = rng.sample(names, 2)
    one, other = rng.sample(HUES, 2)
    scene, _ = _two_in_a_scene([(first, one), (second, other)], rng)
    right, wrong = (
        f"{with_article(f'{a} {first}')} and {with_article(f'{b} {second}')}"
        for a, b in ((one, other), (other, one))
    )
    return Question("color attr", scene, right, wrong)


def _counting(names: list[str], rng: random.Random) -> Question:
    name = rng.choice(names)
    count, other = rng.sample(sorted(NUMBERS), 2)
    corners = rng.sample([(x, y) for x in (0.26, 0.74) for y in (0.26, 0.74)], count)
    pair = _any_color(name, rng)
    scene = _scene([_item(pair, corner, (0.3, 0.42), rng) for corner in corners], rng)
    right, wrong = (f"{NUMBERS[number]} {plural(name)}" for number in (count, other))
    return Question("counting", scene, right, wrong)


Ask = Callable[[list[str], random.Random], Question]


def questions(classes: int, count: int) -> list[Question]:
    """`count` questions of every task about the first objects of the world, the same at every call."""
    names = [item.name for item in OBJECTS[:classes]]
    colored = [item.name for item in OBJECTS[:classes] if item.recolorable]
    asks: list[tuple[Ask, list[str]]] = [
        *((_single, names), (_two, names), (_counting, names)),
        *((_colored, colored), (_position, names), (_placed, names), (_attributes, colored)),
    ]
    made = []
    for ask, known in asks:
        rng = random.Random(seed_from("choose", ask.__name__, classes))
        made += [ask(known, rng) for _ in range(count)]
    return [replace(q, right=f"a photo of {q.right}", wrong=f"a photo of {q.wrong}") for q in made]


@torch.inference_mode()
def margins(generator: Generator, asked: list[Question], batch: int = 64) -> Tensor:
    """How much smaller the loss is with the right caption than with the wrong one, for every question.

    Both captions see the same noise at the same levels.
    """
    size = generator.recipe.data.image_size
    pictures = np.stack([render(question.scene, size) for question in asked])
    moments = generator.autoencoder.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
    data = (generator.whitening.whiten(moments) if generator.whitening else moments).mean
    found = []
    for start in range(0, len(asked), batch):
        part, x = asked[start : start + batch], data[start : start + batch]
        right, wrong = (
            velocity_losses(generator, x, generator.text_cache.encode(texts), LEVELS, f"choose {start}")
            for texts in ([question.right for question in part], [question.wrong for question in part])
        )
        found.append((wrong - right).mean(0))
    return torch.cat(found)


def choices(generator: Generator, count: int = COUNT) -> dict[str, list[bool]]:
    """Of every task, for every question, whether the right caption was chosen."""
    asked = questions(generator.recipe.world.classes, count)
    found: dict[str, list[bool]] = {}
    for question, margin in zip(asked, margins(generator, asked).tolist(), strict=True):
        found.setdefault(question.task, []).append(margin > 0)
    return found


def main() -> None:
    """Print a line for every run and task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--count", type=int, default=COUNT, help="questions of a task")
    arguments = parser.parse_args()
    for run in arguments.runs:
        found = choices(Generator.from_pretrained(run, "cpu"), arguments.count)
        shares = {task: wilson_interval(sum(right) / len(right), len(right)) for task, right in found.items()}
        told = (f"{task} {i.value:.1%} ({i.low:.1%} to {i.high:.1%})" for task, i in shares.items())
        print(f"{run}: " + "; ".join(told), flush=True)


if __name__ == "__main__":
    main()
