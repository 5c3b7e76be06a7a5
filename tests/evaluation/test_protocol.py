import json

import pytest

from kilopix.evaluation.protocol import Card, Score, like, read_card, write_card
from kilopix.types import UserError

VALUES = {
    "checkpoint": "runs/mini/last",
    "checkpoint_sha256": "0" * 64,
    "recipe_sha256": "1" * 64,
    "prompts_sha256": "2" * 64,
    "seeds": [0, 1],
    "sampler": "heun",
    "steps": 25,
    "guidance": 3.5,
    "resolution": 256,
    "reference_sha256": "e" * 64,
    "images_per_prompt": 4,
    "images": 2212,
    "evaluator": "judge",
    "evaluator_sha256": "3" * 64,
    "kilopix_version": "0.1.0",
    "scores": [{"name": "overall", "value": 0.5, "low": 0.45, "high": 0.55, "n": 2212, "unit": "share"}],
}


def test_a_card_survives_its_file_in_the_order_of_its_fields(tmp_path):
    card = Card.model_validate(VALUES)
    path = tmp_path / "deep" / "card.json"
    write_card(path, card)
    assert read_card(path) == card
    assert list(json.loads(path.read_text())) == [*Card.model_fields, "sha256"]
    first = path.read_bytes()
    write_card(path, Card.model_validate(dict(reversed(VALUES.items()))))
    assert path.read_bytes() == first


def test_cards_differ_by_protocol_and_not_by_what_was_measured():
    card = Card.model_validate(VALUES)
    other = card.model_copy(
        update={"checkpoint": "b", "checkpoint_sha256": "4" * 64, "recipe_sha256": "5" * 64, "scores": ()}
    )
    assert like(card, other) == []
    changed = {
        "prompts_sha256": "4" * 64,
        "prompt_style": "long",
        "seeds": (3,),
        "sampler": "euler",
        "steps": 50,
        "guidance": 1.0,
        "resolution": 512,
        "images_per_prompt": 1,
        "images": 553,
        "reference_sha256": "9" * 64,
        "evaluator": "mask2former",
        "evaluator_sha256": "6" * 64,
        "kilopix_version": "0.2.0",
    }
    assert like(card, card.model_copy(update=changed)) == list(changed)
    for name, value in changed.items():
        assert like(card, card.model_copy(update={name: value})) == [name]


def test_cards_of_before_are_read_and_new_ones_tell_what_they_do_not_know(tmp_path):
    old = Card.model_validate(VALUES)
    assert (old.benchmark, old.evaluators, old.settings, old.left_out) == ("", (), {}, ())
    unknown = dict.fromkeys(("seeds", "sampler", "steps", "guidance", "checkpoint_sha256"))
    card = Card.model_validate({**VALUES, **unknown, "settings": {"k": 3, "fit": True, "share": 0.5}})
    write_card(tmp_path / "card.json", card)
    assert read_card(tmp_path / "card.json") == card
    assert like(old, card) == ["seeds", "sampler", "steps", "guidance", "settings"]


def test_only_the_evaluators_that_both_have_must_agree():
    def card(*evaluators: tuple[str, str], sha: str) -> Card:
        listed = [{"name": name, "fingerprint": fingerprint} for name, fingerprint in evaluators]
        return Card.model_validate({**VALUES, "evaluators": listed, "evaluator_sha256": sha * 64})

    both = card(("inception", "a"), ("clip", "b"), sha="6")
    assert like(both, card(("inception", "a"), sha="7")) == []
    assert like(card(("inception", "a"), sha="7"), both) == []
    assert like(both, card(("clip", "c"), ("inception", "a"), sha="8")) == ["evaluator clip"]
    assert like(both, Card.model_validate(VALUES)) == ["evaluator_sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"checkpoint_sha256": "abc"}, "checkpoint_sha256"),
        ({"guidence": 1.0}, "did you mean 'guidance'"),
        ({"seeds": []}, "seeds"),
        ({"guidance": "nan"}, "guidance"),
        ({"scores": [{"name": "a", "value": "inf", "n": 1}]}, r"scores.0.value"),
        ({"scores": [{"name": "a", "value": 1, "low": 0, "n": 1}]}, "both ends"),
        ({"scores": [{"name": "a", "value": 1, "low": 2, "high": 1, "n": 1}]}, "above its high end"),
    ],
)
def test_a_bad_card_names_file_and_key(tmp_path, change, message):
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**VALUES, **change}))
    with pytest.raises(UserError, match=message) as caught:
        read_card(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_card_is_named(tmp_path):
    path = tmp_path / "card.json"
    with pytest.raises(UserError, match=r"card.json: no such file"):
        read_card(path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"card.json: not a (protocol card|JSON object)"):
        read_card(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="checkpoint"):
        read_card(path)


def test_a_score_may_have_no_interval():
    assert Score(name="fid", value=3.0, n=50_000).low is None


def test_settings_that_only_one_of_two_lists_of_evaluators_needs_are_no_difference():
    def card(**settings: int) -> Card:
        evaluators = [
            {"name": name, "fingerprint": name} for name in ("clip", "clipscore")[: 1 + len(settings)]
        ]
        return Card.model_validate({**VALUES, "evaluators": evaluators, "settings": settings})

    assert like(card(), card(neighbours=3)) == []
    assert like(card(neighbours=5), card(neighbours=3)) == ["settings"]
