import pytest

from kilopix.evaluation.geneval import (
    Clause,
    GenevalOptions,
    Prompt,
    judge,
    keep_detections,
    overlap,
    prompts_from_text,
    prompts_to_text,
    relations,
)
from kilopix.types import Detection, UserError


def at(
    x: float, y: float, name: str = "cup", score: float = 0.95, color: str | None = None, side: float = 10.0
):
    return Detection(name, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), score, color)


def prompt(*include: Clause, tag: str = "two_object", exclude: tuple[Clause, ...] = ()) -> Prompt:
    return Prompt(tag, "a photo", include, exclude)


def test_a_score_equal_to_the_threshold_does_not_count():
    found = [at(0.0, 0.0, score=0.3), at(0.0, 0.0, score=0.31)]
    assert [one.score for one in keep_detections(found, "single_object")["cup"]] == [0.31]
    assert keep_detections(found, "counting") == {}
    assert keep_detections([at(0.0, 0.0, score=0.91)], "counting")["cup"]


def test_the_best_are_kept_up_to_the_limit_and_the_later_of_equals_comes_first():
    found = [
        at(0.0, 0.0, score=0.5, color="red"),
        at(9.0, 9.0, score=0.5, color="blue"),
        at(0.0, 0.0, score=0.7),
    ]
    kept = keep_detections(found, "single_object", GenevalOptions(max_objects=2))["cup"]
    assert [(one.score, one.color) for one in kept] == [(0.7, None), (0.5, "blue")]


def test_overlapping_boxes_are_suppressed_only_below_one():
    found = [at(50.0, 50.0, score=0.8), at(51.0, 50.0, score=0.9), at(90.0, 50.0, score=0.7)]
    assert len(keep_detections(found, "two_object")["cup"]) == 3
    kept = keep_detections(found, "two_object", GenevalOptions(max_overlap=0.5))["cup"]
    assert [one.score for one in kept] == [0.9, 0.7]


def test_overlap_counts_inclusive_pixels():
    a = Detection("cup", (0.0, 0.0, 9.0, 9.0), 1.0)
    b = Detection("cup", (5.0, 0.0, 14.0, 9.0), 1.0)
    assert overlap(a, b) == 50 / 150
    assert overlap(a, at(100.0, 100.0)) == 0


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (10.0, 50.0, {"left of"}),
        (90.0, 50.0, {"right of"}),
        (50.0, 10.0, {"above"}),
        (50.0, 90.0, {"below"}),
        (90.0, 10.0, {"right of", "above"}),
        (51.0, 50.0, set()),  # nearer than a tenth of the sides
        (50.0, 50.0, set()),
        (54.0, 50.0, set()),  # half of the distance is left, not more
        (54.1, 50.0, {"right of"}),
    ],
)
def test_relations_of_centres(x, y, expected):
    assert set(relations(at(x, y), at(50.0, 50.0))) == expected


def test_a_larger_position_threshold_asks_for_more_distance():
    a, b = at(44.0, 50.0), at(50.0, 50.0)
    assert relations(a, b) == ("left of",)
    assert relations(a, b, GenevalOptions(position_threshold=0.2)) == ()


def test_reasons_of_count_and_exclusion():
    three = prompt(Clause("cup", 3), exclude=(Clause("cup", 4),))
    cups = [at(20.0 * i, 0.0) for i in range(5)]
    assert judge(three, cups[:3]).correct
    assert judge(three, cups[:2]).reason == ("expected cup>=3, found 2",)
    assert judge(three, cups[:4]).reason == ("expected cup<4, found 4",)
    assert judge(three, cups).reason == ("expected cup<4, found 5",)


def test_only_the_best_objects_of_a_clause_give_their_color():
    red = prompt(Clause("cup", 1, "red"), tag="colors")
    assert judge(red, [at(0.0, 0.0, color="red")]).correct
    wrong = judge(red, [at(0.0, 0.0, score=0.9, color="blue"), at(9.0, 0.0, score=0.8, color="red")])
    assert wrong.reason == ("expected red cup>=1, found 0 red; and 1 blue",)
    two = prompt(Clause("cup", 3, "red"), tag="colors")
    mixed = [at(0.0, 0.0, color=color) for color in ("cyan", "white", "red")]
    assert judge(two, mixed).reason == ("expected red cup>=3, found 1 red; and 1 red, 1 white, 1 cyan",)
    assert judge(red, [at(0.0, 0.0)]).reason == ("expected red cup>=1, found 0 red; and ",)


def test_position_is_measured_from_the_named_clause():
    wanted = prompt(Clause("dog", 1), Clause("cup", 1, position=("left of", 0)), tag="position")
    assert judge(wanted, [at(10.0, 0.0), at(90.0, 0.0, "dog")]).correct
    other_way = judge(wanted, [at(90.0, 0.0), at(10.0, 0.0, "dog")])
    assert other_way.reason == ("expected cup left of target, found right of target",)
    alone = judge(wanted, [at(90.0, 0.0)])
    assert alone.reason == ("expected dog>=1, found 0", "no target for cup to be left of")


def test_prompts_survive_the_official_form():
    prompts = [
        prompt(Clause("dog", 1), Clause("cup", 1, position=("left of", 0)), tag="position"),
        prompt(Clause("cup", 2), exclude=(Clause("cup", 3),), tag="counting"),
        Prompt("colors", "a photo of a red cup", (Clause("cup", 1, "red"),), seen=False),
    ]
    text = prompts_to_text(prompts)
    assert prompts_from_text(text + "\n", "here") == prompts
    assert text.splitlines()[0].startswith('{"tag": "position", "include": [{"class": "dog", "count": 1}, ')
    assert '"position": ["left of", 0]' in text
    assert "seen" not in text.splitlines()[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "prompts.jsonl, line 2: not valid JSON"),
        ("[]", "expected an object"),
        ('{"include": [], "prompt": "a"}', "'tag' is missing"),
        ('{"tag": "a", "include": [{"class": "cup"}], "prompt": "a"}', r"include\[0\]: the key 'count'"),
        ('{"tag": "a", "include": [{"class": "cup", "count": "2"}], "prompt": "a"}', "must be a int"),
        ('{"tag": "a", "include": [{"class": "c", "count": 1, "colour": "red"}], "prompt": "a"}', "'colour'"),
        (
            '{"tag": "a", "include": [{"class": "c", "count": 1, "position": ["left of", 0]}], "prompt": ""}',
            "earlier",
        ),
        (
            '{"tag": "a", "include": [{"class": "c", "count": 1, "position": ["on", 0]}], "prompt": ""}',
            "relation",
        ),
        ('{"tag": "a", "include": [], "prompt": "a", "seen": 1}', "true or false"),
        ('{"tag": "a", "include": {}, "prompt": "a"}', "must be a list"),
    ],
)
def test_a_bad_line_is_named(line, message):
    good = '{"tag": "a", "include": [], "prompt": "a"}\n'
    with pytest.raises(UserError, match=message):
        prompts_from_text(good + line, "prompts.jsonl")
