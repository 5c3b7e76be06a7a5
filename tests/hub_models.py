"""Tiny random networks of the real classes, saved as the hub's folders are."""

from pathlib import Path

import torch

WORDS = ["<pad>", "</s>", "<unk>", "a", "an", "image", "of", "the", "fox", "owl", "cup", "left", "right"]


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_t5(folder: Path, width: int = 16) -> Path:
    """A T5 encoder of width 16, or as given."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=len(WORDS), d_model=width, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A whole CLIP, of which the text half is 16 wide and has 12 positions."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
        **small,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """A BERT of width 16."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_kl(folder: Path, levels: int = 3, shift: float | None = None) -> Path:
    """An AutoencoderKL of four channels and downsampling 2 ** (levels - 1)."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.36,
        shift_factor=shift,
    ).save_pretrained(str(folder))
    return folder


def write_dc(folder: Path) -> Path:
    """An AutoencoderDC (DC-AE) of eight channels and downsampling 4."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    torch.manual_seed(0)
    AutoencoderDC(
        latent_channels=8,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.5,
    ).save_pretrained(str(folder))
    return folder
