"""DPG-Bench: scores of pictures, prompts and categories agree with golden values."""

import json

import pytest

from kilopix.evaluation.dpg import Item, Question, score_items


def read_item(image: dict) -> Item:
    questions = tuple(
        Question(q["id"], q["category"], tuple(q["depends_on"]), q["question"]) for q in image["questions"]
    )
    return Item(image["item"], questions, tuple(map(tuple, image["answers"])))


def test_every_score_agrees(golden_files):
    for path in golden_files("dpg/dpg*.json"):
        golden = json.loads(path.read_text(encoding="utf-8"))
        items = [read_item(image) for image in golden["images"]]
        scores = score_items(items, categories="last")
        for image, item in zip(golden["images"], scores.items, strict=True):
            assert item.pictures == pytest.approx(image["scores"], abs=1e-9), f"{path.name} {item.name}"
            assert item.score == pytest.approx(image["score"], abs=1e-9)
        assert scores.overall == pytest.approx(golden["overall"], abs=1e-9)
        for level in ("l1", "l2"):
            mine = {category.name: category.value for category in getattr(scores, level)}
            assert mine == pytest.approx(golden[level], abs=1e-9), path.name

        mended = score_items(items)
        assert mended.overall == scores.overall
        pictures = golden["pics"]
        assert [c.answers for c in mended.l2] == [pictures * c.answers for c in scores.l2]
        if pictures == 1:
            assert mended.l2 == scores.l2
