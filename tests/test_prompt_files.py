"""Prompts are read alike at every door: files, standard input, GenEval's metadata."""

import io
import json
from pathlib import Path

import pytest

from kilopix.data.world.scenes import load_scenes
from kilopix.evaluation.geneval import prompts_from_text
from kilopix.evaluation.geneval_folder import read_folder
from kilopix.evaluation.lengthened import lengthened_from_lines
from kilopix.prompt_files import read_prompts
from kilopix.training.logs import cut_log, lines_of_log, note_skipped
from kilopix.types import UserError
from tiny import Cli

ODD = "\ufeffa red\u2028car\r\n\r\n  a café \r\na\x0cfox\n"


def test_a_file_of_prompts_ends_its_lines_at_line_feeds_alone(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(ODD.encode())
    assert read_prompts(file) == ["a red\u2028car", "a café", "a\x0cfox"]
    file.write_bytes("a café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"prompts\.txt: not a text in UTF-8"):
        read_prompts(file)
    file.write_text("\n \r\n")
    with pytest.raises(UserError, match=r"prompts\.txt: no prompts in it"):
        read_prompts(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"prompts\.txt: cannot be read"):
        read_prompts(file)


def test_the_command_line_reads_prompts_with_the_same_reader(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    from kilopix.stages import lengthen, sample

    seen: list[list[str]] = []

    def stop(texts: list[str]) -> None:
        seen.append(list(texts))
        raise UserError("enough")

    file = tmp_path / "prompts.txt"
    file.write_bytes(ODD.encode())
    expected = ["a red\u2028car", "a café", "a\x0cfox"]
    monkeypatch.setattr(sample, "run", lambda _model, texts, *_: stop(texts))
    assert cli("sample", "mini", "--file", file, "--out", tmp_path / "a").code == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(ODD))
    assert cli("sample", "mini", "--out", tmp_path / "a").code == 2
    monkeypatch.setattr(lengthen, "sha256_of_text", lambda text: stop(text.split("\n")))
    assert cli("lengthen", tmp_path / "b.jsonl", "--model", "none", "--prompts", file).code == 2
    assert seen == [expected] * 3


def test_genevals_prompts_may_hold_any_character(tmp_path: Path):
    values = {"tag": "colors", "include": [{"class": "car", "count": 1}], "prompt": "a red\u2028car"}
    lines = "\ufeff" + (json.dumps(values, ensure_ascii=False) + "\r\n") * 2
    assert [prompt.text for prompt in prompts_from_text(lines, "here")] == ["a red\u2028car"] * 2
    samples = tmp_path / "00000" / "samples"
    samples.mkdir(parents=True)
    (samples / "0000.png").touch()
    for text in (lines[: len(lines) // 2 + 1], json.dumps(values, indent=2)):
        (tmp_path / "00000" / "metadata.jsonl").write_bytes(text.encode())
        assert read_folder(tmp_path)[0].prompt.text == "a red\u2028car"


def test_logs_and_scenes_end_their_lines_at_line_feeds_alone(tmp_path: Path):
    line = {"images": 8, "error": "a\u2028b"}
    log = tmp_path / "skipped.jsonl"
    note_skipped(log, line)
    note_skipped(log, line)
    note_skipped(log, {"images": 16})
    assert log.read_bytes().count(b"\n") == 2
    cut = tmp_path / "log.jsonl"
    cut.write_bytes('{"images": 24, "error": "\u00e9'.encode()[:-1])  # killed within a character
    logged = {"images": 8, "loss": 0.5, "images_per_second": 1.0, "seconds": 2.0, "note": "a\u2028b"}
    with open(cut, "ab") as file:
        file.write(f"\n{json.dumps(logged, ensure_ascii=False)}\n".encode())
    cut_log(cut, 8)
    assert cut.read_bytes().count(b"\n") == 1
    assert lines_of_log(cut) == ([logged], 0, False)
    (tmp_path / "scenes.jsonl").write_bytes("\ufeff{}\u2028\n".encode())
    with pytest.raises(UserError, match=r"scenes\.jsonl, line 1: not a scene"):
        load_scenes(tmp_path)


@pytest.mark.parametrize("line", [{"prompt": ["a"], "lengthened": "b"}, {"prompt": 1, "lengthened": "b"}, {}])
def test_lengthened_prompts_that_are_no_texts_are_refused(line: dict[str, object]):
    with pytest.raises(UserError, match="here: "):
        lengthened_from_lines([{"model": "m"}, line], "here")
