"""No text file is read or written in whatever encoding the locale says."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"read_text": 0, "write_text": 1}
"""The position of `encoding` among the arguments."""


def without_encoding(text: str) -> Iterator[int]:
    """Lines of calls that open a file as text and do not say in which encoding."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        called = node.func
        words = {word.arg: word.value for word in node.keywords}
        if isinstance(called, ast.Attribute) and called.attr in PLACES:
            if len(node.args) <= PLACES[called.attr]:
                yield node.lineno
        elif isinstance(called, ast.Name) and called.id == "open":
            mode = words.get("mode", node.args[1] if len(node.args) > 1 else ast.Constant("r"))
            if not (isinstance(mode, ast.Constant) and "b" in str(mode.value)):
                yield node.lineno
        elif any(isinstance(words.get(key), ast.Constant) for key in ("text", "universal_newlines")):
            yield node.lineno


def test_calls_without_an_encoding_are_found():
    found = without_encoding(
        "a.read_text()\na.read_text('utf-8')\na.write_text(b)\na.write_text(b, 'utf-8')\nopen(a)\n"
        "open(a, 'rb')\nopen(a, 'w', encoding='utf-8')\nopen(a, mode='w')\nrun(a, text=True)\n"
        "run(a, text=True, encoding='utf-8')\n"
    )
    assert list(found) == [1, 3, 5, 8, 9]


def test_text_is_utf_8_on_every_machine():
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for folder in ("src", "tools", "benchmarks")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in without_encoding(file.read_text(encoding="utf-8"))
    ]
    assert not found, "give these encoding='utf-8'"
