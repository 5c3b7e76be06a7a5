"""A client for servers that speak the OpenAI chat API: for models too large to load here.

In: the server's address, the name of its model, and messages. Out: its answers. The key, if it wants one, is
read from the environment and never written anywhere.
"""

import base64
import io
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, TypeVar

from PIL import Image

from kilopix.types import UserError

KEY = "KILOPIX_API_KEY"
_TOP = 20  # most likely first tokens that are asked for
_WAIT_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Completion:
    """An answer, and the log-probabilities of its likeliest first tokens, None where the server has none."""

    text: str
    first: dict[str, float] | None
    finished: bool


@dataclass(frozen=True)
class ChatServer:
    """Where a model is served; `url` ends before `/chat/completions`, as in `http://localhost:8000/v1`."""

    url: str
    model: str
    timeout: float = 120.0
    tries: int = 6
    concurrency: int = 8
    first_wait: float = 1.0

    def complete(
        self, content: str | list[dict[str, Any]], max_tokens: int, first: bool = False
    ) -> Completion:
        """Ask one thing, without randomness; with `first` for the first token's log-probabilities too.

        Raises `UserError` if the server refuses, or fails `tries` times.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        if first:
            body |= {"logprobs": True, "top_logprobs": _TOP}
        answer = self._post(body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            finished = choice.get("finish_reason") != "length"
            tops = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
            likely = [(top["token"], float(top["logprob"])) for top in tops] if tops else None
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise UserError(f"{self.url}: answered something that is no chat completion.") from None
        if not isinstance(text, str):
            raise UserError(f"{self.url}: answered no text.")
        return Completion(text, None if likely is None else dict(likely), finished)

    def map(self, ask: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Ask several things at once; the answers are in the order of `items`."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(ask, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        address = self.url.rstrip("/") + "/chat/completions"
        try:
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        except ValueError:
            raise UserError(f"{self.url}: no address of a server; write it as http://host:port/v1.") from None
        why = ""
        for attempt in range(self.tries):
            wait = self.first_wait * 2**attempt * random.uniform(0.5, 1.0)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                told = error.read(300).decode(errors="replace").strip()
                if error.code not in _WAIT_AGAIN:
                    hint = f" Set {KEY} to its key." if error.code in (401, 403) else ""
                    raise UserError(f"{address}: refused with {error.code}: {told}.{hint}") from None
                why = f"{error.code} {told}"
                wait = _seconds(error.headers.get("Retry-After")) or wait
            except (OSError, HTTPException, json.JSONDecodeError) as error:
                why = str(error) or type(error).__name__
            if attempt + 1 < self.tries:
                time.sleep(wait)
        raise UserError(
            f"{address}: failed {self.tries} times, at last with: {why}. The same command goes on."
        )


def _seconds(text: str | None) -> float | None:
    """The seconds that a Retry-After header names, at most ten minutes."""
    return min(float(text), 600.0) if text and text.isdecimal() else None


def with_picture(image: Image.Image, text: str) -> list[dict[str, Any]]:
    """A message of a picture, sent as PNG, and a text."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": text}]
