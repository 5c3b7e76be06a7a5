"""Prompts that say where: true to their relation, the same every time."""

from kilopix.data import captions
from kilopix.evaluation.geneval import RELATIONS, Clause, Prompt
from kilopix.evaluation.geneval_prompts import world_prompts
from kilopix.evaluation.placed import CORNERS, placed

NAMES = ["fox", "owl", "cup", "umbrella"]


def prompts() -> list[Prompt]:
    colors = ["red", "blue"]
    return world_prompts(NAMES, ["cup", "umbrella"], colors, {("cup", "red")}, 64, 0)


def test_two_objects_are_placed_and_the_others_left_alone():
    found = prompts()
    tags = {prompt.tag for prompt in found}
    assert len(tags) == 6
    for prompt in found:
        text = placed(prompt)
        assert text == placed(prompt)
        if prompt.tag not in ("two_object", "position", "color_attr"):
            assert text == prompt.text
            continue
        first, second = text.split(". In the ")
        assert first.startswith("A photo of a")
        assert second.endswith(".")
        assert " corner, a" in second
        for clause in prompt.include:
            noun = f"{clause.color} {clause.name}" if clause.color else clause.name
            assert (noun in first) + (noun in second) == 1


def test_the_corner_fits_the_relation():
    sides = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
    seen = set()
    for relation in RELATIONS:
        for other in NAMES[1:]:
            about = (Clause(other, 1), Clause("fox", 1, position=(relation, 0)))
            text = placed(Prompt("position", f"a photo of a fox {relation} a {other}", about))
            fox_in_corner = "corner, a fox" in text
            seen.add(fox_in_corner)
            opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
            side = sides[relation] if fox_in_corner else opposite[sides[relation]]
            assert side in text.split(" corner")[0].split("In the ")[1].split()
    assert seen == {True, False}


def test_corners_are_those_of_the_captions_of_pasted_pictures():
    assert set(CORNERS) == set(captions.CORNERS.values())
