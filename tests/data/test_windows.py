"""Which part of its whole picture an encoded square shows."""

from pathlib import Path

import pytest

from kilopix.data.manifest import Manifest, Row
from kilopix.data.rows import write_rows
from kilopix.data.windows import centred_square, windows_of, within

PLAIN = [
    Row("wide.jpg", "fox", width=300, height=200),
    Row("tall.jpg", "fox", width=200, height=400),
    Row("square.jpg", "owl", width=128, height=128),
    Row("unknown.jpg", "owl"),
]
CROP = Row("crop/wide", "fox", width=64, height=64, kind="crop", base="wide.jpg", box=(0.5, 0.0, 1.0, 0.5))
CUTMIX = Row("mix/tall", "fox", width=64, height=64, kind="cutmix", base="tall.jpg", box=(0.5, 0.0, 1.0, 1.0))


def test_the_square_of_a_picture_is_a_window_of_it(tmp_path: Path):
    plain = write_rows(Manifest(tmp_path, PLAIN, {}), tmp_path / "plain.arrow")
    found = windows_of([*PLAIN, CROP, CUTMIX], "picture", plain)
    assert found[0] == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert found[1] == pytest.approx((0, 0.25, 1, 0.75))
    assert found[2] == found[3] == (0, 0, 1, 1)
    assert found[4] == pytest.approx((0.5, 0, 5 / 6, 0.5))
    assert found[5] == pytest.approx((0, 0.25, 1, 0.75))
    squares = windows_of([*PLAIN, CROP, CUTMIX], "square", plain)
    assert squares == [(0, 0, 1, 1)] * 4 + [CROP.box, (0, 0, 1, 1)]


def test_a_window_of_a_window():
    assert within((0.2, 0.0, 0.6, 1.0), (0.5, 0.5, 1.0, 1.0)) == pytest.approx((0.4, 0.5, 0.6, 1.0))
    assert within(centred_square(100, 100), (0.1, 0.2, 0.5, 0.6)) == pytest.approx((0.1, 0.2, 0.5, 0.6))
