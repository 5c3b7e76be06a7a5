"""What stands before the page and the REST endpoint: open paths, known hosts, bounded bodies.

Gradio can take uploads, hand out files of the server and fetch addresses for its clients. The page needs
none of these, so its paths are listed, and every other is closed, whatever Gradio would have done with it.
The content security policy keeps browsers from loading anything from elsewhere.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilopix.web.requests import Limits

REST = re.compile(r"/v1/.*|/healthz|/openapi\.json")
_PAGE = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/[\w./+-]+"
        r"|/gradio_api/(info/?|startup-events|theme\.css|queue/data|heartbeat/\w+|call/\w+/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset/?|call/\w+/?|call/v2/\w+/?)"),
}
_PAGE["HEAD"] = _PAGE["GET"]
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Refusal:
    """A request that goes no further."""

    status: int
    kind: str
    message: str


class Guard:
    """An ASGI app before another; `hosts` are the names that the server answers to, or None for any."""

    def __init__(self, app: ASGIApp, limits: Limits, hosts: Sequence[str] | None):
        self.app = app
        self.limits = limits
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or answer here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        most = self.limits.body if REST.fullmatch(scope["path"]) else self.limits.page_body
        refusal = self._refusal(scope, headers, most)
        if refusal:
            await answer(send, refusal)
            return
        body = _Body(receive, most)
        began = False

        async def watched_send(message: Message) -> None:
            nonlocal began
            if body.too_large and not began:
                return  # whatever the app makes of half a body
            if message["type"] == "http.response.start":
                began = True
                message = {**message, "headers": _with_ours(message.get("headers", []))}
            await send(message)

        await self.app(scope, body.receive, watched_send)
        if body.too_large and not began:
            await answer(send, _too_large(most))

    def _refusal(self, scope: Scope, headers: dict[str, str], most: int) -> Refusal | None:
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        if self.hosts is not None and host not in self.hosts:
            allow = "start the server with --allow-host to allow another name."
            return Refusal(421, "wrong_host", f"this server answers to {', '.join(self.hosts)}; {allow}")
        path, method = scope["path"], scope["method"]
        if not REST.fullmatch(path):
            if not any(pattern.fullmatch(path) for pattern in _PAGE.values()):
                kind, told = "not_found", "there is nothing here; see /openapi.json for what there is."
                if path.startswith("/gradio_api/"):
                    kind, told = "closed", "this path is closed: the server takes and hands out no files."
                return Refusal(403 if kind == "closed" else 404, kind, told)
            if method not in _PAGE or not _PAGE[method].fullmatch(path):
                return Refusal(405, "wrong_method", f"{method} is not for this path.")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return Refusal(400, "bad_request", "Content-Length must be a number.")
        return _too_large(most) if int(length[:20]) > most else None


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"the body is larger than {most:,} bytes; shorten it.")


class _Body:
    """A body that ends, as if the client had left, where it grows too large."""

    def __init__(self, receive: Receive, most: int):
        self._receive = receive
        self._left = most
        self.too_large = False

    async def receive(self) -> Message:
        """The next message, counted."""
        if not self.too_large:
            message = await self._receive()
            self._left -= len(message.get("body", b""))
            self.too_large = self._left < 0
        return {"type": "http.disconnect"} if self.too_large else message


def _with_ours(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*headers, *((name.encode(), value.encode()) for name, value in _HEADERS.items())]


def error_body(message: str, kind: str, field: str | None = None) -> dict[str, Any]:
    """An error as the REST endpoint tells it, in the form of OpenAI's."""
    return {"error": {"message": message, "type": kind, "param": field or None, "code": None}}


async def answer(send: Send, refusal: Refusal) -> None:
    """Answer with an error, and close the connection, on which a body may still be under way."""
    body = json.dumps(error_body(refusal.message, refusal.kind)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": _with_ours(headers)})
    await send({"type": "http.response.body", "body": body})
