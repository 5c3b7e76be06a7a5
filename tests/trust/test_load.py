"""Five hundred requests at once, some left or hostile: each gets its own image, and nothing is left over."""

import asyncio
import base64
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from kilopix.generator import Generator
from live_server import JOBS

pytestmark = pytest.mark.slow
CLIENTS, EACH = 50, 10
HOSTILE: list[dict] = [
    {"content": b'{"prompt": ' + b"[" * 5000},
    {"content": b'{"prompt": "\xff"}'},
    {"content": b"x" * 200_000},
    {"json": {"prompt": None}},
    {"json": {"prompt": "a cat", "n": 10**30}},
    {"json": {"prompt": "a cat", "steps": 10**6}},
    {"json": {"prompt": "a cat"}, "headers": {"Origin": "http://localhost:3000"}},
    {"json": {"prompt": "a cat"}, "headers": {"Host": "evil.example"}},
]


def prompt_of(number: int) -> str:
    return f"a photo of {('a cat', 'a red car', 'two dogs', 'an apple', 'a blue cup')[number % 5]}, {number}"


def kind_of(number: int) -> str:
    return {3: "leaves", 7: "hostile"}.get(number % 10, "asks")


async def one(client: httpx.AsyncClient, number: int, counts: Counter) -> tuple[int, str] | None:
    """Send a request; the image of one that asks, after as many tries as the full queue takes."""
    kind = kind_of(number)
    asked = {"prompt": prompt_of(number), "seed": number}
    if kind == "leaves":
        try:
            await client.post(JOBS, json=asked, timeout=random.Random(number).uniform(0.01, 0.5))
        except httpx.TransportError:
            counts["left"] += 1
        return None
    if kind == "hostile":
        answer = await client.post(JOBS, **HOSTILE[number // 10 % len(HOSTILE)])
        assert 400 <= answer.status_code < 500, answer.text
        counts["refused"] += 1
        return None
    while True:
        answer = await client.post(JOBS, json=asked)
        if answer.status_code == 200:
            counts["answered"] += 1
            return number, answer.json()["data"][0]["b64_json"]
        assert answer.status_code in (429, 503), answer.text
        assert int(answer.headers["retry-after"]) >= 1
        counts["told to wait"] += 1
        await asyncio.sleep(0.2)


async def round_of(url: str, counts: Counter) -> list[tuple[int, str]]:
    async def client_of(first: int) -> list[tuple[int, str] | None]:
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            return list(await asyncio.gather(*(one(client, first + i, counts) for i in range(EACH))))

    answers = await asyncio.gather(*(client_of(EACH * i) for i in range(CLIENTS)))
    return [answer for of_client in answers for answer in of_client if answer]


class Process:
    """What a process holds."""

    def __init__(self, number: int):
        self.folder = Path(f"/proc/{number}")

    def megabytes(self) -> float:
        status = (self.folder / "status").read_text(encoding="utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def threads(self) -> int:
        return len(list((self.folder / "task").iterdir()))

    def files(self) -> int:
        return len(list((self.folder / "fd").iterdir()))


def settled(server: Process, url: str) -> tuple[float, int, int]:
    """Memory, threads and files, once the queue is empty and connections are closed."""
    deadline = time.monotonic() + 60
    while True:
        health = httpx.get(f"{url}/healthz", timeout=60).json()
        time.sleep(1)
        held = server.megabytes(), server.threads(), server.files()
        sockets = sum("socket" in os.readlink(f) for f in (server.folder / "fd").iterdir())
        if health["running"] == health["waiting"] == 0 and sockets <= 3:
            return held
        assert time.monotonic() < deadline, (health, held)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="memory is read from /proc")
def test_each_of_500_requests_at_once_gets_its_own_image(lively: Path, tmp_path: Path):
    command = [sys.executable, "-m", "kilopix.cli", "serve", str(lively), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", env=environment
        )
        try:
            assert process.stdout
            found = (re.match(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)
            url = next(match[0] for match in found if match)
            server = Process(process.pid)
            asyncio.run(round_of(url, Counter()))  # what Python, torch and malloc take once
            before, there = settled(server, url), sorted(tmp_path.rglob("*"))
            counts: Counter = Counter()
            started = time.monotonic()
            answers = asyncio.run(round_of(url, counts))
            took = time.monotonic() - started
            after = settled(server, url)
            print(f"\n{dict(counts)} in {took:.0f} s; MB, threads, files before {before}, after {after}")
            assert sorted(tmp_path.rglob("*")) == there, "a temporary file was left"
            assert httpx.post(f"{url}{JOBS}", json={"prompt": "a cat"}, timeout=60).status_code == 200
        finally:
            process.terminate()
            process.wait(60)
            if process.stdout:
                process.stdout.close()
        errors.seek(0)
        assert "Traceback" not in errors.read()
    generator = Generator.from_pretrained(lively, "cpu")
    assert sorted(number for number, _ in answers) == [
        n for n in range(CLIENTS * EACH) if kind_of(n) == "asks"
    ]
    for number, picture in answers:
        got = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)
        own = np.asarray(generator(prompt_of(number), seeds=[number])[0]).astype(int)
        assert np.abs(got - own).max() <= 1, f"request {number} got another's image"
    assert abs(after[0] - before[0]) <= 0.05 * before[0]
    assert after[1:] == before[1:]
