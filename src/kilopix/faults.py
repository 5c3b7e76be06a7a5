"""What the machine refuses, in one line: a full disk, no right to write, a name too long, no memory.

In: an exception of any library. Out: the line that a user reads, with the file, the system's words and what
to do; none for a mistake of the program, which is to be seen whole.
"""

import errno
import os
import re
from pathlib import Path

_AGAIN = "the same command goes on from what is finished"
_TO_DO = {
    errno.ENOSPC: f"Make room; {_AGAIN}.",
    errno.EDQUOT: f"Make room, or have the quota raised; {_AGAIN}.",
    errno.EFBIG: f"Files may not be so large here (see `ulimit -f`); {_AGAIN}.",
    errno.EACCES: "Get the permission, or choose another place.",
    errno.EPERM: "Get the permission, or choose another place.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.EISDIR: "A folder is there, and a file is wanted; choose another name.",
    errno.ENOTEMPTY: "Something else writes there; choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Its symbolic links lead in a circle; mend them, or choose another place.",
    errno.EMFILE: f"Raise the limit (`ulimit -n 65536`), or give fewer --workers; {_AGAIN}.",
    errno.ENFILE: f"The machine has too many open files; close other programs; {_AGAIN}.",
    errno.EIO: f"The disk, or the network to it, fails; see `dmesg`. When it is mended, {_AGAIN}.",
    errno.ESTALE: f"Mount the file system anew; {_AGAIN}.",
    errno.ENOENT: f"It was moved or deleted meanwhile, or never there. When it is back, {_AGAIN}.",
    errno.ENOMEM: f"Close other programs, or give fewer --workers or smaller batches; {_AGAIN}.",
    errno.EAGAIN: f"Too many processes or threads; see `ulimit -u`. With fewer --workers, {_AGAIN}.",
    errno.EXDEV: "The folder lies on two file systems; choose another place.",
}
OF_ALL_FILES = {
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
"""Errors at reading a file that say nothing about it: disk, network or process have the trouble."""
_OF_THE_PROGRAM = (errno.EBADF, errno.EFAULT, errno.ENOTTY, errno.EINVAL)
_IN_TEXT = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)
"""How libraries that are not written in Python say which error of the system it was."""
_OF_TORCH = re.compile(r"unable to \w+ .*<(.+)>.*\((\d+)\)", re.DOTALL)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc", re.IGNORECASE)


def explain(error: BaseException) -> str | None:
    """The line for a user, if it is the machine that refuses; None if it is a mistake of the program."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        said = (str(error).splitlines() or [""])[0][:200]
        return f"Out of memory{f' ({said})' if said else ''}. {_TO_DO[errno.ENOMEM]}"
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        return (
            f"{error.object[max(error.start - 40, 0) : error.end + 40]!r}: a name or text that is not UTF-8. "
            "Choose another name, or set a locale of UTF-8, such as LC_ALL=C.UTF-8."
        )
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        error = OSError(errno.EAGAIN, "No thread could be started")
    fault = os_error(error)
    if fault is None:
        return None
    if fault.errno is None:  # Pillow's, and those of networks
        return first_line(fault)
    if fault.errno in _OF_THE_PROGRAM and fault.filename is None:
        return None
    words = fault.strerror or os.strerror(fault.errno)
    if fault.filename is None:
        return f"{words}. {_TO_DO.get(fault.errno, '')}".strip()
    path = Path(os.fsdecode(fault.filename))
    if fault.errno in (errno.ENOTDIR, errno.EEXIST) and (file := _file_in_the_way(path)):
        return f"{path}: {file} is a file, where a folder is wanted; choose another place."
    return f"{path}: {words}. {_TO_DO.get(fault.errno, '')}".strip()


def os_error(error: BaseException) -> OSError | None:
    """The error of the system that an exception is, or wraps; None if it is none."""
    for failure, _ in getattr(error, "failures", {}).values():  # what torch collects from all processes
        if found := os_error(failure):
            return found
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of `Path.resolve`
        return OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(error).split("'")[1])
    if isinstance(error, RuntimeError) and (found := _OF_TORCH.search(str(error))):
        return OSError(int(found[2]), os.strerror(int(found[2])), found[1])
    foreign = type(error).__module__.startswith(("safetensors", "pyarrow"))
    if foreign and (code := _IN_TEXT.search(str(error))):
        return OSError(int(code[1]), os.strerror(int(code[1])))
    return None


def named(error: Exception, path: Path, temporary: Path | None = None) -> Exception:
    """The same error with the file that it is about, if it named none, or a temporary one of that file."""
    fault = os_error(error)
    if fault is None or fault.errno is None:
        return error
    if fault.filename is not None and (temporary is None or Path(fault.filename) != temporary):
        return error
    return OSError(fault.errno, os.strerror(fault.errno), str(path))


def _file_in_the_way(path: Path) -> Path | None:
    """The file on a path that should be a folder."""
    return next((place for place in (path, *path.parents) if os.path.isfile(place)), None)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, shortened, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def compiler_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it cannot compile, imported then: that takes a second."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit
