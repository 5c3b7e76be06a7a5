import random
import re

import pytest

from kilopix.data.captions import aio, cropped, place_of, short_with_inset, with_inset

PLACES = {
    (0.5, 0.0, 1.0, 1.0): "right half",
    (0.0, 0.5, 1.0, 1.0): "bottom half",
    (0.0, 0.0, 0.5, 0.5): "top left corner",
    (0.5, 0.5, 1.0, 1.0): "bottom right corner",
    (0.33, 0.0, 0.66, 0.33): "top edge",
    (0.67, 0.33, 1.0, 0.66): "right edge",
    (0.35, 0.35, 0.6, 0.6): "middle",
}


def test_the_base_line_has_its_articles_right():
    assert aio("fox") == "An image of a fox."
    assert aio("umbrella") == "An image of an umbrella."


@pytest.mark.parametrize(("box", "place"), PLACES.items())
def test_places_have_names(box, place):
    assert place_of(box) == place


def test_a_pasted_picture_is_described_with_its_place():
    text = with_inset("A fox on snow", "A photo of a cup. It is red.", (0.0, 0.0, 0.5, 0.5))
    assert text == "A fox on snow. In the top left corner, a photo of a cup. It is red."
    edge = with_inset("A fox.", "Behind a cup there is a wall.", (0.67, 0.33, 1.0, 0.66))
    assert edge == "A fox. At the right edge, behind a cup there is a wall."
    assert with_inset("A fox.", "BMW cars.", (0.5, 0.0, 1.0, 1.0)).endswith("In the right half, BMW cars.")


TOP_LEFT, RIGHT_HALF, MIDDLE = (0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 1.0), (0.35, 0.35, 0.6, 0.6)


def shorts(box: tuple[float, float, float, float], count: int = 2000) -> list[str]:
    rng = random.Random(0)
    return [short_with_inset("A picture of a red car.", "A photo of an owl.", box, rng) for _ in range(count)]


def test_a_short_caption_of_a_pasted_picture_names_both_and_says_only_what_is_true():
    every = set(shorts(TOP_LEFT))
    assert every == {
        "A picture of an owl and a red car.",
        "A picture of a red car. In the top left corner, an owl.",
        "A picture of an owl left of a red car.",
        "A picture of a red car right of an owl.",
        "A picture of an owl above a red car.",
        "A picture of a red car below an owl.",
    }
    assert not any(re.search("owl left|car right|above|below", text) for text in shorts(RIGHT_HALF))
    assert "A picture of an owl right of a red car." in shorts(RIGHT_HALF)
    assert not any(re.search("left|right|above|below", text) for text in shorts(MIDDLE))


@pytest.mark.parametrize(
    ("box", "first"),
    [
        (TOP_LEFT, "owl"),
        ((0.5, 0.0, 1.0, 0.5), "owl"),
        ((0.0, 0.5, 0.5, 1.0), "car"),
        ((0.5, 0.5, 1.0, 1.0), "car"),
        (RIGHT_HALF, "car"),
        ((0.0, 0.3, 0.33, 0.63), "owl"),
        (MIDDLE, "car"),
    ],
)
def test_two_things_are_named_in_reading_order(box: tuple[float, float, float, float], first: str):
    named = [text for text in shorts(box, 100) if " and " in text]
    assert len(named) > 30
    assert all(text.index(first) < text.index(" and ") for text in named)


def test_half_of_the_short_captions_are_as_prompts_with_two_objects():
    assert abs(sum(" and " in text for text in shorts(TOP_LEFT)) / 2000 - 0.5) < 0.04


def test_short_captions_without_a_lead_and_names_are_kept():
    rng = random.Random(0)
    texts = {short_with_inset("Two BMW cars", "The Eiffel tower.", TOP_LEFT, rng) for _ in range(200)}
    assert "The Eiffel tower and two BMW cars." in texts
    assert "Two BMW cars right of the Eiffel tower." in texts
    assert all(text.endswith(".") and ".." not in text for text in texts)
    named = short_with_inset("BMW cars.", "IBM computers.", MIDDLE, random.Random(3))
    assert "BMW" in named
    assert "IBM" in named


def test_a_cropped_picture_says_what_part_is_seen():
    assert "bottom right part" in cropped("A fox.", (0.5, 0.5, 1.0, 1.0))
    assert "whole" in cropped("A fox.", (0.0, 0.0, 0.98, 0.98))
