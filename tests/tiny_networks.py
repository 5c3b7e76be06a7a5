"""Small random networks of the real classes, saved as their published files and folders are."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

WORDS = ["a", "red", "blue", "fox", "car", "on", "snow", "photo", "of"]


def inception_tensors() -> dict[str, torch.Tensor]:
    """Random weights under the published names, with statistics as a trained network has."""
    from kilopix.pretrained.inception import FIDInception

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in FIDInception().state_dict().items()}
    tensors = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        generator = torch.Generator().manual_seed(number)
        draw = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            draw = torch.zeros((), dtype=torch.long)
        elif name.endswith(("running_var", "bn.weight")):
            draw = 1 + 0.2 * draw.tanh()
        elif name.endswith("conv.weight"):
            draw *= (2 / draw[0].numel()) ** 0.5
        else:
            draw *= 0.1
        tensors[name] = draw
    return tensors


def save_inception(path: Path) -> Path:
    save_file(inception_tensors(), path)
    return path


def save_dinov2(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def save_clip(folder: Path, seed: int = 2, width: int = 24) -> Path:
    """A CLIP with a tokenizer of whole words and at most eight tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<start>", "<end>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)).save_pretrained(
        folder
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def save_linear_aesthetic(path: Path, width: int = 24) -> Path:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(1, width, generator=generator)
    save_file({"weight": weight, "bias": torch.tensor([5.0])}, path)
    return path


def draw_pictures(folder: Path, count: int, seed: int, size: tuple[int, int] = (40, 40)) -> list[str]:
    """Pictures of soft random blots, all different."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:05d}.png" for i in range(count)]
    for name in names:
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return names
