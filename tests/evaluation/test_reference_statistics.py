"""Statistics of real images: what is read, and what is refused with its key."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from kilopix.evaluation.fidelity import frechet_distance, moments
from kilopix.evaluation.reference_statistics import WIDTH, read_statistics
from kilopix.types import UserError

EYE = np.eye(WIDTH)
ZEROS = np.zeros(WIDTH)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_the_distance_to_statistics_is_that_to_their_images(tmp_path: Path, kind: type):
    import torch

    rng = np.random.default_rng(0)
    real, fake = (rng.normal(size=(40, WIDTH)) * scale for scale in (1.0, 1.3))
    file = tmp_path / "stats.npz"
    np.savez(file, mu=real.mean(0).astype(kind), sigma=np.cov(real, rowvar=False).astype(kind))
    found = read_statistics(file)
    assert found is not None
    assert not found.spatial
    made = moments(torch.from_numpy(fake))
    expected = frechet_distance(moments(torch.from_numpy(real)), made)
    assert frechet_distance(found.moments, made) == pytest.approx(expected, rel=1e-5)


def test_images_alone_are_no_statistics(tmp_path: Path):
    file = tmp_path / "batch.npz"
    np.savez(file, np.zeros((1, 8, 8, 3), np.uint8))
    assert read_statistics(file) is None


REFUSED = {
    "no key": ({"pool_3": ZEROS}, "neither the keys 'mu' and 'sigma'.*its keys are: pool_3"),
    "no keys": ({}, "its keys are: none"),
    "no sigma": ({"mu": ZEROS}, "the key 'sigma' is missing"),
    "no mu": ({"sigma": EYE}, "the key 'mu' is missing"),
    "another network": ({"mu": ZEROS[:768], "sigma": EYE[:768, :768]}, "'mu' is 768, and .*2,048 .*is 2048;"),
    "a variance": ({"mu": ZEROS, "sigma": np.ones(WIDTH)}, "'sigma' is 2048, and .* it is 2048 x 2048"),
    "not finite": ({"mu": ZEROS + np.nan, "sigma": EYE}, "'mu' holds numbers that are not finite"),
    "infinite": ({"mu": ZEROS, "sigma": np.full_like(EYE, np.inf)}, "'sigma' holds numbers"),
    "not symmetric": ({"mu": ZEROS, "sigma": EYE + np.eye(WIDTH, k=1)}, "'sigma' is not symmetric"),
    "negative": ({"mu": ZEROS, "sigma": -EYE}, "'sigma' has negative variances"),
    "texts": ({"mu": np.array(["a"] * WIDTH), "sigma": EYE}, "the key 'mu' does not hold numbers"),
    "pickled": ({"mu": np.array([{}], dtype=object), "sigma": EYE}, "the key 'mu' cannot be read .*pickle"),
}


@pytest.mark.parametrize(("arrays", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_statistics_of_inception_is_refused_with_its_key(tmp_path: Path, arrays, message: str):
    file = tmp_path / "stats.npz"
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=rf"stats\.npz.*{message}"):
        read_statistics(file)


def test_what_is_no_npz_is_refused_and_never_unpickled(tmp_path: Path):
    file = tmp_path / "stats.npz"
    np.savez(file, mu=ZEROS, sigma=EYE)
    whole = file.read_bytes()
    for content in (b"", b"?" * 100, whole[: len(whole) // 2], pickle.dumps({"mu": 1})):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"stats\.npz: not an \.npz file that can be read"):
            read_statistics(file)
    with open(file, "wb") as out:
        np.save(out, ZEROS)
    with pytest.raises(UserError, match=r"stats\.npz: holds a bare array"):
        read_statistics(file)
    with pytest.raises(UserError, match="no such file"):
        read_statistics(tmp_path / "none.npz")
