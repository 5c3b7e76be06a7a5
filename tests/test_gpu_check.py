"""The check that runs on a GPU, rehearsed without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kilopix.runtime import read_json

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_gpu_check_rehearses_on_a_cpu(tmp_path: Path):
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), str(tmp_path), "--tiny", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    sections = {"env", "parity", "dit", "cad", "sampling", "encoders", "resume"}
    assert {row["section"] for row in rows} == sections
    assert [row for row in rows if row["good"] is False] == []
    measured = read_json(tmp_path / "measured.json")
    assert set(measured["training"]) == {"dit", "rin"}
    assert min(measured["encoding"].values()) > 0
