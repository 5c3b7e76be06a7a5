"""A captioner behind the OpenAI chat API.

In: pictures. Out: one answer for each, or why there is none after several tries. Many requests run at
once, as many as the server copes with.
"""

import base64
import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from kilopix.pretrained.adaptive import AdaptiveLimit, backoff
from kilopix.pretrained.captioner import NOT_OPENED, Answer, LoadPicture, ServerCaptionerConfig
from kilopix.pretrained.chat_client import ChatClient, RequestFailed
from kilopix.runtime import seed_from
from kilopix.types import UserError

_QUALITY = 92  # of the JPEGs that are sent


class ServerCaptioner:
    """Asks a server about every picture; raises `UserError` where its address, model or key is wrong."""

    def __init__(self, config: ServerCaptionerConfig):
        self._config = config
        self._client = ChatClient(config.url, os.environ.get(config.key_variable, ""), config.timeout)
        self._limit = AdaptiveLimit(config.concurrency)
        self._model = config.model or self._only_model()
        self.name = f"{self._model} at a server"

    def _only_model(self) -> str:
        try:
            models = self._client.get("models")
        except RequestFailed as error:
            raise UserError(f"server {self._config.url}: {error}. Is it running?") from None
        try:
            names = [str(model["id"]) for model in models["data"]]
        except (KeyError, TypeError):
            raise UserError(f"server {self._config.url}: does not list its models; name one.") from None
        if len(names) != 1:
            raise UserError(
                f"server {self._config.url}: has {len(names)} models ({', '.join(names[:9])}); name one."
            )
        return names[0]

    def caption(self, pictures: Sequence[LoadPicture], seed: int) -> list[Answer]:
        """One answer a picture, in order.

        If no server answers for a single one of them, that is a `UserError` rather than so many failures.
        """
        reached: list[bool] = []
        stop = threading.Event()

        def ask(numbered: tuple[int, LoadPicture]) -> Answer:
            picture = None if stop.is_set() else numbered[1]()
            if picture is None:
                return NOT_OPENED
            try:
                return self._ask(picture, seed_from(seed, numbered[0]), reached, stop)
            except UserError:
                stop.set()  # at once: the pictures before this one may have many tries to go
                raise

        pool = ThreadPoolExecutor(min(self._config.concurrency, max(1, len(pictures))))
        try:
            answers = list(pool.map(ask, enumerate(pictures)))
        finally:
            stop.set()  # after a UserError or Ctrl-C, ask for no other picture and try none again
            pool.shutdown(cancel_futures=True)
        if reached and not any(reached):
            why = next(answer.error for answer in answers if answer.error != NOT_OPENED.error)
            raise UserError(f"server {self._config.url}: not reached for any picture ({why}). Is it running?")
        return answers

    def _ask(self, picture: Image.Image, seed: int, reached: list[bool], stop: threading.Event) -> Answer:
        """Ask until there is an answer or the tries are used up."""
        request = self._request(picture, seed)
        why, any_reached = "", False
        for failed in range(self._config.tries):
            with self._limit.one() as lease:
                try:
                    text = _text_of(self._client.post("chat/completions", request))
                    reached.append(True)
                    return Answer(text)
                except RequestFailed as error:
                    why, again = str(error), error.again
                    any_reached = any_reached or error.reached
                    lease.overloaded = error.overloaded
                    if error.retry_after:
                        self._limit.pause(error.retry_after)
            last = failed + 1 == self._config.tries
            if not again or last or stop.wait(backoff(failed)):
                break
        reached.append(any_reached)
        return Answer(error=why)

    def _request(self, picture: Image.Image, seed: int) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": _data_url(picture, self._config.max_side)}}
        text = {"type": "text", "text": self._config.prompt}
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": [image, text]}],
            "max_tokens": self._config.max_tokens,
            "temperature": self._config.temperature,
            "seed": seed % 2**31,
        }


def _data_url(picture: Image.Image, max_side: int) -> str:
    """A picture as a JPEG inside an address, scaled down if a side is longer than `max_side`."""
    if max(picture.size) > max_side:
        picture = picture.copy()
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _text_of(answer: Any) -> str:
    """The text of a chat completion; anything else is nonsense that another try may mend."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise RequestFailed("answer is no chat completion", again=True) from None
    if not isinstance(text, str) or not text.strip():
        raise RequestFailed("answer has no text", again=True)
    return text
