"""Encoders of the real classes and sizes with random weights: nothing is downloaded, and the speed is theirs.

In: a folder to save them in, from which kilopix loads them as any others. Out: pieces of work to time.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from kilopix.pretrained.autoencoder import SDAutoencoderConfig, encode_images, load_autoencoder
from kilopix.pretrained.text_encoder import T5Config, encode_in_batches, load_text_encoder

FLAN_T5_XL = {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "d_kv": 64}
SMALL_T5 = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16}
SD_WIDTHS, SMALL_WIDTHS = (128, 256, 512, 512), (32, 32, 32, 32)


def save_t5(folder: Path, tiny: bool, device: str) -> Path:
    """A T5 encoder, and a tokenizer of which every word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5EncoderModel
    from transformers import T5Config as Shape

    size = SMALL_T5 if tiny else FLAN_T5_XL
    config = Shape(vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **size)
    with torch.device(device):
        model = T5EncoderModel(config).to(torch.float32 if tiny else torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<unk>"
    ).save_pretrained(folder)
    return folder


def save_sd(folder: Path, tiny: bool) -> Path:
    """An autoencoder of Stable Diffusion's form."""
    from diffusers import AutoencoderKL

    widths = SMALL_WIDTHS if tiny else SD_WIDTHS
    AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        latent_channels=4,
        norm_num_groups=32,
    ).save_pretrained(folder)
    return folder


def encoder_works(
    folder: Path, device: str, tiny: bool, tokens: int
) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Texts of `tokens` words, then images of 256 pixels, through encoders on a device: name, work, count."""
    gpu = device.startswith("cuda")
    texts = [" ".join([f"w{i}"] * tokens) for i in range(1024 if gpu else 4)]
    text = load_text_encoder(T5Config(name=str(save_t5(folder / "t5", tiny, device)), max_tokens=256), device)
    yield "texts_per_second", lambda: encode_in_batches(text, texts, 2**16 if gpu else 2048), len(texts)
    name = str(save_sd(folder / "sd", tiny))
    autoencoder = load_autoencoder(SDAutoencoderConfig(name=name), None, device)
    side = 64 if tiny else 256
    images = torch.rand(128 if gpu else 4, 3, side, side, device=device) * 2 - 1
    yield "images_per_second", lambda: encode_images(autoencoder, images), len(images)
