"""The server: no request lost or mixed up, every bad one refused with a message, no file given out."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client as GradioClient
from gradio_client.exceptions import AppError
from PIL import Image

from kilopix.generator import Generator
from kilopix.web.guard import _PAGE
from kilopix.web.requests import Limits
from live_server import JOBS, Live, hold, live_server, post, wait_until


@pytest.fixture(scope="module")
def page(live: Live) -> GradioClient:
    """The page as a program sees it."""
    return GradioClient(live.url, verbose=False)


def pixels(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64)))).astype(int)


def far(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def prompt_of(i: int) -> str:
    return f"a photo of {('a cat', 'a red car', 'two dogs', 'an apple', 'a blue cup')[i % 5]}, number {i}"


async def ask_all(url: str, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        asked = [{"prompt": prompt_of(i), "seed": i // 2} for i in range(count)]
        return await asyncio.gather(*(client.post(JOBS, json=fields) for fields in asked))


def test_fifty_at_once_each_get_their_own(live: Live, lively: Path):
    answers = asyncio.run(ask_all(live.url, 50))
    assert [answer.status_code for answer in answers] == [200] * 50
    generator = Generator.from_pretrained(lively, "cpu")
    direct = [np.asarray(generator(prompt_of(i), seeds=[i // 2])[0]).astype(int) for i in range(50)]
    assert min(far(direct[i], direct[j]) for i in range(50) for j in range(i)) > 10
    got = [answer.json()["data"][0] for answer in answers]
    assert [picture["seed"] for picture in got] == [i // 2 for i in range(50)]
    for i, picture in enumerate(got):
        assert far(pixels(picture["b64_json"]), direct[i]) <= 1, f"request {i} got another's picture"


def test_alone_in_its_batch_a_picture_has_the_generators_bytes(lively: Path):
    generator = Generator.from_pretrained(lively, "cpu")
    with live_server([lively], Limits(batch=1)) as server:
        answers = asyncio.run(ask_all(server.url, 12))
    for i, answer in enumerate(answers):
        buffer = io.BytesIO()
        generator(prompt_of(i), seeds=[i // 2])[0].save(buffer, "PNG")
        assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == buffer.getvalue()


def test_settings_and_seeds_are_told_and_used(client: httpx.Client, live: Live):
    answer = post(client, prompt="a cat", n=3, seed=5, steps=3, guidance=2.5, sampler="heun", size="32x32")
    body = answer.json()
    assert body["settings"] == {"sampler": "heun", "steps": 3, "guidance": 2.5, "negative_prompt": ""}
    assert [picture["seed"] for picture in body["data"]] == [5, 6, 7]
    again = post(client, prompt="a cat", seed=6, steps=3, guidance=2.5, sampler="heun").json()
    assert far(pixels(again["data"][0]["b64_json"]), pixels(body["data"][1]["b64_json"])) <= 1
    other = post(client, prompt="a cat", seed=6, steps=3, guidance=2.5, sampler="heun", negative_prompt="red")
    assert far(pixels(other.json()["data"][0]["b64_json"]), pixels(body["data"][1]["b64_json"])) > 1
    drawn = [post(client, prompt="a cat", steps=1).json()["data"][0]["seed"] for _ in range(3)]
    assert len(set(drawn)) == 3
    names = [card["id"] for card in client.get("/v1/models").json()["data"]]
    assert names == list(live.worker.models)
    older = post(client, prompt="a cat", seed=6, model=names[1]).json()
    assert older["model"] == names[1]
    newer = post(client, prompt="a cat", seed=6).json()
    assert far(pixels(older["data"][0]["b64_json"]), pixels(newer["data"][0]["b64_json"])) > 1


def test_the_description_is_valid_openapi(client: httpx.Client):
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) == {JOBS, "/v1/models", "/healthz"}
    operation = described["paths"][JOBS]["post"]
    assert set(operation["responses"]) == {"200", "400", "413", "422", "429", "500", "503"}
    assert operation["responses"]["429"]["headers"]["Retry-After"]
    schemas = described["components"]["schemas"]
    form = schemas["PictureRequest"]
    assert form["required"] == ["prompt"]
    assert form["properties"]["n"]["maximum"] == 4
    assert form["properties"]["prompt"]["maxLength"] == 1000
    assert form["additionalProperties"] is False
    pointed = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert pointed <= set(schemas)
    for path in described["paths"].values():
        for one in path.values():
            assert one["operationId"]
            assert all(answer["description"] for answer in one["responses"].values())


def test_a_full_queue_says_when_to_come_back(lively: Path):
    with live_server([lively], Limits(queue=3)) as server:
        go = hold(server.worker)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            others = threading.Thread(target=lambda: asyncio.run(ask_all(server.url, 3)))
            others.start()
            wait_until(lambda: server.worker.waiting == 3)
            refused = post(client, prompt="one too many")
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 600
            assert "try again" in refused.json()["error"]["message"]
            assert client.get("/healthz").json()["waiting"] == 3
            go.set()
            others.join()
            assert post(client, prompt="now there is room").status_code == 200


def test_who_leaves_is_dropped(live: Live):
    go = hold(live.worker)
    made = live.worker.made
    try:
        with httpx.Client(base_url=live.url, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
            post(client, prompt="never mind", n=4)
        wait_until(lambda: not live.worker.waiting)
    finally:
        go.set()
    live.worker.call(lambda: None).future.result(30)
    assert live.worker.made == made


def test_one_bad_order_does_not_spoil_the_batch(live: Live, monkeypatch: pytest.MonkeyPatch):
    model = live.worker.models["run"]
    make = type(model).make

    def fails_on_poison(self, jobs, sampling, on_step=None):
        if any("poison" in prompt for prompt, _ in jobs):
            raise RuntimeError("no")
        return make(self, jobs, sampling, on_step)

    monkeypatch.setattr(type(model), "make", fails_on_poison)
    go = hold(live.worker)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as client:
            prompts = ("a cat", "poison", "a dog")
            asked = [asyncio.create_task(client.post(JOBS, json={"prompt": text})) for text in prompts]
            while live.worker.waiting < 3:
                await asyncio.sleep(0.01)
            go.set()
            return [(await answer).status_code for answer in asked]

    assert asyncio.run(ask()) == [200, 500, 200]


def test_the_pages_own_api_serves_two_at_once(live: Live, lively: Path, page: GradioClient):
    clients = [page, GradioClient(live.url, verbose=False)]
    jobs = [
        client.submit(prompt_of(i), 2, 40 + i, False, "euler", 2, 3.0, "", "run", api_name="/make")
        for i, client in enumerate(clients)
    ]
    generator = Generator.from_pretrained(lively, "cpu")
    for i, job in enumerate(jobs):
        shown = job.result(timeout=60)[0]
        pictures = re.findall(r'<img[^>]+src="data:image/png;base64,([^"]+)"', shown)
        assert f"seed {40 + i}" in shown
        assert len(pictures) == 2
        for picture, seed in zip(pictures, (40 + i, 41 + i), strict=True):
            direct = np.asarray(generator(prompt_of(i), seeds=[seed])[0]).astype(int)
            assert far(pixels(picture), direct) <= 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({0: "x" * 1001}, "1000"),
        ({0: ""}, "empty"),
        ({1: 900}, "maximum"),
        ({5: 100_000}, "maximum"),
        ({6: 1e9}, "maximum"),
        ({4: "no such"}, "choices"),
        ({8: "/etc/passwd"}, "choices"),
        ({2: -5}, "minimum"),
    ],
)
def test_the_page_checks_on_the_server_too(live: Live, page: GradioClient, change: dict[int, Any], told: str):
    values: list[Any] = ["a cat", 1, 0, False, "euler", 2, 3.0, "", "run"]
    for place, value in change.items():
        values[place] = value
    made = live.worker.made
    with pytest.raises(AppError, match=told):
        page.predict(*values, api_name="/make")
    assert live.worker.made == made


def test_a_prompt_cannot_put_markup_into_the_page(page: GradioClient):
    hostile = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    shown = page.predict(hostile, 1, 0, False, "euler", 1, 1.0, hostile, "run", api_name="/make")[0]
    assert "<script" not in shown
    assert shown.count("<img") == 1
    assert "onerror=alert(1)&gt;" in shown


def test_two_models_are_compared(live: Live, page: GradioClient):
    left, right = live.worker.models
    shown = page.predict("a cat", left, right, 2, 3, "euler", 2, 3.0, "", api_name="/compare")
    pictures = re.findall(r'<img[^>]+src="data:image/png;base64,([^"]+)"', shown)
    assert shown.count("seed 3") == shown.count("seed 4") == 2
    assert far(pixels(pictures[0]), pixels(pictures[2])) > 1


def test_what_is_private_is_not_in_the_pages_api(client: httpx.Client):
    assert set(client.get("/gradio_api/info").json()["named_endpoints"]) == {"/make", "/compare"}


def test_the_open_paths_are_few():
    assert not _PAGE["GET"].fullmatch("/gradio_api/file=x")
    assert not _PAGE["POST"].fullmatch("/gradio_api/upload")


def test_wrong_addresses_are_named(tiny_demo: Path, cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli("serve", tiny_demo / "run", "--port", port)
    assert done.code == 2
    assert f"127.0.0.1:{port} cannot be used" in done.err
    done = cli("serve", tiny_demo / "nowhere", "--port", 0)
    assert done.code == 2
    assert "nowhere" in done.err
    done = cli("serve", tiny_demo / "run", "--port", 0, "--run", tiny_demo / "shards")
    assert done.code == 2
    assert "no run there" in done.err


def test_sigterm_lets_what_is_in_work_end(lively: Path):
    command = [sys.executable, "-m", "kilopix.cli", "serve", str(lively), "--port", "0"]
    command += ["--max-steps", "1000", "--batch", "1", "--max-images", "64"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    try:
        assert process.stdout
        # On a slow machine, what is loaded is told first.
        found = (re.match(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
        url = next(match[0] for match in found if match)

        async def ask() -> tuple[int, int]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                long = {"prompt": "a cat", "steps": 100, "n": 8}
                heartbeat = asyncio.create_task(client.get("/gradio_api/heartbeat/abc"))
                first = asyncio.create_task(client.post(JOBS, json=long))
                while not (await client.get("/healthz")).json()["running"]:
                    await asyncio.sleep(0.01)
                second = asyncio.create_task(client.post(JOBS, json={"prompt": "a dog"}))
                while not (await client.get("/healthz")).json()["waiting"]:
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                answers = (await first).status_code, (await second).status_code
                heartbeat.cancel()
                return answers

        assert asyncio.run(ask()) == (200, 503)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.communicate()
