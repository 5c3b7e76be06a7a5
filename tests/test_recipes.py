"""Every recipe validates and builds at its documented size, and one command starts it on tiny data."""

import math
from pathlib import Path

import pytest
import torch

from hub_models import WORDS, write_kl, write_t5
from kilopix.errors import UserError
from kilopix.graft import Shape, resolution_shift
from kilopix.models.dit import DIT_SIZES
from kilopix.models.rin import RIN_SIZES
from kilopix.network import build_network
from kilopix.recipe import Recipe, load_recipe, recipe_folders, recipe_names
from tiny import Cli

RECIPES = sorted(f for folder in recipe_folders() for f in folder.glob("*.toml"))
PARAMETERS = {
    "cad_i_256_aio": 331.5,
    "cad_i_256_published": 331.5,
    "cad_i_256_ta": 331.5,
    "cad_i_256_ta_crop": 331.5,
    "cad_i_256_ta_cutmix": 331.5,
    "cad_i_512": 332.0,
    "cad_i_1024": 333.3,
    "cad_i_aesthetic": 332.0,
    "dit_i_256_aio": 390.4,
    "dit_i_256_ta": 390.4,
    "dit_i_256_ta_crop": 390.4,
    "dit_i_256_ta_cutmix": 390.4,
    "dit_i_512": 390.4,
    "dit_i_1024": 390.4,
    "dit_i_aesthetic": 390.4,
    "dit_i_own_24gb": 390.4,
}
"""Millions, over Flan-T5-XL and the autoencoder of Stable Diffusion, as docs/recipes.md has them."""
SMALL = {"mini": 4.1, "mini_long": 3.9, "mini_cad": 5.4}

SHRINK = {
    "dit": ["model.width=32", "model.depth=2", "model.heads=2", "model.text_layers=1"],
    "rin": [
        "model.latent_width=32",
        "model.token_width=32",
        "model.blocks=1",
        "model.layers=1",
        "model.read_write_heads=2",
        "model.compute_heads=2",
        "model.text_heads=2",
        "model.text_layers=1",
    ],
}
"""What makes any recipe's network tiny (docs/recipes.md lists it); patch, latents and path stay its own."""


def shrunken(recipe: Recipe, encoders: Path) -> list[str]:
    """The settings with which a recipe takes two steps in a second."""
    settings = [
        *SHRINK[recipe.model.kind],
        "text.max_tokens=12",
        "training.images=8",
        "training.batch_size=4",
        "training.log_every=4",
        "training.checkpoint_every=8",
    ]
    if recipe.text.kind == "t5":
        settings += [f"text.name={encoders / 't5'}", f"autoencoder.name={encoders / 'kl'}"]
    if recipe.autoencoder.kind == "sd":
        # Pictures of an eighth of their size, over an autoencoder of the published kind.
        settings += [f"data.image_size={recipe.data.image_size // 8}"]
        settings += [f"autoencoder.decoder_name={encoders / 'kl'}", "autoencoder.decoder_subfolder="]
    return settings


def test_there_are_all_recipes():
    assert sorted(recipe_names()) == sorted([*PARAMETERS, *SMALL])
    assert len(RECIPES) == len(list((Path(__file__).parents[1] / "recipes").glob("*.toml"))) == 19


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_validates_and_builds_at_its_size(path: Path):
    recipe = load_recipe(str(path))
    assert load_recipe(path.stem) == recipe
    assert path.read_text(encoding="utf-8").startswith("# ")
    imagenet = path.stem in PARAMETERS
    with torch.device("meta"):
        network = build_network(recipe, 4 if imagenet else 16, 2048 if imagenet else 384)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert millions == pytest.approx((PARAMETERS | SMALL)[path.stem], abs=0.06)


def test_the_published_recipe_is_the_published_one():
    recipe = load_recipe("cad_i_256_published")
    assert recipe.model == RIN_SIZES["L"]
    objective, training, optimizer = recipe.objective, recipe.training, recipe.optimizer
    assert (objective.prediction, objective.path.kind, objective.time.kind) == ("noise", "gamma", "uniform")
    assert (objective.augment_above, objective.augment_probability) == (0.4, 0.5)
    assert (objective.self_conditioning, objective.caption_dropout) == (0.9, 0.1)
    assert (optimizer.kind, optimizer.lr, optimizer.weight_decay) == ("lamb", 1e-3, 0.01)
    assert (training.batch_size, training.clip_norm) == (1024, 2.0)
    assert training.images == 500_000 * 1024
    assert training.schedule.warmup_images == 5_000 * 1024
    assert training.schedule.cosine_rate == 0.7
    from kilopix.training.optim import lr_factor

    assert lr_factor(training.schedule, training.images, training.images) == pytest.approx(0.206, abs=1e-3)
    assert 0.5 ** (1024 / training.average.half_life_images) == pytest.approx(0.9999, abs=1e-8)
    assert (recipe.text.kind, recipe.autoencoder.kind) == ("t5", "sd")
    assert recipe.sampling.guidance.scale - 1 == 15
    assert (
        "base"
        not in (Path(__file__).parents[1] / "recipes/cad_i_256_published.toml")
        .read_text(encoding="utf-8")
        .split()
    )


@pytest.mark.parametrize("name", [n for n in PARAMETERS if load_recipe(n).training.start_from])
def test_a_recipe_can_start_from_the_one_that_it_names(name: str):
    recipe = load_recipe(name)
    begun = recipe.training.start_from
    assert begun.startswith("runs/")
    before = load_recipe(begun.removeprefix("runs/"))
    old, new = (Shape.of(r, 4, 2048) for r in (before, recipe))
    with torch.device("meta"):
        weights = build_network(before, 4, 2048).state_dict()
        from kilopix.graft import _refuse_other_networks

        _refuse_other_networks(old, new, begun)
    assert len(weights) > 100
    assert recipe.objective.path == before.objective.path
    assert recipe.objective.prediction == before.objective.prediction
    assert (recipe.text, recipe.autoencoder) == (before.text, before.autoencoder)
    tokens = old.tokens_per_side**2, new.tokens_per_side**2
    shift = before.objective.time_shift * resolution_shift(recipe.objective.path, *tokens)
    assert recipe.objective.time_shift == pytest.approx(shift)
    if recipe.objective.augment_probability:
        t, s = 0.4, recipe.objective.time_shift
        assert recipe.objective.augment_above == pytest.approx(s * t / (1 + (s - 1) * t), abs=1e-3)


def test_networks_are_the_named_sizes():
    assert load_recipe("dit_i_256_ta").model.model_copy(update={"registers": 4}) == DIT_SIZES["L"]
    assert load_recipe("cad_i_256_ta").model == RIN_SIZES["L"]


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_t5(folder / "t5")
    write_kl(folder / "kl", levels=4)  # eight pixels a latent position, as Stable Diffusion's
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of twelve pictures in all, wider than high."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    lines = ["file_name\tcaption\tclass"]
    for name in ("fox", "owl", "cup"):
        (folder / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (96, 144, 3), np.uint8)).save(folder / name / f"{i}.png")
            lines.append(f"{name}/{i}.png\tan image of the {name}\t{name}")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert {"an", "image", "of", "the", "fox"} <= set(WORDS)
    return folder


def started(name: str, cli: Cli, encoders: Path, pictures: Path, out: Path) -> None:
    """Caption, encode with the recipe's augmentation, and take two steps, by the commands of the docs."""
    recipe = load_recipe(name)
    settings = shrunken(recipe, encoders)
    manifest, shards, run = out / "captions.parquet", out / "shards", out / "run"
    augment = ["--online"] if recipe.objective.augment_probability else []
    for command in (
        ["caption", pictures, manifest, "--captioner", "given", "--workers", 1],
        ["encode", manifest, shards, *settings, "-r", name, *augment, "--workers", 1, "--device", "cpu"],
        ["train", shards, run, *settings, "-r", name, "--start-from", "", "--device", "cpu"],
    ):
        done = cli(*command)
        assert done.code == 0, f"{name}: {done.err}"
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert all(math.isfinite(float(line.split('"loss": ')[1].split(",")[0])) for line in lines)
    assert (run / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["cad_i_256_published", "cad_i_512", "dit_i_256_ta_crop"])
def test_a_recipe_starts_for_two_steps(name, cli, encoders, pictures, tmp_path):
    started(name, cli, encoders, pictures, tmp_path)


OTHERS = [n for n in PARAMETERS if n not in ("cad_i_256_published", "cad_i_512", "dit_i_256_ta_crop")]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_all_other_recipes_start(name, cli, encoders, pictures, tmp_path):
    started(name, cli, encoders, pictures, tmp_path)


def test_one_run_goes_on_at_twice_the_size(cli, encoders, pictures, tmp_path):
    """dit_i_256_ta_cutmix, then dit_i_512 from it, both shrunken."""
    base, larger = "dit_i_256_ta_cutmix", "dit_i_512"
    started(base, cli, encoders, pictures, tmp_path)
    settings = shrunken(load_recipe(larger), encoders)
    shards, run = tmp_path / "shards_512", tmp_path / "run_512"
    encode = ["encode", tmp_path / "captions.parquet", shards, *settings, "-r", larger, "--online"]
    assert cli(*encode, "--workers", 1, "--device", "cpu").code == 0
    start = ["--start-from", tmp_path / "run", "--device", "cpu"]
    done = cli("train", shards, run, *settings, "-r", larger, *start)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "2 x 2 patch tokens became 4 x 4; objective.time_shift was 1 and is 2." in said


def test_windows_of_pictures_that_are_cut_are_in_the_shards(cli, encoders, pictures, tmp_path):
    from kilopix.data.shards import Shards

    started("dit_i_own_24gb", cli, encoders, pictures, tmp_path)
    shards = Shards(tmp_path / "shards")
    assert shards.plain(0).window == pytest.approx((1 / 6, 0, 5 / 6, 1))


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
