"""Who may ask the server: pages of other origins are refused at every path, other machines need a token."""

import inspect
import itertools
import re
import socket

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient
from PIL import Image

from kilopix.errors import UserError
from kilopix.stages.serve import Doors, is_loopback, listen, who_may_ask
from kilopix.web import connection, guard
from kilopix.web.access import LOOPBACK, Access, checked_origin, checked_token
from kilopix.web.requests import Limits
from live_server import JOBS, Live, post

FOREIGN = ["http://localhost:3000", "http://127.0.0.1:1", "https://evil.example", "null", "", "http://"]
ALLOWED = "https://app.example"
TOKEN = "a-token-of-ours"


def paths_of_gradio() -> list[str]:
    """Every path that the installed Gradio may answer at, with something in each of its places."""
    import gradio.routes

    found = re.findall(r'@(app|router)\.\w+\(\s*f?"([^"]+)"', inspect.getsource(gradio.routes))
    filled = {("/gradio_api" * (of == "router")) + re.sub(r"\{[^}]*\}", "make", path) for of, path in found}
    assert len(filled) > 40
    return sorted(filled)


def test_pages_of_other_origins_are_refused_at_every_path(client: httpx.Client):
    asked = itertools.product([*paths_of_gradio(), JOBS, "/healthz"], ("OPTIONS", "GET", "POST"))
    for (path, method), origin in zip(asked, itertools.cycle(FOREIGN), strict=False):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path, origin)
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_page_itself_and_programs_may_ask(client: httpx.Client, live: Live):
    for headers in ({}, {"Origin": live.url}, {"Origin": live.url.upper()}):
        answer = client.post("/gradio_api/queue/join", json={}, headers=headers)
        assert answer.status_code == 422, "Gradio was asked"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    port = live.url.rpartition(":")[2]
    elsewhere = client.post(JOBS, json={}, headers={"Origin": f"http://localhost:{port}"})
    assert elsewhere.status_code == 403, "another name of this machine is another origin"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI()
    for path in ("/", JOBS, "/healthz", "/config"):
        app.api_route(path, methods=["GET", "POST"])(lambda: PlainTextResponse("here"))
    return app


def guarded(app: FastAPI, access: Access) -> TestClient:
    return TestClient(guard.Guard(app, Limits(), access), base_url="http://127.0.0.1:7860")


def test_an_allowed_origin_may_use_the_endpoint_alone(app: FastAPI):
    client = guarded(app, Access(origins=(ALLOWED,), token=TOKEN))
    asked = client.options(JOBS, headers={"Origin": ALLOWED, "Access-Control-Request-Method": "POST"})
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == ALLOWED
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    assert client.post(JOBS, headers={"Origin": ALLOWED}).status_code == 401
    answer = client.post(JOBS, headers={"Origin": ALLOWED, "Authorization": f"Bearer {TOKEN}"})
    assert (answer.text, answer.headers["access-control-allow-origin"]) == ("here", ALLOWED)
    assert "access-control-allow-credentials" not in {*asked.headers, *answer.headers}
    assert answer.headers["vary"] == "Origin"
    assert client.get("/config", headers={"Origin": ALLOWED}).status_code == 403
    for other in (f"{ALLOWED}.evil.example", f"{ALLOWED}:444", "http://app.example"):
        assert client.post(JOBS, headers={"Origin": other}).status_code == 403
    twice = [("Origin", "http://127.0.0.1:7860"), ("Origin", "https://evil.example")]
    assert client.post(JOBS, headers=twice).status_code == 403


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("a.example", "https://a.example", True),
        ("a.example:443", "https://a.example", True),
        ("a.example", "http://a.example:80", True),
        ("a.example:7860", "http://a.example", False),
        ("a.example:7860", "http://a.example:7861", False),
        ("a.example", "ftp://a.example", False),
        ("a.example", "http://a.example@evil.example", False),
        ("", "http://", False),
    ],
)
def test_what_is_the_same_origin(host: str, origin: str, own: bool):
    assert Access().is_foreign({"host": host, "origin": origin}) is not own


def test_a_token_is_asked_for_and_kept_in_a_cookie(app: FastAPI):
    client = guarded(app, Access(token=TOKEN))
    assert client.get("/healthz").text == "here"
    refused = client.post(JOBS)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in refused.json()["error"]["message"]
    for wrong in (TOKEN[:-1], f"{TOKEN}x", "", "\xff"):
        header = {"Authorization": f"Bearer {wrong}".encode("latin-1")}
        assert client.post(JOBS, headers=header).status_code == 401
    assert client.post(JOBS, headers={"Authorization": f"bearer {TOKEN}"}).text == "here"
    for page in (
        client.get("/"),
        client.get("/?token=wrong"),
        client.post("/login", data={"token": "wrong"}),
    ):
        assert (page.status_code, "<form" in page.text) == (401, True)
        assert not page.cookies
    assert client.get("/config").status_code == 401
    own = {"Origin": "http://127.0.0.1:7860"}
    for method, path, sent in (
        ("GET", "/", {"params": {"token": TOKEN}}),
        ("POST", "/login", {"data": {"token": TOKEN}}),
    ):
        enter = client.request(method, path, headers=own, **sent)
        kept = enter.headers["set-cookie"]
        assert TOKEN not in kept + enter.text
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(kept.split("; "))
        assert 'location.replace("/")' in enter.text
        assert client.get("/config").text == client.get("/").text == "here"
        client.cookies.clear()
        assert client.get("/config").status_code == 401
    assert client.post("/login", data={"token": TOKEN}, headers={"Origin": ALLOWED}).status_code == 403


def test_other_machines_need_a_token_unless_it_is_declined():
    assert who_may_ask(Doors(), only_here=True) == Access()
    drawn = who_may_ask(Doors(), only_here=False)
    assert len(drawn.token or "") >= 32
    assert drawn.hosts is None
    assert drawn.token != who_may_ask(Doors(), only_here=False).token
    assert who_may_ask(Doors(no_token=True), only_here=False).token is None
    assert who_may_ask(Doors(hosts=["Demo.Example"]), only_here=True).hosts == (*LOOPBACK, "demo.example")
    for wrong in (Doors(token="short"), Doors(token="two words or so"), Doors(token=TOKEN, no_token=True)):
        with pytest.raises(UserError, match="--token"):
            who_may_ask(wrong, only_here=True)
    assert checked_token(TOKEN) == TOKEN
    for host, only_here in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("", False)):
        with listen(host, 0) as listening:
            assert is_loopback(listening) is only_here, host


@pytest.mark.parametrize(
    "origin", ["*", "null", "example.org", "https://a.example/", "https://*.example", ""]
)
def test_an_origin_that_is_none_is_refused(origin: str):
    with pytest.raises(UserError, match="exact origin"):
        checked_origin(origin)
    assert checked_origin("HTTPS://A.example:443") == "https://a.example"


def test_heads_and_bodies_that_do_not_end_are_cut_off(live: Live, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(guard, "_BODY_SECONDS", 0.2)
    monkeypatch.setattr(guard, "_DRAIN_SECONDS", 0.1)
    host, port = live.url.removeprefix("http://").split(":")
    head = f"POST {JOBS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for sent in (
        "",
        head,
        f"{head}Content-Length: 9\r\n\r\n{{",
        f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=20) as slow:
            slow.sendall(sent.encode())
            answer = slow.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408"), sent


NO_REQUESTS = [
    b"",
    b"null",
    b"[" * 5000,
    b'{"data": NaN}',
    b'{"data": [1e400], "fn_index": 0, "session_hash": "a"}',
    b'{"data": "\\ud800"}',
    b'{"data": null}',
    b'{"data": [], "fn_index": 99, "session_hash": "a"}',
    b'{"data": [], "fn_index": null, "session_hash": null}',
    b'{"data": [], "fn_index": 1e30, "session_hash": {}}',
]


def test_what_no_page_sends_is_refused_without_a_traceback(
    client: httpx.Client, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    for body in NO_REQUESTS:
        for path in ("queue/join", "call/make", "call/v2/make", "call/nothing", "cancel", "reset"):
            headers = {"Content-Type": "application/json"}
            answer = client.post(f"/gradio_api/{path}", content=body, headers=headers)
            assert answer.status_code < 500, (path, body)
    # The fields of the page, each empty: what is wrong is told to who asked, and to nobody else.
    number = len(client.get("/config").json()["dependencies"])
    for fn in range(number):
        for data in ([], [None] * 9, [{}] * 9):
            asked = {"data": data, "fn_index": fn, "session_hash": f"fuzz-{fn}"}
            client.post("/gradio_api/queue/join", json=asked)
        with client.stream("GET", f"/gradio_api/queue/data?session_hash=fuzz-{fn}") as events:
            assert any("close_stream" in line for line in events.iter_lines())
    for nowhere in ("/assets/" + "a" * 300, "/gradio_api/queue/data?session_hash=nobody"):
        assert client.get(nowhere).status_code in (200, 400, 404)
    assert post(client, prompt="a cat", steps=1).status_code == 200
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err + caplog.text


def test_no_words_from_elsewhere_are_markup_in_the_api_tab(live: Live, client: httpx.Client):
    shown = next(
        part["props"]["value"]
        for part in client.get("/config").json()["components"]
        if part["props"].get("elem_id") == "kp-api"
    )
    outside = re.sub(r"```.*?```", "", shown, flags=re.DOTALL)
    assert not [name for name in live.worker.models if f"`{name}`" in outside]


def test_every_word_is_text_in_the_data_tab(live: Live):
    from kilopix.web.data_tab import look_html
    from kilopix.web.data_view import DataView, Look, Version

    hostile = "<script>alert(1)</script><img src=x>"
    picture = Image.new("RGB", (4, 4))
    view = DataView.__new__(DataView)
    view.model = live.worker.models["run"]
    versions = [Version(hostile, hostile, picture, picture, [picture] * 6)]
    page = look_html(Look(hostile, hostile, 3, versions), view)
    assert "<script" not in page
    assert "<img src=x" not in page
