from pathlib import Path

import pytest

from chat import completion, serve
from kilopix.pretrained.instruct import (
    LocalInstructConfig,
    ServedInstructConfig,
    load_instruct,
    whole_sentences,
)
from kilopix.types import UserError
from tiny_models import save_instruct

MESSAGES = ["a photo of a red car", "a photo of a big dog with a tie", "a bus"]


def test_a_local_model_answers_whatever_the_batch(tmp_path: Path):
    model = load_instruct(LocalInstructConfig(name=str(save_instruct(tmp_path)), max_tokens=9))
    together = model.answer(MESSAGES)
    assert together == [model.answer([message])[0] for message in MESSAGES]
    assert all(len(text.split()) == 9 for text in together), "its answers end at the limit"
    assert len(set(together)) > 1
    assert model.fingerprint.endswith("-float32-9")


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path):
    save_instruct(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_instruct(LocalInstructConfig(name=str(tmp_path)))


def test_a_served_answer_that_was_cut_ends_with_a_sentence():
    with serve(lambda body: completion("A car. It is red. And", reason="length")) as (url, requests):
        model = load_instruct(ServedInstructConfig(name="served", url=url, max_tokens=5))
        assert model.answer(MESSAGES) == ["A car. It is red."] * 3
    assert {request["max_tokens"] for request in requests} == {5}


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It is 2.5 m. And th", "It is 2.5 m."),
        ("It is done. ", "It is done."),
        ("no stop at 2.5", "no stop at 2.5"),
        ("One! Two", "One!"),
    ],
)
def test_whole_sentences(text: str, whole: str):
    assert whole_sentences(text) == whole
