"""Where the golden values are: GOLDEN_DIR; without it ../shared/golden, else the copies in tests/data/golden.

A folder that GOLDEN_DIR names may hold other files of the same form, with other numbers and sizes.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "tests" / "data" / "golden"


def find_golden_files(pattern: str) -> list[Path]:
    """All files that fit a pattern such as `network/*.safetensors`, at least one; else the test is skipped.

    A golden folder that exists but holds no such file is a failure. The copies that ship stand in only where
    no folder is named and there is none in its usual place.
    """
    named = os.environ.get("GOLDEN_DIR")
    if named and not Path(named).is_dir():
        pytest.skip(f"no golden values: GOLDEN_DIR={named} does not exist")
    folder = Path(named) if named else ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        if not (SHIPPED / pattern).parent.is_dir():
            pytest.skip(f"no golden values: {folder} does not exist and tests/data/golden has no {pattern}")
        folder = SHIPPED
    files = sorted(folder.glob(pattern))
    assert files, f"{folder} holds no file {pattern}"
    return files


@pytest.fixture
def golden_files() -> Callable[[str], list[Path]]:
    return find_golden_files
