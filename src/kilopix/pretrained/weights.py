"""Where the weights of third-party networks come from.

In: the name of a Hugging Face repository, or a folder. Out: a local folder, its safetensors files, and a
digest that identifies them. Pickles are never read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import current_process
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kilopix.english import counted
from kilopix.faults import first_line
from kilopix.runtime import SPEAKERS, name_some, read_json, read_tensors, say, sha256_of_file, sha256_of_text
from kilopix.types import UserError

DtypeName = Literal["auto", "float32", "bfloat16"]
_DIGEST_LENGTH = 16
_LARGE = 3e8
"""Bytes of weights that take so long to load that one is told."""
_MOST_LAYERS = 1024
_SMALL = 2**24


def torch_dtype(name: DtypeName, device: str) -> torch.dtype:
    """The type that a model computes in; `auto` is bfloat16 on CUDA and float32 elsewhere."""
    automatic = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return {"auto": automatic, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def find_model(name: str, revision: str | None, subfolder: str, stem: str) -> Path:
    """The local folder of a model, downloaded if `name` is no folder; `stem` is the weights' file name.

    Raises `UserError` if there is no such folder or repository, or if it holds no safetensors weights.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, revision, subfolder)
    folder = folder / subfolder
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no config.json, so it is not a model's folder.")
    _check_depths(read_json(folder / "config.json"), folder / "config.json")
    size = sum(file.stat().st_size for file in weight_files(folder, stem))
    if size >= _LARGE and current_process().name in SPEAKERS:
        say(f"loading {name}{f', {subfolder}' if subfolder else ''} ({size / 1e9:.1f} GB) ...")
    return folder


def _check_depths(values: object, path: Path, key: str = "") -> None:
    """Refuse a config that asks for more layers than any network has: they would be built before its weights
    are seen not to fit."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_depths(value, path, name)
    elif isinstance(values, list):
        for value in values:
            _check_depths(value, path, key)
    elif isinstance(values, int) and not 0 <= values <= _MOST_LAYERS and ("layers" in key or "depth" in key):
        raise UserError(f"{path}: {key} is {values:.3g}; a network has 1 to {_MOST_LAYERS}.")


def _download(name: str, revision: str | None, subfolder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    prefix = f"{subfolder}/" if subfolder else ""
    if current_process().name in SPEAKERS:
        say(f"looking for {name} on the Hugging Face hub, or in its cache here ...")
    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=[
                f"{prefix}{ending}" for ending in ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
            ],
            ignore_patterns=["*.fp16.*", "*.non_ema.*"],
        )
    except (OSError, HFValidationError) as error:
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"model {name!r}: it is no folder here, and the Hugging Face hub gave no copy of it "
            f"({first_line(error)}). Give the folder that holds it, or run "
            f"`hf download {name}{at}` where there is a network."
        ) from None
    return Path(path)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a model, one or several shards; raises `UserError` if any is missing."""
    single = folder / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        raise UserError(
            f"{folder}: holds no {stem}.safetensors. Only safetensors are read; "
            "load the model once elsewhere and write it with its save_pretrained."
        )
    names = read_json(index)["weight_map"]
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in names.values()
    ):
        raise UserError(f"{index}: its weight_map does not name files of this folder.")
    shards = [folder / shard for shard in sorted(set(names.values()))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{shard}: is missing, though {index.name} names it; download the model again.")
    return shards


def weights_digest(folder: Path, stem: str) -> str:
    """Short identity of a model's weights: the start of the SHA-256 of its file, or of its shards' hashes."""
    hashes = [file_digest(path) for path in weight_files(folder, stem)]
    return hashes[0] if len(hashes) == 1 else sha256_of_text(json.dumps(hashes))[:_DIGEST_LENGTH]


@cache
def file_digest(path: Path) -> str:
    """Short identity of a weights file, the start of its SHA-256; read once in a process."""
    # The hub's cache names a large file by its SHA-256, which saves reading tens of gigabytes again.
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name[:_DIGEST_LENGTH]
    return sha256_of_file(path)[:_DIGEST_LENGTH]


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file; a missing or damaged one is a `UserError` that names it."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights.")
    return read_tensors(path)[0]


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; raises `UserError` if it holds none."""
    from transformers import AutoTokenizer

    # Without either, transformers makes up a tokenizer that knows no word.
    if not any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model")):
        raise UserError(f"{folder}: holds neither tokenizer.json nor spiece.model; put the tokenizer there.")
    return read_part(AutoTokenizer, folder, "its tokenizer cannot be read")


@contextmanager
def reading(folder: Path, wrong: str) -> Iterator[None]:
    """Make one `UserError`, of `wrong` and a first line, of whatever transformers or diffusers raise at a
    folder: errors of any kind, where a file says what they did not expect. No progress bar is drawn.
    """
    try:
        with quiet_transformers():
            yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - which ones they raise is nowhere said
        raise UserError(f"{folder}: {wrong}: {reason(error)}") from None


def read_part(cls: Any, folder: Path, wrong: str, **settings: Any) -> Any:
    """What a class of transformers reads from a folder that is here, and runs no code of: see `reading`."""
    with reading(folder, wrong):
        return cls.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **settings)


def read_network(cls: Any, folder: Path, wrong: str, dtype: torch.dtype, whole: bool = False) -> Any:
    """The network of a folder, with its safetensors weights; see `read_part`.

    Weights that it lacks are drawn at random, as transformers has it, which is said; with `whole`, refused.
    """
    from transformers import AutoConfig

    config = read_part(getattr(cls, "config_class", None) or AutoConfig, folder, wrong)
    with reading(folder, wrong), torch.device("meta"):
        empty = (
            cls.from_config(config, trust_remote_code=False) if hasattr(cls, "from_config") else cls(config)
        )
    check_size(folder, empty)
    settings = {"use_safetensors": True, "dtype": dtype, "output_loading_info": True}
    model, report = read_part(cls, folder, wrong, **settings)
    if missing := sorted(report["missing_keys"]):
        if whole:
            raise UserError(f"{folder}: {wrong}: {missing[0]} is missing.")
        say(f"{folder}: lacks {counted(len(missing), 'tensor')}, drawn at random: {name_some(missing)}.")
    return model


def check_size(folder: Path, empty: torch.nn.Module) -> None:
    """Refuse a config that asks for many more weights than its files hold, before they take memory."""
    asked = sum(parameter.numel() for parameter in empty.parameters())
    held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if asked > 2 * held + _SMALL:  # weights of 4 bits are two to a byte
        raise UserError(
            f"{folder / 'config.json'}: asks for {asked:.3g} weights, and its files are of {held:,} bytes."
        )


def reason(error: Exception) -> str:
    """The first line of what transformers says, and what to install where a package is missing."""
    said = first_line(error).rstrip(".")
    return f"{said}; run `pip install 'kilopix[captions]'`." if isinstance(error, ImportError) else f"{said}."


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the bar and the tables that transformers prints while it loads, and put both back after."""
    from transformers.utils import logging

    shown, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()
