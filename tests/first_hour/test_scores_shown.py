"""Scores as a reader meets them: whatever was measured is shown, with intervals that promise no more."""

import json
import re
from pathlib import Path

import pytest

from kilopix.evaluation.protocol import Card, Score, write_card
from kilopix.recipe import Recipe
from kilopix.stages.fidelity import few_images
from kilopix.stages.report import _pastes
from tiny import Cli

FEW = few_images(12, 2048)
SCORES = {
    "": [
        Score(name="mean of six tasks", value=0.0, low=0.0, high=0.107, n=32),
        Score(name="KID", value=0.0123, low=0.01, high=0.02, n=48, unit="lower is better"),
    ],
    "fidelity": [
        Score(name="FID (inception)", value=234.5678, n=12, unit="lower is better", caution=FEW),
        Score(name="precision (inception)", value=0.25, n=12),
        Score(name="density (inception)", value=1.5, n=12),
        Score(name="CLIPScore", value=27.3456, low=26.1, high=28.5, n=12),
    ],
    "GenEval": [Score(name="GenEval, mean of tasks", value=0.62, low=0.6, high=0.64, n=2212)],
    "DPG-Bench": [Score(name="DPG-Bench", value=74.65, low=73.0, high=76.0, n=1065, unit="%")],
}


def card_folder(folder: Path, benchmark: str, **changes: object) -> Path:
    """What an evaluator leaves, with nothing known of how the images were made."""
    folder.mkdir(parents=True)
    facts = {
        "benchmark": benchmark,
        "checkpoint": "SDXL",
        "resolution": 64,
        "images": 12,
        "evaluator": "some",
        "evaluator_sha256": "3" * 64,
        "kilopix_version": "0.2.0",
        "scores": [score.model_dump() for score in SCORES[benchmark]],
    }
    write_card(folder / "card.json", Card.model_validate({**facts, **changes}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun, and written nothing to its log."""
    folder = tmp_path / "run"
    folder.mkdir()
    header = {"recipe": Recipe().model_dump(mode="json")}
    (folder / "recipe.json").write_text(json.dumps(header), encoding="utf-8")
    return folder


def words_of(page: Path) -> str:
    """What a page says, without its marks and styles."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_a_report_shows_the_scores_of_every_evaluator_at_once(run: Path, tmp_path: Path, cli: Cli):
    folders = [card_folder(tmp_path / f"of{i}", name) for i, name in enumerate(SCORES)]
    page = tmp_path / "report.html"
    done = cli("report", run, page, *(part for folder in folders for part in ("--scores", folder)))
    assert done.code == 0, done.err
    said = words_of(page)
    for title in ("Scores", "Fidelity and preference", "GenEval", "DPG-Bench"):
        assert f"<h2>{title}</h2>" in page.read_text(encoding="utf-8")
    assert "mean of six tasks 0.0% 0.0% to 10.7% 32" in said
    assert "FID (inception) (lower is better) by 12 images and 2,048 features" in said
    assert "precision (inception) 25.0%" in said
    assert "density (inception) 1.5 12" in said, "it may be above 1, and is no share"
    assert "CLIPScore 27.35 26.1 to 28.5" in said, "no share either"
    assert "GenEval, mean of tasks 62.0% 60.0% to 64.0% 2,212" in said
    assert "DPG-Bench 74.7% 73.0% to 76.0%" in said or "DPG-Bench 74.6% 73.0% to 76.0%" in said
    assert "None" not in said
    assert "not yet written a line of its log" in said


def test_two_folders_of_one_evaluator_have_titles_of_their_own(run: Path, tmp_path: Path, cli: Cli):
    a, b = (card_folder(tmp_path / name, "fidelity") for name in ("average", "last"))
    assert cli("report", run, tmp_path / "report.html", "--scores", a, "--scores", b).code == 0
    said = words_of(tmp_path / "report.html")
    assert "Fidelity and preference: average" in said
    assert "Fidelity and preference: last" in said


def test_a_folder_without_scores_is_refused_by_its_name(run: Path, tmp_path: Path, cli: Cli):
    for folder in (run, tmp_path / "nowhere"):
        done = cli("report", run, tmp_path / "report.html", "--scores", folder)
        assert done.code == 2
        assert f"{folder}: no card.json in it" in done.err
        assert "`kilopix evaluate`, `fidelity`, `geneval` or `dpg`" in done.err
    assert not (tmp_path / "report.html").exists()
    (run / "card.json").write_text('{"name": "a model card"}', encoding="utf-8")
    done = cli("report", run, tmp_path / "report.html", "--scores", run)
    assert done.code == 2
    assert "card.json" in done.err


def test_a_distance_by_fewer_images_than_features_says_what_still_holds():
    assert few_images(2048, 2048)
    assert few_images(2049, 2048) == ""
    for word in ("12 images", "2,048 features", "too large", "KID has no such bias"):
        assert word in FEW


def test_compare_says_of_whom_a_distance_is_by_few_images(tmp_path: Path, cli: Cli):
    a, b = (card_folder(tmp_path / name, "fidelity") for name in ("a", "b"))
    assert cli("compare", a, b, "--out", tmp_path / "out").code == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "FID (inception) of a: by 12 images and 2,048 features" in text
    assert "FID (inception) of b: by 12 images and 2,048 features" in text


def test_names_in_a_comparison_are_never_empty(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    here, other = card_folder(tmp_path / "here", "GenEval", checkpoint=""), tmp_path / "other"
    card_folder(other, "GenEval")
    monkeypatch.chdir(here)
    assert cli("compare", ".", f"{other}/", "--out", tmp_path / "out").code == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| score | here | other | other less here |" in text
    assert "| weights | unnamed unknown | SDXL unknown |" in text
    monkeypatch.chdir(tmp_path)
    assert cli("compare", "here/card.json", "./other/card.json", "--out", tmp_path / "out").code == 0
    assert "| score | here | other |" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_augmented_images_of_one_setting_fill_their_section(tmp_path: Path, cli: Cli):
    world = tmp_path / "world"
    assert (
        cli("mini", world, "--size", 32, "--classes", 2, "--images-per-class", 6, "--val-per-class", 1).code
        == 0
    )
    assert cli("caption", world / "train", tmp_path / "captions.parquet").code == 0
    command = ["augment", tmp_path / "captions.parquet", tmp_path / "augmented", "--size", 32]
    done = cli(*command, "--setting", "1/4")
    assert done.code == 0, done.err
    shown = _pastes(tmp_path / "augmented" / "manifest.parquet")
    assert len(shown) == 8
    assert len({figure.uri for figure in shown}) == 8
    assert all(figure.small for figure in shown), "small images are enlarged in hard pixels"
