"""Weights whose header or config says what cannot be are refused in one line, before a network is built."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from kilopix.graft import read_source
from kilopix.model_files import SHIPPED, load_model
from kilopix.models.published import published_config
from kilopix.runtime import read_json, read_tensors
from kilopix.training.checkpoint import read_weights
from kilopix.types import UserError

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def shipped():
    return read_weights(SHIPPED / "mini.safetensors")


def _set(*keys: str, to: Any) -> Change:
    def change(header: dict[str, Any]) -> None:
        at = header
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = to

    return change


def _without(key: str) -> Change:
    return lambda header: header.pop(key)


HEADERS: dict[str, tuple[Change, str]] = {
    "recipe is a list": (_set("recipe", to=[]), "recipe"),
    "recipe is null": (_set("recipe", to=None), "recipe"),
    "a hundred million blocks": (_set("recipe", "model", "depth", to=10**8), "recipe.model.depth"),
    "more blocks than tensors": (_set("recipe", "model", "depth", to=500), "layers"),
    "another depth": (_set("recipe", "model", "depth", to=5), "do not fit"),
    "blocks below nothing": (_set("recipe", "model", "depth", to=-1), "recipe.model.depth"),
    "a width that is text": (_set("recipe", "model", "width", to="x" * 10**6), "recipe.model.width"),
    "an image as wide as a country": (
        _set("recipe", "data", "image_size", to=2**40),
        "recipe.data.image_size",
    ),
    "no channels said": (_without("latent_channels"), "latent_channels"),
    "channels are null": (_set("latent_channels", to=None), "latent_channels"),
    "channels below nothing": (_set("latent_channels", to=-16), "latent_channels"),
    "channels without end": (_set("latent_channels", to=10**12), "latent_channels"),
    "text width is a list": (_set("text_width", to=[384]), "text_width"),
    "images seen below nothing": (_set("images_seen", to=-1), "images_seen"),
    "images seen beyond counting": (_set("images_seen", to=10**30), "images_seen"),
    "fingerprint is a number": (_set("text_fingerprint", to=5), "text_fingerprint"),
    "no fingerprint": (_without("autoencoder_fingerprint"), "autoencoder_fingerprint"),
    "whitening of one channel": (_set("latent_whitening", to={"mean": [0.0], "std": [1.0]}), "statistics"),
    "whitening by nothing": (_set("latent_whitening", to={"mean": [0.0] * 16, "std": [0.0] * 16}), "above 0"),
    "whitening is a list": (_set("latent_whitening", to=[1, 2]), "latent_whitening"),
    "trained on a number": (_set("trained_on", to=5), "trained_on"),
    "trained on no image": (_set("trained_on", to={"images": 0}), "trained_on.images"),
    "codec is text": (_set("codec", to="codec"), "codec"),
    "codec of huge patches": (_set("codec", to={"kind": "patch", "patch": 10**6}), "codec.patch"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_cannot_be_is_one_line_with_file_and_key(name: str, shipped, tmp_path: Path):
    tensors, header = shipped
    change, key = HEADERS[name]
    header = json.loads(json.dumps(header))
    change(header)
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, {key: json.dumps(value) for key, value in header.items()})
    begun = time.process_time()
    for read in (load_model, read_source):
        with pytest.raises(UserError, match=key) as told:
            read(path)
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 600
    assert time.process_time() - begun < 20, "a network was built"


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "9" * 5000, "{", "nan", "\ud800".encode("utf-8", "replace").decode()]
)
def test_header_values_that_are_no_json_are_one_line(text: str, shipped, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file(shipped[0], path, {"recipe": text})
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_model(path)


@pytest.mark.parametrize("dtype", ["int64", "complex64", "float8_e4m3fn"])
def test_weights_of_a_type_that_none_has_are_refused(dtype: str, shipped, tmp_path: Path):
    import torch

    tensors, header = shipped
    name = next(iter(tensors))
    path = tmp_path / "weights.safetensors"
    odd = {**tensors, name: torch.zeros(tensors[name].shape).to(getattr(torch, dtype))}
    save_file(odd, path, {key: json.dumps(value) for key, value in header.items()})
    with pytest.raises(UserError, match=name):
        load_model(path)


def _file(header: bytes, body: bytes = bytes(64), length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def _one(shape: list[Any], offsets: list[int], dtype: str = "F32") -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        _file(_one([16], [0, 64]), length=2**63),
        _file(_one([16], [0, 64]), length=10**6),
        _file(_one([1600], [0, 6400])),
        _file(_one([16], [64, 0])),
        _file(_one([16], [-4, 60])),
        _file(_one([-16], [0, 64])),
        _file(_one([2**40, 2**40], [0, 64])),
        _file(_one([0, 2**64 - 1], [0, 0]), b""),
        _file(_one([16], [0, 64], "F33")),
        _file(_one([64], [0, 48], "F6_E2M3"), bytes(48)),
        _file(b'{"a":' + b"[" * 10**5),
        _file(b'{"__metadata__": 5}', b""),
        _file(b"null"),
    ],
)
def test_a_safetensors_file_that_cannot_be_is_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.safetensors: not a whole safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "[" * 10**5, "9" * 5000, "", "\ufeff{"])
def test_a_record_that_is_no_object_is_one_line(text: str, tmp_path: Path):
    path = tmp_path / "recipe.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"recipe\.json: not "):
        read_json(path)


def test_a_record_names_the_key_that_it_lacks(tmp_path: Path):
    path = tmp_path / "recipe.json"
    path.write_text("{}", "utf-8")
    with pytest.raises(UserError, match=r"recipe\.json: no 'recipe' in it"):
        read_json(path)["recipe"]


RELEASED = {
    "num_latents": 8, "latents_dim": 32, "data_dim": 32, "num_blocks": 1, "num_processing_layers": 1,
    "path_size": 2, "num_input_channels": 4, "label_dim": 16, "data_size": 8, "compute_heads": 4,
    "concat_cond_token_to_latents": False, "use_cond_rin_block": True,
}  # fmt: skip


@pytest.mark.parametrize("value", [10**12, -1, "8", None, [], 1.5, True])
@pytest.mark.parametrize("name", [name for name, given in RELEASED.items() if not isinstance(given, bool)])
def test_a_published_argument_that_cannot_be_is_named(name: str, value: Any):
    with pytest.raises(UserError, match=name):
        published_config("CADRINTextCond", RELEASED | {name: value})
