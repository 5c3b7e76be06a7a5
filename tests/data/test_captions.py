import pytest

from kilopix.data.captions import aio, cropped, place_of, with_inset

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


def test_a_cropped_picture_says_what_part_is_seen():
    assert "bottom right part" in cropped("A fox.", (0.5, 0.5, 1.0, 1.0))
    assert "whole" in cropped("A fox.", (0.0, 0.0, 0.98, 0.98))
