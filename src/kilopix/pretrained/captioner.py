"""Captioners: models that say what is in a picture.

In: pictures. Out: one `Answer` a picture, the text as the model gave it, or why there is none. What is
kept of the text is decided elsewhere (`kilopix.data.cleaning`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from pydantic import Field

from kilopix.config import Config
from kilopix.pretrained.weights import (
    DtypeName,
    find_model,
    read_network,
    read_part,
    torch_dtype,
    weights_digest,
)
from kilopix.runtime import seed_from
from kilopix.types import UserError

PROMPT = "Describe this image"
"""The published prompt, word for word."""

LoadPicture = Callable[[], Image.Image | None]
"""Opens one picture, when the captioner is ready for it; None if it cannot be opened."""

_WEIGHTS = "model"
_READERS = 4  # threads that open the pictures of the next batch


@dataclass(frozen=True)
class Answer:
    """What a captioner said of a picture; if it said nothing, `error` tells why."""

    text: str = ""
    error: str = ""


NOT_OPENED = Answer(error="could not be opened")


@runtime_checkable
class Captioner(Protocol):
    """Anything that describes pictures."""

    @property
    def name(self) -> str:
        """What the manifest records of the model."""
        ...

    def caption(self, pictures: Sequence[LoadPicture], seed: int) -> list[Answer]:
        """One answer a picture, in order; `seed` is used only where the captioner samples."""
        ...


class HubCaptionerConfig(Config):
    """An image-text-to-text model of transformers, from the Hugging Face hub or a folder.

    The defaults are the paper's captioner. Temperature 0 takes the likeliest token, so that a picture has
    one caption. With `auto` it computes in bfloat16 on CUDA and in float32 elsewhere.
    """

    kind: Literal["model"] = "model"
    name: str = "llava-hf/llama3-llava-next-8b-hf"
    revision: str | None = None
    prompt: str = Field(default=PROMPT, min_length=1)
    max_tokens: int = Field(default=200, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=16, ge=1)
    dtype: DtypeName = "auto"


class ServerCaptionerConfig(Config):
    """A server that speaks the OpenAI chat API with images, as vLLM, SGLang and llama.cpp do.

    `url` ends where `/chat/completions` begins, as in http://127.0.0.1:8000/v1. Without a `model` the
    server's only one is taken. The key comes from the environment variable `key_variable`, and nowhere else.
    """

    kind: Literal["server"] = "server"
    url: str
    model: str = ""
    prompt: str = Field(default=PROMPT, min_length=1)
    max_tokens: int = Field(default=200, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    concurrency: int = Field(default=64, ge=1, description="most requests at once; the rate adapts below it")
    tries: int = Field(default=6, ge=1, description="requests for one picture before it is given up")
    timeout: float = Field(default=120.0, gt=0, description="seconds for one request, as a whole")
    max_side: int = Field(default=1024, ge=32, description="larger pictures are scaled down to be sent")
    key_variable: str = "OPENAI_API_KEY"


# What has no influence on the captions, so that work may go on with other values.
ONLY_SPEED = {"batch_size", "url", "concurrency", "tries", "timeout", "key_variable"}

CaptionerConfig = Annotated[HubCaptionerConfig | ServerCaptionerConfig, Field(discriminator="kind")]


class HubCaptioner:
    """A model of transformers and its processor, which describes pictures in batches."""

    def __init__(self, config: HubCaptionerConfig, folder: Path, device: str):
        self.name = f"{config.name} {weights_digest(folder, _WEIGHTS)}"
        self._config = config
        self._device = device
        self._processor = _read_processor(folder)
        self._model = _read_model(folder, config, device)
        self._prompt: str = self._processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": config.prompt}]}],
            add_generation_prompt=True,
        )

    def caption(self, pictures: Sequence[LoadPicture], seed: int) -> list[Answer]:
        """Answers in batches; the pictures of the next batch are opened meanwhile."""
        answers: list[Answer] = []
        for opened in _opened_ahead(pictures, self._config.batch_size):
            images = [image for image in opened if image is not None]
            told = iter(self._describe(images, seed_from(seed, len(answers))) if images else [])
            answers += [NOT_OPENED if image is None else next(told) for image in opened]
        return answers

    def _describe(self, images: list[Image.Image], seed: int) -> list[Answer]:
        """One batch; where the device's memory does not hold it, its two halves."""
        try:
            return self._generate(images, seed)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                return [Answer(error="the picture does not fit into the device's memory")]
        half = len(images) // 2
        return self._describe(images[:half], seed) + self._describe(images[half:], seed)

    def _generate(self, images: list[Image.Image], seed: int) -> list[Answer]:
        # A list of one image for each text: a flat list could be taken for the images of the first.
        inputs = self._processor(
            images=[[image] for image in images],
            text=[self._prompt] * len(images),
            padding=True,
            return_tensors="pt",
        ).to(self._device, dtype=self._model.dtype)
        sampling = self._config.temperature > 0
        # generate() takes no torch.Generator, so the global state is borrowed.
        with torch.inference_mode(), torch.random.fork_rng(enabled=sampling):
            if sampling:
                torch.manual_seed(seed)
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._config.max_tokens,
                do_sample=sampling,
                temperature=self._config.temperature if sampling else None,
                top_p=None,
                top_k=None,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return [Answer(text) for text in self._processor.batch_decode(new, skip_special_tokens=True)]


def _opened_ahead(pictures: Sequence[LoadPicture], size: int) -> Iterator[list[Image.Image | None]]:
    """Batches of opened pictures, each opened while the one before is in use."""
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: list[Future[Image.Image | None]] = []
        for start in range(0, len(pictures), size):
            ahead = [pool.submit(load) for load in pictures[start : start + size]]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = ahead
        if waiting:
            yield [future.result() for future in waiting]


def _read_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    processor = read_part(AutoProcessor, folder, "its processor cannot be read")
    if not hasattr(processor, "image_processor") or not getattr(processor, "chat_template", None):
        raise UserError(
            f"{folder}: has no processor for images with a chat template, so it cannot be asked "
            "about a picture."
        )
    processor.tokenizer.padding_side = "left"  # so that every answer begins at the same place
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def _read_model(folder: Path, config: HubCaptionerConfig, device: str) -> Any:
    from transformers import AutoModelForImageTextToText

    dtype = torch_dtype(config.dtype, device)
    wrong = "no image-text-to-text model of transformers"
    return (
        read_network(AutoModelForImageTextToText, folder, wrong, dtype)
        .to(device)
        .eval()
        .requires_grad_(False)
    )


def load_captioner(config: CaptionerConfig, device: str = "cpu") -> Captioner:
    """Load a model, or reach a server; raises `UserError` if it cannot be had."""
    if isinstance(config, HubCaptionerConfig):
        return HubCaptioner(config, find_model(config.name, config.revision, "", _WEIGHTS), device)
    from kilopix.pretrained.captioner_server import ServerCaptioner

    return ServerCaptioner(config)
