"""Models of the hub whose files say what cannot be: one line, before memory is taken; and no code is run."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import kilopix
from hub_models import write_kl, write_t5
from kilopix.pretrained.autoencoder import DiffusersAutoencoderConfig, load_autoencoder
from kilopix.pretrained.text_encoder import T5Config, load_text_encoder
from kilopix.pretrained.weights import read_network, weight_files
from kilopix.types import UserError

SOURCES = sorted(Path(kilopix.__file__).parent.rglob("*.py"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {"t5": write_t5(root / "t5"), "kl": write_kl(root / "kl")}


def _load(kind: str, folder: Path) -> object:
    if kind == "t5":
        return load_text_encoder(T5Config(name=str(folder)))
    config = DiffusersAutoencoderConfig(name=str(folder), subfolder="", downsampling=4)
    return load_autoencoder(config, folder, "cpu")


def _copy(folder: Path, out: Path) -> Path:
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("t5", "num_layers", 10**8),
        ("t5", "num_layers", -1),
        ("t5", "d_model", 10**9),
        ("t5", "vocab_size", 10**14),
        ("t5", "relative_attention_num_buckets", 10**9),
        ("t5", "d_ff", "x"),
        ("t5", "num_heads", None),
        ("kl", "layers_per_block", 10**8),
        ("kl", "block_out_channels", [10**7, 10**7]),
        ("kl", "latent_channels", []),
        ("kl", "scaling_factor", "x"),
        ("kl", "scaling_factor", -1),
        ("kl", "_class_name", {}),
    ],
)
def test_a_config_that_cannot_be_is_one_line_that_names_the_folder(
    kind: str, key: str, value: Any, folders: dict[str, Path], tmp_path: Path
):
    folder = _copy(folders[kind], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {key: value}), "utf-8")
    with pytest.raises(UserError) as told:
        _load(kind, folder)
    assert str(folder) in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"null", b"[" * 10**5, b"\xff\xfe"])
@pytest.mark.parametrize(("kind", "ending"), [("t5", "json"), ("t5", "safetensors"), ("kl", "json")])
def test_a_file_that_is_something_else_is_one_line(
    kind: str, ending: str, content: bytes, folders: dict[str, Path], tmp_path: Path
):
    folder = _copy(folders[kind], tmp_path / "model")
    name = "config.json" if ending == "json" else "model.safetensors"
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=str(folder)):
        _load(kind, folder)


def test_code_that_comes_with_a_model_is_not_run(folders: dict[str, Path], tmp_path: Path):
    from transformers import AutoModel

    folder = _copy(folders["t5"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    odd = {"model_type": "odd", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | odd), "utf-8")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n", "utf-8")
    import torch

    with pytest.raises(UserError, match=str(folder)):
        read_network(AutoModel, folder, "cannot be read", torch.float32)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 5, "a/b.safetensors"])
def test_an_index_names_files_of_its_own_folder(name: object, tmp_path: Path):
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(UserError, match="weight_map"):
        weight_files(tmp_path, "model")


def _calls(name: str) -> list[tuple[str, ast.Call]]:
    """All calls of a method or function of this name in the package, with their files."""
    found = []
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute | ast.Name):
                said = called.attr if isinstance(called, ast.Attribute) else called.id
                if said == name:
                    found.append((source.name, node))
    return found


def _said(call: ast.Call) -> dict[str | None, object]:
    return {word.arg: getattr(word.value, "value", None) for word in call.keywords}


def test_no_call_trusts_the_code_of_a_folder():
    trusted = [name for source in SOURCES for name in _trusting(source)]
    assert trusted == []
    ours = {"Generator"}  # which reads safetensors alone
    for file, call in _calls("from_pretrained"):
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        if (isinstance(owner, ast.Name) and owner.id in ours) or file == "pipeline.py":
            continue
        said = _said(call)
        # diffusers has classes by name of its own, and runs no code of a folder for them.
        assert said.get("trust_remote_code") is False or file == "autoencoder.py", file
        assert said.get("local_files_only") is True, file


def _trusting(source: Path) -> list[str]:
    tree = ast.parse(source.read_text("utf-8"))
    return [
        source.name
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and getattr(node.value, "value", None) is not False
    ]


def test_nothing_is_unpickled():
    loads = [(file, call) for file, call in _calls("load") if isinstance(call.func, ast.Attribute)]
    for file, call in loads:
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if owner == "torch":
            assert _said(call).get("weights_only") is True, file
        if owner in ("np", "numpy"):
            assert _said(call).get("allow_pickle") is False, file
        assert owner not in ("pickle", "joblib", "dill", "yaml", "marshal", "cPickle"), file
    for name in ("Unpickler", "unsafe_load", "eval", "exec", "read_pickle"):
        named = [(file, call) for file, call in _calls(name) if call.args]
        assert named == [], name
