"""What the page looks into: shards at every noise level, a run that is being written, prompts to try."""

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.data.trained_on import TrainedOn
from kilopix.data.world.objects import OBJECTS
from kilopix.errors import UserError
from kilopix.generator import Generator
from kilopix.web.data_view import TIMES, DataView
from kilopix.web.models import ServedModel, load_models
from kilopix.web.requests import Limits
from kilopix.web.training_view import SHOWN, TrainingView
from kilopix.web.worker import Worker


@pytest.fixture(scope="module")
def served(tiny_demo: Path) -> ServedModel:
    return ServedModel("run", Generator.from_pretrained(tiny_demo / "run", "cpu"))


@pytest.fixture
def worker(served: ServedModel) -> Iterator[Worker]:
    worker = Worker({"run": served}, Limits())
    yield worker
    worker.close()


def test_data_are_clean_at_0_and_noise_at_1(tiny_demo: Path, served: ServedModel):
    view = DataView(tiny_demo / "shards", served)
    look = view.look(3)
    assert [version.kind for version in look.versions] == ["plain", "cutmix"]
    plain, mixed = look.versions
    assert plain.caption != mixed.caption

    def far(a, b) -> float:
        return float(np.abs(np.asarray(a).astype(float) - np.asarray(b).astype(float)).mean())

    assert len(plain.noisy) == len(TIMES)
    distances = [far(plain.picture, noisy) for noisy in plain.noisy]
    assert distances[0] < 1
    assert all(later > sooner for sooner, later in itertools.pairwise(distances))
    assert far(plain.noisy[-1], mixed.noisy[-1]) > 20  # each version has noise of its own
    channels, height, width = view.shards.index.latent_shape
    assert plain.latents.size == (4 * width + 3, 4 * height + 3)
    assert channels == 16


def test_shards_of_another_autoencoder_are_refused(tiny_demo: Path, served: ServedModel):
    other = ServedModel("other", replace(served.generator, autoencoder_fingerprint="another"))
    with pytest.raises(UserError, match="give the shards that it was trained on"):
        DataView(tiny_demo / "shards", other)


def test_a_run_is_looked_at_while_it_is_written(
    tiny_demo: Path, tmp_path: Path, served: ServedModel, worker: Worker
):
    run = tmp_path / "run"
    shutil.copytree(tiny_demo / "run", run)
    log = run / "log.jsonl"
    lines = len(log.read_text(encoding="utf-8").splitlines())
    log.write_text(log.read_text(encoding="utf-8") + '{"images": 99, "lo', encoding="utf-8")
    view = TrainingView(run, worker, served)
    assert len(view.log()) == lines
    curve = view.curve()
    assert len(curve) == lines
    assert curve[1].mean == pytest.approx(sum(point.loss for point in curve[:3]) / 3)

    def look() -> list[int]:
        view.look_for_pictures()
        worker.call(lambda: None).future.result(60)
        return [stone.images_seen for stone in view.milestones]

    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert look() == [int(newest.name)]
    assert len(view.milestones[0].pictures) == SHOWN
    assert look() == [int(newest.name)], "the same checkpoint was looked at twice"
    later = newest.with_name("000000009999")
    shutil.copytree(newest, later)
    assert len(look()) == 2
    shutil.copytree(newest, newest.with_name("000000019999"))
    (newest.with_name("000000019999") / "average.safetensors").write_bytes(b"half")
    assert len(look()) == 2, "a damaged checkpoint has no pictures"


def test_models_of_one_place_have_names_of_their_own(tiny_demo: Path):
    run = tiny_demo / "run"
    checkpoint = sorted((run / "checkpoints").iterdir())[0]
    models = load_models([run, run / "model.safetensors", checkpoint], "cpu")
    assert list(models) == ["run", "run-2", f"run-{int(checkpoint.name)}"]
    first, second, _ = (model.generator for model in models.values())
    assert first.text_encoder is second.text_encoder
    assert first.autoencoder is second.autoencoder


def test_prompts_to_try_are_what_the_model_knows():
    world = TrainedOn.by_recipe("structured", 6)
    prompts = prompts_to_try(world)
    assert len(set(prompts)) == 10
    assert prompts == prompts_to_try(world)
    assert not world.note(prompts)
    unknown = [item.name for item in OBJECTS[6:]]
    assert not [text for text in prompts if any(f" {name}" in f" {text} " for name in unknown)]
    photographs = TrainedOn.by_recipe("aio", 6)
    assert not set(prompts) & set(prompts_to_try(photographs))
