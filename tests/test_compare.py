"""`kilopix compare` on cards as the evaluators write them."""

import json
from pathlib import Path

import pytest

from kilopix.evaluation.protocol import Card, write_card
from tiny import Cli

TASKS = ("single_object", "counting")


def make_card(folder: Path, right: list[bool], form: str = "geneval", **changes: object) -> Path:
    """A folder of scores: four pictures of every prompt, the first half of the prompts of one task."""
    folder.mkdir(parents=True)
    prompts = [f"a photo of thing {i // 4}" for i in range(len(right))]
    tags = [TASKS[i >= len(right) // 2] for i in range(len(right))]
    lines: list[dict[str, object]]
    if form == "dpg":
        scores = {"DPG-Bench": 100 * sum(right) / len(right)}
        lines = [{"item": p, "score": float(r)} for p, r in zip(prompts, right, strict=True)]
    else:
        whole, prefix = ("GenEval, mean of tasks", "GenEval, ") if form == "geneval" else ("CLIPScore", "")
        each = {t: [r for r, tag in zip(right, tags, strict=True) if tag == t] for t in TASKS}
        means = {f"{prefix}{t}": sum(v) / len(v) for t, v in each.items()}
        scores = {whole: sum(means.values()) / 2} | (means if form == "geneval" else {})
        lines = [{"prompt": p, "tag": t, "correct": r} for p, t, r in zip(prompts, tags, right, strict=True)]
    if form == "fidelity":
        lines = [
            {"file": f"{i}.png", "prompt": p, "values": {"CLIPScore": float(r)}}
            for i, (p, r) in enumerate(zip(prompts, right, strict=True))
        ]
    name = "observations.jsonl" if form == "fidelity" else "results.jsonl"
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    card = {
        "checkpoint": folder.name,
        "resolution": 256,
        "images": len(right),
        "evaluator": form,
        "evaluator_sha256": "3" * 64,
        "kilopix_version": "0.1.0",
        "scores": [{"name": name, "value": value, "n": len(right)} for name, value in scores.items()],
    }
    write_card(folder / "card.json", Card.model_validate({**card, **changes}))
    return folder


def some(share: int) -> list[bool]:
    return [i % 10 < share for i in range(80)]


def test_a_table_in_markdown_and_html_beside_published_numbers(tmp_path: Path, cli: Cli):
    a, b = make_card(tmp_path / "a", some(4)), make_card(tmp_path / "b", some(9))
    out = tmp_path / "out"
    done = cli("compare", a, b, "--out", out)
    assert done.code == 0, done.err
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert "| GenEval, mean of tasks | 0.4 | 0.9 | **+0.5 (" in text
    assert "| SDXL | 0.55 [1] |" in text
    assert "| SD3-medium | 0.62 [4] or 0.74 [3] |" in text
    assert "[1] GenEval: An Object-Focused Framework" in text
    assert "The same protocol for all" in text
    assert "†" not in text
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert page.count("<table>") == 3
    assert "<b>+0.5 (" in page
    assert "SDXL" not in (cli("compare", a, b, "--out", out, "--no-published").out)


def test_unlike_protocols_are_refused_or_marked(tmp_path: Path, cli: Cli):
    a = make_card(tmp_path / "a", some(4), steps=25, prompt_style="plain")
    b = make_card(tmp_path / "b", some(9), steps=50, prompt_style="lengthened")
    out = tmp_path / "out"
    refused = cli("compare", a, b, "--out", out)
    assert refused.code == 2
    assert "prompt_style (plain against lengthened)" in refused.err
    assert "steps (25 against 50)" in refused.err
    assert not out.exists()
    assert cli("compare", a, b, "--out", out, "--allow-unlike").code == 0
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert "| score | a † | b † | b less a † |" in text
    assert "| **† steps** | **25** | **50** |" in text


@pytest.mark.parametrize(
    ("form", "name"), [("dpg", "DPG-Bench"), ("fidelity", "CLIPScore"), ("geneval", "GenEval, counting")]
)
def test_single_pictures_of_every_evaluator_are_paired(tmp_path: Path, cli: Cli, form: str, name: str):
    folders = [make_card(tmp_path / f"{label}/scores", some(n), form) for label, n in (("a", 3), ("b", 8))]
    assert cli("compare", *folders, "--out", tmp_path / "out").code == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| score | a/scores | b/scores | b/scores less a/scores |" in text
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    assert "**+" in row


def test_what_does_not_belong_together_is_an_error(tmp_path: Path, cli: Cli):
    a = make_card(tmp_path / "a", some(4))
    with_other_pictures = make_card(tmp_path / "b", some(9))
    (with_other_pictures / "results.jsonl").write_bytes((a / "results.jsonl").read_bytes())
    done = cli("compare", a, with_other_pictures, "--out", tmp_path / "out")
    assert done.code == 2
    assert "results.jsonl: damaged, or not what card.json was made from" in done.err
    other = make_card(tmp_path / "c", some(9), "dpg", evaluator="geneval")
    assert "no two of these cards" in cli("compare", a, other, "--out", tmp_path / "out").err
    assert "twice" in cli("compare", a, a / "card.json", "--out", tmp_path / "out").err
    assert "no such folder of scores" in cli("compare", a, tmp_path / "none", "--out", tmp_path / "out").err
    assert cli("compare", a, "--out", tmp_path / "out").code == 0
    assert "| **a** | 0.4 |" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
