"""What users write is text wherever it is shown: never markup, a formula, a cursor's move, a turned line."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from kilopix.data.trained_on import TrainedOn
from kilopix.evaluation.protocol import Card, LeftOut, Score, write_card
from kilopix.export.model_card import About, Sample, model_card
from kilopix.generator import Generator
from kilopix.plain_text import code_in_markdown, in_html, in_markdown, isolated, visible
from kilopix.recipe import Recipe
from kilopix.runtime import say
from kilopix.stages import compare, inspect, report
from kilopix.types import UserError

ODD = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "single": "' onmouseover='alert(1)",
    "template": "{{ 7 * 7 }}{% for x in y %}",
    "formula": '=HYPERLINK("http://x.test","y")',
    "link": "[y](javascript:alert(1))",
    "table": "a|b\n|---|\n| c |",
    "code": "``` ` </code><b>",
    "turned": "a\u202egnp.exe\u202c b\u2067c",
    "escape": "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "nul": "a\0b",
    "math": "$\\frac{$ ~~x~~ &lt;b&gt;",
}
ALL = " ".join(ODD.values())
_TURNS = re.compile("[\u202a-\u202e\u2066-\u2067]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class _Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def _is_text_in(page: str) -> None:
    found = _Tags()
    found.feed(page)
    assert "script" not in [tag for tag, _ in found.tags]
    for tag, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not (attributes.get("href") or "").startswith("javascript:")
        assert not (attributes.get("src") or "data:").startswith("x"), tag
    assert not _TURNS.search(page)
    assert not _CONTROLS.search(page)


def _picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def _card(folder: Path) -> Path:
    score = Score(name=ALL, value=0.5, low=0.4, high=0.6, n=4, unit="<u>", caution=ALL)
    card = Card(
        benchmark=ALL, checkpoint=ALL, prompt_style=ALL, sampler=ALL, resolution=8, images=4, evaluator=ALL,
        evaluator_sha256="a" * 64, kilopix_version=ALL, settings={ALL: ALL}, versions={ALL: ALL},
        left_out=(LeftOut(name=ALL, because=ALL),), scores=(score,),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder / "card.json", card)
    return folder


TRAINED_ON = TrainedOn(images=3, captioner=ALL, classes=(ALL,), class_count=1, captions=(ALL[:400],))


def test_a_report(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    recipe = Recipe(preview={"prompts": (ALL,)}).model_dump(mode="json")  # pyright: ignore[reportArgumentType]
    record = {"recipe": recipe, "shards": "x", "trained_on": TRAINED_ON.model_dump(mode="json")}
    (run / "recipe.json").write_text(json.dumps(record), "utf-8")
    lines = [json.dumps({"images": n, ALL: 0.5}) + "\n" for n in (1, 2)]
    (run / "scores.jsonl").write_text("".join(lines), "utf-8")
    name = "a<b>\x1b \u202e.png"
    _picture(tmp_path / "samples" / name)
    made = {"images": [{"file": name, "prompt": ALL, "seed": 0}], "weights": "../m<b>.safetensors"}
    (tmp_path / "samples" / "samples.json").write_text(json.dumps(made | {"weights_sha256": "x"}), "utf-8")
    scores = _card(tmp_path / "scores<b>")
    _picture(scores / "a.png")
    judged = {
        "file": "a.png",
        "prompt": ALL,
        "tag": ALL,
        "correct": True,
        "found": [{"name": ALL, "color": ALL}],
    }
    (scores / "judged.jsonl").write_text(json.dumps(judged) + "\n", "utf-8")
    (tmp_path / "times.json").write_text(json.dumps({ALL: {"seconds": 1}}), "utf-8")
    out, samples = tmp_path / "report.html", tmp_path / "samples"
    report.run(run, out, [scores], samples, None, tmp_path / "times.json", samples)
    _is_text_in(out.read_text("utf-8"))


@pytest.mark.parametrize("file", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "a\0.png", 5])
def test_a_report_shows_no_file_outside_the_samples(file: object, tmp_path: Path):
    _picture(tmp_path / "secret.png")
    (tmp_path / "samples").mkdir()
    made = {"images": [{"file": file, "prompt": "x", "seed": 0}], "weights": "m"}
    (tmp_path / "samples" / "samples.json").write_text(json.dumps(made), "utf-8")
    with pytest.raises(UserError, match=r"samples\.json"):
        report._sample_groups(tmp_path / "samples")


def test_a_comparison(tmp_path: Path):
    cards = [_card(tmp_path / name) for name in ("a<script>|`", "b\x1b[31m\u202e")]
    compare.run(cards, tmp_path / "out")
    _is_text_in((tmp_path / "out" / compare.HTML).read_text("utf-8"))
    _is_text_in_markdown((tmp_path / "out" / compare.MARKDOWN).read_text("utf-8"))


def _is_text_in_markdown(text: str) -> None:
    text = re.sub(r"<!-- made_by: [^>]*-->|(?s:^---.*?\n---\n)|(?s:```\w+\n.*?\n```)", "", text)
    text = re.sub(r"(`+) ?(?:(?!\1).)*? ?\1(?!`)", "", text) if "``" in text else text
    assert not re.search(r"(?<!\\)<\w", text), "markup"
    assert not re.search(r"(?<!\\)\]\(javascript", text)
    assert not _TURNS.search(text)
    assert not _CONTROLS.search(text)
    for line in text.splitlines():
        assert not line.startswith(("| c |", "|---|\n| c")), "a text that left its cell"


@pytest.mark.parametrize("diffusers", [True, False])
def test_a_model_card(diffusers: bool, tmp_path: Path):
    from kilopix.evaluation.protocol import read_card

    generator = replace(Generator.from_pretrained("mini", "cpu"), trained_on=TRAINED_ON)
    card = read_card(_card(tmp_path / "scores") / "card.json")
    about = About(name=ALL, datasets=(ALL,))
    text = model_card(generator, about, [card], [Sample("samples/00.png", ALL, 0)], diffusers)
    _is_text_in_markdown(text)


def test_a_page_of_shards():
    import numpy as np

    from kilopix.data.shards import Sample as Row
    from kilopix.data.text_storage import StoredText

    row = Row(ALL, np.zeros(1), None, StoredText(np.zeros((2, 4)), None), (0.0, 0.0, 1.0, 1.0))
    shown = inspect.Shown(Image.new("RGB", (8, 8)), row, ALL, ALL)
    _is_text_in(inspect._picture(shown) + inspect._text(shown))


def test_the_live_page():
    from kilopix.web import data_tab, data_view, make_tab, markup

    image = Image.new("RGB", (8, 8))
    look = data_view.Look(
        ALL, ALL, 1, [data_view.Version(ALL, ALL, image, image, [image] * len(data_view.TIMES))]
    )
    view = object.__new__(data_view.DataView)
    view.model = SimpleNamespace(generator=SimpleNamespace(recipe=Recipe()))  # pyright: ignore[reportAttributeAccessIssue]
    parts = [
        data_tab.look_html(look, view),
        make_tab.history_html([{"prompt": ALL, "seed": ALL, "strip": ALL}]),
        markup.header(ALL, [ALL]),
        markup.note(ALL),
        markup.empty(ALL),
        markup.card(image, ALL, ALL, file=ALL),
        markup.facts_row([markup.Fact(ALL, ALL)]),
    ]
    _is_text_in("".join(parts))


def test_a_terminal(capsys: pytest.CaptureFixture[str]):
    say(f"[bold]{ALL}\udcff")
    printed = capsys.readouterr().out
    assert "[bold]" in printed
    assert "\\x1b[31mred" in printed
    assert not _TURNS.search(printed)
    assert not _CONTROLS.search(printed.replace("\n", ""))


def test_an_error_is_text_too(cli, tmp_path: Path):
    ended = cli("report", tmp_path / "no\x1b[31m\u202erun", tmp_path / "r.html")
    assert ended.code == 2
    assert "\\x1b[31m\\u202e" in ended.err
    assert "\x1b" not in ended.err


def test_words_from_right_to_left_keep_to_themselves():
    assert isolated("a fox") == "a fox"
    assert isolated("\u05e9\u05d5\u05e2\u05dc 5") == "\u2068\u05e9\u05d5\u05e2\u05dc 5\u2069"
    assert isolated("\u05e9\u05d5\u05e2\u05dc\u2069 x") == "\u2068\u05e9\u05d5\u05e2\u05dc\\u2069 x\u2069"
    assert visible("\u05e9\u05d5\u05e2\u05dc") == "\u05e9\u05d5\u05e2\u05dc"
    assert visible("a\tb\nc é 狐 👩‍🚀") == "a\tb\nc é 狐 👩‍🚀"


def test_what_is_plain_stays_as_it_is():
    assert in_markdown("a fox (red), dpmpp_2m: 50% #1!") == "a fox (red), dpmpp_2m: 50% #1!"
    assert in_markdown("*a* _b_ `c` <d> e|f") == r"\*a\* \_b\_ \`c\` \<d\> e\|f"
    assert in_markdown("0.55 [1] [1](x) [a]") == r"0.55 [1] \[1\](x) \[a\]"
    assert code_in_markdown("a `b` ``c``") == "``` a `b` ``c`` ```"
    assert in_html("a & b") == "a &amp; b"
