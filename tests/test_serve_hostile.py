"""The server against hostile input: refused with a message, no file given out, nothing asked of elsewhere."""

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from live_server import JOBS, Live, live_server, post


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({}, "prompt", "is missing"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": " \n "}, "prompt", "is empty"),
        ({"prompt": "x" * 1001}, "prompt", "longer than 1000 characters"),
        ({"prompt": "a\x00b"}, "prompt", "U+0000"),
        ({"prompt": ["a"]}, "prompt", "string"),
        ({"prompt": []}, "prompt", "string"),
        ({"prompt": "a", "negative_prompt": ["b"]}, "negative_prompt", "string"),
        ({"prompt": "a", "negative_prompt": "x" * 1001}, "negative_prompt", "shorten"),
        ({"prompt": "a", "n": 5}, "n", "at most 4"),
        ({"prompt": "a", "n": 0}, "n", "at least 1"),
        ({"prompt": "a", "n": True}, "n", "integer"),
        ({"prompt": "a", "n": 1e300}, "n", "integer"),
        ({"prompt": "a", "n": "2"}, "n", "integer"),
        ({"prompt": "a", "steps": 21}, "steps", "at most 20"),
        ({"prompt": "a", "steps": -1}, "steps", "at least 1"),
        ({"prompt": "a", "steps": 0}, "steps", "at least 1"),
        ({"prompt": "a", "steps": 2.5}, "steps", "integer"),
        ({"prompt": "a", "steps": True}, "steps", "integer"),
        ({"prompt": "a", "guidance": [4.0]}, "guidance", "number"),
        ({"prompt": "a", "guidance": True}, "guidance", "number"),
        ({"prompt": "a", "seed": [1, 2]}, "seed", "integer"),
        ({"prompt": "a", "seeds": [1, 2]}, "seeds", "the fields are prompt"),
        ({"prompt": "a", "guidance": 31}, "guidance", "at most 30"),
        ({"prompt": "a", "seed": -1}, "seed", "at least 0"),
        ({"prompt": "a", "seed": 2**53}, "seed", "at most"),
        ({"prompt": "a", "n": 2, "seed": 2**53 - 1}, "seed", "for 2 pictures"),
        ({"prompt": "a", "sampler": "../../etc/passwd"}, "sampler", "euler"),
        ({"prompt": "a", "size": "1024x1024"}, "size", "32x32"),
        ({"prompt": "a", "size": "9" * 99}, "size", "shorten"),
        ({"prompt": "a", "response_format": "url"}, "response_format", "b64_json"),
        ({"prompt": "a", "model": "/etc/passwd"}, "model", "choose from run"),
        ({"prompt": "a", "stepz": 3}, "stepz", "the fields are prompt"),
        ({"prompt": "a", "y" * 9999: 3}, "y" * 77 + "...", "is not known"),
    ],
)
def test_a_bad_field_is_named_and_the_way_out_told(client: httpx.Client, fields: dict, field: str, told: str):
    answer = post(client, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (422, "invalid_request_error", field)
    assert told in error["message"]
    assert len(answer.content) < 500


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"a"', 422),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b'{"prompt": "\\ud800"}', 422),
        (b'{"prompt": "a", "guidance": NaN}', 422),
        (b'{"prompt": "a", "guidance": Infinity}', 422),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 20_000, 400),
        (b'{"prompt": "' + b"x" * 70_000 + b'"}', 413),
    ],
)
def test_a_hostile_body_is_refused(client: httpx.Client, body: bytes, status: int):
    answer = client.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert len(answer.content) < 500
    assert client.get("/healthz").json()["status"] == "ok"


def test_a_body_without_a_length_is_cut_off(live: Live):
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {JOBS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        connection.settimeout(20)
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                connection.sendall(chunk)
        with contextlib.suppress(ConnectionResetError):
            assert b"413" in connection.recv(100)


def test_other_names_for_the_server_are_not_answered(client: httpx.Client):
    """So that a web page elsewhere cannot have its own name point here and read the answers."""
    for path in ("/", "/v1/models", "/gradio_api/info"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (421, "wrong_host")


FILES = [
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../../../etc/passwd",
    "/gradio_api/file=%2Fetc%2Fpasswd",
    "/gradio_api/file/etc/passwd",
    "/gradio_api//file=/etc/passwd",
    "/gradio_api/x/../file=/etc/passwd",
    "/gradio_api/file=http://169.254.169.254/latest/meta-data",
    "/gradio_api/proxy=https://example.org",
    "/gradio_api/upload_progress?upload_id=1",
    "/gradio_api/custom_component/x/client/component/..%2f..%2fetc%2fpasswd",
    "/assets/../../../../../../../etc/passwd",
    "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/static/../../../../../../../etc/passwd",
    "/static//etc/passwd",
    "/file=/etc/passwd",
    "/monitoring",
    "/login",
    "/docs",
    "/gradio_api/dev/reload",
    "/.env",
]


@pytest.mark.parametrize("path", FILES)
def test_no_file_of_the_server_is_given_out(live: Live, path: str):
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:  # as it stands, not tidied up
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.split()[1] in (b"403", b"404"), answer[:200]
    assert b"root:" not in answer


def test_gradio_itself_gives_out_no_file(live: Live, tiny_demo: Path):
    """Below the guard, Gradio's own lists are closed too."""
    from fastapi.testclient import TestClient

    from kilopix.web.page import build_site

    with build_site(live.worker, live.worker.limits) as site, TestClient(site.app) as client:
        weights = (tiny_demo / "run" / "model.safetensors").resolve()
        for path in ("/etc/passwd", str(weights), "pyproject.toml"):
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_nothing_is_taken_in(client: httpx.Client):
    answer = client.post("/gradio_api/upload", files={"files": ("x.txt", b"hello")})
    assert answer.status_code == 403
    assert client.post("/gradio_api/run/predict", json={}).status_code == 403
    assert client.delete("/gradio_api/queue/join").status_code == 405


def test_a_browser_may_load_nothing_from_elsewhere(client: httpx.Client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"([^\"]+)\"", page.text)
    assert loaded
    assert not [url for url in loaded if url.startswith(("http", "//"))]
    theme = client.get("/theme.css").text
    assert "@import" not in theme
    assert re.findall(r"url\((?!['\"]?data:)[^)]*\)", theme) == []


def test_no_connection_is_made_to_elsewhere(lively: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def watched_look_up(host, *arguments, **named):
        asked.append(host)
        return look_up(host, *arguments, **named)

    def watched_connect(self, where):
        asked.append(where[0] if isinstance(where, tuple) else where)
        return connect(self, where)

    monkeypatch.setattr(socket, "getaddrinfo", watched_look_up)
    monkeypatch.setattr(socket.socket, "connect", watched_connect)
    with live_server([lively]) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/").status_code == 200
        assert post(client, prompt="a cat").status_code == 200
    assert asked
    assert {str(host) for host in asked} <= {"127.0.0.1", "localhost"}
