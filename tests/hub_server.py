"""A stand-in for the Hugging Face hub on this machine: repositories are folders, and requests are kept."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(folder: Path, name: str, revisions: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has one repository, in some revisions, and the files asked of it."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes, head: dict[str, str], send: bool) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **head}.items():
                self.send_header(key, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def _handle(self, send: bool) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) == name:
                revision = parts[5] if len(parts) > 5 else "main"
                if revision not in (*revisions, COMMIT):
                    self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, send)
                    return
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
                if parts[4:5] == ["tree"]:
                    sizes = {f: (folder / f).stat().st_size for f in files}
                    info = [{"type": "file", "path": f, "size": size, "oid": f} for f, size in sizes.items()]
                self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, send)
                return
            file = folder.joinpath(*parts[4:])
            if "/".join(parts[:2]) != name or parts[2] != "resolve" or not file.is_file():
                self._answer(404, b"", {"X-Error-Code": "RepoNotFound"}, send)
                return
            asked.append(file.name)
            body = file.read_bytes()
            head = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._answer(200, body, head, send)

        def do_GET(self) -> None:
            self._handle(send=True)

        def do_HEAD(self) -> None:
            self._handle(send=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
