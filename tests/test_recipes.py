from pathlib import Path

import pytest
import torch

from kilopix.errors import UserError
from kilopix.network import build_network
from kilopix.recipe import Recipe, load_recipe, recipe_folders, recipe_names

RECIPES = sorted(f for folder in recipe_folders() for f in folder.glob("*.toml"))


def test_there_are_recipes():
    assert "mini" in recipe_names()
    assert len(RECIPES) == len(list((Path(__file__).parents[1] / "recipes").glob("*.toml"))) >= 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_validates_and_builds(path: Path):
    recipe = load_recipe(str(path))
    assert load_recipe(path.stem) == recipe
    with torch.device("meta"):
        network = build_network(recipe, channels=4, text_width=32)
    assert sum(p.numel() for p in network.parameters()) > 1000


def test_a_recipe_round_trips_and_has_one_fingerprint():
    recipe = load_recipe("mini", ["seed=3"])
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    assert recipe.fingerprint() == load_recipe("mini", ["seed=3"]).fingerprint()
    assert recipe.fingerprint() != load_recipe("mini", ["seed=4"]).fingerprint()


def test_another_kind_is_chosen_by_an_override():
    recipe = load_recipe("mini", ["optimizer.kind=muon", "autoencoder.kind=sd", "data.image_size=256"])
    assert recipe.optimizer.kind == "muon"
    assert recipe.downsampling == 8


def test_sections_are_checked_against_each_other():
    with pytest.raises(UserError, match=r"data\.image_size 40 must be a multiple of 16"):
        load_recipe("mini", ["data.image_size=40", "model.patch=2"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("objective.prediction=noise", "says nothing of the data"),
        ("world.classes=2", r"world\.classes"),
        ("sampling.guidance.start=-1", r"sampling\.guidance\.start"),
        ("optimizer.betas=[2.0, 3.0]", r"optimizer\.betas"),
        ("optimizer.lr=inf", r"optimizer\.lr"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, message: str):
    with pytest.raises(UserError, match=message):
        load_recipe("mini", [setting])


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch):
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mini").world.classes == 12
