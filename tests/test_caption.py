"""`kilopix caption` and `kilopix captions` from end to end."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chat_server import Handler, serving
from containers import numbered, write_parquet, write_tar
from kilopix import captioning
from kilopix.data.manifest import read_manifest
from kilopix.pretrained import adaptive
from kilopix.pretrained.captioner import Answer, ServerCaptionerConfig
from kilopix.stages import caption
from tiny import Cli

GOOD = (
    "The image shows number {} on grey paper. It is drawn with care, and word{}{} word{}{} word{}{} follow."
)


def good(number: int, tries: int = 0) -> str:
    return GOOD.format(*[number] * 7)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures in a tar shard, of which one is damaged."""
    place = tmp_path / "pictures"
    place.mkdir()
    members = {f"{i}.png": numbered(2 * i) for i in range(12)} | {f"{i}.cls": b"number" for i in range(12)}
    write_tar(place / "0.tar", members | {"7.png": numbered(14)[:40]})
    return place


def tell(handler: Handler, text: str) -> None:
    handler.send(200, json.dumps({"choices": [{"message": {"content": text}}]}))


def test_a_server_captions_tar_shards_and_redo_mends_what_failed(
    folder: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adaptive, "_BACKOFF", 0.01)
    bad = {
        1: "A number on.",
        2: "A number and a number and a number and a number and a number.",
        3: "Number (3.",
    }

    def at_first(handler: Handler, number: int, tries: int) -> None:
        if number == 4:
            handler.send(400, "refused")
        else:
            tell(handler, bad.get(number, good(number)) + " It also")

    out, better = tmp_path / "c.parquet", tmp_path / "better.parquet"
    with serving(at_first) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        options = ("--captioner", "server", "--server", url)
        done = cli("caption", folder, out, *options)
        assert done.code == 0, done.err
        asked = sum(server.tries.values())
        assert "already complete" in cli("caption", folder, out, *options).out
        assert sum(server.tries.values()) == asked == 11
    first = read_manifest(out)
    assert [row.path for row in first.rows] == [f"0.tar#{i}.png" for i in (0, 1, 2, 3, 5, 6, 8, 9, 10, 11)]
    assert first.rows[4].caption == good(5)
    assert first.rows[4].short == "An image of a number."
    assert {row.path: row.error.split(" (")[0] for row in first.failed} == {
        "0.tar#4.png": "no caption: answer 400",
        "0.tar#7.png": next(row.error for row in first.failed if row.path == "0.tar#7.png").split(" (")[0],
    }

    report = cli("captions", out)
    assert report.code == 0, report.err
    written = json.loads((tmp_path / "c.quality.json").read_text())
    assert written["faults"] == {
        "empty": 0, "truncated": 1, "loop": 1, "refusal": 0, "duplicate": 0, "class_absent": 0
    }  # fmt: skip
    assert [entry["path"] for entry in written["faulty"]] == ["0.tar#2.png", "0.tar#3.png"]
    assert written["without_caption"] == 2

    def at_last(handler: Handler, number: int, tries: int) -> None:
        tell(handler, "Number (3." if number == 3 else good(number))

    with serving(at_last) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        done = cli("caption", out, better, "--captioner", "server", "--server", url, "--redo")
        assert done.code == 0, done.err
        assert sorted(server.tries) == [2, 3, 4]
        assert all(body["temperature"] == caption.REDO_TEMPERATURE for body, _, _ in server.requests)
    second = read_manifest(better)
    assert {row.path: row.caption for row in second.rows} == {row.path: row.caption for row in first.rows} | {
        "0.tar#2.png": good(2),
        "0.tar#4.png": good(4),
    }
    assert [row.path for row in second.failed] == ["0.tar#7.png"]
    assert "1 of 2 captions" in done.out


def test_the_same_command_goes_on_after_an_error(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(caption, "ROWS_PER_PART_OF_MODEL", 4)
    asked: list[int] = []

    class Failing:
        name = "failing"

        def __init__(self, at: int):
            self.at = at

        def caption(self, pictures, seed: int) -> list[Answer]:
            if len(asked) >= self.at:
                raise KeyboardInterrupt
            asked.append(len(pictures))
            opened = [load() for load in pictures]
            return [
                Answer(error="none") if p is None else Answer(good(p.getpixel((2, 2))[0])) for p in opened
            ]

    config = ServerCaptionerConfig(url="http://127.0.0.1:1/v1", model="m")
    monkeypatch.setattr(captioning, "load_captioner", lambda config, device: Failing(2))
    with pytest.raises(KeyboardInterrupt):
        caption.run(folder, tmp_path / "c.parquet", config)
    assert asked == [4, 4]
    monkeypatch.setattr(captioning, "load_captioner", lambda config, device: Failing(99))
    moved = config.model_copy(update={"url": "http://127.0.0.1:2/v1", "concurrency": 3})
    manifest = caption.run(folder, tmp_path / "c.parquet", moved)
    assert asked == [4, 4, 4]
    assert [row.caption for row in manifest.rows] == [good(2 * i) for i in range(12) if i != 7]
    assert not list(tmp_path.glob(".c.parts"))


def test_captions_of_the_source_are_taken_as_given(tmp_path: Path, cli: Cli):
    (tmp_path / "captions.tsv").write_text("1.png\tA fox.\n2.png\t\n3.png\tA cup.\n")
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(numbered(1))
    out = tmp_path / "out" / "c.parquet"
    done = cli("caption", tmp_path, out, "--captioner", "given")
    assert done.code == 0, done.err
    manifest = read_manifest(out)
    assert [(row.path, row.caption) for row in manifest.rows] == [("1.png", "A fox.")]
    reasons = {row.path: row.error for row in manifest.failed}
    assert reasons == {"2.png": "the source has no caption for it", "3.png": "no such file"}
    none = cli("caption", tmp_path, tmp_path / "out" / "d.parquet")
    assert none.code == 2
    assert "does not say the class of any image" in none.err


def test_a_manifest_can_be_described_anew(tmp_path: Path, cli: Cli):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "classes.txt").write_text("".join(f"{i} thing {i}\n" for i in range(9)))
    write_parquet(tmp_path / "hub" / "train.parquet", [numbered(i) for i in range(8)] + [b"broken"])
    assert cli("caption", tmp_path / "hub", tmp_path / "c.parquet").code == 0
    rows = read_manifest(tmp_path / "c.parquet").rows
    assert [row.caption for row in rows] == [f"An image of a thing {i}." for i in range(8)]
    again = cli("caption", tmp_path / "c.parquet", tmp_path / "d.parquet", "--captioner", "given")
    assert again.code == 0, again.err
    described = [replace(row, made_from="") for row in read_manifest(tmp_path / "d.parquet").rows]
    assert described == [replace(row, made_from="") for row in rows]
    assert [row.path for row in read_manifest(tmp_path / "d.parquet").failed] == ["train.parquet#8"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--captioner", "server"), "go together"),
        (("--server", "http://127.0.0.1:1/v1"), "go together"),
        (("--captioner", "server", "--server", "http://127.0.0.1:1/v1"), "Is it running"),
        (("--captioner", "model", "--model", "nowhere/at-all"), "nowhere/at-all"),
        (("--redo",), "would write the same captions again"),
    ],
)
def test_wrong_options_say_what_to_do(folder: Path, tmp_path: Path, cli: Cli, options, why: str, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = cli("caption", folder, tmp_path / "c.parquet", *options)
    assert done.code == 2
    assert why in done.err
