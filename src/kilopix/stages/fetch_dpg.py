"""The official questions of DPG-Bench to a local file, with its hash beside it.

In: an address, or the official one. Out: the CSV file, and `<file>.sha256`. A hash that is given is checked
before the file is kept; without one the hash of the first download is written down, and a later download that
differs is refused. The hash written down is what was received, not what the authors vouch for: no hash of
theirs is known here.
"""

import re
import urllib.request
from pathlib import Path

from kilopix.artefacts.locks import owns
from kilopix.english import counted
from kilopix.evaluation.dpg_questions import read_questions
from kilopix.runtime import atomic_path, say, sha256_of_file
from kilopix.types import UserError

OFFICIAL = "https://raw.githubusercontent.com/TencentQQGYLab/ELLA/main/dpg_bench/dpg_bench.csv"
_LARGEST = 1 << 28
_TIMEOUT = 60


@owns("out", file=True)
def run(out: Path, url: str = OFFICIAL, sha256: str | None = None) -> str:
    """Fetch the questions and return their SHA-256; a file that is there is checked and not fetched again."""
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"--sha256 {sha256!r}: give 64 hexadecimal digits in small letters.")
    record = out.with_name(f"{out.name}.sha256")
    recorded = record.read_text(encoding="utf-8").split()[0] if record.exists() else None
    if recorded and sha256 and recorded != sha256:
        raise UserError(f"{record} says {recorded}, not {sha256}; delete it if the file is to change.")
    expected = sha256 or recorded
    if not out.exists():
        with atomic_path(out) as temporary:
            temporary.write_bytes(_download(url))
            found = sha256_of_file(temporary)
            _check(found, expected, url, "nothing was kept")
            read_questions(temporary)
    found = sha256_of_file(out)
    _check(found, expected, str(out), "delete it, and it is fetched again")
    items = read_questions(out).items
    if recorded is None:
        with atomic_path(record) as temporary:
            temporary.write_text(f"{found}  {out.name}\n", encoding="utf-8")
    how = (
        "as given"
        if sha256
        else "as recorded before"
        if recorded
        else f"recorded in {record}, not vouched for"
    )
    questions = sum(len(item.questions) for item in items)
    say(f"{out}: {counted(len(items), 'prompt')}, {counted(questions, 'question')}, SHA-256 {found} ({how}).")
    return found


def _check(found: str, expected: str | None, what: str, then: str) -> None:
    if expected is not None and found != expected:
        raise UserError(f"{what}: its SHA-256 is {found}, but {expected} is expected; {then}.")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            data = response.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{url}: cannot be fetched ({error}); give --url, or the file itself to `dpg`."
        ) from None
    if len(data) > _LARGEST:
        raise UserError(f"{url}: larger than {_LARGEST >> 20} MiB, so it is not the questions.")
    return data
