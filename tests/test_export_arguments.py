"""Every argument of a call of the exported diffusers pipeline is honoured, or refused by its name."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kilopix.export.diffusers_folder import scheduler_config, write_pipeline
from kilopix.generator import Generator
from kilopix.types import UserError

SETUP = """
import json, sys
import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from safetensors.torch import save_file

folder, out, refused = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
A, B, C = "a boat", "a red car", "a fox"
side = pipeline.config.image_size // pipeline.config.downsampling
shape = (2, pipeline.transformer.config.channels, side, side)
noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))

def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]

def make(prompt=(A, B), **options):
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "pt", **options}
    return pipeline(list(prompt) if isinstance(prompt, tuple) else prompt, **options)

def pixels(*arguments, **options):
    return make(*arguments, **options).images
"""

HONOURED = """
own = pipeline.config
as_arrays = pixels(output_type="np")
assert isinstance(as_arrays, np.ndarray) and as_arrays.dtype == np.float32
assert as_arrays.min() >= 0 and as_arrays.max() <= 1
as_images = pixels(output_type="pil")
assert all(image.size == (own.image_size, own.image_size) for image in as_images)
seen = []

def look(given, step, time, tensors):
    seen.append((step, float(time), sorted(tensors), given.num_timesteps, given.guidance_scale))

def stop(given, step, time, tensors):
    given._interrupt = step == 1
    return {}

def zero(given, step, time, tensors):
    return {"latents": tensors["latents"] * 0}

def off(given, step, time, tensors):
    given._guidance_scale = 0.0

watched = pixels(num_inference_steps=3, callback_on_step_end=look)
assert seen == [(i, seen[i][1], ["latents"], 3, 4.0) for i in range(3)], seen
assert seen[0][1] == 1.0
tuple_of_one = make(return_dict=False)
assert isinstance(tuple_of_one, tuple) and len(tuple_of_one) == 1
two_each = pixels(num_images_per_prompt=2, negative_prompt=[C, A], seed=5)
answers = {
    "plain": pixels(),
    "tuple": tuple_of_one[0],
    "np": torch.from_numpy(as_arrays).permute(0, 3, 1, 2),
    "pil": torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) / 255 for i in as_images]),
    "latent": pixels(output_type="latent"),
    "first": pixels(A), "second": pixels(B),
    "one text": pixels(negative_prompt=C), "texts": pixels(negative_prompt=[C, C]),
    "mixed texts": pixels(negative_prompt=[C, A]),
    "negative of first": pixels(A, negative_prompt=[C]), "negative of second": pixels(B, negative_prompt=A),
    "two each": two_each,
    "alone": pixels(B, negative_prompt=A, seed=6),
    "no number": pixels(num_images_per_prompt=None),
    "numpy number": pixels(num_inference_steps=np.int64(2)),
    "generators": pixels(generator=seeded(3, 4)), "swapped": pixels(generator=seeded(4, 3)),
    "one generator": pixels(A, generator=seeded(3)[0]), "one in a list": pixels(A, generator=seeded(3)),
    "one for all": pixels(generator=seeded(1)[0]), "noise": pixels(latents=noise),
    "noise of two types": pixels(latents=noise, generator=seeded(9)[0]),
    "off": pixels(guidance_scale=1.0), "zero": pixels(guidance_scale=0), "none": pixels(guidance_scale=None),
    "own scale": pixels(guidance_scale=own.guidance_scale),
    "wide": pixels(height=own.image_size, width=2 * own.image_size),
    "positional": pipeline([A, B], *[own.image_size] * 2, 2, None, None, 4.0, output_type="pt").images,
    "watched": watched, "three steps": pixels(num_inference_steps=3),
    "stopped": pixels(num_inference_steps=3, callback_on_step_end=stop, output_type="latent"),
    "three latents": pixels(num_inference_steps=3, output_type="latent"),
    "zeroed": pixels(callback_on_step_end=zero, output_type="latent"),
    "off after one": pixels(callback_on_step_end=off),
    "idle": pixels(eta=0, guidance_rescale=0.0, cross_attention_kwargs={}, timesteps=None, clip_skip=None),
}
save_file({name: value.contiguous() for name, value in answers.items()}, out)
messages = {}
"""

REFUSED = {
    "make([])": "prompt: the list is empty",
    "make(None)": "prompt: must be a text",
    "make(3)": "prompt: must be a text",
    "make([A, 3])": "prompt: must be a text",
    "make({A: B})": "prompt: must be a text",
    "make(negative_prompt=[C])": "negative_prompt: has 1 texts for 2 prompts",
    "make(negative_prompt=[])": "negative_prompt: has 0 texts",
    "make(negative_prompt=[C, None])": "negative_prompt: must be a text",
    "make(negative_prompt=7)": "negative_prompt: must be a text",
    "make(negative_prompt=[C] * 4, num_images_per_prompt=2)": "negative_prompt: has 4 texts for 2 prompts",
    "make(generator=seeded(1))": "generator: has 1 generators for 2 images",
    "make(generator=seeded(1, 2), num_images_per_prompt=2)": "generator: has 2 generators for 4 images",
    "make(generator=[])": "generator: has 0 generators",
    "make(generator=3)": "generator: must be a torch.Generator",
    "make(generator=[3, 4])": "generator: must be a torch.Generator",
    "make(generator=seeded(1)[0], seed=1)": "seed: give either",
    "make(latents=noise, seed=1)": "seed: give either",
    "make(seed=1.5)": "seed: must be a whole number",
    "make(seed=[1, 2])": "seed: must be a whole number",
    "make(seed=True)": "seed: must be a whole number",
    "make(num_inference_steps=0)": "num_inference_steps: must be a whole number of at least 1 (got 0)",
    "make(num_inference_steps=-1)": "num_inference_steps: must be a whole number of at least 1",
    "make(num_inference_steps=True)": "num_inference_steps: must be a whole number",
    "make(num_inference_steps=2.0)": "num_inference_steps: must be a whole number",
    "make(num_inference_steps='2')": "num_inference_steps: must be a whole number",
    "make(num_images_per_prompt=0)": "num_images_per_prompt: must be a whole number of at least 1",
    "make(num_images_per_prompt=1.0)": "num_images_per_prompt: must be a whole number",
    "make(guidance_scale=float('nan'))": "guidance_scale: must be one finite number",
    "make(guidance_scale=float('inf'))": "guidance_scale: must be one finite number",
    "make(guidance_scale=-1.0)": "guidance_scale: must be one finite number",
    "make(guidance_scale=[4.0, 4.0])": "guidance_scale: must be one finite number",
    "make(guidance_scale=True)": "guidance_scale: must be one finite number",
    "make(guidance_scale=torch.ones(2))": "guidance_scale: must be one finite number",
    "make(height=own.image_size + 1)": "height: must be a multiple of",
    "make(width=own.image_size + 1)": "width: must be a multiple of",
    "make(height=0)": "height: must be a whole number of at least 1",
    "make(width=-32)": "width: must be a whole number of at least 1",
    "make(height=32.0)": "height: must be a whole number",
    "make(latents=noise[:1])": "latents: must have the shape",
    "make(latents=noise[:, :1])": "latents: must have the shape",
    "make(latents=noise.tolist())": "latents: must be a tensor",
    "make(latents=noise.long())": "latents: must be a tensor",
    "make(latents=noise, width=2 * own.image_size)": "latents: must have the shape",
    "make(output_type='numpy')": "output_type: must be one of pil, np, pt, latent (got 'numpy')",
    "make(output_type=None)": "output_type: must be one of",
    "make(output_type=['pt'])": "output_type: must be one of",
    "make(callback_on_step_end=3)": "callback_on_step_end: must be a function",
    "make(callback_on_step_end=lambda *a: {'latents': noise[:1]})": "latents: must have the shape",
    "make(callback_on_step_end=lambda *a: noise)": "callback_on_step_end: must return a dict",
    "make(callback_on_step_end=look, callback_on_step_end_tensor_inputs=['prompt_embeds'])": (
        "callback_on_step_end_tensor_inputs: must be a list of"
    ),
    "make(callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))": (
        "callback_on_step_end_tensor_inputs: must be a list of"
    ),
    "make(prompt_embeds=noise)": "prompt_embeds: this pipeline cannot",
    "pipeline(prompt_embeds=noise)": "prompt_embeds: this pipeline cannot",
    "make(negative_prompt_embeds=noise)": "negative_prompt_embeds: this pipeline cannot",
    "make(timesteps=[1, 0])": "timesteps: this pipeline cannot",
    "make(sigmas=[1.0, 0.0])": "sigmas: this pipeline cannot",
    "make(eta=0.5)": "eta: this pipeline cannot",
    "make(ip_adapter_image=noise)": "ip_adapter_image: this pipeline cannot",
    "make(ip_adapter_image_embeds=[noise])": "ip_adapter_image_embeds: this pipeline cannot",
    "make(cross_attention_kwargs={'scale': 0.5})": "cross_attention_kwargs: this pipeline cannot",
    "make(guidance_rescale=0.7)": "guidance_rescale: this pipeline cannot",
    "make(clip_skip=1)": "clip_skip: this pipeline cannot",
    "make(callback=look)": "unexpected keyword argument 'callback'",
    "make(guidence_scale=3)": "unexpected keyword argument 'guidence_scale'",
    "pipeline.scheduler.set_timesteps(0)": "num_inference_steps: must be a whole number",
}

LAST = """
for call in json.loads(refused):
    try:
        eval(call)
        messages[call] = "nothing was refused"
    except Exception as error:
        messages[call] = f"{type(error).__name__}: {error}"
pipeline.scheduler = DDIMScheduler()
try:
    make()
except ValueError as error:
    messages["other scheduler"] = str(error)
assert "kilopix" not in sys.modules
print(json.dumps(messages))
"""

Answers = tuple[dict[str, torch.Tensor], dict[str, str]]


@pytest.fixture(scope="module")
def answers(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Images of many calls, and the messages of those that are refused, from one process."""
    folder = tmp_path_factory.mktemp("arguments")
    generator = Generator.from_pretrained(tiny_demo / "run", "cpu")
    draw = torch.Generator().manual_seed(0)
    for weight in generator.network.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=draw)
    write_pipeline(generator, folder / "pipeline")
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    script = SETUP + HONOURED + LAST
    command = [sys.executable, "-c", script, folder / "pipeline", folder / "out", json.dumps(list(REFUSED))]
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "out"), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", REFUSED)
def test_what_cannot_be_done_is_refused_by_its_name(answers: Answers, call: str):
    assert REFUSED[call] in answers[1][call]


def test_another_scheduler_is_refused(answers: Answers):
    assert "scheduler: is DDIMScheduler" in answers[1]["other scheduler"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("plain", "tuple"),
        ("plain", "np"),
        ("plain", "no number"),
        ("plain", "numpy number"),
        ("plain", "positional"),
        ("plain", "idle"),
        ("one text", "texts"),
        ("one generator", "one in a list"),
        ("one for all", "noise"),
        ("noise", "noise of two types"),
        ("off", "zero"),
        ("none", "own scale"),
        ("watched", "three steps"),
    ],
)
def test_two_ways_to_say_one_thing_give_one_image(answers: Answers, one: str, other: str):
    torch.testing.assert_close(answers[0][one], answers[0][other], atol=1e-4, rtol=0)


def test_every_image_has_its_own_prompts_seed_and_generator(answers: Answers):
    images = answers[0]

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return bool((one - other).abs().max() < 1e-3)

    assert same(images["plain"][:1], images["first"])
    assert same(images["plain"][1:], images["second"])
    assert same(images["mixed texts"][:1], images["negative of first"])
    assert same(images["mixed texts"][1:], images["negative of second"])
    assert not same(images["mixed texts"], images["one text"])
    assert same(images["two each"][3:], images["alone"]), "second prompt, second negative, second seed"
    assert same(images["generators"][:1], images["one generator"])
    assert not same(images["generators"], images["swapped"])
    assert not same(images["plain"], images["off"])
    assert not same(images["off after one"], images["off"])
    assert not same(images["off after one"], images["plain"])


def test_images_come_in_the_type_asked_for(answers: Answers):
    images = answers[0]
    assert (images["pil"] - images["plain"]).abs().max() <= 0.5001 / 255
    assert images["latent"].shape != images["plain"].shape
    side = images["plain"].shape[-1]
    assert images["wide"].shape == (2, 3, side, 2 * side)


def test_a_callback_changes_latents_and_stops_the_walk(answers: Answers):
    images = answers[0]
    assert images["zeroed"].abs().max() == 0
    assert (images["stopped"] - images["three latents"]).abs().max() > 1e-2


def test_the_pipeline_knows_every_argument_of_stable_diffusion():
    from diffusers import StableDiffusionPipeline

    from kilopix.export.pipeline.pipeline import KilopixPipeline

    theirs = list(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    ours = list(inspect.signature(KilopixPipeline.__call__).parameters)
    assert ours == [*(name for name in theirs if name != "kwargs"), "seed"]


def test_a_guidance_scale_that_means_another_thing_in_diffusers_is_not_exported(tiny_demo: Path):
    recipe = Generator.from_pretrained(tiny_demo / "run", "cpu").recipe
    values = {**recipe.model_dump(), "sampling": {"guidance": {"kind": "constant", "scale": 0.5}}}
    with pytest.raises(UserError, match=r"sampling\.guidance\.scale = 0\.5"):
        scheduler_config(type(recipe).model_validate(values))
