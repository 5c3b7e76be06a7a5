"""DINOv2 and CLIP from the Hugging Face hub: features of pictures, and of prompts beside them.

In: pictures as 8-bit RGB, prompts. Out: one vector each. Pictures are resized by Pillow's antialiased bicubic
filter to 8 bits, as the networks' own preprocessing does, and normalised by the networks' own means.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from kilopix.pretrained.vision import FeatureExtractor, exactly
from kilopix.pretrained.weights import find_model, read_network, read_tokenizer, weights_digest

_WEIGHTS = "model"
_BATCH = 32
_DINO_SIDE = 224
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _DINOv2:
    """The class token after the last norm, of the whole picture at 224 x 224.

    As Stein et al. 2023 measure Frechet distance with DINOv2 (section 4 and their code).
    """

    name = "dinov2"

    def __init__(self, folder: Path, model: Any, device: str):
        self.width: int = model.config.hidden_size
        self._folder = folder
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{weights_digest(self._folder, _WEIGHTS)}-{_DINO_SIDE}"

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        parts = [torch.zeros(0, self.width, device=self._device)]
        with exactly():
            for batch in images.split(_BATCH) if len(images) else ():
                pixels = _normalised(resize_whole(batch, _DINO_SIDE), _IMAGENET).to(self._device)
                parts.append(self._model(pixel_values=pixels).last_hidden_state[:, 0].float())
        return torch.cat(parts)


class CLIP:
    """Image and text embeddings of a CLIP model, as projected into the shared space, not normalised.

    Pictures have their shorter side resized to the network's and the centre cut out. PickScore is a CLIP
    model too, of another name.
    """

    def __init__(self, name: str, folder: Path, model: Any, device: str):
        self.name = name
        self.width: int = model.config.projection_dim
        self.max_tokens: int = model.config.text_config.max_position_embeddings
        self._side: int = model.config.vision_config.image_size
        self._folder = folder
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device
        self._tokenizer = read_tokenizer(folder)

    @property
    def fingerprint(self) -> str:
        """Equal for two models exactly if they give the same embeddings."""
        return f"{self.name}-{weights_digest(self._folder, _WEIGHTS)}-{self._side}"

    @property
    def scale(self) -> float:
        """What the cosine of two embeddings is multiplied by in training, `exp(logit_scale)`."""
        return float(self._model.logit_scale.exp())

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Embeddings of any number of pictures."""
        parts = [torch.zeros(0, self.width, device=self._device)]
        with exactly():
            for batch in images.split(_BATCH) if len(images) else ():
                pixels = _normalised(resize_and_cut(batch, self._side), _CLIP).to(self._device)
                pooled = self._model.vision_model(pixel_values=pixels).pooler_output
                parts.append(self._model.visual_projection(pooled).float())
        return torch.cat(parts)

    def text_features(self, prompts: Sequence[str]) -> Float[Tensor, "B F"]:
        """Embeddings of prompts; what is beyond `max_tokens` is cut off."""
        parts = [torch.zeros(0, self.width, device=self._device)]
        with exactly():
            for start in range(0, len(prompts), _BATCH):
                tokens = self._tokenizer(
                    list(prompts[start : start + _BATCH]),
                    padding=True,
                    truncation=True,
                    max_length=self.max_tokens,
                    return_tensors="pt",
                ).to(self._device)
                pooled = self._model.text_model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).pooler_output
                parts.append(self._model.text_projection(pooled).float())
        return torch.cat(parts)

    def too_long(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than the network reads."""
        lengths = [len(ids) for ids in self._tokenizer(list(prompts), verbose=False)["input_ids"]]
        return sum(length > self.max_tokens for length in lengths)


def resize_whole(images: UInt8[Tensor, "B 3 H W"], side: int) -> UInt8[Tensor, "B 3 side side"]:
    """The whole of every picture at `side` x `side`."""
    return _resized(images, (side, side))


def resize_and_cut(images: UInt8[Tensor, "B 3 H W"], side: int) -> UInt8[Tensor, "B 3 side side"]:
    """Every picture with its shorter side at `side`, and the square in its centre."""
    height, width = images.shape[-2:]
    scaled = (side * height // width, side) if height > width else (side, side * width // height)
    top, left = (scaled[0] - side) // 2, (scaled[1] - side) // 2
    return _resized(images, scaled)[..., top : top + side, left : left + side]


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    pictures = [Image.fromarray(a) for a in rearrange(images, "b c h w -> b h w c").cpu().numpy()]
    resized = [np.asarray(p.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for p in pictures]
    return rearrange(torch.from_numpy(np.stack(resized)), "b h w c -> b c h w")


def _normalised(images: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in statistics)
    return (images.float() / 255 - mean) / std


def load_dinov2(name: str = "facebook/dinov2-large", device: str = "cpu") -> FeatureExtractor:
    """DINOv2 from the hub or a folder; ViT-L/14 if not said otherwise."""
    from transformers import Dinov2Model

    folder = find_model(name, None, "", _WEIGHTS)
    return _DINOv2(folder, _load(Dinov2Model, folder), device)


def load_clip(name: str = "openai/clip-vit-large-patch14", device: str = "cpu", label: str = "clip") -> CLIP:
    """A CLIP model from the hub or a folder; OpenAI's ViT-L/14 if not said otherwise."""
    from transformers import CLIPModel

    folder = find_model(name, None, "", _WEIGHTS)
    return CLIP(label, folder, _load(CLIPModel, folder), device)


def _load(cls: Any, folder: Path) -> Any:
    wrong = f"not the weights of a {cls.__name__}"
    return read_network(cls, folder, wrong, torch.float32, whole=True)


def cosines(a: Float[Tensor, "B F"], b: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
    """The cosine of every pair of rows."""
    return F.cosine_similarity(a.double(), b.double(), dim=1).float()
