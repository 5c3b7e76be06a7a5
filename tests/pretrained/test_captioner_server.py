"""The server captioner against a real HTTP server on this machine that misbehaves in every way."""

import json
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest
from PIL import Image

from chat_server import Handler, Server, serving
from kilopix.errors import UserError
from kilopix.pretrained import adaptive, captioner_server
from kilopix.pretrained.adaptive import AdaptiveLimit
from kilopix.pretrained.captioner import NOT_OPENED, ServerCaptionerConfig
from kilopix.pretrained.captioner_server import ServerCaptioner
from kilopix.pretrained.chat_client import seconds_of

KEY = "sk-secret-of-the-test"


def settings(server: Server, **changes: object) -> ServerCaptionerConfig:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return ServerCaptionerConfig.model_validate({"url": url, "timeout": 0.3} | changes)


def pictures(count: int, side: int = 24) -> list[partial]:
    return [partial(Image.new, "RGB", (side, side), (2 * i,) * 3) for i in range(count)]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "_BACKOFF", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def well(handler: Handler, number: int, tries: int) -> None:
    handler.tell(number)


def test_every_picture_gets_its_own_answer_in_order():
    with serving(well) as server:
        answers = ServerCaptioner(settings(server)).caption([*pictures(60), lambda: None], 0)
    assert [answer.text for answer in answers[:60]] == [f"Picture {i}." for i in range(60)]
    assert answers[60] == NOT_OPENED


def test_the_request_holds_model_prompt_and_limits_and_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(well) as server:
        ServerCaptioner(settings(server, max_side=100)).caption(pictures(2, side=400), 7)
        body, authorization, size = server.requests[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("small", 200, 0.0)
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "Describe this image"}
    assert authorization == f"Bearer {KEY}"
    assert size == (100, 100)
    assert KEY not in json.dumps(body)


def drip(handler: Handler) -> None:
    """One byte now and then, so that the connection never falls silent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def misbehave(handler: Handler, number: int, tries: int) -> None:
    """Each picture has one of a dozen troubles; some pass after two tries, some never do."""
    trouble, for_ever = number % 12, number % 5 == 0
    if trouble == 0 or (tries > 2 and not for_ever):
        return handler.tell(number)
    if trouble == 1:
        time.sleep(0.5)  # longer than the client waits
    elif trouble == 2:
        handler.connection.close()
    elif trouble == 3:
        handler.send(429, "slow down", Retry_After="0.02")
    elif trouble == 4:
        handler.send(500, "internal error")
    elif trouble == 5:
        handler.send(200, "<html>not JSON")
    elif trouble == 6:
        handler.send(200, json.dumps({"choices": []}))
    elif trouble == 7:
        handler.send(200, json.dumps({"choices": [{"message": {"content": None}}]}))
    elif trouble == 8:
        drip(handler)
    elif trouble == 9:
        handler.send(400, "picture refused")  # this is final
    elif trouble == 10:
        handler.send_response(200)
        handler.send_header("Content-Length", "999")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')  # and the connection ends
    else:
        handler.wfile.write(bytes(random.Random(number).randrange(256) for _ in range(300)))
    return None


def test_every_picture_ends_with_a_caption_or_a_reason():
    count = 60
    with serving(misbehave) as server:
        answers = ServerCaptioner(settings(server, tries=3, concurrency=32)).caption(pictures(count), 0)
        tries = server.tries
    assert len(answers) == count
    for number, answer in enumerate(answers):
        lost = number % 12 == 9 or (number % 12 != 0 and number % 5 == 0)
        assert (answer.text, bool(answer.error)) == (("", True) if lost else (f"Picture {number}.", False)), (
            number
        )
        assert tries[number] == (1 if number % 12 in (0, 9) else 3), number
    reasons = " ".join(answer.error for answer in answers)
    for why in (
        "no answer in 0.3 s",
        "connection",
        "429",
        "500",
        "not JSON",
        "no chat completion",
        "no text",
        "400",
    ):
        assert why in reasons


def test_retry_after_holds_all_requests_back():
    times: list[float] = []

    def ask_to_wait(handler: Handler, number: int, tries: int) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            handler.send(429, "wait", Retry_After="0.4")
        else:
            handler.tell(number)

    with serving(ask_to_wait) as server:
        answers = ServerCaptioner(settings(server, concurrency=1)).caption(pictures(4), 0)
    assert all(answer.text for answer in answers)
    assert times[1] - times[0] >= 0.39
    assert times[-1] - times[1] < 0.39


def test_the_concurrency_grows_while_all_is_well_and_falls_under_load():
    capacity = 6

    def overloaded(handler: Handler, number: int, tries: int) -> None:
        crowded = handler.server.running > capacity
        time.sleep(0.02)
        if crowded:
            handler.send(503, "too many at once")
        else:
            handler.tell(number)

    with serving(overloaded) as server:
        captioner = ServerCaptioner(settings(server, tries=30, concurrency=64))
        answers = captioner.caption(pictures(120), 0)
        assert all(answer.text for answer in answers)
        assert capacity <= server.most_running <= 3 * capacity
        assert captioner._limit.limit <= 2 * capacity

    def slow(handler: Handler, number: int, tries: int) -> None:
        time.sleep(0.02)
        handler.tell(number)

    with serving(slow) as server:
        ServerCaptioner(settings(server, concurrency=20)).caption(pictures(120), 0)
        assert 10 <= server.most_running <= 20


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_stops_at_once_and_hides_the_key(status: int, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def refuse(handler: Handler, number: int, tries: int) -> None:
        handler.send(status, f"you sent {handler.headers['Authorization']}")

    with serving(refuse) as server:
        with pytest.raises(UserError, match=f"answers {status}") as stop:
            ServerCaptioner(settings(server, concurrency=4)).caption(pictures(100), 0)
        assert sum(server.tries.values()) < 30
    assert KEY not in str(stop.value)
    assert "you sent" in str(stop.value)


def test_an_error_ends_the_tries_of_all_other_pictures():
    def one_is_refused(handler: Handler, number: int, tries: int) -> None:
        handler.send(401 if number == 7 else 500, "no")

    with serving(one_is_refused) as server:
        captioner = ServerCaptioner(settings(server, tries=1000, concurrency=8))
        with pytest.raises(UserError, match="answers 401"):
            captioner.caption(pictures(100), 0)


def test_a_server_that_is_gone_is_an_error_and_no_list_of_failures():
    with serving(well) as server:
        captioner = ServerCaptioner(settings(server, tries=2))
    with pytest.raises(UserError, match="not reached for any picture"):
        captioner.caption(pictures(5), 0)
    with pytest.raises(UserError, match="Is it running"):
        ServerCaptioner(settings(server))


def test_the_model_must_be_clear_and_the_address_an_address():
    with serving(well) as server:
        server.models = ["a", "b"]
        with pytest.raises(UserError, match=r"2 models \(a, b\)"):
            ServerCaptioner(settings(server))
        assert ServerCaptioner(settings(server, model="b")).caption(pictures(1), 0)[0].text == "Picture 0."
    for url in ("localhost:8000", "ftp://a/v1", "http://name:word@127.0.0.1/v1"):
        with pytest.raises(UserError, match="address"):
            captioner_server.ServerCaptioner(ServerCaptionerConfig(url=url))


def test_retry_after_is_a_number_or_a_date():
    assert seconds_of("12") == 12
    assert seconds_of("-3") == 0
    assert seconds_of(None) == seconds_of("soon") == 0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < seconds_of(later) <= 30


def test_one_overload_halves_the_limit_once():
    limit = AdaptiveLimit(100)
    limit.limit = 16.0
    leases = [limit.one() for _ in range(4)]
    for lease in leases:
        lease.__enter__().overloaded = True
    for lease in leases:
        lease.__exit__(None, None, None)
    assert limit.limit == 8
