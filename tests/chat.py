"""A local server that speaks the OpenAI chat API, or fails in the ways that servers fail."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]


class Trouble:
    """What the server does instead of answering: a status, nonsense, or nothing at all."""

    def __init__(self, status: int = 0, body: bytes = b"busy", headers: dict[str, str] | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


@contextmanager
def serve(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve until the block ends; gives the address and the list of requests."""
    requests: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                requests.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            out = answer(body)
            if isinstance(out, Trouble) and out.status == 0:
                self.close_connection = True
                self.connection.close()
                return
            status = out.status if isinstance(out, Trouble) else 200
            data = out.body if isinstance(out, Trouble) else json.dumps(out).encode()
            self.send_response(status)
            for name, value in (out.headers if isinstance(out, Trouble) else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a connection that was dropped on purpose

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(text: str, first: dict[str, float] | None = None, reason: str = "stop") -> dict[str, Any]:
    """An answer as such servers give it; `first` are log-probabilities of first tokens."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    if first is not None:
        tops = [{"token": token, "logprob": value} for token, value in first.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0, "top_logprobs": tops}]}
    return {"choices": [choice]}


def text_of(body: dict[str, Any]) -> str:
    """The text that a request asks about."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]
