"""GenEval end to end, on small random models of the real classes: pictures to detections to a card."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kilopix.evaluation import geneval_folder
from kilopix.evaluation.geneval import Prompt
from kilopix.evaluation.geneval_folder import metadata_path, metadata_text, sample_path
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.evaluation.made import Made, write_made
from kilopix.evaluation.protocol import like, read_card
from kilopix.generator import Generator
from kilopix.runtime import read_lines, write_lines
from kilopix.stages import sample_benchmark
from tiny import Cli
from tiny_models import save_clip, save_detector

PROMPTS = official_prompts()[::14]
FILES = ("detections.jsonl", "results.jsonl", "card.json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_detector(root / "detector")
    save_clip(root / "clip")
    return root


def lay(root: Path, prompts: list[Prompt], per_prompt: int = 2, side: int = 40) -> Path:
    """A folder as another program would have made it: noise, in colours of its own for every picture."""
    rng = np.random.default_rng(0)
    for number, prompt in enumerate(prompts):
        for i in range(per_prompt):
            path = sample_path(root, number, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (side, side, 3)) * rng.random(3)
            Image.fromarray(noise.astype(np.uint8)).save(path)
        metadata_path(root, number).write_text(metadata_text(prompt), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay(tmp_path_factory.mktemp("pictures") / "noise", PROMPTS)


def weights(models: Path) -> list[str]:
    return ["--detector", str(models / "detector"), "--clip", str(models / "clip")]


def arguments(models: Path, *more: str) -> list[str]:
    return [*weights(models), "--any-prompts", "--device", "cpu", *more]


@pytest.fixture(scope="module")
def scored(models: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of one uninterrupted process."""
    out = tmp_path_factory.mktemp("scores") / "geneval"
    command = [sys.executable, "-m", "kilopix.cli", "geneval", str(pictures), "--out", str(out)]
    subprocess.run([*command, *arguments(models)], check=True, capture_output=True)
    return out


def test_every_picture_has_detections_a_verdict_and_a_part_of_the_card(
    scored: Path, pictures: Path, models: Path
):
    header, *lines = read_lines(scored / "detections.jsonl")
    assert header["detector_fingerprint"].startswith("mask2former-")
    assert header["color_fingerprint"].startswith("clip-")
    assert len(lines) == 2 * len(PROMPTS)
    objects = [one for line in lines for one in line["objects"]]
    assert min(one["score"] for one in objects) > 0.1
    asked = {(c.name, p.text) for p in PROMPTS for c in p.include if c.color}
    texts = [prompt.text for prompt in PROMPTS for _ in range(2)]
    for line, text in zip(lines, texts, strict=True):
        assert all((one["color"] is not None) == ((one["name"], text) in asked) for one in line["objects"])
    results = read_lines(scored / "results.jsonl")
    assert [line["prompt"] for line in results] == texts
    assert set(results[0]) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert all(line["correct"] == (line["reason"] == "") for line in results)
    assert any(json.loads(line["details"]) for line in results)
    card = read_card(scored / "card.json")
    tags = {prompt.tag for prompt in PROMPTS}
    assert [s.name for s in card.scores[:1]] == ["GenEval, mean of tasks"]
    assert {s.name for s in card.scores} >= {f"GenEval, {tag}" for tag in tags}
    assert card.scores[-2].value == sum(line["correct"] for line in results) / len(results)
    assert (card.images, card.images_per_prompt, card.resolution) == (len(lines), 2, 40)
    assert (card.checkpoint, card.sampler, card.seeds, card.guidance) == ("noise", None, None, None)
    assert card.checkpoint_sha256 is None
    assert not (scored / ".parts").exists()


def test_other_options_need_no_detector(scored: Path, pictures: Path, tmp_path: Path, cli: Cli, models: Path):
    out = shutil.copytree(scored, tmp_path / "scores")
    gone = [*arguments(models)]  # the same names, but the folders are hidden below
    shutil.move(models / "detector", models / "hidden")
    try:
        other = ["geneval", pictures, "threshold=0.1", "counting_threshold=0.1", "--out", out, *gone]
        refused = cli(*other)
        outcome = cli(*other, "--overwrite")
    finally:
        shutil.move(models / "hidden", models / "detector")
    assert refused.code == 2
    assert "threshold: 0.3, here 0.1" in refused.err
    assert outcome.code == 0, outcome.err
    assert "the rules are applied" in outcome.out
    assert (out / "detections.jsonl").read_bytes() == (scored / "detections.jsonl").read_bytes()
    before, now = read_card(scored / "card.json"), read_card(out / "card.json")
    assert like(before, now) == ["settings"]
    assert (before.settings["threshold"], now.settings["threshold"]) == (0.3, 0.1)
    lower = [len(json.loads(line["details"])) for line in read_lines(out / "results.jsonl")]
    usual = [len(json.loads(line["details"])) for line in read_lines(scored / "results.jsonl")]
    assert sum(lower) > sum(usual)
    refused = cli("geneval", pictures, "threshold=0.05", "--out", out, *gone)
    assert refused.code == 2
    assert "must be at least 0.1" in refused.err


def test_the_card_has_the_versions_with_which_the_pictures_were_looked_at(
    scored: Path, pictures: Path, tmp_path: Path, cli: Cli, models: Path
):
    out = shutil.copytree(scored, tmp_path / "scores")
    header, *lines = read_lines(out / "detections.jsonl")
    assert header["versions"] == read_card(scored / "card.json").versions
    write_lines(out / "detections.jsonl", [{**header, "versions": {"torch": "1.0"}}, *lines])
    outcome = cli("geneval", pictures, "threshold=0.2", "--out", out, "--overwrite", *arguments(models))
    assert outcome.code == 0, outcome.err
    assert read_card(out / "card.json").versions == {"torch": "1.0"}


def test_another_job_needs_another_place(
    scored: Path, pictures: Path, tmp_path: Path, cli: Cli, models: Path
):
    out = shutil.copytree(scored, tmp_path / "scores")
    refused = cli("geneval", pictures, "--out", out, *arguments(models, "--floor", "0.05"))
    assert refused.code == 2
    assert "floor: 0.1, here 0.05" in refused.err


def test_two_processes_give_the_numbers_of_one(
    scored: Path, pictures: Path, tmp_path: Path, models: Path, cli: Cli
):
    out = tmp_path / "scores"
    outcome = cli("geneval", pictures, "--out", out, *arguments(models, "--device", "cpu"))
    assert outcome.code == 0, outcome.err
    for name in FILES:
        assert (out / name).read_bytes() == (scored / name).read_bytes(), name


def test_killed_and_started_again(scored: Path, pictures: Path, tmp_path: Path, models: Path, cli: Cli):
    out = tmp_path / "scores"
    command = [sys.executable, "-m", "kilopix.cli", "geneval", str(pictures), "--out", str(out)]
    process = subprocess.Popen([*command, *arguments(models)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / ".parts" / "part-00000.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (out / "detections.jsonl").exists()
    begun = {f.name: f.stat().st_mtime_ns for f in (out / ".parts").glob("part-*.jsonl")}
    assert 0 < len(begun) < -(-2 * len(PROMPTS) // 32)
    part = out / ".parts" / "part-00000.jsonl"
    stamp = part.read_bytes()
    others = json.dumps(read_lines(part)).replace("mask2former-", "mask2former-other-")
    write_lines(part, json.loads(others))
    refused = cli("geneval", pictures, "--out", out, *arguments(models))
    assert "begun with other weights" in refused.err, "the part was made anew"
    part.write_bytes(stamp)
    assert cli("geneval", pictures, "--out", out, *arguments(models)).code == 0
    for name in FILES:
        assert (out / name).read_bytes() == (scored / name).read_bytes(), name


def test_a_smaller_set_is_never_scored(tmp_path: Path, models: Path, cli: Cli):
    root = lay(tmp_path / "pictures", PROMPTS[:3])

    def expect(message: str, *more: str) -> None:
        refused = cli("geneval", root, "--out", tmp_path / "out", *arguments(models, *more))
        assert refused.code == 2
        assert message in refused.err
        assert not (tmp_path / "out").exists()

    picture = sample_path(root, 1, 1)
    whole = picture.read_bytes()
    expect("2 pictures, where 4 are expected", "--per-prompt", "4")
    expect("are not of 64x64 pixels", "--size", "64")
    picture.unlink()
    expect("00001/samples: 1 picture, where 2 are expected")
    picture.write_bytes(whole[:99])
    expect("1 of the pictures cannot be read: 00001/samples/0001.png")
    picture.write_bytes(sample_path(root, 2, 0).read_bytes())
    expect("are the same as others")
    picture.write_bytes(whole)
    refused = cli("geneval", root, "--out", tmp_path / "out", *weights(models))
    assert "give all 553 prompts once" in refused.err


def test_lengthened_prompts_are_another_protocol(
    tmp_path: Path, models: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    few = PROMPTS[:3]
    monkeypatch.setattr(geneval_folder, "official_prompts", lambda: few)
    cards = []
    for name, prompts in (("a", few), ("b", [replace(p, text=f"{p.text} at dawn") for p in few])):
        root = lay(tmp_path / name, prompts)
        outcome = cli(
            "geneval", root, "--out", tmp_path / f"{name}.scores", *weights(models), "--device", "cpu"
        )
        assert outcome.code == 0, outcome.err
        cards.append(read_card(tmp_path / f"{name}.scores" / "card.json"))
    assert [card.prompt_style for card in cards] == ["plain", "lengthened"]
    assert {"prompt_style", "prompts_sha256"} <= set(like(*cards))
    write_made(tmp_path / "b", Made(checkpoint="x", prompt_style="plain"))
    refused = cli("geneval", tmp_path / "b", "--out", tmp_path / "c", *weights(models))
    assert "though it is said that they are plain" in refused.err
    said = tmp_path / "said.json"
    said.write_text(
        json.dumps({"checkpoint": "Model 7", "prompt_style": "lengthened by hand", "steps": 50}),
        encoding="utf-8",
    )
    more = ["--made-by", str(said), "--device", "cpu"]
    assert cli("geneval", tmp_path / "a", "--out", tmp_path / "d", *weights(models), *more).code == 0
    card = read_card(tmp_path / "d" / "card.json")
    assert (card.checkpoint, card.prompt_style, card.steps) == ("Model 7", "lengthened by hand", 50)
    said.write_text(json.dumps({"checkpoint": "Model 7", "step": 50}), encoding="utf-8")
    refused = cli("geneval", tmp_path / "a", "--out", tmp_path / "e", *weights(models), *more)
    assert "unknown key 'step'; did you mean 'steps'?" in refused.err


def test_from_a_checkpoint_to_a_card(
    tiny_demo: Path, tmp_path: Path, models: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
):
    """All commands on one's own model; stopped in the middle, and with lengthened prompts beside it."""
    few = PROMPTS[:20]
    for module in (geneval_folder, sample_benchmark):
        monkeypatch.setattr(module, "official_prompts", lambda: few)
    out = tmp_path / "pictures"
    make = [
        "sample-benchmark",
        "geneval",
        tiny_demo / "run",
        out,
        "-n",
        "2",
        "--seed",
        "5",
        "--device",
        "cpu",
    ]
    generate, calls = Generator.generate, []

    def stop_in_the_second_batch(self, jobs, *rest, **more):
        calls.append(jobs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, jobs, *rest, **more)

    monkeypatch.setattr(Generator, "generate", stop_in_the_second_batch)
    assert cli(*make).code != 0
    first = {f: f.stat().st_mtime_ns for f in out.rglob("*.png")}
    assert len(first) == 32
    assert cli(*make).code == 0
    assert len(list(out.rglob("*.png"))) == 40
    assert {f: f.stat().st_mtime_ns for f in first} == first
    assert calls[-1] == [(prompt.text, seed) for prompt in few for seed in (5, 6)][32:]
    assert "steps: 2, here 3" in cli(*make, "--steps", "3").err
    scored = cli("geneval", out, "--out", tmp_path / "scores", *weights(models), "--device", "cpu")
    assert scored.code == 0, scored.err
    card = read_card(tmp_path / "scores" / "card.json")
    assert (card.prompt_style, card.seeds, card.sampler, card.steps) == ("plain", (5, 6), "euler", 2)
    assert card.checkpoint_sha256 == Generator.from_pretrained(tiny_demo / "run", "cpu").fingerprint

    texts = [{"prompt": p.text, "lengthened": f"{p.text} in the soft light of dawn."} for p in few]
    lines = [{"model": "tiny-7b", "model_fingerprint": "x", "instruction": "y"}, *texts]
    longer = tmp_path / "longer.jsonl"
    longer.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "prompts_sha256 changed since" in cli(*make, "--lengthened", longer).err
    make[3] = out = tmp_path / "longer"
    assert cli(*make, "--lengthened", longer).code == 0
    assert calls[-1][0][0] == few[16].text + " in the soft light of dawn."
    assert metadata_path(out, 16).read_text(encoding="utf-8") == metadata_text(few[16]), (
        "the rules need the plain prompt"
    )
    scored = cli("geneval", out, "--out", tmp_path / "scores2", *weights(models), "--device", "cpu")
    assert scored.code == 0, scored.err
    other = read_card(tmp_path / "scores2" / "card.json")
    assert other.prompt_style.startswith("lengthened by tiny-7b (")
    assert set(like(card, other)) == {"prompt_style", "prompts_sha256"}
