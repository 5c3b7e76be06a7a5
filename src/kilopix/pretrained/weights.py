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

from kilopix.runtime import SPEAKERS, read_json, read_tensors, say, sha256_of_file, sha256_of_text
from kilopix.types import UserError

DtypeName = Literal["auto", "float32", "bfloat16"]
_DIGEST_LENGTH = 16
_LARGE = 3e8
"""Bytes of weights that take so long to load that one is told."""


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
    size = sum(file.stat().st_size for file in weight_files(folder, stem))
    if size >= _LARGE and current_process().name in SPEAKERS:
        say(f"loading {name}{f', {subfolder}' if subfolder else ''} ({size / 1e9:.1f} GB) ...")
    return folder


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
            f"({str(error).splitlines()[0]}). Give the folder that holds it, or run "
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
    shards = [folder / shard for shard in sorted(set(read_json(index)["weight_map"].values()))]
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
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be read: {reason(error)}") from None


def reason(error: Exception) -> str:
    """The first line of what transformers says, and what to install where a package is missing."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{said}; run `pip install 'kilopix[captions]'`." if isinstance(error, ImportError) else f"{said}."


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bar that transformers draws while it loads weights, and put it back after."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
