"""Checkpoints: everything from which a run goes on, in safetensors, complete or absent.

In: the tensors of a run, whole or in the shards of several processes. Out: one folder per checkpoint, named
by images seen, written under a temporary name and renamed when its files are on disk:

    state.json             how far the run is, and the SHA-256 of every file
    average.safetensors    the averaged weights, whole, with the recipe in the header
    shard-*.safetensors    network, optimizer, guard and further averages, as torch.distributed.checkpoint
                           lays them out; any number of processes reads what any other number wrote

The newest checkpoint that verifies is the one that is loaded. No pickle is written or read.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from kilopix.artefacts.digests import Damaged
from kilopix.artefacts.locks import delete_temporary, temporary_beside
from kilopix.config import Config, parse
from kilopix.faults import explain
from kilopix.runtime import (
    read_json,
    read_tensors,
    say,
    sha256_of_file,
    sort_metadata,
    write_json,
    write_tensors,
)
from kilopix.training.parallel import Processes, full
from kilopix.types import UserError

AVERAGE, STATE = "average.safetensors", "state.json"
FORMAT = 2
_MOST = 10**12
"""More images, and more of anything else, no run has; the names of checkpoints have twelve digits."""
_FILE_BYTES = 2**29  # a file is held in memory while it is written


@dataclass(frozen=True)
class Progress:
    """How far a run is; `moved` counts images by which the data order was moved on after a return."""

    images_seen: int
    seconds: float
    moved: int = 0
    bad_in_a_row: int = 0
    went_back: int = 0
    micro_batch: int = 0
    processes: int = 1
    log: dict[str, float] = field(default_factory=dict)


class State(Config):
    """What `state.json` says: the progress, the files with their hashes, and whose checkpoint it is."""

    model_config = ConfigDict(strict=True)

    format: int
    images_seen: int = Field(ge=0, le=_MOST)
    seconds: float = Field(ge=0, le=_MOST)
    moved: int = Field(ge=0, le=_MOST)
    bad_in_a_row: int = Field(ge=0, le=_MOST)
    went_back: int = Field(ge=0, le=_MOST)
    micro_batch: int = Field(ge=0, le=_MOST)
    processes: int = Field(ge=1, le=_MOST)
    log: dict[str, float]
    files: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], str]
    run: str | None

    @property
    def progress(self) -> Progress:
        """How far the run was."""
        return Progress(**self.model_dump(exclude={"format", "files", "run"}))


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds: the network, its averages (the first is the one used), optimizer, guard."""

    network: nn.Module
    averages: Sequence[nn.Module]
    optimizer: torch.optim.Optimizer
    guard: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors but those of the average in use, by name; optimizer states by their parameter's."""
        named = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for i, average in enumerate(self.averages[1:], start=1):
            named |= {f"averages.{i}.{name}": value for name, value in average.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                named[f"optimizer.{key}.{name}"] = value
        if self.guard is not None:
            named["guard"] = self.guard
        return {name: value.detach() for name, value in named.items()}


def allocate_states(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer make the states of its parameters, by a step that changes nothing.

    It is one of a learning rate of 0, too, and its count is taken back, since on MPS a fused step is taken
    even where it is told not to be.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    set_skipped(optimizer, torch.ones((), device=parameters[0].device))
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].zero_()


def set_skipped(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Tell an optimizer whether its next step changes nothing (1) or is taken (0), without waiting.

    This is what `torch.amp.GradScaler` tells the fused optimizers; LAMB and Muon here read it too.
    """
    optimizer.found_inf = skipped  # pyright: ignore[reportAttributeAccessIssue]


def save_weights(path: Path, network: nn.Module, header: dict[str, Any], main: bool = True) -> None:
    """Write weights with a header of JSON values, whole or not at all.

    Where they are sharded, all processes must call, and the main one writes.
    """
    tensors = whole_tensors(network, main)
    if main:
        save_tensors(path, tensors, header)


def whole_tensors(network: nn.Module, main: bool = True) -> dict[str, Tensor]:
    """All tensors of a network, on the CPU of the main process; empty in the others. All must call."""
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        whole = full(value.detach())
        if main:
            tensors[name] = whole.contiguous().cpu()
    return tensors


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors with a header of JSON values, whole or not at all."""
    write_tensors(path, tensors, {k: json.dumps(v) for k, v in header.items()})


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and header of a safetensors file; anything else is a `UserError` that names it."""
    tensors, metadata = read_tensors(path)
    try:
        return tensors, {k: json.loads(v) for k, v in metadata.items() if k != "format"}
    except (ValueError, RecursionError):
        raise UserError(f"{path}: weights, but not of kilopix: no recipe in the header.") from None


def save_checkpoint(
    folder: Path,
    trained: Trained,
    progress: Progress,
    header: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
    processes: Processes | None = None,
) -> Path:
    """Write a checkpoint below `folder`, and delete those that `thinned` names. All processes must call."""
    processes = processes or Processes()
    final = folder / f"{progress.images_seen:012d}"
    temporary = processes.once(lambda: temporary_beside(final))
    with _told_to_all(final, processes):
        if processes.main:
            delete_temporary(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    try:
        with _told_to_all(final, processes):
            _write_shards(temporary, trained.tensors(), processes)
            header = {**header, "images_seen": progress.images_seen}
            save_weights(temporary / AVERAGE, trained.averages[0], header, processes.main)
            names = [_files_of(processes)] + ([AVERAGE] if processes.main else [])
            hashes = {f.name: _synced_hash(f) for name in names for f in sorted(temporary.glob(name))}
        with _told_to_all(final, processes):
            files = {name: digest for mine in processes.gather(hashes) for name, digest in mine.items()}
            if processes.main:
                state = {"format": FORMAT, **asdict(progress), "files": files, "run": header.get("run")}
                write_json(temporary / STATE, state)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(temporary, final)
                _sync_folder(folder)
    finally:
        if processes.main:
            shutil.rmtree(temporary, ignore_errors=True)
    if processes.main and not progress.bad_in_a_row:  # else the last good ones would make room for bad ones
        for old in thinned(checkpoints(folder), keep, keep_every):
            shutil.rmtree(old)
    processes.wait()
    return final


@contextmanager
def _told_to_all(final: Path, processes: Processes) -> Iterator[None]:
    """What stops one process from writing stops all, with the same message."""
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    problem = None
    try:
        yield
    except (OSError, SafetensorError, UserError, CheckpointException) as error:
        problem = explain(error) or str(_cause(error))
    problems = [text for text in processes.gather(problem) if text]
    if problems:
        raise UserError(
            f"{final}: the checkpoint could not be written; the last one is kept. {problems[0]} "
            "A lower training.keep_checkpoints takes less room."
        )


def _cause(error: BaseException) -> BaseException:
    """The error itself, out of those that torch.distributed.checkpoint collects from all processes."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def _write_shards(folder: Path, tensors: dict[str, Tensor], processes: Processes) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    writer = HuggingFaceStorageWriter(str(folder), _into_files(tensors), save_distributed=True)
    with _quiet_alone():
        save(tensors, storage_writer=writer, no_dist=processes.count == 1)
    for file in folder.glob(_files_of(processes)):
        sort_metadata(file)


def _files_of(processes: Processes) -> str:
    """What the names of the files that this process writes look like."""
    return f"shard-{processes.rank + 1:05d}-*"


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """One process is what is meant where there is one, so that torch need not warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _into_files(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The number of the file that each tensor goes to, so that none becomes large."""
    files: dict[str, int] = {}
    number, size = 1, 0
    for name, value in tensors.items():
        if size and size + value.nbytes > _FILE_BYTES:
            number, size = number + 1, 0
        files[name] = number
        size += value.nbytes
    return files


def _synced_hash(path: Path) -> str:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return sha256_of_file(path)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below a folder, oldest first, whole or not."""
    return sorted(f for f in folder.glob("[0-9]*") if f.is_dir()) if folder.is_dir() else []


def thinned(found: Sequence[Path], keep: int, keep_every: int | None = None) -> list[Path]:
    """The checkpoints to delete: all but the newest `keep`, and the first of every `keep_every` images."""
    stays = set(found[-keep:])
    if keep_every:
        first: dict[int, Path] = {}
        for checkpoint in found:
            first.setdefault(int(checkpoint.name) // keep_every, checkpoint)
        stays |= {checkpoint for stretch, checkpoint in first.items() if stretch > 0}
    return [checkpoint for checkpoint in found if checkpoint not in stays]


def read_state(checkpoint: Path, run: str | None = None) -> State:
    """What `state.json` says; raises `Damaged` if it cannot be believed, or is of another run than `run`."""
    place = checkpoint / STATE
    try:
        values = read_json(place, sealed=True)
    except UserError as error:
        raise Damaged(str(error)) from None
    if values.get("format") != FORMAT:
        raise UserError(
            f"{checkpoint}: written by an earlier version of kilopix; finish the run with that version, or "
            "train anew. `kilopix sample` can use its weights."
        )
    try:
        state = parse(State, values, str(place))
    except UserError as error:
        raise Damaged(str(error)) from None
    if checkpoint.name.isdigit() and int(checkpoint.name) != state.images_seen:
        raise Damaged(f"{place}: is of another checkpoint, of {state.images_seen:,} images")
    if run and state.run and state.run != run:
        raise Damaged(f"{place}: is of another run")
    return state


def fault_of(checkpoint: Path, run: str | None = None) -> str | None:
    """Why a checkpoint cannot be believed; None if its state and every file that that names are whole."""
    try:
        files = read_state(checkpoint, run).files
    except Damaged as error:
        return str(error).rstrip(".")
    for name, digest in files.items():
        if not (checkpoint / name).is_file():
            return f"{checkpoint / name}: missing"
        if sha256_of_file(checkpoint / name) != digest:
            return f"{checkpoint / name}: damaged; its SHA-256 is not the one in {STATE}"
    return None if AVERAGE in files else f"{checkpoint / STATE}: names no {AVERAGE}"


def newest_checkpoint(folder: Path, run: str | None = None, passed: Sequence[Path] = ()) -> Path | None:
    """The newest checkpoint that verifies; what is passed by is said, and it is an error if none is left.

    `run` is the run that it must be of, `passed` those that could not be loaded.
    """
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        if checkpoint in passed:
            continue
        if not (fault := fault_of(checkpoint, run)):
            return checkpoint
        say(f"{fault}. Looking at the checkpoint before.")
    if found:
        raise UserError(f"{folder}: every checkpoint in it is damaged; delete the run to begin again.")
    return None


def last_good_checkpoint(folder: Path) -> Path | None:
    """The newest that verifies and was not written between steps left out; newer ones are deleted."""
    for checkpoint in reversed(checkpoints(folder)):
        fault = fault_of(checkpoint)
        if not fault and read_progress(checkpoint).bad_in_a_row == 0:
            return checkpoint
        if fault:
            say(f"{fault}. The checkpoint is deleted, and the one before looked at.")
        shutil.rmtree(checkpoint)
    return None


def read_progress(checkpoint: Path) -> Progress:
    """How far the run was when a checkpoint was written."""
    return read_state(checkpoint).progress


def load_checkpoint(checkpoint: Path, trained: Trained, processes: Processes | None = None) -> Progress:
    """Put a checkpoint back into what was built of the same recipe; each process reads its part."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    progress = read_progress(checkpoint)
    tensors = {**trained.tensors(), **trained.averages[0].state_dict()}
    alone = processes is None or processes.count == 1
    try:
        with _quiet_alone():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=alone)
    except CheckpointException as error:
        raise Damaged(f"{checkpoint}: does not fit the recipe: {_cause(error)}") from error
    return progress
