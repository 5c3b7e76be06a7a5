"""A folder that `diffusers.DiffusionPipeline.from_pretrained` loads, without kilopix.

In: a generator with a DiT. Out: `model_index.json`, the pipeline's code, and one folder for each of the
transformer, the scheduler, the autoencoder, the text encoder and its tokenizer.
"""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from kilopix.diffusion.guidance import ConstantGuidance
from kilopix.diffusion.paths import GammaPath, StraightPath
from kilopix.diffusion.sampling import Clamp, NoThreshold, SamplingConfig
from kilopix.diffusion.schedule import EvenSpacing, FlowSpacing
from kilopix.generator import Generator
from kilopix.models.dit import DiT
from kilopix.network import inputs_of
from kilopix.pretrained.autoencoder import save_autoencoder
from kilopix.pretrained.patch_codec import PatchCodec
from kilopix.pretrained.text_encoder import save_text_encoder
from kilopix.recipe import Recipe
from kilopix.runtime import write_json, write_tensors
from kilopix.types import UserError

CODE = Path(__file__).parent / "pipeline"
INDEX, PIPELINE = "model_index.json", ["pipeline", "KilopixPipeline"]
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ONLY_IN_TRAINING = {"kind", "routing"}
_SAMPLERS = {"euler": "ddim", "ddim": "ddim", "dpmpp_2m": "dpmpp_2m"}


def write_pipeline(generator: Generator, out: Path) -> None:
    """Write the folder; raises `UserError` for a model that the pipeline has no code for."""
    import diffusers

    network, recipe = generator.network, generator.recipe
    if not isinstance(network, DiT):
        raise UserError("format diffusers: is for DiT networks, and this is a RIN; use --format hub.")
    scheduler = scheduler_config(recipe)
    version = {"_diffusers_version": diffusers.__version__}
    vae, scale, shift = _write_autoencoder(generator, out / "vae", version)
    text, tokenizer = save_text_encoder(generator.text_encoder, out / "text_encoder", out / "tokenizer")
    channels, text_width = inputs_of(network)
    whitening = generator.whitening
    mean = list(whitening.mean) if whitening else [0.0] * channels
    std = list(whitening.std) if whitening else [1.0] * channels
    shape = network.config.model_dump(exclude=_ONLY_IN_TRAINING)
    # diffusers has no place for a setting and a parameter of one name.
    shape["register_tokens"] = shape.pop("registers")
    transformer = {
        "_class_name": "KilopixDiT",
        **version,
        "channels": channels,
        "text_width": text_width,
        **shape,
        "latent_mean": [value / scale + shift for value in mean],
        "latent_std": [value / scale for value in std],
    }
    _write_part(out / "transformer", "kilopix_dit", transformer, network.state_dict())
    _copy_code("kilopix_scheduler", out / "scheduler")
    write_json(
        out / "scheduler" / "scheduler_config.json",
        {"_class_name": "KilopixScheduler", **version, **scheduler},
        seal=False,
    )
    _copy_code("pipeline", out)
    guidance, sampling = recipe.sampling.guidance, recipe.sampling
    write_json(
        out / INDEX,
        {
            "_class_name": PIPELINE,
            **version,
            "transformer": ["kilopix_dit", "KilopixDiT"],
            "vae": vae,
            "text_encoder": ["transformers", text],
            "tokenizer": ["transformers", tokenizer],
            "scheduler": ["kilopix_scheduler", "KilopixScheduler"],
            "image_size": recipe.data.image_size,
            "downsampling": generator.autoencoder.downsampling,
            "max_tokens": generator.text_encoder.max_tokens,
            "steps": sampling.steps,
            "guidance_scale": guidance.scale,
            "guidance_start": guidance.start,
            "guidance_stop": guidance.stop,
            "negative_prompt": sampling.negative_prompt,
        },
        seal=False,
    )


def scheduler_config(recipe: Recipe) -> dict[str, Any]:
    """The scheduler's settings; raises `UserError` for what its code does not do."""
    path, sampling = recipe.objective.path, recipe.sampling
    if isinstance(path, StraightPath):
        name = "straight"
    elif isinstance(path, GammaPath) and path.schedule == "linear":
        name = "linear"
    else:
        raise UserError(
            "format diffusers: has code for the paths straight and gamma with the linear schedule; "
            "use --format hub."
        )
    _check_sampling(sampling)
    spacing, threshold = sampling.spacing, sampling.threshold
    assert isinstance(spacing, EvenSpacing | FlowSpacing)
    return {
        "path": name,
        "prediction": recipe.objective.prediction,
        "sampler": _SAMPLERS[sampling.sampler],
        "spacing": spacing.kind,
        "shift": spacing.shift,
        "clamp": threshold.value if isinstance(threshold, Clamp) else None,
    }


def _check_sampling(sampling: SamplingConfig) -> None:
    known = {
        "sampler": (sampling.sampler, sampling.sampler in _SAMPLERS),
        "guidance": (sampling.guidance.kind, isinstance(sampling.guidance, ConstantGuidance)),
        # diffusers takes a scale below 1 as none; here it is a mixture of with and without text.
        "guidance.scale": (sampling.guidance.scale, sampling.guidance.scale >= 1),
        "spacing": (sampling.spacing.kind, isinstance(sampling.spacing, EvenSpacing | FlowSpacing)),
        "threshold": (sampling.threshold.kind, isinstance(sampling.threshold, NoThreshold | Clamp)),
    }
    for key, (value, fits) in known.items():
        if not fits:
            raise UserError(
                f"format diffusers: has no code for sampling.{key} = {value}; choose another, for instance "
                "with --preset recommended, or use --format hub."
            )


def _write_autoencoder(
    generator: Generator, folder: Path, version: dict[str, str]
) -> tuple[list[str], float, float]:
    """Write the autoencoder; its entry in the index, and the scale and shift of its latents."""
    autoencoder = generator.autoencoder
    if not isinstance(autoencoder, PatchCodec):
        name, scale, shift = save_autoencoder(autoencoder, folder)
        return ["diffusers", name], scale, shift
    codec = autoencoder.config
    config = {
        "_class_name": "KilopixPatchCodec",
        **version,
        "patch": codec.patch,
        "channels": codec.channels,
    }
    _write_part(folder, "kilopix_codec", config, autoencoder.tensors())
    return ["kilopix_codec", "KilopixPatchCodec"], 1.0, 0.0


def _write_part(folder: Path, code: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A component with code of its own: the code, its config, its weights."""
    _copy_code(code, folder)
    write_json(folder / "config.json", config, seal=False)
    whole = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    write_tensors(folder / _WEIGHTS, whole, {"format": "pt"})


def _copy_code(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CODE / f"{name}.py", folder / f"{name}.py")
