"""Models that answer yes-or-no questions about a picture: what DPG-Bench asks.

In: a picture and questions. Out: for each an answer, and how probable `yes` was where that is known.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from pydantic import Field

from kilopix.config import Config
from kilopix.pretrained.chat_server import ChatServer, with_picture
from kilopix.pretrained.weights import (
    DtypeName,
    find_model,
    read_network,
    read_part,
    torch_dtype,
    weights_digest,
)
from kilopix.types import UserError

_WEIGHTS = "model"
_NEW_TOKENS = 8
_MPLUG = "damo/mplug_visual-question-answering_coco_large_en"


class VlmConfig(Config):
    """A vision-language model of transformers, from the Hugging Face hub or a folder.

    With `auto` it computes in bfloat16 on CUDA and in float32 elsewhere. `batch` questions about one picture
    are answered at once.
    """

    kind: Literal["vlm"] = "vlm"
    name: str
    revision: str | None = None
    dtype: DtypeName = "auto"
    batch: int = Field(default=16, ge=1)


class ServedVqaConfig(Config):
    """A model behind a server that speaks the OpenAI chat API."""

    kind: Literal["server"] = "server"
    name: str
    url: str
    concurrency: int = Field(default=8, ge=1)


class MplugConfig(Config):
    """mPLUG-large through ModelScope: what the published DPG-Bench scores were made with."""

    kind: Literal["mplug"] = "mplug"
    name: str = _MPLUG


VqaConfig = Annotated[VlmConfig | ServedVqaConfig | MplugConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class Reply:
    """What a model said, the answer that counts, and the probability of yes (None: not known)."""

    text: str
    answer: str
    yes: float | None


@runtime_checkable
class VisualQA(Protocol):
    """A model that answers questions about pictures."""

    @property
    def name(self) -> str:
        """What score cards record."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two models exactly if they answer the same, as far as that can be known."""
        ...

    def ask(self, image: Image.Image, questions: Sequence[str]) -> list[Reply]:
        """One reply a question."""
        ...


def first_word(text: str) -> str:
    """The first word of an answer in small letters: `Yes, it is.` is `yes`."""
    found = re.search(r"\w+", text.lower())
    return found.group() if found else ""


def as_asked(question: str) -> str:
    """A question as it is put to a chat model, which would else answer at length."""
    return question if "yes or no" in question.lower() else f"{question} Please answer yes or no."


class _Vlm:
    """A chat model of transformers; the probability of yes is that of its first token."""

    def __init__(self, config: VlmConfig, folder: Path, model: Any, processor: Any, device: str):
        self.name = config.name
        self._folder = folder
        self._batch = config.batch
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = processor
        self._device = device
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._yes = _first_tokens(tokenizer, "yes")

    @property
    def fingerprint(self) -> str:
        precision = str(self._model.dtype).removeprefix("torch.")
        return f"vlm-{weights_digest(self._folder, _WEIGHTS)}-{precision}"

    @torch.inference_mode()
    def ask(self, image: Image.Image, questions: Sequence[str]) -> list[Reply]:
        replies: list[Reply] = []
        for start in range(0, len(questions), self._batch):
            replies += self._some(image, questions[start : start + self._batch])
        return replies

    def _some(self, image: Image.Image, questions: Sequence[str]) -> list[Reply]:
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": as_asked(question)},
                    ],
                }
            ]
            for question in questions
        ]
        inputs = self._processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._device, self._model.dtype)
        out = self._model.generate(
            **inputs,
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        new = out.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        chances = out.logits[0].float().softmax(-1)
        yes = chances[:, self._yes].sum(-1).tolist() if self._yes else [None] * len(texts)
        return [Reply(text.strip(), first_word(text), p) for text, p in zip(texts, yes, strict=True)]


def _first_tokens(tokenizer: Any, word: str) -> list[int]:
    """The tokens that are a word by themselves, with either first letter and with or without a space."""
    forms = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    ids = {i for form in forms for i in tokenizer.encode(form, add_special_tokens=False)}
    return sorted(i for i in ids if tokenizer.decode([i]).strip().lower() == word)


class _Served:
    """A model behind a server, of whose weights nothing but the name is known."""

    def __init__(self, config: ServedVqaConfig):
        self.name = config.name
        self._server = ChatServer(config.url, config.name, concurrency=config.concurrency)

    @property
    def fingerprint(self) -> str:
        return f"server-{self.name}"

    def ask(self, image: Image.Image, questions: Sequence[str]) -> list[Reply]:
        return self._server.map(lambda question: self._one(image, question), questions)

    def _one(self, image: Image.Image, question: str) -> Reply:
        done = self._server.complete(with_picture(image, as_asked(question)), _NEW_TOKENS, first=True)
        yes = None
        if done.first is not None:
            yes = sum(math.exp(p) for token, p in done.first.items() if token.strip().lower() == "yes")
        return Reply(done.text.strip(), first_word(done.text), yes)


class _Mplug:
    """mPLUG, which is asked as the published scorer asks it: a picture, the bare question, `yes` or not."""

    def __init__(self, config: MplugConfig, pipeline: Any, release: str):
        self.name = config.name
        self._pipeline = pipeline
        self._release = release

    @property
    def fingerprint(self) -> str:
        return f"mplug-{self.name}-modelscope-{self._release}"

    def ask(self, image: Image.Image, questions: Sequence[str]) -> list[Reply]:
        texts = [str(self._pipeline({"image": image, "question": one})["text"]) for one in questions]
        return [Reply(text, text, None) for text in texts]


def load_vqa(config: VqaConfig, device: str = "cpu") -> VisualQA:
    """Load a model that answers questions, or the way to its server.

    Raises `UserError` if it cannot be had.
    """
    if isinstance(config, ServedVqaConfig):
        return _Served(config)
    if isinstance(config, MplugConfig):
        return _load_mplug(config, device)
    return _load_vlm(config, device)


def _load_vlm(config: VlmConfig, device: str) -> VisualQA:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    dtype = torch_dtype(config.dtype, device)
    folder = find_model(config.name, config.revision, "", _WEIGHTS)
    wrong = "cannot be loaded as a vision-language model"
    processor = read_part(AutoProcessor, folder, wrong)
    model = read_network(AutoModelForImageTextToText, folder, wrong, dtype)
    if not getattr(processor, "chat_template", None):
        raise UserError(f"{folder}: its processor has no chat template; choose a model for chats.")
    return _Vlm(config, folder, model, processor, device)


def _load_mplug(config: MplugConfig, device: str) -> VisualQA:
    try:
        import modelscope  # pyright: ignore[reportMissingImports]
        from modelscope.pipelines import pipeline  # pyright: ignore[reportMissingImports]
        from modelscope.utils.constant import Tasks  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"mPLUG needs ModelScope, which cannot be imported ({error}). Install modelscope with its "
            "multi-modal extra in an environment of its own, or choose another model with --model."
        ) from None
    task = Tasks.visual_question_answering
    where = "gpu" if device == "cuda" else device
    return _Mplug(config, pipeline(task, model=config.name, device=where), modelscope.__version__)
