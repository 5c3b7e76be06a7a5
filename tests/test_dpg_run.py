"""DPG-Bench end to end: grids, single pictures and folders, a small vision-language model, and a server."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chat import completion, serve, text_of
from kilopix.evaluation.protocol import Card, read_card
from kilopix.runtime import read_lines, write_lines
from tiny import Cli
from tiny_models import save_vlm

HEADER = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad"),
    *("category_detailed", "tuple", "question_natural_language"),
)
NAMES = ["4", "partiprompts7", "posescript1", "vrd22", "whoops9"]
CATEGORIES = ["entity - whole", "attribute - color", "relation - spatial"]
THINGS = ["car", "dog", "red tie"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions a prompt; the second depends on the first, and the third on both."""
    path = tmp_path_factory.mktemp("questions") / "dpg_bench.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for name in NAMES:
            for number, (category, parents) in enumerate(zip(CATEGORIES, ("0", "1", "1, 2"), strict=True), 1):
                text = f"Is there a {THINGS[number - 1]} in {name}?"
                writer.writerow([name, f"a {name}", "", number, parents, "x", "y", f"{category} (a)", text])
    return path


def noise(seed: int, side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures") / "grids"
    root.mkdir()
    for i, name in enumerate(NAMES):
        noise(i, 64).save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm"))


def command(images: Path, questions: Path, out: Path, model: Path, *more: str) -> list[str]:
    given = ["--questions", str(questions), "--out", str(out), "--model", str(model), "--device", "cpu"]
    return ["dpg", str(images), *given, *more]


@pytest.fixture(scope="module")
def scored(grids: Path, questions: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "dpg"
    arguments = command(grids, questions, out, model)
    subprocess.run([sys.executable, "-m", "kilopix.cli", *arguments], check=True, capture_output=True)
    return out


def value(card: Card, name: str) -> float:
    return next(score.value for score in card.scores if score.name == name)


def test_every_picture_is_asked_every_question(scored: Path, questions: Path):
    header, *lines = read_lines(scored / "answers.jsonl")
    assert header["vqa_fingerprint"].startswith("vlm-")
    assert [line["item"] for line in lines] == [name for name in NAMES for _ in range(4)]
    assert [line["place"] for line in lines[:4]] == [[0, 0], [1, 0], [0, 1], [1, 1]]
    answers = [one for line in lines for one in line["answers"].values()]
    assert len(answers) == 60
    assert all(0 <= one["yes"] <= 1 for one in answers)
    card = read_card(scored / "card.json")
    assert (card.images, card.images_per_prompt, card.resolution) == (20, 4, 32)
    assert value(card, "VQAScore") == pytest.approx(100 * np.mean([line["vqa_score"] for line in lines]))
    scores = [line["score"] for line in read_lines(scored / "results.jsonl")]
    assert value(card, "DPG-Bench") == pytest.approx(100 * np.mean(scores))
    assert [score.n for score in card.scores if score.name == "DPG-Bench, L2 entity - whole"] == [20]
    # The first prompt's first row is not read, which the other rows of it need.
    assert [score.n for score in card.scores if score.name == "DPG-Bench as published"] in ([4], [5])


def scripted(body: dict) -> dict:
    """A car in every picture; a dog in those whose prompt is a number; a red tie nowhere."""
    text = text_of(body)
    yes = "car" in text or ("dog" in text and "in 4?" in text)
    return completion("Yes" if yes else "No", {"Yes": -0.1 if yes else -3.0})


def test_scores_by_hand_over_a_server(grids: Path, questions: Path, tmp_path: Path, cli: Cli):
    with serve(scripted) as (url, requests):
        outcome = cli(
            *("dpg", grids, "--questions", questions, "--out", tmp_path / "out"),
            *("--model", "judge", "--server", url),
        )
        assert outcome.code == 0, outcome.err
        assert len(requests) == 20 * 4, "three questions and one on the whole prompt"
        assert (
            cli(
                *("dpg", grids, "--questions", questions, "--out", tmp_path / "out"),
                *("--model", "judge", "--server", url),
            ).code
            == 0
        )
        assert len(requests) == 80, "answers are stored"
    card = read_card(tmp_path / "out" / "card.json")
    assert card.evaluator == "DPG-Bench, server judge"
    # Prompt 4 has a car and a dog (2 of 3), the others a car (1 of 3).
    assert value(card, "DPG-Bench") == pytest.approx(100 * (2 + 4) / 15)
    assert value(card, "DPG-Bench, L1 entity") == 100
    assert value(card, "DPG-Bench, L2 attribute - color") == 20
    assert value(card, "DPG-Bench, L1 relation") == 0
    assert value(card, "VQAScore") == pytest.approx(100 * np.exp(-3))
    # The published scorer has no question 1 of prompt 4 and looks for it, so it leaves the prompt out.
    assert [one.name for one in card.left_out] == ["DPG-Bench as published, 4"]
    assert "left out: DPG-Bench as published, 4, as the published scorer looks there" in outcome.out
    assert value(card, "DPG-Bench as published") == pytest.approx(100 / 3)
    assert value(card, "DPG-Bench as published, L2 attribute - color") == 0
    assert next(s.n for s in card.scores if s.name == "DPG-Bench as published, L1 entity") == 4


def test_two_processes_give_the_numbers_of_one(
    grids: Path, questions: Path, model: Path, scored: Path, tmp_path: Path, cli: Cli
):
    outcome = cli(*command(grids, questions, tmp_path / "out", model, "--device", "cpu"))
    assert outcome.code == 0, outcome.err
    for name in ("answers.jsonl", "results.jsonl", "card.json"):
        assert (tmp_path / "out" / name).read_bytes() == (scored / name).read_bytes(), name


def test_killed_and_started_again(
    grids: Path, questions: Path, model: Path, scored: Path, tmp_path: Path, cli: Cli
):
    out = tmp_path / "out"
    arguments = command(grids, questions, out, model)
    process = subprocess.Popen([sys.executable, "-m", "kilopix.cli", *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / ".parts" / "part-00000.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (out / "answers.jsonl").exists()
    part = out / ".parts" / "part-00000.jsonl"
    marked = json.loads(json.dumps(read_lines(part)).replace('"text": "', '"text": "kept '))
    write_lines(part, marked)
    assert cli(*arguments).code == 0
    unmarked = json.dumps(read_lines(out / "answers.jsonl")).replace('"kept ', '"')
    assert json.loads(unmarked) == read_lines(scored / "answers.jsonl")
    assert (out / "answers.jsonl").read_text(encoding="utf-8").count('"kept ') == 24, (
        "eight pictures were not asked again"
    )
    assert (out / "card.json").read_bytes() == (scored / "card.json").read_bytes()


def test_all_layouts_show_the_same_pictures(
    grids: Path, questions: Path, model: Path, scored: Path, tmp_path: Path, cli: Cli
):
    """Grids taken apart into folders are answered alike; single pictures are the first of each."""
    for name in NAMES:
        with Image.open(grids / f"{name}.png") as grid:
            for i, (x, y) in enumerate(((0, 0), (32, 0), (0, 32), (32, 32))):
                (tmp_path / "folders" / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / "single").mkdir(exist_ok=True)
                part = grid.crop((x, y, x + 32, y + 32))
                part.save(tmp_path / "folders" / name / f"{i:04d}.png")
                if i == 0:
                    part.save(tmp_path / "single" / f"{name}.png")
    want = [line["answers"] for line in read_lines(scored / "answers.jsonl")[1:]]
    for layout, step in (("folders", 1), ("single", 4)):
        out = tmp_path / f"{layout}.scores"
        outcome = cli(*command(tmp_path / layout, questions, out, model, "--layout", layout))
        assert outcome.code == 0, outcome.err
        assert [line["answers"] for line in read_lines(out / "answers.jsonl")[1:]] == want[::step]
        assert read_card(out / "card.json").resolution == 32


def test_a_smaller_set_is_never_scored(grids: Path, questions: Path, model: Path, tmp_path: Path, cli: Cli):
    root = shutil.copytree(grids, tmp_path / "pictures")
    out = tmp_path / "out"

    def expect(message: str, *more: str) -> None:
        refused = cli(*command(root, questions, out, model, *more))
        assert refused.code == 2
        assert message in refused.err
        assert not out.exists()

    expect("are not of 48x48 pixels", "--size", "24")
    (root / "4.png").write_bytes((root / "vrd22.png").read_bytes())
    expect("vrd22.png part 0 (as 4.png part 0), vrd22.png part 1 (as 4.png part 1)")
    grid = noise(8, 64)
    grid.paste(grid.crop((32, 0, 64, 32)), (0, 32))
    grid.save(root / "4.png")
    expect("scores them even so: 4.png part 2")
    noise(9, 63).save(root / "4.png")
    expect("1 of the pictures are not of 64x64 pixels: 4.png (63x63)")
    (root / "4.png").write_bytes(b"")
    expect("1 of the pictures cannot be read: 4.png")
    (root / "4.png").unlink()
    expect("dpg_bench.csv have no picture: 4")
    for name in NAMES:
        noise(len(name), 63).save(root / f"{name}.png")
    expect("are no 2 x 2 pictures", "--allow-doubled")
    refused = cli("dpg", root, "--questions", questions, "--out", out)
    assert "give --model" in refused.err


def test_pictures_of_ones_own_model(tiny_demo: Path, questions: Path, model: Path, tmp_path: Path, cli: Cli):
    out = tmp_path / "pictures"
    made = cli("sample-benchmark", "dpg", tiny_demo / "run", out, "-n", "2", "--questions", questions)
    assert made.code == 0, made.err
    assert len(list(out.rglob("*.png"))) == 10
    outcome = cli(*command(out, questions, tmp_path / "scores", model, "--layout", "folders"))
    assert outcome.code == 0, outcome.err
    card = read_card(tmp_path / "scores" / "card.json")
    assert (card.prompt_style, card.seeds, card.images) == ("plain", (0, 1), 10)


def test_fetching_checks_the_hash(questions: Path, tmp_path: Path, cli: Cli):
    """From a file's address; what is recorded at first is what a later file must be."""
    source = tmp_path / "source.csv"
    shutil.copy(questions, source)
    out = tmp_path / "dpg.csv"
    fetch = ["fetch-dpg", out, "--url", source.as_uri()]
    wrong = cli(*fetch, "--sha256", "0" * 64)
    assert wrong.code == 2
    assert "nothing was kept" in wrong.err
    assert not out.exists()
    first = cli(*fetch)
    assert first.code == 0
    assert "5 prompts, 15 questions" in first.out
    assert "not vouched for" in first.out
    assert out.read_bytes() == questions.read_bytes()
    sha256 = (tmp_path / "dpg.csv.sha256").read_text(encoding="utf-8").split()[0]
    assert "as given" in cli(*fetch, "--sha256", sha256).out
    out.write_text(out.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "is expected; delete it, and it is fetched again" in cli(*fetch).err
    out.unlink()
    source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    changed = cli(*fetch)
    assert "is expected; nothing was kept" in changed.err
    assert not out.exists()
    assert "cannot be fetched" in cli("fetch-dpg", out, "--url", (tmp_path / "no.csv").as_uri()).err
    assert "64 hexadecimal digits" in cli(*fetch, "--sha256", "abc").err
    assert "delete it if the file is to change" in cli(*fetch, "--sha256", "0" * 64).err
