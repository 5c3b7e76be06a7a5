"""The generator: names, settings, seeds, callbacks, previews, kept texts, and every way to load a model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hub_server import COMMIT, serving
from kilopix.generator import Generator
from kilopix.model_files import find_weights
from kilopix.models.published import load_published
from kilopix.models.rin import RIN
from kilopix.previews import LinearDecoder, SamplingStep
from kilopix.runtime import read_tensors, write_tensors
from kilopix.types import UserError
from released import TINY, write_encoders, write_released

FOX, CAR = "a photo of a fox", "a photo of a car"


@pytest.fixture(scope="module")
def generator(tiny_demo: Path) -> Generator:
    return Generator.from_pretrained(tiny_demo / "run", "cpu")


@pytest.fixture(scope="module")
def lively(tiny_demo: Path) -> Generator:
    """The same with weights that listen to everything; after so short a training most still say nothing."""
    generator = Generator.from_pretrained(tiny_demo / "run", "cpu")
    draw = torch.Generator().manual_seed(0)
    for weight in generator.network.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=draw)
    return generator


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, Path, Path]:
    return write_released(tmp_path / "cad", TINY), *write_encoders(tmp_path)


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def test_number_seed_and_explicit_seeds_agree(generator: Generator):
    four = generator([FOX, CAR], num_images=2, seed=5, steps=2)
    same = generator([FOX, CAR], seeds=[5, 6], steps=2)
    assert len(four) == 4
    assert [difference(a, b) for a, b in zip(four, same, strict=True)] == [0, 0, 0, 0]
    assert difference(four[0], four[1]) > 10
    assert len(generator(FOX, steps=1)) == 1
    assert difference(generator(FOX, steps=2)[0], generator(FOX, seed=0, steps=2)[0]) == 0


def test_a_picture_is_the_same_in_any_batch(generator: Generator):
    many = generator([FOX, CAR, "a cat"], num_images=3, seed=1, steps=3, batch_size=4)
    alone = generator(CAR, seed=3, steps=3)[0]
    assert difference(many[5], alone) <= 1


def test_every_setting_counts(lively: Generator):
    generator = lively
    plain = generator(FOX, steps=3)[0]
    others = {
        "guidance": generator(FOX, steps=3, guidance=9.0)[0],
        "steps": generator(FOX, steps=5)[0],
        "sampler": generator(FOX, steps=3, sampler="heun")[0],
        "negative": generator(FOX, steps=3, negative_prompt=CAR)[0],
        "preset": generator(FOX, steps=3, preset="published")[0],
    }
    assert [name for name, image in others.items() if difference(plain, image) < 2] == []


def test_wrong_settings_are_named(generator: Generator):
    for settings, words in (
        ({"steps": 0}, "steps"),
        ({"guidance": -1.0}, "guidance"),
        ({"num_images": 0}, "num_images"),
        ({"seeds": [1], "seed": 2}, "seeds"),
        ({"size": 33}, "multiples of 8"),
        ({"size": (32, 0)}, "multiples of 8"),
    ):
        with pytest.raises(UserError, match=words):
            generator(FOX, **settings)


WRONG = {
    "g([])": "prompts: the list is empty",
    "g(None)": "prompts: must be a list",
    "g(3)": "prompts: must be a list",
    "g({'a': 1})": "prompts: must be a list",
    "g(['a', 3])": "prompts: each must be a text (got 3)",
    "g.generate([(3, 4)])": "prompts: each must be a text (got 3)",
    "g('a', [])": "seeds: the list is empty",
    "g('a', 3)": "seeds: must be a list",
    "g('a', [1.5])": "seeds: must be a whole number (got 1.5)",
    "g('a', [None])": "seeds: must be a whole number",
    "g('a', [True])": "seeds: must be a whole number",
    "g('a', seed=[1, 2])": "seed: must be a whole number",
    "g('a', num_images=1.5)": "num_images: must be a whole number",
    "g('a', num_images=True)": "num_images: must be a whole number",
    "g('a', batch_size=0)": "batch_size: must be at least 1",
    "g('a', batch_size=-1)": "batch_size: must be at least 1",
    "g('a', negative_prompt=['b', 'c'])": "negative_prompt: Input should be a valid string",
    "g('a', steps=0)": "steps: Input should be greater than or equal to 1",
    "g('a', steps=1.5)": "steps: Input should be a valid integer",
    "g('a', steps=True)": "steps: must be a number",
    "g('a', guidance=float('nan'))": "guidance.scale: Input should be a finite number",
    "g('a', guidance=float('inf'))": "guidance.scale: Input should be a finite number",
    "g('a', guidance=[1, 2])": "guidance.scale: Input should be a valid number",
    "g('a', guidance=True)": "guidance: must be a number",
    "g('a', sampler='')": "sampler: Input should be 'euler'",
    "g('a', preset=['published'])": "preset ['published']",
    "g('a', size='64')": "size: must be a number of pixels",
    "g('a', size=(64,))": "size: must be a number of pixels",
    "g('a', size=64.0)": "size: must be a number of pixels",
    "g('a', size=True)": "size: must be a whole number",
}


@pytest.fixture(scope="module")
def answers(tiny_demo: Path) -> dict[str, str]:
    """What a user is told who passes the wrong thing; outside of this process, which checks types."""
    script = (
        "import json, sys, warnings; warnings.simplefilter('error')\n"
        "from kilopix.generator import Generator\n"
        "g, told = Generator.from_pretrained(sys.argv[1], 'cpu'), {}\n"
        "for call in json.loads(sys.argv[2]):\n"
        "    try: told[call] = f'{len(eval(call))} images'\n"
        "    except Exception as error: told[call] = f'{type(error).__name__}: {error}'\n"
        "print(json.dumps(told))"
    )
    command = [
        sys.executable,
        "-c",
        script,
        tiny_demo / "run",
        json.dumps([*WRONG, "g(('a cat', 'a car'), iter([1]))"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", WRONG)
def test_what_is_no_argument_is_a_users_mistake(answers: dict[str, str], call: str):
    assert answers[call].startswith("UserError: ")
    assert WRONG[call] in answers[call]


def test_any_list_of_prompts_and_seeds_will_do(answers: dict[str, str], generator: Generator):
    assert answers["g(('a cat', 'a car'), iter([1]))"] == "2 images"
    assert len(generator(FOX, seeds=np.arange(2).tolist(), steps=1)) == 2


def test_sizes_of_a_dit(generator: Generator):
    assert generator(FOX, steps=1, size=(48, 32))[0].size == (48, 32)
    assert generator(FOX, steps=1, size=64)[0].size == (64, 64)


def test_steps_are_reported_with_previews(generator: Generator):
    seen: list[SamplingStep] = []
    images = generator([FOX, CAR], num_images=2, steps=3, batch_size=3, on_step=seen.append)
    assert [(s.number, s.steps, s.first) for s in seen] == [
        *((1, 3, 0), (2, 3, 0), (3, 3, 0)),
        *((1, 3, 3), (2, 3, 3), (3, 3, 3)),
    ]
    assert [len(s.previews()) for s in seen] == [3, 3, 3, 1, 1, 1]
    last = [*seen[2].previews(), *seen[5].previews()]
    assert [difference(a, b) for a, b in zip(last, images, strict=True)] == [0, 0, 0, 0]
    assert difference(seen[0].previews()[0], images[0]) > 0


def test_an_exception_in_a_callback_ends_the_call(generator: Generator):
    def stop(step: SamplingStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator(FOX, steps=3, on_step=stop)


def test_a_linear_preview_is_near_a_linear_autoencoder():
    """Where decoding is linear and smooth, the stand-in finds it."""

    class Flat:
        name, channels, downsampling, fingerprint = "flat", 4, 2, "flat"
        mix = torch.tensor([[0.3, 0.1, 0, 0], [0, 0.2, 0.1, 0], [0.1, 0, 0, 0.2]])

        def encode(self, images):
            raise NotImplementedError

        def decode(self, latents):
            colors = torch.einsum("kc,bchw->bkhw", self.mix, latents) + 0.1
            return colors.repeat_interleave(2, 2).repeat_interleave(2, 3)

    decoder = LinearDecoder.fit(Flat())
    torch.testing.assert_close(decoder.weight, Flat.mix, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoder.bias, torch.full((3,), 0.1), atol=1e-4, rtol=0)
    assert decoder.decode(torch.zeros(1, 4, 3, 5)).shape == (1, 3, 6, 10)


def test_texts_are_encoded_once(generator: Generator):
    generator("a text that is new", steps=1)
    before = generator.text_cache.encoded
    generator(["a text that is new"] * 2, steps=1)
    assert generator.text_cache.encoded == before
    generator(["a text that is new", "another new text"], steps=1)
    assert generator.text_cache.encoded == before + 1


def test_the_text_cache_forgets_the_oldest(generator: Generator):
    from kilopix.pretrained.text_cache import TextCache

    cache = TextCache(generator.text_encoder, size=2)
    alone = cache.encode(["fox"])
    both = cache.encode(["a fox in the snow", "fox"])
    torch.testing.assert_close(both.states[1][both.mask[1]], alone.states[0])
    assert (both.states[1][~both.mask[1]] == 0).all()
    cache.encode(["owl"])  # "a fox in the snow" is the least recently used
    assert cache.encoded == 3
    cache.encode(["fox", "owl"])
    assert cache.encoded == 3
    cache.encode(["a fox in the snow"])
    assert cache.encoded == 4


def test_bfloat16_is_close(tiny_demo: Path, generator: Generator):
    low = Generator.from_pretrained(tiny_demo / "run", "cpu", dtype="bfloat16")
    a, b = (np.asarray(g(FOX, steps=3)[0], float) for g in (generator, low))
    assert 0 < np.abs(a - b).mean() < 2
    assert {p.dtype for p in low.network.parameters()} == {torch.float32, torch.bfloat16}


def test_weights_are_mapped_and_not_changed(tiny_demo: Path, generator: Generator):
    stored = load_file(tiny_demo / "run" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in generator.network.state_dict().items())


def test_weights_that_do_not_fit_their_recipe_are_refused(tiny_demo: Path, tmp_path: Path):
    tensors, header = read_tensors(tiny_demo / "run" / "model.safetensors")
    del tensors["patch_in.weight"]
    write_tensors(tmp_path / "model.safetensors", tensors, header)
    with pytest.raises(UserError, match=r"do not fit .*patch_in\.weight"):
        Generator.from_pretrained(tmp_path)


def test_released_weights_load_and_sample(released: tuple[Path, Path, Path]):
    weights, text, autoencoder = released
    generator = Generator.from_pretrained(weights, "cpu", text_encoder=text, autoencoder=autoencoder)
    own = generator.recipe.sampling
    assert (own.sampler, own.steps, own.guidance.scale) == ("ddim", 250, 16.0)
    expected = RIN(generator.network.config, 4, 16, 8)  # pyright: ignore
    load_published(expected, load_file(weights / "model.safetensors"))
    found = generator.network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())
    steps: list[SamplingStep] = []
    image = generator("a fox", steps=3, on_step=steps.append)[0]
    assert image.size == (64, 64)
    assert steps[-1].previews()[0].size == (64, 64)
    assert difference(steps[-1].previews(exact=True)[0], image) <= 1
    assert difference(image, generator("an owl", steps=3)[0]) > 0
    with pytest.raises(UserError, match="64 x 64 only"):
        generator("a fox", size=128)


def test_released_weights_without_coherence(tmp_path: Path):
    folder = write_released(tmp_path / "cad", TINY, "RINTextCond")
    assert (
        "coherence_embedder.map_time.0.weight" not in Generator.from_pretrained(folder).network.state_dict()
    )


def test_an_autoencoder_in_a_pipelines_folder_is_found(released: tuple[Path, Path, Path]):
    weights, text, autoencoder = released
    around = Generator.from_pretrained(weights, text_encoder=text, autoencoder=autoencoder.parent)
    assert around.autoencoder.downsampling == 8


def test_released_weights_that_are_damaged_are_refused(released: tuple[Path, Path, Path]):
    weights, _, _ = released
    (weights / "config.json").write_text(json.dumps({**TINY, "num_blocks": 3}))
    with pytest.raises(UserError, match="lack"):
        Generator.from_pretrained(weights)
    (weights / "config.json").write_text(json.dumps({**TINY, "num_blocks": "many"}))
    with pytest.raises(UserError, match=r"config\.json: .*num_blocks"):
        Generator.from_pretrained(weights)
    (weights / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json beside it"):
        Generator.from_pretrained(weights)


def test_a_pickle_is_named_and_not_opened(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        Generator.from_pretrained(tmp_path)


def test_names_and_paths(tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(tiny_demo / "run", tmp_path / "mini")
    monkeypatch.chdir(tmp_path)
    shipped = find_weights()
    assert find_weights("mini") == shipped
    assert shipped.parent.name == "weights"
    assert find_weights("./mini") == Path("mini/model.safetensors")
    assert find_weights(Path("mini")) == Path("mini/model.safetensors")
    with pytest.raises(UserError, match="owner/name: no such folder or file"):
        find_weights(Path("owner/name"))  # a path is never looked for on the hub
    for name in ("mini", "./mini"):
        with pytest.raises(UserError, match="revision"):
            find_weights(name, "v1")


def test_the_shipped_model_makes_pictures():
    from kilopix import Generator

    generator = Generator.from_pretrained(device="cpu")
    assert generator.weights.stat().st_size <= 12e6
    image = generator("a fox on a pale blue background", steps=4)[0]
    assert image.size == (generator.recipe.data.image_size,) * 2
    assert np.asarray(image).std() > 5


def test_the_hub(tiny_demo: Path, tmp_path: Path):
    """A real client against a hub on this machine: the revision is pinned, and no pickle is asked for."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("model.safetensors", "codec.safetensors"):
        shutil.copyfile(tiny_demo / "run" / name, repository / name)
    for name in ("pytorch_model.bin", "optimizer.safetensors", "pipeline.py"):
        (repository / name).write_bytes(b"nobody should ask for this")
    program = (
        "from kilopix import Generator\n"
        "from kilopix.types import UserError\n"
        "g = Generator.from_pretrained('someone/tiny', 'cpu', revision='v1')\n"
        "print(g.weights.parent.name, g('a fox', steps=1)[0].size)\n"
        "try:\n"
        "    Generator.from_pretrained('someone/tiny', revision='v2')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    with serving(repository, "someone/tiny", ("main", "v1")) as (address, asked):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE"))},
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = done.stdout.splitlines()[:2]
    assert first == f"{COMMIT} (32, 32)"
    assert "gave no copy of it at revision v2" in second
    assert set(asked) == {"model.safetensors", "codec.safetensors"}
