"""What every stage needs from the machine: devices, seeds, files written whole, hashes."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilopix.artefacts.digests import (
    DIGEST,
    NO_DIGEST,
    check_json,
    check_lines,
    check_tensors,
    seal_json,
    seal_lines,
    seal_tensors,
)
from kilopix.artefacts.locks import temporary_beside
from kilopix.errors import UserError
from kilopix.faults import first_line, named
from kilopix.plain_text import visible

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 20
_LONGEST_PATH = 4096
SPEAKERS = ("MainProcess", "worker 0")
"""Of the processes that do the same, the names of those that say what they do."""

_LAST_BYTES = {
    ".arrow": b"ARROW1",
    ".parquet": b"PAR1",
    ".jpg": b"\xff\xd9",
    ".png": b"IEND\xaeB`\x82",
    ".jsonl": b"\n",
}


@contextmanager
def atomic_path(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`; on success it is flushed to disk and renamed to `path`.

    Without `flush` it may be lost in a power cut, as one of many files that are quickly made again may be.
    Its mode is what the umask leaves, whatever the writer made of it: libraries that write through a
    temporary file of their own let nobody else read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        if flush:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        os.replace(temporary, path)
    except Exception as error:
        if (fault := named(error, path, temporary)) is error:
            raise
        raise fault from error
    finally:
        temporary.unlink(missing_ok=True)


def no_folder(path: Path) -> str:
    """How to say that a path is no folder."""
    return "a file, not a folder" if path.exists() else "no such folder"


def not_below(path: str) -> str:
    """What is wrong with a path that a file or manifest names, if it cannot be one below a root."""
    if path.startswith("/") or ".." in path.split("/"):
        return "its path is not below the root"
    if "\0" in path:
        return "its path holds a NUL, which no file name does"
    return "its path is longer than any is" if len(path) > _LONGEST_PATH else ""


def absent(path: Path) -> str:
    """How to say that a file is not there; where its folder is not there either, that is said."""
    folder = path.parent
    return f"{path}: no such file" if folder.is_dir() else f"{folder}: {no_folder(folder)}"


def is_whole(file: Path) -> bool:
    """Whether a file is there and ends as one of its kind does, which one that was cut short does not.

    Costs reading its last bytes, or a safetensors file's header; what lies between is not looked at.
    """
    if not file.is_file():
        return False
    if file.suffix == ".safetensors":
        return _is_whole_safetensors(file)
    last = _LAST_BYTES.get(file.suffix, b"")
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - len(last), 0))
        return size > 0 and opened.read() == last if last else size > 0


def _is_whole_safetensors(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def name_some(files: Iterable[Path | str], show: int = 3) -> str:
    """The first few of several files by name, and how many more there are."""
    names = [str(file) for file in files]
    more = f" and {len(names) - show} more" if len(names) > show else ""
    return ", ".join(names[:show]) + more


def write_json(path: Path, value: Any, seal: bool = True) -> None:
    """Write JSON whole or not at all, its keys in their order; an object gets its digest as the last one.

    Without `seal` it gets none: that is for files whose form is another program's.
    """
    value = seal_json(value) if seal and isinstance(value, dict) else value
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


class Record(dict[str, Any]):
    """The JSON object of a file: to ask for a key that it lacks is a `UserError` that names both."""

    def __init__(self, values: dict[str, Any], path: Path):
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._path}: no {key!r} in it; it was not written by this version of kilopix.")


def read_json(path: Path, sealed: bool = False) -> Record:
    """Read a JSON object, without its digest; any other file, or a changed one, is a `UserError`.

    With `sealed` it must have a digest, since only kilopix writes such a file.
    """
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{absent(path)}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object.")
    return Record(check_json(values, path, sealed), path)


Line = dict[str, Any]
"""One JSON object of a file of JSON lines."""


def write_lines(path: Path, lines: Iterable[Line], seal: bool = True) -> None:
    """Write JSON lines whole or not at all, and as the last one their digest.

    Without `seal` there is none: that is for files whose form is another program's, or that a card names.
    """
    texts = ((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.writelines(seal_lines(texts) if seal else texts)


def iterate_lines(path: Path, sealed: bool = False) -> Iterator[Line]:
    """Read JSON lines one by one; a missing file or a line that is no JSON object is a `UserError`."""
    for line in lines_or_faults(path, sealed):
        if isinstance(line, str):
            raise UserError(f"{path}, {line}.")
        yield line


def lines_or_faults(path: Path, sealed: bool = False) -> Iterator[Line | str]:
    """Read JSON lines one by one; in place of a line that is no JSON object comes what is wrong with it.

    At the end they are held against their digest, if there is one; there must be with `sealed`.
    """
    try:
        with open(path, "rb") as file:  # a line ends with a line feed alone: JSON may hold U+2028
            for number, line in enumerate(check_lines(file, path, sealed), start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield _line_or_fault(text, number)
    except FileNotFoundError:
        raise UserError(f"{absent(path)}.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None


def _line_or_fault(text: str, number: int) -> Line | str:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"line {number}: not valid JSON: {error}"
    return line if isinstance(line, dict) else f"line {number}: not a JSON object"


def read_lines(path: Path, sealed: bool = False) -> list[Line]:
    """All lines of `iterate_lines`."""
    return list(iterate_lines(path, sealed))


def text_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without their ends; one that cannot be read is a `UserError`.

    A line ends with a line feed, with or without a carriage return before it, and nowhere else: a prompt may
    hold U+2028. A byte-order mark is no part of the text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{absent(path)}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from None
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all, with its digest in the metadata.

    Equal tensors and metadata give equal bytes.
    """
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        # The library writes through a temporary file of its own beside the one that it is given, which a
        # killed process leaves: so it is given a folder that the next command deletes.
        folder = temporary_beside(path.with_name(f"{path.name}.write"))
        folder.mkdir(exist_ok=True)
        try:
            save_file(tensors, folder / path.name, {**(metadata or {}), DIGEST: NO_DIGEST})
            os.replace(folder / path.name, temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sort_metadata(temporary)
        seal_tensors(temporary)


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors, mapped from a safetensors file, and its metadata without the digest.

    A file that is missing, cut short or not what was written is a `UserError` that names it. The library
    checks the header, its length, and that all tensors lie in the file, before it takes memory.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{absent(path)}.")
    try:
        with safe_open(path, framework="pt") as file:
            check_tensors(path)
            metadata = {key: text for key, text in (file.metadata() or {}).items() if key != DIGEST}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        # The last four are of types and shapes that safetensors knows, and this torch does not.
        why = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a whole safetensors file ({why}).") from None


def sort_metadata(safetensors: Path) -> None:
    """Put the keys of a header's metadata in order: safetensors writes them in one that is drawn anew."""
    with open(safetensors, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(sorted_header) <= length, "the same keys and values take no more room"
        file.seek(8)
        file.write(sorted_header.ljust(length))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def seed_from(*parts: int | str) -> int:
    """One 63-bit seed from any number of parts, the same on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*parts: int | str, device: str = "cpu"):
    """A `torch.Generator` seeded from any number of parts, such as (seed, rank, images seen)."""
    import torch

    return torch.Generator(device).manual_seed(seed_from(*parts))


def pick_device(name: str = "auto") -> str:
    """Resolve `auto` to cuda, mps or cpu; any other name is checked to exist."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name!r} cannot be used here: {first_line(error)}") from None
    return name


def say(text: str, stderr: bool = False) -> None:
    """Tell the user one line, above the bar that is shown, if any; control characters are written out."""
    print(visible(text), file=sys.stderr if stderr else sys.stdout, flush=True)


def leave_terminal() -> None:
    """Print to nowhere once the terminal is gone, so that no message stops what is still to be saved."""
    import stat

    for number in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):  # files and pipes go on
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


def report_left_out(failures: list[tuple[str, str]], path: Path, show: int = 10) -> None:
    """Name the files that could not be used, and write all of them to `path` as JSON lines."""
    path.unlink(missing_ok=True)
    if not failures:
        return
    with atomic_path(path) as temporary:
        lines = [json.dumps({"file": name, "error": reason}) + "\n" for name, reason in failures]
        temporary.write_text("".join(lines), "utf-8")
    say(f"{len(failures)} left out:")
    for name, reason in failures[:show]:
        say(f"  {name}: {reason}")
    if len(failures) > show:
        say(f"  and {len(failures) - show} more, all in {path}.")


def remove_folder(folder: Path) -> None:
    """Delete a folder of intermediate files that is no longer needed."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def cache_folder() -> Path:
    """Where kilopix keeps what can be made again: `KILOPIX_CACHE`, else `kilopix` in the user's cache."""
    if given := os.environ.get("KILOPIX_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kilopix"
