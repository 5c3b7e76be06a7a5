"""The captioner of transformers, on small random models of the real classes in the hub's format."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kilopix.errors import UserError
from kilopix.pretrained.captioner import NOT_OPENED, Answer, HubCaptioner, HubCaptionerConfig, load_captioner

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]
PLAIN = ["user", "assistant", "Describe", "this", "image", "a", "fox", "on", "the", "snow", "is", "red", "."]
WORDS = SPECIAL + PLAIN + [f"word{i}" for i in range(20)]
TEMPLATE = (
    "user {% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def small_parts():
    from transformers import CLIPVisionConfig, LlamaConfig

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    return vision, text


def save_llava_next(folder: Path) -> None:
    """A LLaVA-NeXT, the class of the paper's captioner."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    vision, text = small_parts()
    grid = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=3, image_grid_pinpoints=grid
    )
    torch.manual_seed(0)
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    LlavaNextProcessor(
        images, tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


def save_llava(folder: Path) -> None:
    """A LLaVA, which sees one picture at one size."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision, text = small_parts()
    torch.manual_seed(1)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        images, tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module", params=[save_llava_next, save_llava], ids=["llava_next", "llava"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captioner")
    request.param(path)
    return path


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(40, 60), (60, 40), (50, 50), (30, 90), (28, 28), (64, 33), (45, 45)]
    return [Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def loads(images: list[Image.Image]):
    return [partial(lambda image: image, image) for image in images]


def captioner(folder: Path, **changes: object) -> HubCaptioner:
    settings = {"name": str(folder), "max_tokens": 12} | changes
    loaded = load_captioner(HubCaptionerConfig.model_validate(settings))
    assert isinstance(loaded, HubCaptioner)
    return loaded


def test_a_batch_says_what_each_picture_gets_alone(folder: Path):
    alone = [captioner(folder, batch_size=1).caption([load], 0)[0] for load in loads(pictures())]
    assert len({answer.text for answer in alone}) > 1, "the model says the same of every picture"
    for size in (3, 16):
        assert captioner(folder, batch_size=size).caption(loads(pictures()), 0) == alone


def test_answers_leave_out_the_question_and_keep_to_the_limit(folder: Path):
    for answer in captioner(folder, max_tokens=5).caption(loads(pictures()), 0):
        assert answer.error == ""
        assert "Describe" not in answer.text.split()[:1]
        assert len(answer.text.split()) <= 5


def test_the_prompt_is_the_published_one_word_for_word(folder: Path):
    assert captioner(folder)._prompt == "user <image> Describe this image assistant "


def test_a_picture_that_cannot_be_opened_keeps_its_place(folder: Path):
    some = pictures()[:3]
    whole = captioner(folder, batch_size=2).caption(loads(some), 0)
    holes = [lambda: None, *loads(some), lambda: None]
    assert captioner(folder, batch_size=2).caption(holes, 0) == [NOT_OPENED, *whole, NOT_OPENED]


def test_sampling_repeats_with_its_seed_and_leaves_the_random_state_alone(folder: Path):
    warm = captioner(folder, temperature=1.0)
    state = torch.get_rng_state()
    first = warm.caption(loads(pictures()), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert warm.caption(loads(pictures()), 1) == first
    assert warm.caption(loads(pictures()), 2) != first


def test_sampling_touches_no_other_device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def touched(*_: object) -> None:
        raise AssertionError("a GPU was touched that the captioner does not run on")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_rng_state", touched)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    assert captioner(folder, temperature=1.0).caption(loads(pictures()[:2]), 1)


def test_a_cache_of_fixed_length_gives_the_same_captions(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = captioner(folder, batch_size=4)
    assert not model._static, "on a CPU the cache grows"
    grown = model.caption(loads(pictures()), 0)
    generate, seen = model._model.generate, []

    def watch(**inputs: object):
        seen.append((len(inputs["input_ids"]), inputs.get("cache_implementation")))  # pyright: ignore
        return generate(**inputs)

    monkeypatch.setattr(model._model, "generate", watch)
    model._static = True
    assert model.caption(loads(pictures()), 0) == grown
    assert seen == [(4, "static"), (4, "static")], "one batch size, so that one graph serves all"


def test_decoding_that_cannot_be_compiled_goes_on_uncompiled(folder: Path, monkeypatch, capsys):
    model = captioner(folder, batch_size=4)
    grown = model.caption(loads(pictures()), 0)
    generate = model._model.generate

    def no_compiler(**inputs: object):
        if inputs.get("cache_implementation"):
            raise torch._dynamo.exc.InternalTorchDynamoError("no C compiler was found")
        return generate(**inputs)

    monkeypatch.setattr(model._model, "generate", no_compiler)
    model._static = True
    assert model.caption(loads(pictures()), 0) == grown
    assert capsys.readouterr().out.count("cannot be compiled here") == 1


def test_pictures_of_like_length_lie_in_one_batch(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = captioner(folder, batch_size=2)
    lengths: list[list[int]] = []
    generate = model._model.generate

    def watch(**inputs: object):
        lengths.append(inputs["attention_mask"].sum(1).tolist())  # pyright: ignore
        return generate(**inputs)

    monkeypatch.setattr(model._model, "generate", watch)
    model.caption(loads(pictures()), 0)
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize("static", [False, True])
def test_a_batch_that_does_not_fit_is_halved(static: bool, folder: Path, monkeypatch: pytest.MonkeyPatch):
    model = captioner(folder, batch_size=7)
    whole = model.caption(loads(pictures()), 0)
    model._static = static
    generate = model._model.generate
    sizes: list[int] = []

    def small(**inputs: object):
        rows = len(inputs["input_ids"])  # pyright: ignore
        sizes.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    monkeypatch.setattr(model._model, "generate", small)
    assert model.caption(loads(pictures()), 0) == whole
    assert max(sizes) == 7

    def never(**inputs: object):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model._model, "generate", never)
    assert (
        model.caption(loads(pictures()[:2]), 0)
        == [Answer(error="the picture does not fit into the device's memory")] * 2
    )


def test_folders_that_are_no_captioner_say_why(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="nowhere"):
        load_captioner(HubCaptionerConfig(name=str(tmp_path / "nowhere")))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="processor"):
        load_captioner(HubCaptionerConfig(name=str(tmp_path)))
