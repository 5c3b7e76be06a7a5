import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from chat import completion, serve, text_of
from kilopix.pretrained.vqa import (
    MplugConfig,
    ServedVqaConfig,
    VisualQA,
    VlmConfig,
    as_asked,
    first_word,
    load_vqa,
)
from kilopix.types import UserError
from tiny_models import save_instruct, save_vlm

QUESTIONS = [
    "is there a red car?",
    "is there a dog?",
    "is the cat big? Please answer yes or no.",
    "is it light?",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VisualQA:
    return load_vqa(VlmConfig(name=str(folder)))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8))


def test_answers_are_those_of_the_network_by_itself(folder: Path, vlm: VisualQA):
    """Probability and first word from one plain forward pass a question, without batch, padding or cache."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    words = processor.tokenizer.get_vocab()
    for reply, question in zip(vlm.ask(picture(0), QUESTIONS), QUESTIONS, strict=True):
        inputs = processor(text=f"<image> {as_asked(question)}", images=picture(0), return_tensors="pt")
        with torch.inference_mode():
            chances = model(**inputs).logits[0, -1].softmax(-1)
        assert reply.yes == pytest.approx(float(chances[words["yes"]] + chances[words["Yes"]]), abs=1e-5)
        assert reply.answer == processor.tokenizer.decode([int(chances.argmax())]).strip().lower()


def test_batches_do_not_matter(folder: Path, vlm: VisualQA):
    single = load_vqa(VlmConfig(name=str(folder), batch=1))
    together, alone = vlm.ask(picture(1), QUESTIONS), single.ask(picture(1), QUESTIONS)
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [reply.yes for reply in together] == pytest.approx([reply.yes for reply in alone], abs=1e-5)
    assert single.fingerprint == vlm.fingerprint
    assert vlm.fingerprint.endswith("-float32")


def test_a_model_that_sees_nothing_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be loaded as a vision-language model"):
        load_vqa(VlmConfig(name=str(save_instruct(tmp_path))))


@pytest.mark.parametrize(
    ("text", "word"), [("Yes, it is.", "yes"), ("**No**", "no"), ("", ""), ("\n yes", "yes"), ("...", "")]
)
def test_first_words(text: str, word: str):
    assert first_word(text) == word


def test_questions_ask_for_yes_or_no_once():
    assert as_asked("Is it red?") == "Is it red? Please answer yes or no."
    assert as_asked(as_asked("Is it red?")) == as_asked("Is it red?")


def test_a_server_answers():
    def answer(body):
        yes = "dog" in text_of(body)
        return completion(
            "Yes." if yes else "No.", {"Yes": math.log(0.75), " yes": math.log(0.125), "No": -2.0}
        )

    with serve(answer) as (url, requests):
        vqa = load_vqa(ServedVqaConfig(name="served", url=url))
        replies = vqa.ask(picture(0), QUESTIONS)
    assert [reply.answer for reply in replies] == ["no", "yes", "no", "no"]
    assert [reply.yes for reply in replies] == pytest.approx([0.875] * 4)
    assert len(requests) == 4
    assert vqa.fingerprint == "server-served"


def test_a_server_without_probabilities():
    with serve(lambda body: completion("yes")) as (url, _):
        (reply,) = load_vqa(ServedVqaConfig(name="served", url=url)).ask(picture(0), QUESTIONS[:1])
    assert (reply.answer, reply.yes) == ("yes", None)


def test_mplug_is_asked_as_published_if_it_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="mPLUG needs ModelScope"):
        load_vqa(MplugConfig())
    asked = []

    def pipeline(task: str, model: str, device: str):
        asked.append((task, model, device))
        return lambda inputs: {"text": "yes" if "dog" in inputs["question"] else "Yes"}

    modules = {name: ModuleType(name) for name in ("modelscope", "modelscope.pipelines", "modelscope.utils")}
    constant = ModuleType("modelscope.utils.constant")
    constant.Tasks = SimpleNamespace(visual_question_answering="vqa")  # pyright: ignore
    modules["modelscope"].__version__ = "1.2"  # pyright: ignore
    modules["modelscope.pipelines"].pipeline = pipeline  # pyright: ignore
    for name, module in {**modules, "modelscope.utils.constant": constant}.items():
        monkeypatch.setitem(sys.modules, name, module)
    vqa = load_vqa(MplugConfig(), "cuda")
    replies = vqa.ask(picture(0), QUESTIONS)
    assert [reply.answer for reply in replies] == ["Yes", "yes", "Yes", "Yes"], "the words as they come"
    assert asked == [("vqa", "damo/mplug_visual-question-answering_coco_large_en", "gpu")]
    assert "modelscope-1.2" in vqa.fingerprint
