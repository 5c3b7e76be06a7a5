"""Prompts to longer prompts, by a small local model and by a served one."""

from pathlib import Path

from chat import Trouble, completion, serve, text_of
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.runtime import read_lines
from tiny import Cli
from tiny_models import save_instruct


def test_a_local_model(tmp_path: Path, cli: Cli):
    prompts = [prompt.text for prompt in official_prompts()[:20]]
    (tmp_path / "prompts.txt").write_text("\n".join([*prompts, prompts[0], ""]), encoding="utf-8")
    save_instruct(tmp_path / "model")
    command = ["lengthen", tmp_path / "longer.jsonl", "--model", tmp_path / "model", "--max-tokens", "8"]
    command += ["--prompts", tmp_path / "prompts.txt", "--device", "cpu"]
    outcome = cli(*command)
    assert outcome.code == 0, outcome.err
    header, *lines = read_lines(tmp_path / "longer.jsonl")
    assert [line["prompt"] for line in lines] == prompts
    assert all(line["lengthened"] for line in lines)
    assert header["model_fingerprint"].startswith("instruct-")
    assert header["model"] == str(tmp_path / "model")
    before = (tmp_path / "longer.jsonl").read_bytes()
    assert "already complete, 20 prompts" in cli(*command).out
    assert (tmp_path / "longer.jsonl").read_bytes() == before
    assert "model.max_tokens: 8, here 9" in cli(*command, "--max-tokens", "9").err


def test_a_server_that_fails_in_the_middle(tmp_path: Path, cli: Cli):
    prompts = [prompt.text for prompt in official_prompts()[:60]]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
    limit = 40

    def answer(body):
        if len(requests) > limit:
            return Trouble(400, b"out of credit")
        return completion(f"Longer: {text_of(body).rpartition('Prompt: ')[2]},\nin the evening.")

    with serve(answer) as (url, requests):
        command = ["lengthen", tmp_path / "longer.jsonl", "--model", "big", "--server", url]
        command += ["--prompts", tmp_path / "prompts.txt"]
        outcome = cli(*command)
        assert outcome.code == 2
        assert "answer 400 (out of credit)" in outcome.err
        assert limit < len(requests) <= 48
        asked, limit = len(requests), 10_000
        assert cli(*command).code == 0
        assert len(requests) == asked + 60 - 32, "the two parts that were answered are not asked again"
    header, *lines = read_lines(tmp_path / "longer.jsonl")
    assert [line["prompt"] for line in lines] == prompts
    assert lines[5]["lengthened"] == f"Longer: {prompts[5]}, in the evening."
    assert header["model_fingerprint"].startswith("server-big")


def test_an_empty_answer_is_an_error(tmp_path: Path, cli: Cli):
    with serve(lambda body: completion("  ")) as (url, _):
        outcome = cli("lengthen", tmp_path / "longer.jsonl", "--model", "big", "--server", url)
    assert outcome.code == 2
    assert "answered nothing to the prompt" in outcome.err
