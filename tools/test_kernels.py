"""Run the tests once for each set of kernels, threads and locale that a user's machine may have.

    python tools/test_kernels.py                                  # every line, the whole suite
    python tools/test_kernels.py --only aten-avx2,threads-1       # some lines
    python tools/test_kernels.py --only locale-c tests/parity     # some lines, some tests

What follows the names goes to pytest as it is. Each line is the machine as it is but for the variables named;
instruction sets that the processor lacks are passed over by the libraries themselves, so that its lines are
then the same as others. Logs are kept in scratch/kernels/. The exit status is 1 if any line is red.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "scratch" / "kernels"
LOCALE = ("LANG", "LANGUAGE", "LC_")
LINES: dict[str, dict[str, str]] = {
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "mkl-avx2": {"MKL_CBWR": "AVX2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "threads-1": {"OMP_NUM_THREADS": "1"},
    "threads-2": {"OMP_NUM_THREADS": "2"},
    "threads-4": {"OMP_NUM_THREADS": "4"},
    "locale-unset": {},
    "locale-c": {"LC_ALL": "C"},
}


def environment(name: str) -> dict[str, str]:
    """The variables of a line; those on locales are taken away where the line is about them."""
    kept = dict(os.environ)
    if name.startswith("locale-"):
        kept = {key: value for key, value in kept.items() if not key.startswith(LOCALE)}
    return {**kept, **LINES[name]}


def run(name: str, arguments: list[str]) -> bool:
    """Run one line, print what came of it, and say whether it is green."""
    setting = " ".join(f"{key}={value}" for key, value in LINES[name].items()) or "LANG and LC_* unset"
    print(f"{name:15} {setting:30} ", end="", flush=True)
    log, started = LOGS / f"{name}.log", time.monotonic()
    command = [sys.executable, "-m", "pytest", *(arguments or ["tests"])]
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(name), stdout=file, stderr=subprocess.STDOUT, check=False
        )
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    counts = text[-1].strip("= ") if text else "nothing was printed"
    print(f"{counts if done.returncode in (0, 1) else f'pytest ended with {done.returncode}: {counts}'}")
    for line in text:
        if line.startswith(("FAILED", "ERROR")):
            print(f"  {line}")
    if done.returncode:
        print(f"  {log}, {time.monotonic() - started:.0f} s", flush=True)
    return done.returncode == 0


def main() -> int:
    """Run the lines asked for, one after another."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", default=",".join(LINES), help="names of lines, with commas between")
    given, arguments = parser.parse_known_args()
    names = given.only.split(",")
    if unknown := [name for name in names if name not in LINES]:
        parser.error(f"no such line: {', '.join(unknown)}; there are {', '.join(LINES)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    red = [name for name in names if not run(name, arguments)]
    print(f"{len(names) - len(red)} of {len(names)} green" + (f"; red: {', '.join(red)}" if red else ""))
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
