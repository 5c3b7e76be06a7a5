"""Averages put together afterwards, against the averages that were kept all along."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kilopix.errors import UserError
from kilopix.training.averages import PowerAverages, PowerConfig
from kilopix.training.checkpoint import read_weights
from kilopix.training.posthoc import Profile, coefficients, exponent_of, mismatch, width_of
from kilopix.training.snapshots import (
    interval,
    is_due,
    nearest_moment,
    reconstruct,
    snapshot_path,
    stored_snapshots,
    thin_snapshots,
    write_snapshot,
)

WIDTHS = [0.04, 0.06, 0.08, 0.12, 0.15, 0.20]
BATCH, IMAGES = 10, 20_000
CONFIG = PowerConfig(snapshot_every=500, snapshots=32)


def test_widths_and_exponents():
    # EDM2, section 3.1: gamma = 16.97 and 6.94 for the widths 0.05 and 0.10.
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.005)
    for width in (0.01, 0.1, 0.28):
        assert width_of(exponent_of(width)) == pytest.approx(width, rel=1e-9)
    profile = np.linspace(0, 1, 200_001) ** exponent_of(0.1)  # the width by its definition
    t = np.linspace(0, 1, 200_001)
    mean = (profile * t).sum() / profile.sum()
    assert ((profile * (t - mean) ** 2).sum() / profile.sum()) ** 0.5 == pytest.approx(0.1, rel=1e-4)


def test_inner_products_are_those_of_the_profiles():
    """The normal equations, built here by summing the profiles themselves on a grid."""
    stored = [Profile(i, width) for i in range(1, 9) for width in (0.05, 0.1)]
    wanted = Profile(8, 0.14)
    t = (np.arange(400_000) + 0.5) / 50_000

    def on_grid(p: Profile) -> np.ndarray:
        gamma = exponent_of(p.sigma_rel)
        return np.where(t <= p.images, (gamma + 1) * (t / p.images) ** gamma / p.images, 0)

    rows = np.stack([on_grid(p) for p in stored])
    found = np.linalg.lstsq(rows @ rows.T, rows @ on_grid(wanted), rcond=None)[0]
    weights = coefficients(stored, wanted)
    assert weights.sum() == pytest.approx(1)
    error = np.sqrt(((weights @ rows - on_grid(wanted)) ** 2).sum() / (on_grid(wanted) ** 2).sum())
    assert error == pytest.approx(mismatch(stored, wanted, weights), rel=0.05)
    best = np.sqrt(((found @ rows - on_grid(wanted)) ** 2).sum() / (on_grid(wanted) ** 2).sum())
    assert error < 1.1 * best + 1e-3


def trajectory(step: int, network: nn.Linear) -> None:
    """Weights that drift, turn and shake, as those of a network in training."""
    time = step * BATCH / IMAGES
    shake = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
    drift = torch.linspace(-1, 1, 16).view(4, 4) * time**0.5
    with torch.no_grad():
        network.weight.copy_(drift + torch.sin(torch.arange(16.0).view(4, 4) * time * 3) + 0.5 * shake)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, torch.Tensor], torch.Tensor]:
    """Snapshots of two widths, the true averages of other widths, and the weights at the end."""
    folder = tmp_path_factory.mktemp("averages")
    network = nn.Linear(4, 4, bias=False)
    kept = PowerAverages(network, CONFIG)
    true = PowerAverages(network, PowerConfig(sigma_rel=tuple(WIDTHS)))
    for step in range(1, IMAGES // BATCH + 1):
        trajectory(step, network)
        seen = step * BATCH
        kept.update(network, seen, BATCH)
        true.update(network, seen, BATCH)
        if is_due(CONFIG, seen - BATCH, seen) or seen == IMAGES:
            for width, average in zip(CONFIG.sigma_rel, kept.networks, strict=True):
                write_snapshot(folder, average.state_dict(), Profile(seen, width), CONFIG, {"recipe": "r"})
            thin_snapshots(folder, CONFIG, seen)
    averages = dict(zip(WIDTHS, (n.get_parameter("weight") for n in true.networks), strict=True))
    return folder, averages, network.weight.detach()


@pytest.mark.parametrize("width", WIDTHS)
def test_any_width_is_that_of_the_average_kept_all_along(run, width: float):
    folder, true, last = run
    tensors, header, far = reconstruct(stored_snapshots(folder), Profile(IMAGES, width))
    error = (tensors["weight"] - true[width]).norm() / true[width].norm()
    assert tensors["weight"].dtype == torch.float32
    assert error < 0.01, f"off by {error:.2%}"
    assert (tensors["weight"] - last).norm() / last.norm() > 0.1, "the last weights would do as well"
    others = [(true[other] - true[width]).norm() / true[width].norm() for other in WIDTHS if other != width]
    assert error < 0.5 * min(others), "another width lies as near"
    assert far < 0.03
    assert header["sigma_rel"] == width
    assert header["images_seen"] == IMAGES


def test_the_rule_keeps_few_and_evenly_spaced(run):
    folder, _, _ = run
    moments = sorted({p.images for p in stored_snapshots(folder)})
    assert CONFIG.snapshots // 2 <= len(moments) <= CONFIG.snapshots
    assert set(np.diff(moments)) == {interval(CONFIG, IMAGES)}
    assert interval(CONFIG, IMAGES) == 1000
    assert moments[-1] == IMAGES


def test_the_last_is_kept_and_later_ones_go(tmp_path: Path):
    config = PowerConfig(snapshot_every=100, snapshots=4, sigma_rel=(0.1,))
    for moment in (128, 256, 384, 512, 610):
        write_snapshot(tmp_path, {"w": torch.ones(1)}, Profile(moment, 0.1), config, {})
    thin_snapshots(tmp_path, config, 512)  # four intervals of 200: after 200 and 400 images
    assert [p.images for p in stored_snapshots(tmp_path)] == [256, 512]


def test_every_snapshot_is_due_once():
    due = [seen for seen in range(64, 5000, 64) if is_due(CONFIG, seen - 64, seen)]
    assert [seen // 500 for seen in due] == list(range(1, 10))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="snapshot_dtype=bfloat16"):
        write_snapshot(tmp_path, {"w": torch.tensor([1e5])}, Profile(1, 0.1), CONFIG, {})
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_are_not_averaged(tmp_path: Path):
    for moment in (1, 2, 3):
        write_snapshot(
            tmp_path,
            {"w": torch.ones(2), "count": torch.tensor(moment)},
            Profile(moment, 0.1),
            CONFIG,
            {"recipe": {"seed": 3}},
        )
    tensors, header, _ = reconstruct(stored_snapshots(tmp_path), Profile(3, 0.1))
    assert tensors["count"].item() == 3
    assert tensors["w"].tolist() == pytest.approx([1, 1])
    assert header["recipe"] == {"seed": 3}
    assert read_weights(snapshot_path(tmp_path, Profile(2, 0.1)))[1]["sigma_rel"] == 0.1


def test_the_nearest_moment():
    stored = [Profile(100, 0.1), Profile(200, 0.1)]
    assert [nearest_moment(stored, at) for at in (None, 1, 149, 151, 999)] == [200, 100, 100, 200, 200]
