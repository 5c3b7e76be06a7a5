import random

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


RELATED = {
    TOP_LEFT: {"right of", "below"},
    (0.5, 0.5, 1.0, 1.0): {"and", "left of", "above"},
    RIGHT_HALF: {"and", "left of"},
    (0.0, 0.5, 1.0, 1.0): {"and", "above"},
    (0.0, 0.3, 0.33, 0.63): {"right of"},
    (0.5, 0.0, 1.0, 0.5): set[str](),
    (0.0, 0.5, 0.5, 1.0): set[str](),
}


@pytest.mark.parametrize(("box", "words"), RELATED.items())
def test_a_short_caption_of_a_pasted_picture_names_both_and_says_what_is_true(
    box: tuple[float, float, float, float], words: set[str]
):
    place = place_of(box)
    preposition = "At" if place.endswith("edge") else "In"
    told = f"A picture of a red car. {preposition} the {place}, an owl."
    assert set(shorts(box)) == {told} | {f"A picture of a red car {word} an owl." for word in words}


def test_a_thing_in_the_middle_has_no_relation():
    assert set(shorts(MIDDLE)) == {"A picture of a red car with an owl in the middle."}


def test_half_of_the_short_captions_with_the_inset_last_are_as_prompts_with_two_objects():
    assert abs(sum(" and " in text for text in shorts(RIGHT_HALF)) / 2000 - 0.5) < 0.04
    assert abs(sum(" In the " in text for text in shorts(RIGHT_HALF)) / 2000 - 0.15) < 0.03


def test_short_captions_without_a_lead_and_names_are_kept():
    rng = random.Random(0)
    texts = {short_with_inset("Two BMW cars", "The Eiffel tower.", TOP_LEFT, rng) for _ in range(200)}
    assert "Two BMW cars right of the Eiffel tower." in texts
    after = {short_with_inset("Two BMW cars", "The Eiffel tower.", RIGHT_HALF, rng) for _ in range(200)}
    assert "Two BMW cars and the Eiffel tower." in after
    assert all(text.endswith(".") and ".." not in text for text in texts | after)
    named = short_with_inset("BMW cars.", "IBM computers.", MIDDLE, random.Random(3))
    assert "BMW" in named
    assert "IBM" in named


def test_a_cropped_picture_says_what_part_is_seen():
    assert "bottom right part" in cropped("A fox.", (0.5, 0.5, 1.0, 1.0))
    assert "whole" in cropped("A fox.", (0.0, 0.0, 0.98, 0.98))
