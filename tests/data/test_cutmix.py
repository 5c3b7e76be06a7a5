import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilopix.data.cutmix import SETTINGS, choose_crop, choose_paste, one_class, paste, paste_at
from kilopix.errors import UserError

SIDES = st.integers(20, 512)
SEEDS = st.integers(0, 2**32)


@given(SIDES, SEEDS)
def test_half_is_the_right_or_bottom_half_unscaled(side, seed):
    where = choose_paste("1/2", side, random.Random(seed))
    assert where.box in ((side // 2, 0, side, side), (0, side // 2, side, side))
    assert where.partner_box == where.box
    assert where.partner_side == side


@given(SIDES, SEEDS)
def test_quarter_lies_in_a_corner(side, seed):
    x0, y0, x1, y1 = choose_paste("1/4", side, random.Random(seed)).box
    assert x1 - x0 == y1 - y0 == side // 2
    assert (x0 == 0) or (x1 == side)
    assert (y0 == 0) or (y1 == side)


@given(SIDES, SEEDS)
def test_ninth_touches_a_border(side, seed):
    x0, y0, x1, y1 = choose_paste("1/9", side, random.Random(seed)).box
    assert x1 - x0 == y1 - y0 == side // 3
    assert 0 in (x0, y0) or side in (x1, y1)
    assert min(x0, y0) >= 0
    assert max(x1, y1) <= side


@given(SIDES, SEEDS)
def test_sixteenth_keeps_from_borders_and_centre(side, seed):
    x0, y0, x1, y1 = choose_paste("1/16", side, random.Random(seed)).box
    assert x1 - x0 == y1 - y0 == side // 4
    assert min(x0, y0) >= 0.05 * side
    assert max(x1, y1) <= 0.95 * side
    low, high = 0.4 * side, 0.6 * side
    assert x1 <= low or x0 >= high or y1 <= low or y0 >= high


def test_all_takes_every_setting_and_every_place_equally():
    rng = random.Random(0)
    drawn = [choose_paste("all", 64, rng) for _ in range(8000)]
    assert set(Counter(p.setting for p in drawn)) == set(SETTINGS)
    assert all(abs(n / 8000 - 0.25) < 0.03 for n in Counter(p.setting for p in drawn).values())
    corners = Counter(p.box for p in drawn if p.setting == "1/4")
    assert len(corners) == 4
    assert min(corners.values()) > 0.8 * max(corners.values())
    borders = Counter(
        side
        for p in drawn
        if p.setting == "1/9"
        for side, touches in zip(
            "lrtb", (p.box[0] == 0, p.box[2] == 64, p.box[1] == 0, p.box[3] == 64), strict=True
        )
        if touches
    )
    assert len(borders) == 4
    assert min(borders.values()) > 0.75 * max(borders.values())


def test_pasted_pixels_are_the_partners_to_the_last_bit():
    rng = random.Random(1)
    before = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for setting in SETTINGS:
        where = choose_paste(setting, 64, rng)
        side = where.partner_side
        partner = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
        out = paste(before.copy(), partner, where)
        x0, y0, x1, y1 = where.box
        a, b, c, d = where.partner_box
        assert np.array_equal(out[y0:y1, x0:x1], partner[b:d, a:c])
        outside = np.ones((64, 64), bool)
        outside[y0:y1, x0:x1] = False
        assert np.array_equal(out[outside], before[outside])


@given(SIDES, SEEDS)
def test_a_paste_is_found_again_from_its_row(side, seed):
    where = choose_paste("all", side, random.Random(seed))
    box = tuple(v / side for v in where.box)
    assert paste_at(where.setting, box, side) == where


@given(SEEDS)
def test_crops_are_square_windows_of_50_to_100_percent(seed):
    x0, y0, x1, y1 = choose_crop(random.Random(seed))
    assert 0.5 <= x1 - x0 <= 1
    assert abs((x1 - x0) - (y1 - y0)) < 1e-12
    assert min(x0, y0) >= 0
    assert max(x1, y1) <= 1


def test_pictures_too_small_for_the_geometry_are_refused():
    with pytest.raises(UserError, match="at least 20 pixels"):
        choose_paste("1/16", 16, random.Random(0))


def test_why_there_is_no_cutmix_and_what_else_there_is():
    assert "the manifest says the class of no image" in one_class(["", ""])
    assert "there is only 'cat'" in one_class(["cat", "cat"])
    assert "--kind crop" in one_class([])
