import json
from collections.abc import Callable
from pathlib import Path

from kilopix.data.cleaning import published

Golden = Callable[[str], list[Path]]


def test_published_cleaning_keeps_what_the_published_data_set_keeps(golden_files: Golden):
    cases = [
        case
        for path in golden_files("captions/*.json")
        for case in json.loads(path.read_text(encoding="utf-8"))
    ]
    assert cases
    assert [published(case["generated"]) for case in cases] == [case["caption"] for case in cases]
