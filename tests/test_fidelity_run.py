"""`kilopix fidelity` as a whole, with small random networks of the real classes."""

import hashlib
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
import torch

from kilopix.data.parts import read_table
from kilopix.evaluation.protocol import Card, read_card
from kilopix.stages.fidelity import NETWORKS, PREFERENCES, run
from kilopix.types import UserError
from tiny import Cli
from tiny_networks import (
    draw_pictures,
    inception_tensors,
    save_clip,
    save_dinov2,
    save_inception,
    save_linear_aesthetic,
)

PROMPTS = ["a red fox", "a blue car on snow", "a photo of a red car on snow", "a photo of snow"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name the weights of every network."""
    folder = tmp_path_factory.mktemp("weights")
    return [
        f"weights.inception={save_inception(folder / 'inception.safetensors')}",
        f"weights.dinov2={save_dinov2(folder / 'dinov2')}",
        f"weights.clip={save_clip(folder / 'clip')}",
        f"weights.aesthetic={save_linear_aesthetic(folder / 'aesthetic.safetensors')}",
        f"weights.pickscore={save_clip(folder / 'pickscore', seed=7, width=12)}",
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve pictures with prompts, and sixteen real ones."""
    fake, real = tmp_path / "fake", tmp_path / "real"
    names = draw_pictures(fake, 12, 0)
    draw_pictures(real, 16, 1)
    lines = [{"file": name, "prompt": PROMPTS[i % 4]} for i, name in enumerate(names)]
    (fake / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return fake, real


def stored(folder: Path) -> np.ndarray:
    """All features below a folder, in order."""
    tables = [read_table(path) for path in sorted(folder.glob("*.arrow"))]
    assert tables
    return np.concatenate(
        [np.array(t["features"].combine_chunks().flatten()).reshape(t.num_rows, -1) for t in tables]
    ).astype(np.float64)


def values(card: Card) -> dict[str, float]:
    return {score.name: score.value for score in card.scores}


def test_one_command_computes_all_that_it_can(pictures, weights, tmp_path: Path, cli: Cli):
    fake, real = pictures
    out, cache = tmp_path / "out", tmp_path / "cache"
    (fake / "made.json").write_text(json.dumps({"checkpoint": "SDXL", "steps": 25, "guidance": 5.0}))
    command = ["fidelity", fake, real, *weights, "--out", out, "--cache", cache, "--workers", 1]
    done = cli(*command, "--device", "cpu")
    assert done.code == 0, done.err
    card = read_card(out / "card.json")
    assert [one.name for one in card.left_out] == ["imagereward"]
    assert "BLIP" in card.left_out[0].because
    assert "left out" in done.out
    names = values(card)
    for network in NETWORKS:
        distance = "FID" if network == "inception" else "Frechet distance"
        for metric in (distance, "KID", "precision", "recall", "density", "coverage"):
            assert f"{metric} ({network})" in names
    assert {PREFERENCES[name] for name in ("clipscore", "aesthetic", "pickscore")} <= names.keys()
    assert (card.checkpoint, card.steps, card.guidance, card.sampler) == ("SDXL", 25, 5.0, None)
    assert (card.images, card.resolution, card.images_per_prompt) == (12, 40, 3)
    assert card.settings["real_images"] == 16
    assert {one.name for one in card.evaluators} == {*NETWORKS, "clipscore", "aesthetic", "pickscore"}
    assert card.versions.keys() == {"torch", "transformers", "pillow", "numpy"}
    # An independent computation from the stored features, in NumPy and SciPy.
    (a,), (b,) = cache.glob("features/inception-*"), out.glob("features/inception-*")
    x, y = stored(a), stored(b)
    assert (x.shape, y.shape) == ((16, 2048), (12, 2048))
    # With covariances C C^T and D D^T, tr (C C^T D D^T)^(1/2) is the sum of the singular values of C^T D.
    cross = np.linalg.svd(_thin(x).T @ _thin(y), compute_uv=False).sum()
    traces = x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + traces - 2 * cross
    assert names["FID (inception)"] == pytest.approx(expected, rel=1e-6)
    lines = [json.loads(line) for line in (out / "observations.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert np.mean([line["values"]["PickScore"] for line in lines]) == pytest.approx(names["PickScore"])
    assert [line["prompt"] for line in lines] == [PROMPTS[i % 4] for i in range(12)]


def _thin(x: np.ndarray) -> np.ndarray:
    """A matrix C with C C^T the sample covariance."""
    return (x - x.mean(0)).T / np.sqrt(len(x) - 1)


def test_scores_of_prompts_are_what_the_models_say(pictures, weights, tmp_path: Path):
    from kilopix.data.picture_sets import read_pixels
    from kilopix.pretrained.vision_hub import load_clip

    fake, real = pictures
    chosen = ["clipscore", "aesthetic", "pickscore"]
    card = run(fake, real, tmp_path / "out", weights, chosen, cache=tmp_path / "cache", workers=1)
    found = values(card)
    pixels = read_pixels(fake, sorted(f.name for f in fake.glob("*.png")), (40, 40))
    prompts = [PROMPTS[i % 4] for i in range(12)]
    for name, at, factor in (("CLIPScore", 2, 100.0), ("PickScore", 4, None)):
        model = load_clip(weights[at].split("=")[1])
        cosine = torch.cosine_similarity(model.features(pixels), model.text_features(prompts)).double()
        each = cosine.clamp(min=0) * factor if factor else cosine * model.scale
        assert found[name] == pytest.approx(float(each.mean()), rel=1e-5, abs=1e-6)
    for score in card.scores:
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high


def test_what_the_weights_do_not_allow_is_left_out_and_comes_later(pictures, weights, tmp_path: Path):
    fake, real = pictures
    (fake / "prompts.jsonl").unlink()
    out, cache = tmp_path / "out", tmp_path / "cache"
    missing = [f"weights.{name}={tmp_path / 'none'}" for name in ("dinov2", "inception", "pickscore")]
    first = run(fake, real, out, [*missing, weights[2]], cache=cache, workers=1)
    reasons = {one.name: one.because for one in first.left_out}
    assert reasons.keys() == {"inception", "dinov2", "clipscore", "aesthetic", "pickscore", "imagereward"}
    assert "no folder here" in reasons["dinov2"]
    assert "no prompts" in reasons["clipscore"]
    assert "no such file of weights" in reasons["inception"]
    assert "KID (clip)" in values(first)
    second = run(fake, real, out, [missing[1], missing[2], *weights[1:3]], cache=cache, workers=1)
    assert values(first).items() <= values(second).items()
    assert "KID (dinov2)" in values(second)
    with pytest.raises(UserError, match=r"^dinov2: .*no folder here"):
        run(fake, real, out, missing, ["dinov2"], cache=cache, workers=1)
    with pytest.raises(UserError, match="no such score"):
        run(fake, real, out, [], ["fid"], cache=cache)


def test_features_of_real_pictures_are_shared_and_finished_work_is_kept(pictures, weights, tmp_path: Path):
    fake, real = pictures
    other = tmp_path / "other"
    draw_pictures(other, 12, 5)
    cache = tmp_path / "cache"
    run(fake, real, tmp_path / "a", weights, ["clip"], cache=cache, workers=1)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert any(path.name == "moments.safetensors" for path in kept)
    run(other, real, tmp_path / "b", weights, ["clip"], cache=cache, workers=1)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()} == kept
    before = (tmp_path / "a" / "card.json").read_bytes()
    shutil.rmtree(cache)  # all is remembered in the folder of the scores
    run(fake, real, tmp_path / "a", weights, ["clip"], cache=cache, workers=1)
    assert (tmp_path / "a" / "card.json").read_bytes() == before
    assert not list(cache.rglob("*.arrow"))
    (real / "00003.png").write_bytes((fake / "00000.png").read_bytes())
    with pytest.raises(UserError, match="reference changed since"):
        run(fake, real, tmp_path / "a", weights, ["clip"], cache=cache, workers=1)


HARM = {
    "another size": (
        lambda fake, real: draw_pictures(fake, 1, 9, (41, 40)),
        r"fake: 1 of .* 40x40 pixels.*: 00000\.png \(41x40\)",
    ),
    "damaged": (
        lambda fake, real: (fake / "00004.png").write_bytes(b"?"),
        r"fake: 1 of .* cannot be read: 00004\.png",
    ),
    "missing": (lambda fake, real: (fake / "00004.png").unlink(), r"00004\.png, which is not there"),
    "doubled": (
        lambda fake, real: shutil.copy(real / "00000.png", real / "a.png"),
        r"real: 1 of .* are the same as others; .*: a\.png \(as 00000\.png\)",
    ),
    "real of another size": (
        lambda fake, real: draw_pictures(real, 1, 9, (80, 40)),
        r"real: 1 of .* are not of 40x40 pixels; .*fit_reference=true.*: 00000\.png \(80x40\)",
    ),
}


@pytest.mark.parametrize(("harm", "message"), HARM.values(), ids=HARM.keys())
def test_a_bad_picture_is_an_error_with_its_name(pictures, weights, tmp_path: Path, harm, message):
    harm(*pictures)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=message):
        run(*pictures, out, weights, ["clip"], cache=tmp_path / "cache", workers=1)
    assert not (out / "card.json").exists()


def test_one_process_is_two_processes(pictures, weights, tmp_path: Path):
    cards, hashes = [], []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        settings = [*weights, "rows_per_part=5"]
        only = ["clip", "clipscore"]
        cards.append(run(*pictures, folder, settings, only, cache=tmp_path / "cache", workers=workers))
        parts = sorted(folder.rglob("*.arrow"))
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in parts])
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]
    assert cards[0] == cards[1]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(weights, tmp_path: Path):
    fake, real, out, cache = (tmp_path / name for name in ("fake", "real", "out", "cache"))
    draw_pictures(fake, 120, 0)
    draw_pictures(real, 20, 1)
    settings = [*weights, "rows_per_part=2"]
    command = [sys.executable, "-m", "kilopix.cli", "fidelity", str(fake), str(real), *settings]
    command += ["--only", "dinov2", "--out", str(out), "--cache", str(cache), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("features/*/*.arrow"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline, "no part was written"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (out / "card.json").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arrow")}
    assert 3 + 10 <= len(done) < 60 + 10
    card = run(fake, real, out, settings, ["dinov2"], cache=cache, workers=1)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    whole = run(fake, real, tmp_path / "whole", settings, ["dinov2"], cache=tmp_path / "fresh", workers=1)
    assert card == whole


def test_published_weights_are_converted_without_running_code(tmp_path: Path, cli: Cli, monkeypatch):
    monkeypatch.setenv("KILOPIX_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "inception.pth"
    torch.save(inception_tensors(), source)
    done = cli("convert", "inception", source)
    assert done.code == 0, done.err
    assert "not the published weights" in done.out
    from kilopix.pretrained.inception import load_inception

    load_inception(tmp_path / "cache" / "weights" / "inception.safetensors")
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, source)
    assert cli("convert", "aesthetic", source, tmp_path / "head.safetensors").code == 0
    refused = cli("convert", "inception", source, tmp_path / "wrong.safetensors")
    assert refused.code == 2
    assert "not the weights of FID's Inception-v3" in refused.err
    assert not (tmp_path / "wrong.safetensors").exists()
    torch.save({"weight": Path("code")}, source)
    refused = cli("convert", "aesthetic", source, tmp_path / "wrong.safetensors")
    assert refused.code == 2
    assert "cannot" in refused.err or "not weights" in refused.err


def test_a_checkpoints_average_is_scored_while_training_goes_on(tiny_demo: Path, weights, tmp_path: Path):
    from kilopix.checkpoint_scores import score_average
    from kilopix.training.checkpoint import AVERAGE, checkpoints

    average = checkpoints(tiny_demo / "run" / "checkpoints")[-1] / AVERAGE
    held_out, out = tiny_demo / "held_out.parquet", tmp_path / "out"
    settings = [*weights, "fit_reference=true"]
    only = ["clip", "clipscore"]
    card = score_average(average, held_out, out, 6, 3, settings, only, tmp_path / "cache", "cpu")
    assert (card.images, card.seeds, card.images_per_prompt) == (6, tuple(range(3, 9)), 1)
    assert card.checkpoint_sha256 == hashlib.sha256(average.read_bytes()).hexdigest()
    (out / "pictures" / "00004.png").unlink()
    assert score_average(average, held_out, out, 6, 3, settings, only, tmp_path / "cache", "cpu") == card
    with pytest.raises(UserError, match="was made by another job"):
        score_average(average, held_out, out, 6, 4, settings, only, tmp_path / "cache", "cpu")


def test_a_run_calls_the_scorer_with_its_recipes_settings(
    tiny_demo: Path, weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kilopix.checkpoint_scores import average_scorer
    from kilopix.training.watching import ScoresConfig

    monkeypatch.setenv("KILOPIX_CACHE", str(tmp_path / "cache"))
    settings = (*weights, "fit_reference=true")
    config = ScoresConfig(every=1, images=16, only=("clip", "clipscore"), settings=settings)
    score = average_scorer(tiny_demo / "held_out.parquet", config, 0, "cpu")
    found = score(tiny_demo / "run" / "model.safetensors", tmp_path / "out")
    assert len(found) > 2
    assert all(isinstance(value, float) for value in found.values())
    assert (tmp_path / "out" / "scores" / "card.json").exists()


def statistics_of(cache: Path) -> dict[str, np.ndarray]:
    """Mean and covariance of the kept features of real pictures by Inception."""
    features = next(x for f in cache.glob("features/inception-*") if len(x := stored(f)) == 16)
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}


def test_statistics_take_the_place_of_real_pictures_for_fid(pictures, weights, tmp_path: Path, cli: Cli):
    fake, real = pictures
    cache, file = tmp_path / "cache", tmp_path / "stats.npz"
    by_images = values(run(fake, real, tmp_path / "a", weights, ["inception"], cache=cache, workers=1))
    np.savez(file, **statistics_of(cache), mu_s=np.zeros(7), sigma_s=np.zeros((7, 7)))
    command = ["fidelity", fake, file, *weights, "--out", tmp_path / "b", "--cache", cache, "--workers", 1]
    done = cli(*command, "--device", "cpu")
    assert done.code == 0, done.err
    card = read_card(tmp_path / "b" / "card.json")
    found = values(card)
    assert found.keys() == {"FID (inception)", "CLIPScore", "aesthetic score", "PickScore"}
    assert found["FID (inception)"] == pytest.approx(by_images["FID (inception)"], rel=1e-4)
    metrics = ("KID", "precision", "recall", "density", "coverage", "sFID")
    left_out = {one.name: one.because for one in card.left_out}
    others = {"dinov2", "clip", "efficientnet-lite0", "imagereward"}
    assert left_out.keys() == {*others, *(f"{metric} (inception)" for metric in metrics)}
    assert "needs the real images" in left_out["KID (inception)"]
    assert "needs the real images" in left_out["efficientnet-lite0"]
    assert card.reference_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "comparable only if" in str(card.settings["reference_statistics"])
    assert not {"real_images", "kid_subset_size", "neighbours"} & card.settings.keys()
    alone = cli("fidelity", fake, file, *weights, "--out", tmp_path / "c", "--only", "clip", "--cache", cache)
    assert alone.code == 2
    assert "needs the real images" in alone.err
    np.savez(file, mu=np.zeros(768), sigma=np.eye(768))
    wrong = cli("fidelity", fake, file, *weights, "--out", tmp_path / "d", "--cache", cache)
    assert wrong.code == 2
    assert "'mu' is 768" in wrong.err


def test_a_reference_batch_gives_its_images_and_its_statistics(pictures, weights, tmp_path: Path):
    from kilopix.data.picture_sets import read_picture_set, read_pixels

    fake, real = pictures
    (fake / "prompts.jsonl").unlink()
    cache = tmp_path / "cache"
    settings = [*weights, "kid_subsets=3"]
    only = ["inception", "efficientnet-lite0"]
    expected = run(fake, real, tmp_path / "a", settings, only, cache=cache, workers=1)
    batches = {}
    for name, folder in (("samples", fake), ("reference", real)):
        found = read_picture_set(folder)
        pixels = read_pixels(found.root, found.files, (40, 40)).permute(0, 2, 3, 1).numpy()
        batches[name] = tmp_path / f"{name}.npz"
        np.savez(batches[name], pixels)
    both = batches["samples"], batches["reference"]
    card = run(*both, tmp_path / "b", settings, only, cache=cache, workers=1)
    assert values(card) == values(expected)
    assert (card.checkpoint, card.images, card.settings) == ("samples", 12, expected.settings)
    with np.load(batches["reference"]) as batch:
        moved = statistics_of(cache)
        moved["mu"] += 1
        np.savez(batches["reference"], arr_0=batch["arr_0"], **moved)
    other = run(*both, tmp_path / "c", settings, only, cache=cache, workers=1)
    before, after = values(expected), values(other)
    assert after["FID (inception)"] > 1000 + before["FID (inception)"]  # 2,048 means that are off by one
    assert {k: v for k, v in after.items() if k != "FID (inception)"} == {
        k: v for k, v in before.items() if k != "FID (inception)"
    }
    assert other.settings["real_images"] == 16
    assert other.reference_sha256 == hashlib.sha256(batches["reference"].read_bytes()).hexdigest()
    with pytest.raises(UserError, match="hold the same pictures"):
        run(both[0], both[0], tmp_path / "d", settings, only, cache=cache, workers=1)
    np.savez(tmp_path / "stats.npz", **statistics_of(cache))
    with pytest.raises(UserError, match=r"stats\.npz: holds no images"):
        run(tmp_path / "stats.npz", real, tmp_path / "e", settings, only, cache=cache, workers=1)


def test_the_card_says_what_was_done(pictures, tmp_path: Path):
    fake, real = pictures
    draw_pictures(real / "wide", 1, 9, (60, 40))
    lines = [{"file": f"{i:05d}.png", "prompt": "a" if i else "b"} for i in range(12)]
    (fake / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cache, only = tmp_path / "cache", ["efficientnet-lite0"]

    def card(name: str, *settings: str) -> Card:
        return run(fake, real, tmp_path / name, settings, only, cache=cache, workers=1)

    cut = card("a", "fit_reference=true", "kid_subsets=2", "allow_doubled=true")
    assert cut.settings == {
        "fit_reference": True,
        "allow_doubled": False,  # no picture is there twice
        "real_images": 17,
        "neighbours": 3,
        "kid_subsets": 2,
        "kid_subset_size": 12,  # of the thousand that are asked for
        "seed": 0,
    }
    assert cut.images_per_prompt is None  # one prompt has a picture, and the other eleven
    shutil.rmtree(real / "wide")
    shutil.copy(real / "00000.png", real / "again.png")
    doubled = card("b", "fit_reference=true", "kid_subset_size=5", "allow_doubled=true")
    assert doubled.settings["kid_subset_size"] == 5
    assert doubled.settings["allow_doubled"] is True
    assert doubled.settings["fit_reference"] is False  # none had to be cut
