"""CLIP as a classifier of colours: which colour an object has, cut out of its picture.

In: cut-outs as PIL images, and what the object is called. Out: a colour for each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from kilopix.config import Config
from kilopix.pretrained.weights import find_model, read_network, read_part, weights_digest
from kilopix.types import UserError

_WEIGHTS = "model"
_BATCH = 16
# GenEval's three, arXiv 2310.11513; {color} and {noun} are filled in.
TEMPLATES = (
    "a photo of a {color} {noun}",
    "a photo of a {color}-colored {noun}",
    "a photo of a {color} object",
)
GREY = (0x99, 0x99, 0x99)
# CLIP's own mean and deviation of each channel.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

Background = Literal["grey", "original"]


class ColorConfig(Config):
    """CLIP of transformers, from the Hugging Face hub or a folder, and how objects are cut out."""

    name: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    background: Background = "grey"
    crop: bool = True


@runtime_checkable
class ColorClassifier(Protocol):
    """A frozen network that names the colour of an object."""

    @property
    def name(self) -> str:
        """What score cards record."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two classifiers exactly if they give the same colours: weights, colours, templates."""
        ...

    def colors(self, cutouts: Sequence[Image.Image], noun: str) -> list[str]:
        """The colour of each object, all of which are called `noun`."""
        ...


def cut_out(
    image: Image.Image,
    mask: Bool[Tensor, "H W"],
    box: tuple[float, float, float, float],
    background: Background = "grey",
    crop: bool = True,
) -> Image.Image:
    """The object inside a mask on grey #999 (or as it stands), cut to its box (or in the whole picture)."""
    assert image.size == (mask.shape[1], mask.shape[0]), "a mask covers its whole picture"
    if background == "grey":
        blank = Image.new("RGB", image.size, GREY)
        image = Image.composite(
            image, blank, Image.fromarray(np.where(mask.numpy(), 255, 0).astype(np.uint8))
        )
    x1, y1, x2, y2 = (round(side) for side in box)
    return image.crop((x1, y1, x2, y2)) if crop else image


class _ClipColors:
    """CLIP, whose text features of the templates are averaged for each colour."""

    def __init__(
        self, name: str, folder: Path, model: Any, tokenizer: Any, colors: Sequence[str], device: str
    ):
        self.name = name
        self._folder = folder
        self._colors = list(colors)
        self._device = device
        self._tokenizer = tokenizer
        self._model = model.to(device).eval().requires_grad_(False)
        self._side: int = model.config.vision_config.image_size
        self._longest: int = model.config.text_config.max_position_embeddings
        self._texts: dict[str, Tensor] = {}

    @property
    def fingerprint(self) -> str:
        return f"clip-{weights_digest(self._folder, _WEIGHTS)}-{'-'.join(self._colors)}"

    @torch.inference_mode()
    def colors(self, cutouts: Sequence[Image.Image], noun: str) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(cutouts), _BATCH):
            pixels = torch.stack([self._prepare(one) for one in cutouts[start : start + _BATCH]])
            pooled = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
            features = F.normalize(self._model.visual_projection(pooled), dim=-1)
            best = (features @ self._of(noun).T).argmax(-1)
            answers += [self._colors[i] for i in best.tolist()]
        return answers

    def _of(self, noun: str) -> Float[Tensor, "K F"]:
        """One feature a colour: the mean over the templates, of length 1."""
        if noun not in self._texts:
            rows = [
                self._encode([t.format(color=color, noun=noun) for t in TEMPLATES]) for color in self._colors
            ]
            self._texts[noun] = F.normalize(torch.stack([row.mean(0) for row in rows]), dim=-1)
        return self._texts[noun]

    def _encode(self, texts: list[str]) -> Float[Tensor, "B F"]:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        out = self._model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(self._model.text_projection(out.pooler_output), dim=-1)

    def _prepare(self, image: Image.Image) -> Float[Tensor, "3 R R"]:
        """The shorter side resized to the network's, bicubic; the middle cut out; normalised."""
        image = image.convert("RGB")
        width, height = (int(self._side * length / min(image.size)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - self._side) / 2), round((height - self._side) / 2)
        image = image.crop((left, top, left + self._side, top + self._side))
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (values - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]


def load_color_classifier(config: ColorConfig, colors: Sequence[str], device: str = "cpu") -> ColorClassifier:
    """Load CLIP and its tokenizer, frozen; raises `UserError` if its files cannot be had."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = find_model(config.name, config.revision, "", _WEIGHTS)
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{folder}: holds neither tokenizer.json nor vocab.json; put CLIP's tokenizer there.")
    model = read_network(CLIPModel, folder, "its CLIP cannot be read", torch.float32)
    tokenizer = read_part(CLIPTokenizer, folder, "its tokenizer cannot be read")
    return _ClipColors(config.name, folder, model, tokenizer, colors, device)
