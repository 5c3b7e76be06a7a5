"""Instruct models that lengthen prompts.

In: messages. Out: one answer each, without randomness.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field

from kilopix.config import Config
from kilopix.pretrained.chat_server import ChatServer
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


class LocalInstructConfig(Config):
    """A causal language model of transformers with a chat template, from the hub or a folder."""

    kind: Literal["local"] = "local"
    name: str
    revision: str | None = None
    dtype: DtypeName = "auto"
    max_tokens: int = Field(default=200, ge=1)


class ServedInstructConfig(Config):
    """A model behind a server that speaks the OpenAI chat API."""

    kind: Literal["server"] = "server"
    name: str
    url: str
    max_tokens: int = Field(default=200, ge=1)
    concurrency: int = Field(default=8, ge=1)


InstructConfig = Annotated[LocalInstructConfig | ServedInstructConfig, Field(discriminator="kind")]


@runtime_checkable
class InstructModel(Protocol):
    """A language model that does as it is told."""

    @property
    def name(self) -> str:
        """What score cards record."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two models exactly if they answer the same, as far as that can be known."""
        ...

    def answer(self, messages: Sequence[str]) -> list[str]:
        """One answer a message; one that hits the limit of tokens ends with its last full stop."""
        ...


class _Local:
    def __init__(self, config: LocalInstructConfig, folder: Path, model: Any, tokenizer: Any, device: str):
        self.name = config.name
        self._folder = folder
        self._max_tokens = config.max_tokens
        self._device = device
        self._model = model.to(device).eval().requires_grad_(False)
        self._tokenizer = tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def fingerprint(self) -> str:
        precision = str(self._model.dtype).removeprefix("torch.")
        return f"instruct-{weights_digest(self._folder, _WEIGHTS)}-{precision}-{self._max_tokens}"

    @torch.inference_mode()
    def answer(self, messages: Sequence[str]) -> list[str]:
        chats = [[{"role": "user", "content": message}] for message in messages]
        inputs = self._tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._device)
        pad = self._tokenizer.pad_token_id
        out = self._model.generate(
            **inputs, max_new_tokens=self._max_tokens, do_sample=False, pad_token_id=pad
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        cut = [len(ids) >= self._max_tokens and not ends & set(ids.tolist()) for ids in new]
        return [
            whole_sentences(text) if short else text.strip() for text, short in zip(texts, cut, strict=True)
        ]


class _Served:
    def __init__(self, config: ServedInstructConfig):
        self.name = config.name
        self._server = ChatServer(config.url, config.name, concurrency=config.concurrency)
        self._max_tokens = config.max_tokens

    @property
    def fingerprint(self) -> str:
        return f"server-{self.name}-{self._max_tokens}"

    def answer(self, messages: Sequence[str]) -> list[str]:
        done = self._server.map(lambda message: self._server.complete(message, self._max_tokens), messages)
        return [one.text.strip() if one.finished else whole_sentences(one.text) for one in done]


def whole_sentences(text: str) -> str:
    """The text up to its last full stop, or all of it where it has none."""
    text = text.strip()
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", ".\n"))
    if text.endswith((".", "!", "?")) or end < 0:
        return text
    return text[: end + 1]


def load_instruct(config: InstructConfig, device: str = "cpu") -> InstructModel:
    """Load an instruct model, or the way to its server; raises `UserError` if it can't be had."""
    if isinstance(config, ServedInstructConfig):
        return _Served(config)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch_dtype(config.dtype, device)
    folder = find_model(config.name, config.revision, "", _WEIGHTS)
    wrong = "cannot be loaded as an instruct model"
    tokenizer = read_part(AutoTokenizer, folder, wrong)
    model = read_network(AutoModelForCausalLM, folder, wrong, dtype)
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: its tokenizer has no chat template; choose an instruct model.")
    return _Local(config, folder, model, tokenizer, device)
