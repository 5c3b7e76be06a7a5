"""What is looked at while a run trains: it changes nothing, repeats exactly, and shows what it should."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kilopix.data.shards import Shards
from kilopix.errors import UserError
from kilopix.network import Network, build_network
from kilopix.recipe import Recipe, load_recipe
from kilopix.stages import train
from kilopix.training.checkpoint import read_weights
from kilopix.training.logs import lines_of_log
from kilopix.training.parallel import Processes
from kilopix.training.snapshots import stored_snapshots
from kilopix.training.watching import ValidationConfig
from kilopix.validation import FixedSet, held_out_set, level_losses, level_times
from kilopix.watch import Watch
from tiny import TINY, Cli

WATCHED = [
    "validation.every=32",
    "validation.samples=8",
    "validation.levels=4",
    "validation.batch_size=3",
    "preview.every=32",
    "preview.steps=2",
    'preview.prompts=["a photo of a cat", "a photo of a red car"]',
]
POWER = [
    *TINY,
    "training.average.kind=power",
    "training.average.snapshot_every=16",
    "training.average.snapshots=8",
    "training.average.snapshot_dtype=float32",
]


@pytest.fixture(scope="module")
def held_out(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kilopix.stages import encode

    out = tmp_path_factory.mktemp("held_out") / "shards"
    encode.run(
        tiny_demo / "held_out.parquet",
        out,
        load_recipe("mini", TINY),
        codec=tiny_demo / "shards",
        device="cpu",
        workers=1,
    )
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    found, skipped, unfinished = lines_of_log(path)
    assert not skipped
    assert not unfinished
    return found


@pytest.fixture(scope="module")
def watched(tiny_demo: Path, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("watched") / "run"
    recipe = load_recipe("mini", [*POWER, *WATCHED])
    assert train.run(tiny_demo / "shards", out, recipe, "cpu", validation=held_out)
    return out


def test_watching_changes_nothing(tiny_demo: Path, watched: Path, tmp_path: Path):
    train.run(tiny_demo / "shards", tmp_path / "run", load_recipe("mini", POWER), "cpu")
    seen, unseen = (read_weights(f / "model.safetensors")[0] for f in (watched, tmp_path / "run"))
    assert len(seen) > 10
    assert [name for name in seen if not torch.equal(seen[name], unseen[name])] == []
    losses = [[line["loss"] for line in lines(f / "log.jsonl")] for f in (watched, tmp_path / "run")]
    assert losses[0] == losses[1]
    assert not (tmp_path / "run" / "validation.jsonl").exists()


def test_every_moment_has_a_line_for_both_sets_and_both_weights(watched: Path):
    found = lines(watched / "validation.jsonl")
    expected = [
        (images, weights, name)
        for images in (32, 64, 96)
        for weights in ("network", "average")
        for name in ("held_out", "training")
    ]
    assert [(line["images"], line["weights"], line["set"]) for line in found] == expected
    assert all(line["t"] == [0.125, 0.375, 0.625, 0.875] for line in found)
    assert all(sum(line["losses"]) / 4 == pytest.approx(line["loss"]) for line in found)
    assert len({line["loss"] for line in found}) == len(found)


def test_the_log_says_device_hours_and_no_utilisation_of_a_cpu(watched: Path):
    last = lines(watched / "log.jsonl")[-1]
    assert "model_flop_utilisation" not in last
    assert last["device_hours"] == pytest.approx(last["seconds"] / 3600)


def test_sheets_of_the_same_prompts(watched: Path):
    sheets = sorted((watched / "previews").glob("*.png"))
    assert [sheet.stem for sheet in sheets] == ["000000000032", "000000000064", "000000000096"]
    with Image.open(sheets[0]) as first, Image.open(sheets[2]) as last:
        assert first.size == last.size
        assert first.size[0] > 2 * 128  # two seeds beside one another
        assert first.tobytes() != last.tobytes()


class Stopped(Exception):
    """Stands for a process that dies."""


def test_a_run_that_died_in_between_has_the_same_records(
    tiny_demo: Path, held_out: Path, watched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, shards = tmp_path / "run", tiny_demo / "shards"
    recipe = load_recipe("mini", [*POWER, *WATCHED])
    real = Watch.step

    def dies(self: Any, network: Any, average: Any, before: int, seen: int) -> None:
        real(self, network, average, before, seen)
        if seen == 80:  # after the checkpoint of 64, and a snapshot and a line of the log
            raise Stopped

    monkeypatch.setattr(Watch, "step", dies)
    with pytest.raises(Stopped):
        train.run(shards, out, recipe, "cpu", validation=held_out)
    assert max(p.images for p in stored_snapshots(out / "averages")) == 80
    monkeypatch.undo()
    train.run(shards, out, recipe, "cpu", validation=held_out)
    assert lines(out / "validation.jsonl") == lines(watched / "validation.jsonl")
    for folder, pattern in (("previews", "*.png"), ("averages", "*.safetensors")):
        names = [sorted(p.name for p in (run / folder).glob(pattern)) for run in (out, watched)]
        assert names[0] == names[1] != []
        for name in names[0]:
            if name.endswith(".png"):
                assert (out / folder / name).read_bytes() == (watched / folder / name).read_bytes()
                continue
            tensors = [read_weights(run / folder / name)[0] for run in (out, watched)]
            assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[1]), name


def test_an_average_of_another_width(cli: Cli, watched: Path, tmp_path: Path):
    assert sorted({p.images for p in stored_snapshots(watched / "averages")}) == [16, 32, 48, 64, 80, 96]
    done = cli("average", watched, "--sigma-rel", 0.12, "--out", tmp_path / "wide.safetensors")
    assert done.code == 0, done.err
    assert "sigma_rel 0.12 at 96 images, from 12 snapshots" in done.out
    wide, header = read_weights(tmp_path / "wide.safetensors")
    used, _ = read_weights(watched / "model.safetensors")
    assert header["images_seen"] == 96
    assert header["sigma_rel"] == 0.12
    assert wide.keys() == used.keys()
    # The stored width itself comes back as it was, which is what the run samples from.
    done = cli("average", watched, "--sigma-rel", 0.1)
    assert done.code == 0, done.err
    same, _ = read_weights(watched / "average-0.1.safetensors")
    assert all(torch.allclose(same[name], used[name], atol=1e-5) for name in used)
    assert not all(torch.allclose(wide[name], used[name], atol=1e-5) for name in used)
    done = cli("sample", watched / "average-0.1.safetensors", "a cat", "--out", tmp_path / "p", "--steps", 1)
    assert done.code == 0, done.err


def test_without_snapshots_the_user_is_told_what_to_set(cli: Cli, tiny_demo: Path):
    done = cli("average", tiny_demo / "run", "--sigma-rel", 0.1)
    assert done.code == 2
    assert "training.average.kind=power" in done.err
    assert cli("average", tiny_demo / "run", "--sigma-rel", 0.4).code == 2


def trained(demo: Path) -> tuple[Network, Recipe, Shards]:
    tensors, header = read_weights(demo / "run" / "model.safetensors")
    recipe = load_recipe("mini", TINY)
    network = build_network(recipe, header["latent_channels"], header["text_width"])
    network.load_state_dict(tensors)
    return network, recipe, Shards(demo / "shards")


def test_losses_do_not_depend_on_batches_or_ranks_or_random_state(tiny_demo: Path):
    network, recipe, shards = trained(tiny_demo)
    samples = FixedSet.of(shards, 7, shards.whitening)
    assert len(set(samples.numbers)) == 7
    found = []
    for batch_size in (7, 2):
        torch.manual_seed(batch_size)
        state = torch.get_rng_state()
        config = ValidationConfig(samples=7, levels=3, batch_size=batch_size)
        found.append(level_losses(network.train(), samples, recipe.objective, config, "cpu"))
        assert torch.equal(torch.get_rng_state(), state)
        assert network.training
    config = ValidationConfig(samples=7, levels=3, batch_size=2)
    shares = [Processes(rank, 3).share(7) for rank in range(3)]
    found.append(
        sum(
            (level_losses(network, samples, recipe.objective, config, "cpu", share) for share in shares),
            torch.zeros(3, dtype=torch.float64),
        )
    )
    assert torch.allclose(found[0], found[1], rtol=1e-5)
    assert torch.allclose(found[1], found[2], rtol=1e-5)


def test_a_level_has_the_loss_of_its_time(tiny_demo: Path):
    """A network that predicts nothing has the target's mean square, here v = noise - data."""
    network, recipe, shards = trained(tiny_demo)
    for parameter in network.parameters():
        parameter.detach().zero_()
    config = ValidationConfig(samples=40, levels=2)
    samples = FixedSet.of(shards, 40, shards.whitening)
    losses = level_losses(network, samples, recipe.objective, config, "cpu") / 40
    data = samples.batch(samples.numbers).moments.mean.square().mean().item()
    assert losses.tolist() == pytest.approx([1 + data] * 2, rel=0.05)
    assert losses[0] != losses[1]
    assert level_times(config).tolist() == [0.25, 0.75]


def test_learning_by_heart_shows_as_a_gap(tiny_demo: Path, held_out: Path):
    """Trained on six pictures over and over, the loss falls on them and not on held-out pictures."""
    from kilopix.data.loader import collate
    from kilopix.diffusion.objective import loss_per_sample
    from kilopix.network import encode_text, training_predictor

    network, recipe, shards = trained(tiny_demo)
    config = recipe.validation.model_copy(update={"samples": 6, "levels": 4})
    few = FixedSet(shards, list(range(0, len(shards), len(shards) // 6))[:6], shards.whitening)
    other = held_out_set(held_out, shards, recipe.model_copy(update={"validation": config}))
    sets = {"training": few, "held_out": other}

    def losses() -> dict[str, float]:
        return {
            name: float(level_losses(network, s, recipe.objective, config, "cpu").sum()) / len(s.numbers) / 4
            for name, s in sets.items()
        }

    before = losses()
    batch = few.batch(few.numbers)
    assert batch.paths == collate([shards.plain(i) for i in few.numbers]).paths
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        noise = torch.randn(batch.moments.mean.shape, generator=generator)
        t = torch.rand(6, generator=generator)
        context = encode_text(network, batch.text, torch.ones(6))
        again = torch.zeros(6, dtype=torch.bool)
        predict = training_predictor(network, recipe.objective.path, context, batch.window, again)
        loss = loss_per_sample(recipe.objective, predict, batch.moments.mean, noise, t).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = losses()
    assert after["training"] < 0.8 * before["training"]
    gaps = [found["held_out"] - found["training"] for found in (before, after)]
    assert gaps[1] > gaps[0] + 0.2


def test_wrong_held_out_shards_are_refused(tiny_demo: Path, tmp_path: Path):
    from kilopix.stages import encode

    recipe, shards = load_recipe("mini", TINY), Shards(tiny_demo / "shards")
    with pytest.raises(UserError, match="these are the training shards"):
        held_out_set(tiny_demo / "shards", shards, recipe)
    encode.run(tiny_demo / "held_out.parquet", tmp_path / "own", recipe, device="cpu", workers=1)
    with pytest.raises(UserError, match="--codec"):
        held_out_set(tmp_path / "own", shards, recipe)


def test_scores_are_made_at_intervals_with_the_average(tiny_demo: Path, tmp_path: Path):
    recipe = load_recipe("mini", [*TINY, "scores.every=48"])
    with pytest.raises(UserError, match="--score"):
        train.run(tiny_demo / "shards", tmp_path / "none", recipe, "cpu")
    asked: list[dict[str, Any]] = []

    def score(average: Path, folder: Path) -> dict[str, float]:
        asked.append(read_weights(average)[1])
        assert folder.is_dir()
        return {"fid": 100.0 - len(asked)}

    out = tmp_path / "run"
    train.run(tiny_demo / "shards", out, recipe, "cpu", score=score)
    assert [header["images_seen"] for header in asked] == [48, 96]
    assert lines(out / "scores.jsonl") == [{"images": 48, "fid": 99.0}, {"images": 96, "fid": 98.0}]
    assert list(out.rglob("scores/*/average.safetensors")) == []


def test_scores_that_fail_do_not_end_a_run(
    tiny_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = []

    def score(average: Path, folder: Path) -> dict[str, float]:
        asked.append(average)
        raise UserError("inception.safetensors: missing.")

    out = tmp_path / "run"
    recipe = load_recipe("mini", [*TINY, "scores.every=48"])
    assert train.run(tiny_demo / "shards", out, recipe, "cpu", score=score)
    assert len(asked) == 1
    assert "inception.safetensors: missing. Training goes on without scores." in capsys.readouterr().out
    assert (out / "model.safetensors").exists()


def test_the_command_takes_held_out_shards(tiny_demo: Path, held_out: Path, tmp_path: Path, cli: Cli):
    settings = [*TINY, "training.images=32", "validation.samples=4"]
    out, manifest = tmp_path / "run", tiny_demo / "held_out.parquet"
    watch = ["--validation", held_out, "--score", manifest, "--device", "cpu"]
    done = cli("train", tiny_demo / "shards", out, *settings, *watch)
    assert done.code == 0, done.err
    assert len(lines(out / "validation.jsonl")) == 4
    refused = cli("train", tiny_demo / "shards", tmp_path / "other", *settings, "--validation", tmp_path)
    assert refused.code == 2
    assert "no index.json" in refused.err


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_sheets_are_made_in_the_precision_of_the_run(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kilopix import sheets

    seen: list[tuple[bool, torch.dtype]] = []
    draw = sheets.sample_latents

    def look(*arguments: Any, precision: Any) -> torch.Tensor:
        with precision():
            seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return draw(*arguments, precision=precision)

    monkeypatch.setattr(sheets, "sample_latents", look)
    for precision in ("bfloat16", "float32"):
        settings = [*TINY, "training.images=32", f"training.precision={precision}", *WATCHED]
        recipe = load_recipe("mini", settings)
        assert train.run(tiny_demo / "shards", tmp_path / precision, recipe, "cpu")
    assert seen[0] == (True, torch.bfloat16)
    assert seen[-1][0] is False
