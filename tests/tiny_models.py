"""Small random models of the real classes, saved as the Hugging Face hub has them."""

import json
from pathlib import Path

import torch

from kilopix.evaluation.geneval import COLORS
from kilopix.evaluation.geneval_prompts import OBJECTS

WORDS = sorted(
    {
        *(
            "a",
            "an",
            "photo",
            "of",
            "-colored",
            "object",
            "is",
            "there",
            "the",
            "please",
            "answer",
            "yes",
            "no",
        ),
        *("or", "does", "this", "figure", "show", "?", ".", '"', "big", "with", "in", "light"),
        *COLORS,
        *(word for name in OBJECTS for word in name.split()),
    }
)
CHAT = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def save_detector(folder: Path, seed: int = 0) -> Path:
    """A Mask2Former on a Swin of 40 thousand weights, with COCO's class names as transformers has them."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=stages
    )
    names = dict(enumerate(OBJECTS))
    config = Mask2FormerConfig(
        backbone_config=swin,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    torch.manual_seed(seed)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # so that some classes stand out from the others, as trained ones do
        model.class_predictor.weight.mul_(60)
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 64, "longest_edge": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(size), encoding="utf-8")
    return folder


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP with a tokenizer of its own that knows a few words and all letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    vocabulary, merges = _byte_pairs([word for word in WORDS if word.isalpha()])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8"
    )
    end = vocabulary["<|endoftext|>"]
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=77,
        eos_token_id=end,
        bos_token_id=end - 1,
        pad_token_id=end,
        projection_dim=16,
        **shape,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=16, **shape)
    torch.manual_seed(seed)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    ).save_pretrained(folder)
    return folder


def _byte_pairs(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary that holds letters and words, and the merges that build them from the left."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = parts[0], parts[1]
            if pair not in merges:
                merges.append(pair)
            if (joined := "".join(pair)) not in tokens:
                tokens.append(joined)
            parts = [joined, *parts[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def _word_tokenizer():
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", "<image>", *WORDS, "Yes", "No"])
    }
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\s+"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def save_vlm(folder: Path, seed: int = 0) -> Path:
    """A LLaVA of a CLIP tower and a Llama, with its processor."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _word_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **shape),
        text_config=LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, **shape),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # so that it says yes or no, and sometimes something else
        for token, row in enumerate(model.lm_head.weight):
            row.mul_(200 if tokenizer.decode([token]) in ("yes", "no", "Yes", "photo") else 1)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def save_instruct(folder: Path, seed: int = 0) -> Path:
    """A Llama with a tokenizer of whole words and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _word_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
