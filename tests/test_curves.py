import re
from pathlib import Path
from typing import Any

from kilopix.curves import score_curves, training_curve, validation_curves
from kilopix.stages import report


def line(images: int, name: str, losses: list[float], weights: str = "average") -> dict[str, Any]:
    t = [(i + 0.5) / len(losses) for i in range(len(losses))]
    return {"images": images, "set": name, "weights": weights, "t": t, "losses": losses, "loss": 0.0}


def validation(levels: int) -> list[dict[str, Any]]:
    return [
        line(images, name, [level + 1.0 / images for level in range(levels)], weights)
        for images in (1000, 2000, 3000)
        for weights in ("network", "average")
        for name in ("held_out", "training")
    ]


def test_every_level_has_a_curve_of_each_set():
    svg = validation_curves(validation(6))
    for t in ("0.08", "0.25", "0.42", "0.58", "0.75", "0.92"):
        assert f"t = {t}" in svg
    assert "held-out pictures" in svg
    assert "training pictures" in svg
    # Six pairs of lines and one pair in the legend; the weights themselves are not drawn.
    assert [len(re.findall(f"stroke: {color}", svg)) for color in ("#e8590c", "#4c6ef5")] == [7, 7]


def test_one_moment_is_no_curve():
    assert validation_curves(validation(2)[:4]) == ""
    assert validation_curves([]) == ""
    assert score_curves([{"images": 10, "fid": 1.0}]) == ""
    assert score_curves([]) == ""


def test_scores_have_their_names():
    svg = score_curves([{"images": n, "FID": 100.0 / n, "KID": 1.0 / n} for n in (1000, 2000)])
    assert "FID" in svg
    assert "KID" in svg
    assert "2k" in svg


def test_the_training_curve():
    svg = training_curve([{"images": n, "loss": 1.0 / n} for n in range(1000, 5000, 1000)])
    assert svg.startswith("<svg")
    assert "images seen" in svg
    assert "4,000" in svg


def test_some_sheets_from_first_to_last(tmp_path: Path):
    from PIL import Image

    for i in range(1, 21):
        Image.new("RGB", (1000, 500), (10 * i, 0, 0)).save(tmp_path / f"{i * 100:012d}.png")
    figures = report._sheets(tmp_path)
    assert [f.text for f in figures] == [f"after {n:,} pictures" for n in (100, 500, 900, 1200, 1600, 2000)]
    assert report._sheets(tmp_path / "none") == []
