"""Ten thousand draws of the geometry, and augmented versions that are pure functions of (seed, id)."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.data.augmented import Augmenter, Pictures
from kilopix.data.captions import place_of
from kilopix.data.cutmix import SETTINGS, choose_crop, choose_paste
from kilopix.data.manifest import Manifest, Row
from kilopix.data.rows import write_rows
from kilopix.data.sources import BrokenImage

DRAWS = 10_000
CLASSES = ("fox", "owl", "cup", "umbrella", "car")
SHARES = {"1/2": 1 / 2, "1/4": 1 / 4, "1/9": 1 / 9, "1/16": 1 / 16}
PLACES = {
    "1/2": {"right half", "bottom half"},
    "1/4": {"top left corner", "top right corner", "bottom left corner", "bottom right corner"},
}
SIDE = 256


def rows_of(count: int) -> list[Row]:
    """Pictures whose captions name their number; classes of unequal size."""
    rng = random.Random(5)
    names = rng.choices(CLASSES, weights=(50, 20, 10, 5, 1), k=count - len(CLASSES)) + list(CLASSES)
    return [
        Row(f"{c}/{i}.jpg", c, f"A {c} called number{i}.", width=64, height=64) for i, c in enumerate(names)
    ]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest(tmp_path_factory.mktemp("root"), rows_of(400), {})


def augmenter(manifest: Manifest, folder: Path, kind="cutmix", setting="all", seed=0) -> Augmenter:
    return Augmenter(write_rows(manifest, folder / "rows.arrow"), kind, setting, SIDE, seed)


@pytest.mark.parametrize("setting", SETTINGS)
def test_area_place_and_margins_of_every_setting(setting: str):
    rng = random.Random(setting)
    boxes = Counter()
    for _ in range(DRAWS):
        where = choose_paste(setting, SIDE, rng)
        x0, y0, x1, y1 = where.box
        boxes[where.box] += 1
        area = (x1 - x0) * (y1 - y0) / SIDE**2
        assert area == pytest.approx(SHARES[setting], rel=0.02)
        assert 0 <= x0 < x1 <= SIDE
        assert 0 <= y0 < y1 <= SIDE
        a, b, c, d = where.partner_box
        assert (c - a, d - b) == (x1 - x0, y1 - y0)
        place = place_of((x0 / SIDE, y0 / SIDE, x1 / SIDE, y1 / SIDE))
        assert place in PLACES.get(setting, {place})
        assert place != "middle"
        if setting == "1/9":
            assert 0 in (x0, y0) or SIDE in (x1, y1)
        if setting == "1/16":
            assert min(x0, y0) >= 0.05 * SIDE
            assert max(x1, y1) <= 0.95 * SIDE
            low, high = 0.4 * SIDE, 0.6 * SIDE
            assert x1 <= low or x0 >= high or y1 <= low or y0 >= high
    assert len(boxes) == {"1/2": 2, "1/4": 4}.get(setting, len(boxes))
    assert len(boxes) > {"1/9": 600, "1/16": 3000}.get(setting, 1)


def test_ten_thousand_crops_are_square_windows_of_half_the_side_and_more():
    rng = random.Random(0)
    sides = []
    for _ in range(DRAWS):
        x0, y0, x1, y1 = choose_crop(rng)
        sides.append(x1 - x0)
        assert abs((x1 - x0) - (y1 - y0)) < 1e-12
        assert min(x0, y0) >= 0
        assert max(x1, y1) <= 1
    assert min(sides) >= 0.5
    assert max(sides) <= 1
    assert np.mean(sides) == pytest.approx(0.75, abs=0.01)


def test_partners_are_of_another_class_and_captions_name_both_and_the_place(
    manifest: Manifest, tmp_path: Path
):
    of = {row.path: row for row in manifest.rows}
    drawn = Counter()
    for seed in range(DRAWS // len(manifest.rows)):
        make = augmenter(manifest, tmp_path, seed=seed)
        for row in manifest.rows:
            made = make.plan(row)
            partner = of[made.partner]
            drawn[partner.path] += 1
            assert partner.class_name != row.class_name == made.class_name
            assert made.caption.startswith(row.caption)
            assert partner.caption[2:] in made.caption.removeprefix(row.caption)
            assert f"the {place_of(made.box)}, a {partner.class_name}" in made.caption
            assert (made.base, made.kind) == (row.path, "cutmix")
    assert sum(drawn.values()) == DRAWS
    rare = [drawn[row.path] for row in manifest.rows if row.class_name == "fox"]
    common = [drawn[row.path] for row in manifest.rows if row.class_name == "cup"]
    # A cup is a partner for all but the cups, a fox only for the half that are no foxes.
    assert np.mean(common) > 1.5 * np.mean(rare)


def test_versions_have_short_captions_of_what_the_short_ones_say(tmp_path: Path):
    short = {"fox": "A photo of a red fox.", "owl": "A photo of a grey owl."}
    rows = [Row(f"{c}/{i}.jpg", c, f"A long tale of a {c}.", short[c]) for c in short for i in range(50)]
    source = Manifest(tmp_path, rows, {})
    pasted = [augmenter(source, tmp_path).plan(row).short for row in rows]
    assert all("red fox" in text and "grey owl" in text and "tale" not in text for text in pasted)
    assert len(set(pasted)) > 10
    cropped = [augmenter(source, tmp_path, "crop").plan(row).short for row in rows]
    assert all(text.startswith(short[row.class_name]) for text, row in zip(cropped, rows, strict=True))


def test_rows_without_short_captions_are_named_by_their_classes(manifest: Manifest, tmp_path: Path):
    for row in manifest.rows[:50]:
        made = augmenter(manifest, tmp_path).plan(row)
        partner = made.partner.split("/")[0]
        assert row.class_name in made.short
        assert partner in made.short
        assert "number" not in made.short
        assert augmenter(manifest, tmp_path, "crop").plan(row).short == ""


@pytest.mark.parametrize("kind", ["cutmix", "crop"])
def test_a_version_depends_on_seed_and_id_alone(manifest: Manifest, tmp_path: Path, kind: str):
    make, again = augmenter(manifest, tmp_path, kind), augmenter(manifest, tmp_path, kind)
    forwards = [make.plan(row) for row in manifest.rows]
    backwards = [again.plan(row) for row in reversed(manifest.rows)]
    assert forwards == backwards[::-1]
    other = augmenter(manifest, tmp_path, kind, seed=1)
    assert (
        sum(other.plan(row).box != made.box for row, made in zip(manifest.rows, forwards, strict=True)) > 100
    )


def test_pixels_are_the_bases_and_the_partners(tmp_path: Path):
    rows = [Row(f"{c}.png", c, f"A {c}.") for c in ("fox", "owl")]
    for row, color in zip(rows, ("red", "blue"), strict=True):
        Image.new("RGB", (300, 200), color).save(tmp_path / row.path)
    made = Pictures(write_rows(Manifest(tmp_path, rows, {}), tmp_path / "r.arrow"), SIDE)
    for setting in SETTINGS:
        make = Augmenter(made.rows, "cutmix", setting, SIDE, 0)
        versions = Pictures(made.rows, SIDE, make)
        (first, second) = versions.span(0, 2)
        pixels = versions.pixels(first)
        blue = (pixels == (0, 0, 255)).all(-1)
        x0, y0, x1, y1 = (round(v * SIDE) for v in first.box)
        assert blue[y0:y1, x0:x1].all()
        assert blue.mean() == pytest.approx(SHARES[setting], rel=0.02)
        assert (pixels[~blue] == (255, 0, 0)).all()
        assert second.partner == "fox.png"
    (tmp_path / "owl.png").write_text("broken", encoding="utf-8")
    with pytest.raises(BrokenImage):
        versions.pixels(first)
