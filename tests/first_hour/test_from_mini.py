"""What `mini` is everywhere: the installed model is also one to begin from, with its codec."""

from pathlib import Path

import pytest

from kilopix.errors import UserError
from kilopix.model_files import find_weights, load_model
from kilopix.pretrained.patch_codec import PatchCodec
from kilopix.recipe import load_recipe
from kilopix.stages.encode import _given_codec
from tiny import Cli

RECIPE = ("-r", "mini_long")


def test_a_run_begins_from_the_installed_model(tmp_path: Path, cli: Cli):
    world, captions, shards = tmp_path / "world", tmp_path / "captions.parquet", tmp_path / "shards"
    steps = [
        ("mini", world, "--classes", 3, "--images-per-class", 6, "--val-per-class", 1, "--workers", 1),
        ("caption", world / "train", captions, "--captioner", "structured"),
        ("encode", captions, shards, *RECIPE, "--codec", "mini", "--workers", 1),
        (
            *("train", shards, tmp_path / "run", *RECIPE, "--start-from", "mini", "--device", "cpu"),
            *("training.images=16", "training.batch_size=16", "training.compile=false", "world.classes=3"),
            *("objective.augment_probability=0", "training.schedule.warmup_images=0"),
        ),
    ]
    for step in steps:
        done = cli(*step)
        assert done.code == 0, done.err
    assert "starting from" in done.out
    assert "mini.safetensors" in done.out
    model = load_model(find_weights("mini"))
    assert model.codec is not None
    assert PatchCodec.load(shards / "codec.safetensors").fingerprint == model.codec.fingerprint


def test_a_codec_that_is_none_is_refused_by_its_name(tmp_path: Path):
    recipe = load_recipe("mini", [])
    with pytest.raises(UserError, match="nowhere: no such folder or file"):
        _given_codec(tmp_path / "nowhere", recipe)
    with pytest.raises(UserError, match=r"mini: was fitted with .*channels=16.* but .*channels=8"):
        _given_codec("mini", load_recipe("mini", ["autoencoder.channels=8"]))
