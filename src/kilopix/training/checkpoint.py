"""Checkpoints: everything from which a run goes on, in safetensors, complete or absent.

In: a network, its average, its optimizer and the number of images seen. Out: one folder per checkpoint,
named by images seen, written under a temporary name and renamed when its files are on disk. `state.json`
holds their hashes; the newest checkpoint that verifies is the one that is loaded.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kilopix.runtime import atomic_path, read_json, say, sha256_of_file, write_json
from kilopix.types import UserError

NETWORK, AVERAGE, OPTIMIZER, STATE = (
    "network.safetensors",
    "average.safetensors",
    "optimizer.safetensors",
    "state.json",
)


@dataclass(frozen=True)
class Progress:
    """How far a run is: images seen, and the seconds that training has taken so far."""

    images_seen: int
    seconds: float


def save_weights(path: Path, network: nn.Module, header: dict[str, Any]) -> None:
    """Write weights with a header of JSON values, whole or not at all."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in network.state_dict().items()}
    _save(path, tensors, {k: json.dumps(v) for k, v in header.items()})


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: could not be written ({error}); what was there is kept.") from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and header of a safetensors file; anything else is a `UserError` that names it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}).") from None
    try:
        return tensors, {k: json.loads(v) for k, v in metadata.items() if k != "format"}
    except json.JSONDecodeError:
        raise UserError(f"{path}: weights, but not of kilopix: no recipe in the header.") from None


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    averages: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    header: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint below `folder` and delete all but the newest `keep`."""
    final = folder / f"{progress.images_seen:012d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    for unfinished in folder.glob(".*.tmp"):  # left by a process that was killed
        shutil.rmtree(unfinished)
    temporary.mkdir(parents=True)
    try:
        header = {**header, "images_seen": progress.images_seen}
        save_weights(temporary / NETWORK, network, header)
        for name, average in zip(average_names(len(averages)), averages, strict=True):
            save_weights(temporary / name, average, header)
        _save(temporary / OPTIMIZER, _optimizer_tensors(optimizer))
        names = (NETWORK, *average_names(len(averages)), OPTIMIZER)
        hashes = {name: sha256_of_file(temporary / name) for name in names}
        state = {"images_seen": progress.images_seen, "seconds": progress.seconds, "files": hashes}
        write_json(temporary / STATE, state)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except OSError as error:
        raise UserError(
            f"{final}: the checkpoint could not be written ({error}); the last one is kept."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def average_names(count: int) -> list[str]:
    """Files of a checkpoint's averages, of which the first is the one that is used."""
    return [AVERAGE, *(f"average-{i}.safetensors" for i in range(1, count))]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below a folder, oldest first, whole or not."""
    return sorted(f for f in folder.glob("[0-9]*") if f.is_dir()) if folder.is_dir() else []


def verifies(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint has the hash that its state names."""
    try:
        files = read_json(checkpoint / STATE)["files"]
    except (UserError, KeyError, TypeError):
        return False
    return all((checkpoint / n).is_file() and sha256_of_file(checkpoint / n) == h for n, h in files.items())


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are named, and it is an error if no other is left."""
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        if verifies(checkpoint):
            return checkpoint
        say(f"{checkpoint}: damaged; looking at the one before.")
    if found:
        raise UserError(f"{folder}: every checkpoint in it is damaged; delete the run to begin again.")
    return None


def load_checkpoint(
    checkpoint: Path, network: nn.Module, averages: Sequence[nn.Module], optimizer: torch.optim.Optimizer
) -> Progress:
    """Put a checkpoint back into a network, its averages and its optimizer."""
    network.load_state_dict(read_weights(checkpoint / NETWORK)[0])
    for name, average in zip(average_names(len(averages)), averages, strict=True):
        average.load_state_dict(read_weights(checkpoint / name)[0])
    tensors, _ = read_weights(checkpoint / OPTIMIZER)
    for i, parameter in enumerate(_parameters(optimizer)):
        prefix = f"{i}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
    state = read_json(checkpoint / STATE)
    return Progress(state["images_seen"], state["seconds"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{i}.{name}": value.detach().contiguous().cpu()
        for i, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state[parameter].items()
    }
