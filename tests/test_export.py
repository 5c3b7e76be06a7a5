"""Exported folders: read back by kilopix, and by diffusers where kilopix cannot be imported."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hub_models import write_kl, write_t5
from kilopix.diffusion.sampling import SamplingChanges
from kilopix.evaluation.protocol import Card, Score, write_card
from kilopix.export.diffusers_folder import scheduler_config, write_pipeline
from kilopix.export.weights_file import write_weights
from kilopix.generator import Generator
from kilopix.models.dit import DiTConfig
from kilopix.network import build_network
from kilopix.pretrained.autoencoder import DiffusersAutoencoderConfig
from kilopix.pretrained.text_encoder import T5Config
from kilopix.types import LatentStatistics, UserError
from tiny import Cli

FOX, CAR = "a photo of a fox", "a photo of a red car on the left"

LOAD = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kilopix", "jaxtyping", "pydantic_settings"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
sys.path[:] = [p for p in sys.path if "jaxtyping" not in p]
import json
import torch
from safetensors.torch import save_file
from diffusers import DiffusionPipeline

folder, out, calls = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
answers = {}
for name, call in json.loads(calls).items():
    answers[name] = pipeline(**call, output_type="pt").images.contiguous()
    images = pipeline(**call).images
    assert images[0].size == answers[name].shape[:1:-1], images[0].size
assert "kilopix" not in sys.modules
save_file(answers, out)
"""


def lively(generator: Generator) -> Generator:
    """Weights that listen to everything; after so short a training most still say nothing."""
    draw = torch.Generator().manual_seed(0)
    for weight in generator.network.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=draw)
    return generator


def in_diffusers(
    folder: Path, tmp_path: Path, calls: dict[str, dict[str, object]]
) -> dict[str, torch.Tensor]:
    """Pixels in [0, 1] of some calls of the exported pipeline, in a process without kilopix."""
    out = tmp_path / "answers.safetensors"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(out), json.dumps(calls)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def in_kilopix(
    generator: Generator, jobs: list[tuple[str, int]], changes: SamplingChanges, size=None
) -> torch.Tensor:
    sampling = generator.settings(changes)
    texts, seeds = [text for text, _ in jobs], [seed for _, seed in jobs]
    with torch.inference_mode():
        latents = generator.latents(texts, seeds, sampling, size=size)
        if generator.whitening:
            latents = generator.whitening.restore(latents)
        return (generator.autoencoder.decode(latents) + 1) / 2


def test_diffusers_makes_the_same_pictures(tiny_demo: Path, tmp_path: Path):
    generator = lively(Generator.from_pretrained(tiny_demo / "run", "cpu"))
    write_pipeline(generator, tmp_path / "pipeline")
    calls = {
        "own": {"prompt": FOX, "seed": 3},
        "batch": {"prompt": [FOX, CAR], "num_images_per_prompt": 2, "num_inference_steps": 5},
        "guided": {"prompt": CAR, "guidance_scale": 7.0, "negative_prompt": FOX, "num_inference_steps": 8},
        "off": {"prompt": CAR, "guidance_scale": 1.0},
        "wide": {"prompt": CAR, "width": 48, "height": 32},
    }
    found = in_diffusers(tmp_path / "pipeline", tmp_path, calls)
    expected = {
        "own": in_kilopix(generator, [(FOX, 3)], SamplingChanges()),
        "batch": in_kilopix(generator, [(FOX, 0), (FOX, 1), (CAR, 0), (CAR, 1)], SamplingChanges(steps=5)),
        "guided": in_kilopix(
            generator, [(CAR, 0)], SamplingChanges(steps=8, guidance=7.0, negative_prompt=FOX)
        ),
        "off": in_kilopix(generator, [(CAR, 0)], SamplingChanges(guidance=1.0)),
        "wide": in_kilopix(generator, [(CAR, 0)], SamplingChanges(), (48, 32)),
    }
    for name, pixels in expected.items():
        assert pixels.std() > 0.02
        torch.testing.assert_close(found[name], pixels, atol=1e-3, rtol=0, msg=name)
    assert (expected["guided"] - expected["off"]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("path", "prediction", "preset"),
    [
        ("straight", "data", "recommended"),
        ("gamma", "velocity", "recommended"),
        ("gamma", "noise", "published"),
    ],
)
def test_every_walk_of_the_scheduler(tiny_demo: Path, tmp_path: Path, path, prediction, preset):
    """A shifted autoencoder, a T5, patches of two, whitened latents; other paths and samplers."""
    text, vae = write_t5(tmp_path / "t5"), write_kl(tmp_path / "kl", levels=3, shift=0.2)
    first = Generator.from_pretrained(tiny_demo / "run", "cpu")
    recipe = type(first.recipe).model_validate(
        {
            **first.recipe.model_dump(),
            "text": T5Config(name=str(text), max_tokens=9).model_dump(),
            "autoencoder": DiffusersAutoencoderConfig(name=str(vae), downsampling=4).model_dump(),
            "model": DiTConfig(width=32, depth=2, heads=2, patch=2, text_layers=2, registers=3).model_dump(),
            "objective": {"path": {"kind": path}, "prediction": prediction},
        }
    )
    network = build_network(recipe, 4, 16).eval().requires_grad_(False)
    generator = replace(
        first,
        network=network,
        recipe=recipe,
        text_fingerprint=None,
        autoencoder_fingerprint=None,
        whitening=LatentStatistics((0.1, -0.2, 0.3, 0.0), (1.1, 0.9, 1.3, 0.8)),
    )
    sampling = generator.settings(SamplingChanges(preset=preset, steps=7))
    generator = lively(replace(generator, recipe=recipe.model_copy(update={"sampling": sampling})))
    write_pipeline(generator, tmp_path / "pipeline")
    found = in_diffusers(tmp_path / "pipeline", tmp_path, {"own": {"prompt": ["a fox", "the owl of a cup"]}})
    expected = in_kilopix(generator, [("a fox", 0), ("the owl of a cup", 0)], SamplingChanges())
    torch.testing.assert_close(found["own"], expected, atol=1e-3, rtol=0)
    assert expected.std() > 0.01


def test_what_the_pipeline_cannot_do_is_refused(tiny_demo: Path, cli: Cli, tmp_path: Path):
    recipe = Generator.from_pretrained(tiny_demo / "run", "cpu").recipe
    for changes, words in (
        ({"sampling": {"sampler": "heun"}}, r"sampling\.sampler = heun"),
        ({"sampling": {"guidance": {"kind": "apg"}}}, r"sampling\.guidance = apg"),
        ({"sampling": {"threshold": {"kind": "dynamic"}}}, r"sampling\.threshold = dynamic"),
        ({"objective": {"path": {"kind": "edm"}}}, "paths straight and gamma"),
    ):
        with pytest.raises(UserError, match=words):
            scheduler_config(type(recipe).model_validate({**recipe.model_dump(), **changes}))
    done = cli("export", tiny_demo / "run", tmp_path / "out", "-f", "diffusers", "--sampler", "ddpm")
    assert done.code == 2
    assert "--preset recommended" in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_exported_network_has_every_setting():
    """A setting that is new in kilopix must come to the exported code too."""
    known = {"width", "depth", "heads", "patch", "mlp_ratio", "text_layers", "registers"}
    assert set(DiTConfig.model_fields) - known == {"kind", "routing"}


def test_a_hub_folder_is_read_back(tiny_demo: Path, tmp_path: Path, cli: Cli):
    scores = tiny_demo / "scores"
    out = tmp_path / "out"
    export = ("export", tiny_demo / "run", out, "--scores", scores, "--prompt", FOX, "--steps", "3")
    about = ("--name", "someone/tiny", "--license", "apache-2.0", "--dataset", "someone/set")
    done = cli(*export, *about)
    assert done.code == 0, done.err
    back = Generator.from_pretrained(out, "cpu")
    assert back.recipe.sampling.steps == 3
    ours = Generator.from_pretrained(tiny_demo / "run", "cpu")
    assert back(FOX)[0].tobytes() == ours(FOX, steps=3)[0].tobytes()
    alone = Generator.from_pretrained(out / "model.safetensors", "cpu")  # the codec is inside
    (out / "model.safetensors").rename(tmp_path / "moved.safetensors")
    assert alone(FOX)[0].tobytes() == back(FOX)[0].tobytes()
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["someone/set"]
    assert {"kilopix", "dit"} <= set(card.data.tags)
    assert {r.metric_name for r in card.data.eval_results} >= {"mean of six tasks", "KID"}
    for words in (
        "# someone/tiny",
        "Protocol: sampler euler",
        "95% interval",
        "samples/00.png",
        '"sampling"',
    ):
        assert words in card.text
    assert (out / "samples" / "00.png").is_file()
    assert (out / "model.safetensors").exists() is False
    assert "about.name: someone/tiny, here out" in cli(*export).err
    assert cli(*export, *about).code == 0, "the same command writes the folder again"
    assert (out / "model.safetensors").exists()


def test_an_export_guards_folders_and_scores(tiny_demo: Path, tmp_path: Path, cli: Cli):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = cli("export", tiny_demo / "run", tmp_path / "mine")
    assert done.code == 2
    assert "not made by this command" in done.err
    assert (tmp_path / "mine" / "thesis.txt").exists()
    other = Card(
        checkpoint="other",
        checkpoint_sha256="0" * 64,
        resolution=32,
        images=4,
        evaluator="e",
        evaluator_sha256="1" * 64,
        kilopix_version="0.1.0",
        scores=(Score(name="s", value=1.0, n=4),),
    )
    write_card(tmp_path / "card.json", other)
    done = cli("export", tiny_demo / "run", tmp_path / "out", "--scores", tmp_path / "card.json")
    assert done.code == 2
    assert "scores of other weights" in done.err
    assert not (tmp_path / "out").exists()


def test_half_precision_in_one_file(tiny_demo: Path, tmp_path: Path):
    ours = Generator.from_pretrained(tiny_demo / "run", "cpu")
    write_weights(ours, tmp_path / "half.safetensors", torch.float16)
    stored = load_file(tmp_path / "half.safetensors")
    assert stored["patch_in.weight"].dtype == torch.float16
    assert stored["codec.mean"].dtype == torch.float32
    half = Generator.from_pretrained(tmp_path / "half.safetensors", "cpu")
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    a, b = (in_kilopix(g, [(FOX, 0)], SamplingChanges()) for g in (ours, half))
    torch.testing.assert_close(a, b, atol=0.01, rtol=0)
    next(iter(ours.network.parameters())).fill_(1e6)
    with pytest.raises(UserError, match="cannot hold"):
        write_weights(ours, tmp_path / "large.safetensors", torch.float16)
