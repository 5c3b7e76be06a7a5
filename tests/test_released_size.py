"""Weights of the released size, 452 entries and 1.3 GB, load and sample in little more than their size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from released import write_encoders, write_released

SHAPES = Path(__file__).parent / "data" / "golden" / "network" / "shapes_CADRINTextCond.json"
PROGRAM = """
import sys
from kilopix import Generator
from kilopix.pretrained import autoencoder, text_encoder

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

weights, text, vae = sys.argv[1:]
import torch, transformers, diffusers
from transformers import T5EncoderModel
from diffusers import AutoencoderKL
before = peak()
generator = Generator.from_pretrained(weights, "cpu", text_encoder=text, autoencoder=vae)
image = generator("a fox", steps=2)[0]
print(before, peak(), image.size, sum(p.numel() for p in generator.network.parameters()))
"""


@pytest.mark.slow
def test_the_released_size_loads_and_samples_in_its_own_memory(tmp_path: Path):
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    arguments = json.loads(SHAPES.read_text(encoding="utf-8"))["config"] | {"label_dim": 2048}
    folder = write_released(tmp_path / "cad", arguments)
    text, autoencoder = write_encoders(tmp_path, text_width=2048)
    file = folder / "model.safetensors"
    size = file.stat().st_size
    with safe_open(file, framework="pt") as opened:
        assert len(opened.keys()) == 452
    assert 1.32e9 < size < 1.34e9
    command = [sys.executable, "-c", PROGRAM, str(folder), str(text), str(autoencoder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak, rest = done.stdout.strip().split(maxsplit=2)
    assert rest == "(256, 256) 331548944"
    print(f"weights {size / 1e9:.3f} GB, libraries {int(before) / 1e9:.3f}, peak {int(peak) / 1e9:.3f}")
    assert int(peak) - int(before) < 1.3 * size
