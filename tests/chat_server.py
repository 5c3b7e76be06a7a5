"""For tests of captioners: a real HTTP server on this machine with the OpenAI chat API."""

import base64
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.behave(handler, number of the picture, number of its tries)` says."""

    server: "Server"  # pyright: ignore

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))
        number = round(int(np.asarray(picture.convert("L"))[5, 5]) / 2)
        with self.server.lock:
            self.server.tries[number] += 1
            tries = self.server.tries[number]
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
            self.server.requests.append((body, self.headers.get("Authorization", ""), picture.size))
        try:
            self.server.behave(self, number, tries)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait
        finally:
            with self.server.lock:
                self.server.running -= 1

    def send(self, status: int, body: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body.encode())

    def tell(self, number: int) -> None:
        message = {"role": "assistant", "content": f"Picture {number}."}
        self.send(200, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))


Behave = Callable[[Handler, int, int], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, behave: Behave):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = behave
        self.models = ["small"]
        self.lock = threading.Lock()
        self.tries: Counter[int] = Counter()
        self.running = self.most_running = 0
        self.requests: list[tuple[dict, str, tuple[int, int]]] = []


@contextmanager
def serving(behave: Behave) -> Iterator[Server]:
    server = Server(behave)
    thread = threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
