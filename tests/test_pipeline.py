"""The whole flow: from nothing to a report, strangers' photographs to a trained step, and every refusal."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kilopix.data.manifest import read_manifest, write_manifest
from kilopix.data.shards import Shards
from kilopix.data.sources import open_image
from kilopix.data.verify import check_shards_are_whole
from kilopix.demo import run as run_demo
from kilopix.evaluation.protocol import like, read_card
from kilopix.generator import Generator
from kilopix.training.checkpoint import read_weights
from tiny import TINY, Cli

TASKS = ("single object", "two object", "counting", "colors", "position", "color attr")


def test_the_demo_makes_everything(tiny_demo: Path):
    assert {f.name for f in tiny_demo.iterdir()} >= {
        *("world", "captions.parquet", "held_out.parquet", "augmented", "shards", "run"),
        *("pictures", "pictures_of_mini", "scores", "report.html", "times.json"),
    }
    assert len(read_manifest(tiny_demo / "captions.parquet").rows) == 48
    augmented = read_manifest(tiny_demo / "augmented" / "manifest.parquet")
    assert len(augmented.rows) == 48
    classes = {row.path: row.class_name for row in read_manifest(tiny_demo / "captions.parquet").rows}
    assert all(classes[row.partner] != row.class_name for row in augmented.rows)
    check_shards_are_whole(tiny_demo / "shards")
    assert Shards(tiny_demo / "shards").index.psnr_db > 15


def test_scores_have_intervals_and_protocol(tiny_demo: Path):
    card = read_card(tiny_demo / "scores" / "card.json")
    names = [score.name for score in card.scores]
    assert names[0] == "mean of six tasks"
    assert all(task in names for task in TASKS)
    assert "colors, seen pairs" in names
    assert "colors, unseen pairs" in names
    assert names[-1] == "KID"
    assert all(s.low is not None and s.high is not None for s in card.scores)
    assert all(s.low <= s.value <= s.high for s in card.scores)
    judged = [
        json.loads(line)
        for line in (tiny_demo / "scores" / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert card.images == len(judged) + 16
    assert card.seeds == tuple(range(card.images)), "every picture has a seed of its own"
    assert card.settings == {"real_images": 16}
    assert card.versions.keys() >= {"torch", "pillow"}
    right = sum(line["correct"] for line in judged if line["tag"] == "single_object")
    single = next(s for s in card.scores if s.name == "single object")
    assert single.value == pytest.approx(right / 4)


def test_the_report_is_one_page_with_all_parts(tiny_demo: Path):
    page = (tiny_demo / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") > 30
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/png;base64,' in page
    for part in (
        "Scores",
        "What the judge saw",
        "Training",
        "Augmented pictures",
        "Time of each stage",
        "<svg",
    ):
        assert part in page
    for setting in ("1/2", "1/4", "1/9", "1/16"):
        assert f"{setting}:" in page
    assert "The small row: mini, the model that is installed" in page
    assert page.count('alt="mini: a photo of') == 4 * 4


def test_a_second_demo_repeats_nothing(tiny_demo: Path, capsys: pytest.CaptureFixture[str]):
    def stamps() -> dict[Path, int]:
        files = (f for f in tiny_demo.rglob("*") if f.is_file())
        return {f: f.stat().st_mtime_ns for f in files if f.name not in ("times.json", "report.html")}

    before = stamps()
    assert len(before) > 100
    run_demo(tiny_demo, "mini", TINY)
    assert stamps() == before
    assert capsys.readouterr().out.count("already") >= 9


def test_pictures_depend_on_prompt_and_seed_alone(tiny_demo: Path):
    generator = Generator.from_pretrained(tiny_demo / "run", "cpu")
    alone = generator("a photo of a car", seeds=[5])[0]
    among = generator(["a photo of a cat", "a photo of a car"], seeds=[4, 5])[3]
    difference = np.abs(np.asarray(alone).astype(int) - np.asarray(among).astype(int))
    assert difference.max() <= 1
    other = generator("a photo of a car", seeds=[6])[0]
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(other).astype(int)).max() > 10


def test_a_demo_that_is_stopped_in_training_goes_on(tmp_path: Path, monkeypatch, tiny_demo: Path):
    from kilopix import engine

    steps = 0
    step = engine.take_step

    def stop_after_three(*arguments):
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(engine, "take_step", stop_after_three)
    assert run_demo(tmp_path / "demo", "mini", TINY) is None
    assert not (tmp_path / "demo" / "scores").exists()
    assert not json.loads((tmp_path / "demo" / "times.json").read_text(encoding="utf-8"))["train"]["finished"]
    assert run_demo(tmp_path / "demo", "mini", TINY) == tmp_path / "demo" / "report.html"
    ours, theirs = (
        read_weights(demo / "run" / "model.safetensors")[0] for demo in (tmp_path / "demo", tiny_demo)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_with_another_codec_are_refused(tiny_demo: Path, tmp_path: Path, cli: Cli):
    from kilopix.pretrained.patch_codec import PatchCodec

    codec = PatchCodec.load(tiny_demo / "run" / "codec.safetensors")
    shutil.copyfile(tiny_demo / "run" / "model.safetensors", tmp_path / "model.safetensors")
    replace(codec, mean=codec.mean + 0.5).save(tmp_path / "codec.safetensors")
    done = cli("sample", tmp_path, "a photo of a cat", "-o", tmp_path / "out")
    assert done.code == 2
    assert "was trained with autoencoder" in done.err


def strangers_photographs(folder: Path) -> None:
    """Two classes of pictures as people have them, with two broken files."""
    rng = np.random.default_rng(0)

    def noise(width: int, height: int, channels: int = 3) -> Image.Image:
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), np.uint8)
        return Image.fromarray(pixels.squeeze()).resize((width, height), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[274] = 8
    for name, picture, options in (
        ("Great White Shark/large.jpg", noise(2000, 1300), {"quality": 80}),
        ("Great White Shark/small.png", noise(40, 57), {}),
        ("Great White Shark/turned.JPG", noise(300, 200), {"exif": exif}),
        ("umbrella/alpha.png", noise(200, 200, 4), {}),
        ("umbrella/grey.jpg", noise(120, 90, 1), {}),
        ("umbrella/plain.jpeg", noise(64, 64), {}),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ending = "PNG" if name.endswith("png") else "JPEG"
        picture.save(folder / name, ending, **options)
    whole = (folder / "Great White Shark/large.jpg").read_bytes()
    (folder / "umbrella/cut.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "umbrella/notes.png").write_text("no picture", encoding="utf-8")


def test_strangers_photographs_go_through(tmp_path: Path, cli: Cli):
    photos = tmp_path / "photos"
    strangers_photographs(photos)
    done = cli("caption", photos, tmp_path / "c.parquet", "--captioner", "aio")
    assert done.code == 0
    assert "2 left out" in done.out
    assert "umbrella/cut.jpg" in done.out
    assert "umbrella/notes.png: not an image" in done.out
    rows = read_manifest(tmp_path / "c.parquet").rows
    assert {r.caption for r in rows} == {"An image of a Great White Shark.", "An image of an umbrella."}
    assert next(r for r in rows if r.path.endswith("turned.JPG")).width == 200
    for kind in ("cutmix", "crop"):
        assert (
            cli("augment", tmp_path / "c.parquet", tmp_path / kind, "--kind", kind, "--size", "32").code == 0
        )
        made = read_manifest(tmp_path / kind / "manifest.parquet")
        assert len(made.rows) == 6
        assert {open_image(made.file(row)).size for row in made.rows} == {(32, 32)}
    shards, run = tmp_path / "shards", tmp_path / "run"
    assert (
        cli(
            *("encode", tmp_path / "c.parquet", shards, "data.image_size=32"),
            *("--augmented", tmp_path / "cutmix" / "manifest.parquet"),
        ).code
        == 0
    )
    settings = [s for s in TINY if s.startswith(("model", "training", "data"))]
    trained = cli("train", shards, run, *settings)
    assert trained.code == 0, trained.err
    assert (run / "model.safetensors").exists()


def test_a_folder_of_nothing_but_broken_files_fails(tmp_path: Path, cli: Cli):
    (tmp_path / "photos" / "fox").mkdir(parents=True)
    (tmp_path / "photos" / "fox" / "a.jpg").write_text("no picture", encoding="utf-8")
    done = cli("caption", tmp_path / "photos", tmp_path / "c.parquet")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "c.failures.jsonl" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "nowhere", "c.parquet"), "nowhere: no such folder"),
        (("augment", "nowhere.parquet", "out"), "nowhere.parquet: no such manifest"),
        (("encode", "nowhere.parquet", "out"), "nowhere.parquet: no such manifest"),
        (("train", "nowhere", "out"), "nowhere: no such folder of shards"),
        (("sample", "nowhere", "a fox"), "nowhere: no such folder or file"),
        (("evaluate", "nowhere", "v.parquet"), "v.parquet: no such manifest"),
        (("report", "nowhere", "r.html"), "nowhere: no such folder"),
        (("train", "nowhere", "out", "-r", "tiny"), "recipe 'tiny': no such file, and none of the recipes"),
        (("train", "nowhere", "out", "model.widht=3"), "unknown key 'model.widht'; did you mean 'width'?"),
        (("train", "nowhere", "out", "training.images=many"), "training.images"),
        (("train", "nowhere", "out", "data.image_size=44"), "must be a multiple of"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, monkeypatch, cli: Cli, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "something was written before the mistake was seen"


def test_shards_of_another_encoder_are_refused(tiny_demo: Path, tmp_path: Path, cli: Cli):
    done = cli("train", tiny_demo / "shards", tmp_path / "run", *TINY, "text.max_tokens=32")
    assert done.code == 2
    assert "text.max_tokens" in done.err
    assert not (tmp_path / "run").exists()
    done = cli("train", tiny_demo / "shards", tmp_path / "run", *TINY, "data.image_size=64")
    assert "image_size = 32" in done.err


def test_a_run_folder_of_another_recipe_is_refused(tiny_demo: Path, cli: Cli):
    done = cli("train", tiny_demo / "shards", tiny_demo / "run", *TINY, "optimizer.lr=0.5")
    assert done.code == 2
    assert "optimizer" in done.err


def test_evaluation_settings_can_change_and_others_cannot(tiny_demo: Path, tmp_path: Path, cli: Cli):
    scored = ("evaluate", tiny_demo / "run", tiny_demo / "held_out.parquet", "-o", tmp_path / "scores")
    done = cli(*scored, "evaluation.images_per_prompt=2", "evaluation.prompts_per_task=2")
    assert done.code == 0, done.err
    card = read_card(tmp_path / "scores" / "card.json")
    assert card.images_per_prompt == 2
    assert next(s for s in card.scores if s.name == "counting").n == 4
    assert "only settings of evaluation" in cli(*scored, "training.images=3").err
    assert "images_per_prompt: 2, here 3" in cli(*scored, "evaluation.images_per_prompt=3").err


def test_held_out_pictures_that_cannot_be_read_are_in_the_card(tiny_demo: Path, tmp_path: Path):
    from kilopix.stages.evaluate import run

    manifest = read_manifest(tiny_demo / "held_out.parquet")
    rows = [replace(manifest.rows[0], path="gone.jpg"), *manifest.rows[1:20]]
    write_manifest(tmp_path / "held_out.parquet", manifest.root, rows, {})
    few = ["evaluation.images_per_prompt=1", "evaluation.prompts_per_task=1"]
    card = run(tiny_demo / "run", tmp_path / "held_out.parquet", tmp_path / "scores", 0, overrides=few)
    assert card.settings["real_images"] == 15
    assert [one.name for one in card.left_out] == ["held-out image gone.jpg"]


def test_prompts_that_say_where_are_a_protocol_of_their_own(tiny_demo: Path, tmp_path: Path, cli: Cli):
    few = [
        f"evaluation.{key}" for key in ("images_per_prompt=1", "prompts_per_task=2", "prompt_style=placed")
    ]
    done = cli("evaluate", tiny_demo / "run", tiny_demo / "held_out.parquet", "-o", tmp_path / "s", *few)
    assert done.code == 0, done.err
    card, plain = read_card(tmp_path / "s" / "card.json"), read_card(tiny_demo / "scores" / "card.json")
    assert (card.prompt_style, plain.prompt_style) == ("placed", "plain")
    assert "prompt_style" in like(card, plain)
    judged = [
        json.loads(line)
        for line in (tmp_path / "s" / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    two = [line for line in judged if line["tag"] in ("two_object", "position", "color_attr")]
    assert len(two) == 6
    assert all(" corner, a" in line["prompt"] for line in two)
    assert not any("corner" in line["prompt"] for line in judged if line not in two)


def test_dry_run_prints_and_writes_nothing(tiny_demo: Path, tmp_path: Path, cli: Cli):
    done = cli("train", tiny_demo / "shards", tmp_path / "run", *TINY, "--dry-run")
    assert done.code == 0
    assert '"width": 32' in done.out
    assert "parameters" in done.out
    assert "FLOPs" in done.out
    assert not (tmp_path / "run").exists()


def test_prompts_come_from_arguments_file_or_standard_input(
    tiny_demo: Path, tmp_path: Path, cli: Cli, monkeypatch
):
    import io

    (tmp_path / "prompts.txt").write_text("a photo of a cat\n\na photo of a car\n", encoding="utf-8")
    out = tmp_path / "out"
    done = cli(
        *("sample", tiny_demo / "run", "--file", tmp_path / "prompts.txt", "-o", out),
        *("-n", "2", "--steps", "3", "--guidance", "2", "--sampler", "heun"),
    )
    assert done.code == 0, done.err
    listed = json.loads((out / "samples.json").read_text(encoding="utf-8"))
    assert [i["prompt"] for i in listed["images"]] == ["a photo of a cat"] * 2 + ["a photo of a car"] * 2
    assert listed["sampling"]["steps"] == 3
    assert listed["sampling"]["guidance"]["scale"] == 2
    assert (out / "grid.png").exists()
    (out / "00001.png").unlink()
    (out / "grid.png").unlink()
    kept = (out / "00000.png").stat().st_mtime_ns
    again = ("sample", tiny_demo / "run", "a photo of a cat", "a photo of a car", "-o", out, "-n", "2")
    assert cli(*again, "--steps", "3", "--guidance", "2", "--sampler", "heun").code == 0
    assert (out / "00001.png").exists()
    assert (out / "00000.png").stat().st_mtime_ns == kept
    other = ("sample", tiny_demo / "run", "a photo of a cat", "-o", out, "--steps", "2")
    assert "--overwrite" in cli(*other).err
    assert (out / "00000.png").stat().st_mtime_ns == kept
    assert cli(*other, "--overwrite").code == 0
    assert (out / "00000.png").stat().st_mtime_ns > kept
    assert sorted(f.name for f in out.glob("0*.png")) == ["00000.png"], "pictures of the other call are left"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "00000.png").touch()
    refused = cli("sample", tiny_demo / "run", "a photo of a cat", "-o", tmp_path / "mine")
    assert "not empty" in refused.err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no prompts" in cli("sample", tiny_demo / "run", "-o", tmp_path / "none").err


TINY_CAD = [
    "model.kind=rin",
    "model.latents=8",
    "model.latent_width=32",
    "model.token_width=32",
    "model.blocks=2",
    "model.layers=1",
    "model.patch=1",
    "model.read_write_heads=2",
    "model.compute_heads=2",
    "model.text_heads=2",
    "model.registers=2",
]


def test_cad_i_trains_goes_on_and_makes_pictures(tiny_demo: Path, tmp_path: Path, cli: Cli):
    """The other network, on another path, through the same commands; two settings give two pictures."""
    common = [*(key for key in TINY if not key.startswith("model.")), *TINY_CAD]
    objective = ["objective.path.kind=gamma", "objective.prediction=noise"]
    run = str(tmp_path / "run")
    shards = str(tiny_demo / "shards")
    done = cli("train", shards, run, *common, *objective)
    assert done.code == 0, done.err
    done = cli("train", shards, run, *common, *objective, "--dry-run")
    assert "billion a picture" in done.out
    pictures = []
    for name, options in {
        "plain": [],
        "preset": ["--preset", "published", "--steps", "4"],
        "negative": ["--negative-prompt", "a photo of a red car", "--sampler", "dpmpp_2m_sde"],
    }.items():
        out = tmp_path / name
        done = cli("sample", run, "a photo of a fox", "--out", str(out), "--steps", "2", *options)
        assert done.code == 0, done.err
        pictures.append((out / "00000.png").read_bytes())
        made = json.loads((out / "samples.json").read_text(encoding="utf-8"))
        assert made["sampling"]["steps"] == (4 if name == "preset" else 2)
    assert len(set(pictures)) == 3


def test_a_stochastic_sampler_gives_the_same_picture_in_any_batch(tiny_demo: Path):
    generator = Generator.from_pretrained(tiny_demo / "run")
    sampling = generator.recipe.sampling.model_copy(update={"sampler": "ddpm", "steps": 3})
    jobs = [("a photo of a fox", 1), ("a photo of a car", 2), ("a photo of a fox", 3)]
    together = generator.generate(jobs, sampling)
    alone = [generator.generate([job], sampling)[0] for job in jobs]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
