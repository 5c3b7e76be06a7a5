from collections import Counter

import pytest

from kilopix.evaluation.geneval import COLORS, TASKS
from kilopix.evaluation.geneval_prompts import OBJECTS, official_prompts, world_prompts
from kilopix.types import UserError

WORLD = ("fox", "car", "cup", "umbrella", "apple", "sheep", "bus", "hat")
RECOLOURABLE = ("car", "cup", "umbrella", "hat")
HUES = ("red", "orange", "blue", "cyan")
SEEN = {(name, hue) for i, name in enumerate(RECOLOURABLE) for j, hue in enumerate(HUES) if i != j}


def make(per_task: int = 10, seed: int = 0, seen=frozenset(SEEN)):
    return world_prompts(WORLD, RECOLOURABLE, HUES, seen, per_task, seed)


def test_the_official_prompts_have_the_published_numbers():
    assert len(set(OBJECTS)) == 80
    assert len(COLORS) == 10
    counts = Counter(prompt.tag for prompt in official_prompts())
    assert counts == dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))


def test_every_task_has_its_prompts_all_different_and_single_objects_are_complete():
    prompts = make()
    counts = Counter(prompt.tag for prompt in prompts)
    assert counts == {**dict.fromkeys(TASKS, 10), "single_object": len(WORLD)}
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert {p.include[0].name for p in prompts if p.tag == "single_object"} == set(WORLD)


def test_the_texts_say_what_the_clauses_ask():
    prompts = make(per_task=1000)
    by_text = {prompt.text: prompt for prompt in prompts}
    assert {"a photo of an umbrella", "a photo of two sheep", "a photo of three buses"} <= set(by_text)
    assert by_text["a photo of four cups"].exclude[0].count == 5
    assert by_text["a photo of an orange hat"].include[0].color == "orange"
    fox_car = by_text["a photo of a fox left of a car"]
    assert [clause.name for clause in fox_car.include] == ["car", "fox"]
    assert fox_car.include[1].position == ("left of", 0)
    assert ("a photo of a fox and a car" in by_text) != ("a photo of a car and a fox" in by_text)
    for prompt in prompts:
        for clause in prompt.include:
            assert clause.count > 1 or clause.name in prompt.text
            assert clause.color is None or f"{clause.color} {clause.name}" in prompt.text


def test_no_more_prompts_than_there_are():
    counts = Counter(prompt.tag for prompt in make(per_task=100_000))
    assert counts == {
        "single_object": 8,
        "two_object": 8 * 7 // 2,
        "counting": 8 * 3,
        "colors": 4 * 4,
        "position": 8 * 7 * 4,
        "color_attr": 16 * 9 // 2,
    }


def test_color_tasks_ask_for_recolourable_objects_and_know_what_training_has_shown():
    for prompt in make():
        pairs = [(clause.name, clause.color) for clause in prompt.include if clause.color]
        if prompt.tag not in ("colors", "color_attr"):
            assert prompt.seen is None
            continue
        assert all(name in RECOLOURABLE for name, _ in pairs)
        assert len({name for name, _ in pairs}) == len({color for _, color in pairs}) == len(pairs)
        assert prompt.seen == all(pair in SEEN for pair in pairs)


@pytest.mark.parametrize("per_task", [7, 8])
def test_half_of_the_color_prompts_are_unseen_where_there_are_enough(per_task):
    counts = Counter((prompt.tag, prompt.seen) for prompt in make(per_task))
    assert counts["colors", False] == min(per_task // 2, 4)
    assert counts["color_attr", False] == per_task // 2
    everything = {(name, hue) for name in RECOLOURABLE for hue in HUES}
    assert {prompt.seen for prompt in make(seen=everything)} == {None, True}
    assert {prompt.seen for prompt in make(seen=set())} == {None, False}


def test_a_seed_gives_the_same_prompts_and_another_gives_others():
    assert make(seed=1) == make(seed=1)
    assert make(seed=1) != make(seed=2)
    assert make(seen=list(SEEN)) == make(seen=frozenset(SEEN))


@pytest.mark.parametrize(
    ("objects", "recolourable", "colors", "per_task", "message"),
    [
        (("fox",), ("fox", "car"), HUES, 1, "objects: name at least two"),
        (("fox", "fox"), ("fox", "car"), HUES, 1, "objects: name at least two, and each once"),
        (WORLD, ("car", "boat"), HUES, 1, "'boat' is not one of the objects"),
        (WORLD, ("car", "cup"), ("red",), 1, "colors: name at least two"),
        (WORLD, ("car", "cup"), HUES, 0, "per_task"),
    ],
)
def test_a_world_that_cannot_be_asked_for_is_refused(objects, recolourable, colors, per_task, message):
    with pytest.raises(UserError, match=message):
        world_prompts(objects, recolourable, colors, set(), per_task, 0)
