"""What stands before the page and the REST endpoint: who may ask, open paths, bodies that end.

Gradio can take uploads, hand out files of the server and fetch addresses for its clients. The page needs
none of these, so its paths are listed, and every other is closed, whatever Gradio would have done with it.
The content security policy keeps browsers from loading anything from elsewhere.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilopix.runtime import say
from kilopix.web.access import Access, token_in
from kilopix.web.requests import Limits, shortened

REST = re.compile(r"/v1/.*|/healthz|/openapi\.json")
_PAGE = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/[\w./+-]+"
        r"|/gradio_api/(info/?|startup-events|theme\.css|queue/data|heartbeat/\w+|call/\w+/\w+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset/?|call/\w+/?|call/v2/\w+/?)"),
}
_PAGE["HEAD"] = _PAGE["GET"]
_TOKENLESS = re.compile(r"/healthz|/favicon\.ico|/manifest\.json|/robots\.txt")
"""What a supervisor asks for, and what browsers ask for without cookies; nothing of it is private."""
_BODY_SECONDS = 30.0
_FORM = 4096
_DRAINED, _DRAIN_SECONDS = 2**24, 5.0
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with none at all, browsers leave out the origin of the login's form
}


@dataclass(frozen=True)
class Refusal:
    """A request that goes no further."""

    status: int
    kind: str
    message: str


class Guard:
    """An ASGI app before another."""

    def __init__(self, app: ASGIApp, limits: Limits, access: Access):
        self.app = app
        self.limits = limits
        self.access = access
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or answer here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text  # none hides behind another
        rest = REST.fullmatch(scope["path"]) is not None
        most = self.limits.body if rest else self.limits.page_body
        body = _Body(receive, most)
        if refusal := self._stranger(rest, headers):
            await body.drain()
            await answer(send, refusal)
            return
        if rest and scope["method"] == "OPTIONS" and self.access.allows(headers):
            await _respond(send, 204, self.access.preflight(headers), b"")
            return
        if self.access.token is not None and await self._login(scope, receive, send, headers):
            return
        cors = self.access.cors(headers) if rest else []
        if refusal := self._refusal(scope, rest, headers, most):
            await body.drain()
            await answer(send, refusal, cors)
            return
        began = failed = False

        async def watched_send(message: Message) -> None:
            nonlocal began, failed
            failed = failed or (not rest and not began and message.get("status") == 500)
            if failed or (body.refusal and not began):
                return  # what the app makes of half a body, or Gradio of a request that is none of the page's
            if message["type"] == "http.response.start":
                began = True
                message = {**message, "headers": _with_ours(message.get("headers", []), cors)}
            await send(message)

        if not rest and scope["method"] == "POST":
            refusal = await body.check_json()
            if refusal:
                await answer(send, refusal)
                return
        # Without an origin, Gradio adds no rule of its own for it; here it has been judged already.
        passed = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        try:
            await self.app({**scope, "headers": passed}, body.receive, watched_send)
        except Exception as error:
            if rest:
                raise
            self._tell_once(type(error).__name__, shortened(repr(error)))
            if began:
                await send({"type": "http.response.body", "body": b""})
                return
            failed = True
        if failed:
            await answer(send, Refusal(400, "bad_request", "the page sends no such request; load it again."))
        elif body.refusal and not began:
            await body.drain()
            await answer(send, body.refusal, cors)

    def _tell_once(self, kind: str, told: str) -> None:
        """Leave a line in the log, but not one for every such request that a stranger sends."""
        if kind not in self._told:
            self._told.add(kind)
            say(f"Gradio could not answer a request ({told}); further ones of this kind are not told.")

    def _stranger(self, rest: bool, headers: dict[str, str]) -> Refusal | None:
        """A web page that has nothing to ask here, under its own name or one that it gave the server."""
        if not self.access.answers_to(headers):
            allow = "start the server with --allow-host to allow another name."
            names = ", ".join(self.access.hosts or ())
            return Refusal(421, "wrong_host", f"this server answers to {names}; {allow}")
        if self.access.is_foreign(headers) and not (rest and self.access.allows(headers)):
            told = "web pages of other origins may not ask here; --allow-origin lets one use the endpoint."
            return Refusal(403, "foreign_origin", told)
        return None

    async def _login(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> bool:
        """Answer a browser that brings the token in an address or from the form, or has none yet."""
        path, method = scope["path"], scope["method"]
        given = token_in(scope["query_string"].decode("latin-1")) if (method, path) == ("GET", "/") else ""
        if (method, path) == ("POST", "/login"):
            body = _Body(receive, _FORM)
            given = token_in((await body.whole()).decode("latin-1"))
        elif not given and ((method, path) != ("GET", "/") or self.access.admits(headers)):
            return False
        status, told, page = self.access.login(given, headers)
        told = [("content-type", "text/html; charset=utf-8"), ("cache-control", "no-store"), *told]
        await _respond(send, status, told, page.encode())
        return True

    def _refusal(self, scope: Scope, rest: bool, headers: dict[str, str], most: int) -> Refusal | None:
        path, method = scope["path"], scope["method"]
        if not _TOKENLESS.fullmatch(path) and not self.access.admits(headers):
            told = (
                "this server has a token, which it printed as it started: send it as `Authorization: Bearer"
            )
            return Refusal(401, "unauthorized", f"{told} TOKEN`.")
        if not rest:
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


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"the body is larger than {most:,} bytes; shorten it.")


class _Body:
    """A body that ends, as if the client had left, where it grows too large or takes too long."""

    def __init__(self, receive: Receive, most: int):
        self._receive = receive
        self._most = most
        self._taken = 0
        self._whole = False
        self._until = asyncio.get_running_loop().time() + _BODY_SECONDS
        self._again: bytes | None = None
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        """The next message, counted."""
        gone: Message = {"type": "http.disconnect"}
        if self.refusal:
            return gone
        if self._again is not None:
            given, self._again = self._again, None
            return {"type": "http.request", "body": given, "more_body": False}
        if self._whole:
            return await self._receive()  # which tells when the client leaves
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self.refusal = Refusal(408, "too_slow", f"the body took more than {_BODY_SECONDS:g} seconds.")
            return gone
        self._taken += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._taken > self._most:
            self.refusal = _too_large(self._most)
            return gone
        return message

    async def check_json(self) -> Refusal | None:
        """Read all of it ahead of Gradio, which fails over what Python takes for JSON and JSON is not."""
        given = await self.whole()
        if self.refusal:
            await self.drain()
            return self.refusal
        self._again = given
        try:
            value = json.loads(given, parse_constant=_no_number) if given else None
            json.dumps(
                value, ensure_ascii=False, allow_nan=False
            ).encode()  # halves of surrogate pairs, 1e400
        except (ValueError, RecursionError):
            return Refusal(422, "invalid_request_error", "the body is not JSON.")
        return None

    async def drain(self) -> None:
        """Take in the rest, within bounds: a client that is cut off while it sends never sees the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._whole and self._taken < _DRAINED:
                    message = await self._receive()
                    self._taken += len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)

    async def whole(self) -> bytes:
        """All of it; nothing where it is refused."""
        parts: list[bytes] = []
        while not self._whole and not self.refusal:
            parts.append((await self.receive()).get("body", b""))
        return b"" if self.refusal else b"".join(parts)


def _with_ours(
    headers: Iterable[tuple[bytes, bytes]], more: Sequence[tuple[str, str]] = ()
) -> list[tuple[bytes, bytes]]:
    return [*headers, *((name.encode(), value.encode()) for name, value in (*_HEADERS.items(), *more))]


def error_body(message: str, kind: str, field: str | None = None) -> dict[str, Any]:
    """An error as the REST endpoint tells it, in the form of OpenAI's."""
    return {"error": {"message": message, "type": kind, "param": field or None, "code": None}}


async def answer(send: Send, refusal: Refusal, more: Sequence[tuple[str, str]] = ()) -> None:
    """Answer with an error, and close the connection, on which a body may still be under way."""
    body = json.dumps(error_body(refusal.message, refusal.kind)).encode()
    headers = [("content-type", "application/json"), ("connection", "close"), *more]
    if refusal.status == 401:
        headers.append(("www-authenticate", "Bearer"))
    await _respond(send, refusal.status, headers, body)


async def _respond(send: Send, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
    told = [("content-length", str(len(body))), *headers]
    await send({"type": "http.response.start", "status": status, "headers": _with_ours([], told)})
    await send({"type": "http.response.body", "body": body})
