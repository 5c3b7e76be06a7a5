import pytest

from kilopix.evaluation.comparison import NOT_KEPT, OTHER_PROMPTS, Entry, differs, rows, unlike
from kilopix.evaluation.protocol import Card
from kilopix.evaluation.published import Published, read_published
from kilopix.evaluation.statistics import Interval, observe, paired_bootstrap

VALUES = {
    "checkpoint": "a",
    "resolution": 64,
    "images": 40,
    "evaluator": "judge",
    "evaluator_sha256": "3" * 64,
    "kilopix_version": "0.1.0",
}
PROMPTS = [f"prompt {i}" for i in range(40)]


def card(*scores: tuple[str, float], **changes: object) -> Card:
    listed = [{"name": name, "value": value, "n": 40} for name, value in scores]
    return Card.model_validate({**VALUES, "scores": listed, **changes})


def entry(label: str, better: float, prompts: list[str] = PROMPTS) -> Entry:
    values = [better + (i % 5) for i in range(len(prompts))]
    return Entry(label, card(("x", better + 2)), {"x": observe(values, prompts)})


def test_a_difference_is_found_where_there_is_one():
    first, same, better = entry("a", 0.0), entry("b", 0.0), entry("c", 0.5)
    (row,) = rows([first, same, better])
    assert [score.value for score in row.scores if score] == [2.0, 2.0, 2.5]
    none, some = row.differences
    assert isinstance(none, Interval)
    assert isinstance(some, Interval)
    assert (none.value, differs(none)) == (0.0, False)
    assert some.value == pytest.approx(0.5)
    assert differs(some)
    assert some == paired_bootstrap(better.observations["x"], first.observations["x"])


def test_what_cannot_be_tested_says_why():
    first = entry("a", 0.0)
    bare = Entry("b", card(("x", 2.0), ("y", 1.0)))
    other = entry("c", 0.0, [f"other {i}" for i in range(40)])
    x, y = rows([first, bare, other])
    assert x.differences == (NOT_KEPT, OTHER_PROMPTS)
    assert y.scores[0] is None
    assert y.differences == (None, None)


def test_unlike_protocols_are_listed_with_all_values():
    a = Entry("a", card(sampler="heun", steps=25))
    b = Entry("b", card(sampler="heun", steps=50, checkpoint="b"))
    c = Entry("c", card(sampler="heun", steps=25, guidance=3.0))
    assert unlike([a, a]) == []
    found = {one.name: one.values for one in unlike([a, b, c])}
    assert found == {"steps": ("25", "50", "25"), "guidance": ("unknown", "unknown", "3.0")}
    clip = [{"name": "clip", "fingerprint": f"clip-{i}"} for i in range(2)]
    with_clip = [Entry(str(i), card(evaluators=[clip[i]])) for i in range(2)]
    (one,) = unlike(with_clip)
    assert (one.name, one.values) == ("evaluator clip", ("clip-0", "clip-1"))


def test_every_published_number_has_a_source_and_a_metric():
    facts = read_published()
    assert {model.name for model in facts.models} >= {
        "SD 1.5",
        "SD 2.1",
        "SDXL",
        "PixArt-alpha",
        "SD3-medium",
        "FLUX.1-dev",
    }
    scores = [score for model in facts.models for score in model.scores]
    assert len(scores) > 30
    for score in scores:
        assert score.source in facts.sources
        assert score.metric == "DPG-Bench" or score.metric.startswith("GenEval, ")
        assert 0 <= score.value <= (100 if score.metric == "DPG-Bench" else 1)
    tasks = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    for model in facts.models:  # the mean of the six tasks is the overall score of the same source
        of = {(s.metric, s.source): s.value for s in model.scores}
        for (metric, source), value in of.items():
            parts = [of.get((f"GenEval, {task}", source)) for task in tasks]
            if metric == "GenEval, mean of tasks" and None not in parts:
                assert value == pytest.approx(sum(p for p in parts if p is not None) / 6, abs=0.0101)


def test_a_source_that_is_not_given_is_refused():
    facts = read_published().model_dump(mode="json")
    facts["models"][0]["scores"][0]["source"] = "hearsay"
    with pytest.raises(ValueError, match="hearsay"):
        Published.model_validate(facts)
