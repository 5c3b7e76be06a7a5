"""One request to a server that speaks the OpenAI chat API, with a limit on its time as a whole.

In: the address, a JSON value. Out: a JSON value, or `RequestFailed`, which says if it is worth another try.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from kilopix.types import UserError

_MOST_BYTES = 8 << 20
_OVERLOADED = {429, 502, 503, 504, 529}
_MAY_PASS = {408, 409, 425, 500} | _OVERLOADED
_MISCONFIGURED = {401, 403, 404, 405}


class RequestFailed(Exception):
    """A request without a usable answer; `again` if another try may help, after `retry_after` seconds.

    `reached` is false where no server answered at all, `overloaded` true where it has too much to do.
    """

    def __init__(
        self,
        why: str,
        again: bool,
        reached: bool = True,
        overloaded: bool = False,
        retry_after: float = 0.0,
    ):
        super().__init__(why)
        self.again = again
        self.reached = reached
        self.overloaded = overloaded
        self.retry_after = retry_after


@dataclass(frozen=True)
class ChatClient:
    """A server's address, the key that it wants, and the seconds that a request may take."""

    url: str
    key: str
    timeout: float

    def __post_init__(self):
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"server {self.url!r}: not an address such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password:
            raise UserError("server: its address must hold no password; keys come from the environment.")

    def get(self, path: str) -> Any:
        """Ask for a JSON value; raises `RequestFailed`, or `UserError` where the address or key is wrong."""
        return self._request("GET", path, None)

    def post(self, path: str, value: Any) -> Any:
        """Send a JSON value and return the answer's; raises as `get` does."""
        return self._request("POST", path, json.dumps(value).encode())

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        parts = urlsplit(self.url)
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        assert parts.hostname is not None
        connection = connect(parts.hostname, parts.port, timeout=self.timeout)
        deadline = time.monotonic() + self.timeout
        # The socket's own timeout begins anew with every byte; this one does not.
        watch = threading.Timer(self.timeout, _cut, [connection])
        watch.daemon = True
        watch.start()
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            if self.key:
                headers["Authorization"] = f"Bearer {self.key}"
            connection.request(method, f"{parts.path.rstrip('/')}/{path}", body, headers)
            response = connection.getresponse()
            content = response.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException, AttributeError, ValueError) as error:
            # The last two come from http.client if the watch closed the connection under it.
            reached = isinstance(error, http.client.HTTPException)
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            why = f"no answer in {self.timeout:g} s" if late else f"connection failed ({_words(error)})"
            raise RequestFailed(why, again=True, reached=reached or late, overloaded=True) from None
        finally:
            watch.cancel()
            connection.close()
        if time.monotonic() >= deadline:
            raise RequestFailed(f"no answer in {self.timeout:g} s", again=True, overloaded=True)
        return self._read(response.status, response.headers.get("Retry-After"), content)

    def _read(self, status: int, retry_after: str | None, content: bytes) -> Any:
        if status in _MISCONFIGURED:
            raise UserError(
                f"server {self.url}: answers {status} ({self._excerpt(content)}); check its address, the "
                "model's name, and the key in the environment."
            )
        if status != 200:
            raise RequestFailed(
                f"answer {status} ({self._excerpt(content)})",
                again=status in _MAY_PASS,
                overloaded=status in _OVERLOADED,
                retry_after=seconds_of(retry_after),
            )
        try:
            return json.loads(content)
        except ValueError:
            raise RequestFailed(f"answer is not JSON ({self._excerpt(content)})", again=True) from None

    def _excerpt(self, content: bytes) -> str:
        """The beginning of an answer, without the key, which some servers repeat."""
        text = content.decode(errors="replace")
        text = text.replace(self.key, "...") if self.key else text
        return " ".join(text[:2000].split())[:200] or "no text"


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection that another thread waits for."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # it may have ended by itself meanwhile
            connection.sock.shutdown(socket.SHUT_RDWR)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def seconds_of(retry_after: str | None) -> float:
    """The seconds that a Retry-After header asks for, as a number or by a date; 0 if it is neither."""
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
