"""Captioners: models that say what is in a picture.

In: pictures. Out: one `Answer` a picture, the text as the model gave it, or why there is none. What is
kept of the text is decided elsewhere (`kilopix.data.cleaning`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from pydantic import Field

from kilopix.config import Config
from kilopix.faults import compiler_errors
from kilopix.pretrained.weights import (
    DtypeName,
    find_model,
    read_network,
    read_part,
    reason,
    torch_dtype,
    weights_digest,
)
from kilopix.runtime import say, seed_from
from kilopix.types import UserError

PROMPT = "Describe this image"
"""The published prompt, word for word."""

LoadPicture = Callable[[], Image.Image | None]
"""Opens one picture, when the captioner is ready for it; None if it cannot be opened."""

_WEIGHTS = "model"
_READERS = 4  # threads that open the pictures of the next batches
_WINDOW = 4  # batches whose pictures are sorted by length among themselves


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
        # With a cache of fixed length transformers compiles what decodes a token, on CUDA alone.
        can = bool(getattr(self._model, "_can_compile_fullgraph", False))
        self._static = can and torch.device(device).type == "cuda"
        self._rows = config.batch_size
        self._prompt: str = self._processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": config.prompt}]}],
            add_generation_prompt=True,
        )

    def caption(self, pictures: Sequence[LoadPicture], seed: int) -> list[Answer]:
        """Answers in batches of pictures of about one length; the next pictures are opened meanwhile."""
        answers: list[Answer] = []
        size = self._config.batch_size
        for opened in _opened_ahead(pictures, size * _WINDOW):
            here = [NOT_OPENED] * len(opened)
            batch: list[int] = []
            for i in self._longest_first(opened):
                batch.append(i)
                if len(batch) == size:
                    self._fill(here, opened, batch, seed_from(seed, len(answers) + i))
                    batch = []
            if batch:
                self._fill(here, opened, batch, seed_from(seed, len(answers) + batch[-1]))
            answers += here
        return answers

    def _longest_first(self, opened: list[Image.Image | None]) -> list[int]:
        """The numbers of the pictures that could be opened, those with the most tokens first."""
        numbers = [i for i, image in enumerate(opened) if image is not None]
        sizes = [(image.height, image.width) for image in opened if image is not None]
        count = getattr(self._processor, "_get_num_multimodal_tokens", None)
        if not numbers or count is None:
            return numbers
        tokens = dict(zip(numbers, count(image_sizes=sizes)["num_image_tokens"], strict=True))
        return sorted(numbers, key=lambda i: (-tokens[i], i))

    def _fill(
        self, answers: list[Answer], opened: list[Image.Image | None], batch: list[int], seed: int
    ) -> None:
        images = [image for i in batch if (image := opened[i]) is not None]
        for i, answer in zip(batch, self._describe(images, seed), strict=True):
            answers[i] = answer

    def _describe(self, images: list[Image.Image], seed: int) -> list[Answer]:
        """One batch; where the device's memory does not hold it, its two halves."""
        rows = self._rows if self._static else len(images)
        try:
            if len(images) <= rows:
                return self._generate(images, seed)
        except torch.OutOfMemoryError:
            if rows == 1:
                return [Answer(error="the picture does not fit into the device's memory")]
            self._rows = max(rows // 2, 1)
        except compiler_errors() as error:
            if not self._static:
                raise
            say(f"decoding cannot be compiled here, and goes on uncompiled: {reason(error)}")
            self._static = False
            return self._describe(images, seed)
        if self._static and len(images) <= self._rows:  # with fewer copies of the last picture, that is
            return self._describe(images, seed)
        half = len(images) // 2
        return self._describe(images[:half], seed) + self._describe(images[half:], seed)

    def _generate(self, images: list[Image.Image], seed: int) -> list[Answer]:
        # A compiled graph is of one batch size: the last picture comes again where there are fewer.
        again = max(self._rows - len(images), 0) if self._static else 0
        images, asked = images + images[-1:] * again, len(images)
        # A list of one image for each text: a flat list could be taken for the images of the first.
        inputs = self._processor(
            images=[[image] for image in images],
            text=[self._prompt] * len(images),
            padding=True,
            return_tensors="pt",
        ).to(self._device, dtype=self._model.dtype)
        sampling = self._config.temperature > 0
        with torch.inference_mode(), _drawn_from(seed if sampling else None, self._device):
            tokens = self._model.generate(
                **inputs,
                max_new_tokens=self._config.max_tokens,
                do_sample=sampling,
                temperature=self._config.temperature if sampling else None,
                top_p=None,
                top_k=None,
                **({"cache_implementation": "static"} if self._static else {}),
            )
        new = tokens[:asked, inputs["input_ids"].shape[1] :]
        return [Answer(text) for text in self._processor.batch_decode(new, skip_special_tokens=True)]


@contextmanager
def _drawn_from(seed: int | None, device: str) -> Iterator[None]:
    """Draw from a seed on the CPU and on one device, and leave their random states, and all others', alone.

    `generate` takes no `torch.Generator`, so the global state is borrowed. Without a seed nothing is drawn.
    """
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else [], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


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
