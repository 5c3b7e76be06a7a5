"""Frechet distance, precision, recall, density and coverage agree with golden values."""

import re

import pytest
from safetensors.torch import load_file

from kilopix.evaluation.fidelity import frechet_distance, moments
from kilopix.evaluation.streaming import InMemory, moments_of, neighbours


def test_distance_and_neighbours_agree(golden_files):
    for path in golden_files("fidelity/*.safetensors"):
        golden = load_file(path)
        real, fake = golden["real"], golden["fake"]
        fid = frechet_distance(moments(real), moments(fake))
        assert fid == pytest.approx(golden["fid"].item(), rel=1e-6)
        # In blocks that do not divide the sets, as they come from files.
        streams = InMemory(real, 7), InMemory(fake, 64)
        streamed = frechet_distance(*map(moments_of, streams))
        assert streamed == pytest.approx(golden["fid"].item(), rel=1e-6)
        ks = {int(match[1]) for key in golden if (match := re.match(r"k(\d+)\.", key))}
        assert ks
        for k in ks:
            mine = neighbours(*streams, k)
            for name in ("precision", "recall", "density", "coverage"):
                expected = golden[f"k{k}.{name}"].item()
                assert getattr(mine, name) == pytest.approx(expected, rel=1e-6), f"{path.name} k{k}.{name}"
