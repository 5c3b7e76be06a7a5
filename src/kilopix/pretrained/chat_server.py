"""A client for servers that speak the OpenAI chat API: for models too large to load here.

In: the server's address, the name of its model, and messages. Out: its answers. The key, if it wants one, is
read from the environment and never written anywhere.
"""

import base64
import io
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from kilopix.pretrained.chat_client import ChatClient, RequestFailed
from kilopix.types import UserError

KEY = "OPENAI_API_KEY"
_TOP = 20  # most likely first tokens that are asked for
_LONGEST_WAIT = 600.0

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
        client = ChatClient(self.url, os.environ.get(KEY, ""), self.timeout)
        why = ""
        for attempt in range(self.tries):
            try:
                return client.post("chat/completions", body)
            except RequestFailed as error:
                why = str(error)
                if not error.again:
                    raise UserError(f"server {self.url}: {why}.") from None
                wait = error.retry_after or self.first_wait * 2**attempt * random.uniform(0.5, 1.0)
            if attempt + 1 < self.tries:
                time.sleep(min(wait, _LONGEST_WAIT))
        raise UserError(
            f"server {self.url}: failed {self.tries} times, at last with: {why}. The same command goes on."
        )


def with_picture(image: Image.Image, text: str) -> list[dict[str, Any]]:
    """A message of a picture, sent as PNG, and a text."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": text}]
