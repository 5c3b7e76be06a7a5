import base64
import io
import time

import numpy as np
import pytest
from PIL import Image

from chat import Trouble, completion, serve, text_of
from kilopix.pretrained.chat_server import KEY, ChatServer, with_picture
from kilopix.types import UserError


def quick(url: str, tries: int = 6) -> ChatServer:
    return ChatServer(url, "tiny", tries=tries, first_wait=0.001)


def test_one_question(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KEY, "secret")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    with serve(lambda body: completion("Yes", {"Yes": -0.5, "No": -1.0})) as (url, requests):
        done = quick(url).complete(with_picture(image, "Is it?"), 3, first=True)
    assert done.text == "Yes"
    assert done.first == {"Yes": -0.5, "No": -1.0}
    (request,) = requests
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] == "Bearer secret"
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0, 3)
    assert request["logprobs"] is True
    picture, text = request["messages"][0]["content"]
    assert text["text"] == "Is it?"
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(image)).all()


def test_troubles_that_pass_are_waited_for():
    troubles = [
        Trouble(429, headers={"Retry-After": "1"}),
        Trouble(500),
        Trouble(0),
        Trouble(200, b"<html>"),
        Trouble(503),
    ]
    left = list(troubles)
    started = time.monotonic()
    with serve(lambda body: left.pop(0) if left else completion("fine")) as (url, requests):
        assert quick(url).complete("hello", 3).text == "fine"
    assert len(requests) == 6
    assert time.monotonic() - started > 1, "Retry-After was heard"


@pytest.mark.parametrize(
    ("trouble", "message", "asked"),
    [
        (Trouble(500, b"broken"), r"failed 3 times, at last with: answer 500 \(broken\)", 3),
        (Trouble(0), "failed 3 times", 3),
        (Trouble(401, b"who?"), r"answers 401 \(who\?\); check .* the key in the environment", 1),
        (Trouble(404, b"no model"), r"answers 404 \(no model\)", 1),
        ({"error": "?"}, "no chat completion", 1),
        (completion(None), "answered no text", 1),  # pyright: ignore
    ],
)
def test_troubles_that_stay_are_errors(trouble, message: str, asked: int):
    with serve(lambda body: trouble) as (url, requests):
        with pytest.raises(UserError, match=message):
            quick(url, tries=3).complete("hello", 3)
        assert len(requests) == asked


def test_answers_keep_the_order_of_the_questions():
    def slow_first(body):
        time.sleep(0.1 if text_of(body) == "0" else 0)
        return completion(text_of(body))

    with serve(slow_first) as (url, _):
        server = quick(url)
        asked = [str(i) for i in range(9)]
        assert server.map(lambda text: server.complete(text, 3).text, asked) == asked


def test_no_server_is_a_users_error():
    with pytest.raises(UserError, match="failed 1 times"):
        quick("http://127.0.0.1:9/v1", tries=1).complete("hello", 3)
    with pytest.raises(UserError, match="not an address such as http"):
        quick("localhost").complete("hello", 3)
