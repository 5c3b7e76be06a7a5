"""Commands of kilopix under refusals of the system: run as a program, a process that has imported everything
once and forks for each command, so that hundreds of commands take minutes."""

import importlib
import json
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

PATIENCE = 60.0
"""Seconds after which a command is taken to hang."""


@dataclass(frozen=True)
class Refusal:
    """From its call number `after` on, a kind of call below a folder fails with `number`; or `files` open."""

    name: str
    call: str = ""
    number: int = 0
    after: int = 0
    files: int | None = None

    def environment(self, below: Path) -> dict[str, str]:
        """What makes the library refuse."""
        if not self.call:
            return {}
        told = {"CALL": self.call, "ERRNO": self.number, "AFTER": self.after, "BELOW": below}
        return {f"REFUSE_{name}": str(value) for name, value in told.items()}


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is None where it hung."""

    code: int | None
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say why it ended."""
        return [line for line in self.err.splitlines() if line.startswith("Error: ")]

    @property
    def fault(self) -> str | None:
        """What is wrong with how it ended; None if nothing is."""
        if self.code is None:
            return "hung"
        if "Traceback" in self.err:
            return "traceback"
        if self.code < 0:
            return f"killed by signal {-self.code}"
        if self.code and len(self.errors) != 1:
            return f"{len(self.errors)} lines of error"
        return None


def build_library(folder: Path) -> Path | None:
    """The library that refuses; None where there is no compiler, or no LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "refusing_calls.so"
    source = Path(__file__).with_name("refusing_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Commands:
    """Calls commands in forks of one process; enter it."""

    def __init__(self, library: Path):
        self.library = library

    def __enter__(self) -> "Commands":
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | quiet | {"LD_PRELOAD": str(self.library)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.communicate()

    def __call__(self, *arguments: object, below: Path = Path("/"), refusal: Refusal | None = None) -> Ended:
        """Call `kilopix ARGUMENTS`, with a refusal for files below a folder."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        environment = refusal.environment(below) if refusal else {}
        files = refusal.files if refusal else None
        order = {"arguments": [str(each) for each in arguments], "environment": environment, "files": files}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))


def _serve() -> None:
    """Import everything, then fork for each line of standard input."""
    for name in ("kilopix.stages", "kilopix.web", "kilopix.pretrained", "kilopix.evaluation"):
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{name}.{module.name}")
    for line in sys.stdin:
        print(json.dumps(_call(**json.loads(line))), flush=True)


def _call(arguments: list[str], environment: dict[str, str], files: int | None) -> dict[str, object]:
    out, err = (os.memfd_create(name) for name in ("out", "err"))
    child = os.fork()
    if not child:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(0)
        os.environ.update(environment)
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        sys.argv = ["kilopix", *arguments]
        from kilopix.cli import main

        code = 1
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 - as the interpreter does
            import traceback

            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    deadline, status = time.monotonic() + PATIENCE, None
    while status is None and time.monotonic() < deadline:
        done, ended = os.waitpid(child, os.WNOHANG)
        status = ended if done else None
        time.sleep(0.01)
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    texts = []
    for file in (out, err):
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file, "rb") as opened:
            texts.append(opened.read().decode("utf-8", "replace"))
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return {"code": code, "out": texts[0], "err": texts[1]}


if __name__ == "__main__":
    _serve()
