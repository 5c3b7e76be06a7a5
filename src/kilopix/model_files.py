"""From a name to a network: where a model's files are, and what they hold.

In: `mini`, a run folder, a checkpoint, a safetensors file, or the name of a repository on the Hugging Face
hub. Out: a network with its weights, and what is known of its training. Two layouts are read: kilopix's own,
with the recipe in the header of the weights, and that of the released CAD-I weights, with `config.json`
beside them. Weights stay mapped from their file, so that they take no memory twice; a pickle is never read.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kilopix.artefacts.digests import Damaged, check_shipped, check_tensors
from kilopix.data.trained_on import TrainedOn
from kilopix.diffusion.objective import ObjectiveConfig, UniformTime
from kilopix.diffusion.paths import GammaPath
from kilopix.diffusion.sampling import PRESETS
from kilopix.faults import first_line
from kilopix.models.published import COHERENCE_CLASS, load_published, published_config
from kilopix.models.rin import RIN
from kilopix.network import Network, empty_network
from kilopix.pretrained.autoencoder import CODEC_FILE, SDAutoencoderConfig
from kilopix.pretrained.patch_codec import PatchCodec
from kilopix.pretrained.text_encoder import T5Config
from kilopix.recipe import SD_DOWNSAMPLING, DataConfig, Recipe
from kilopix.runtime import is_whole, read_json, say
from kilopix.training.checkpoint import AVERAGE, newest_checkpoint, read_weights
from kilopix.types import LatentStatistics, UserError
from kilopix.weights_header import WeightsHeader, check_depth

SHIPPED = Path(__file__).parent / "assets" / "weights"
SHIPPED_MODEL = "mini"
"""The model of the embedded world that is installed with kilopix."""
SHIPPED_SHA256 = "584596d2fb42117662a941fc8ea0885c32bc36af876a44eecfe90c1856004bfa"
SHIPPED_TRAINING = "four and a half hours on one CPU core"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
CHECKPOINTS, RECIPE, FINISHED = "checkpoints", "recipe.json", "finished.json"
"""Of a run: its checkpoints, what it is, and the digest of the model that it ended with."""
REPLACED = "not the model that this run ended with"
CODEC_PREFIX = "codec."
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HUB_FILES = [WEIGHTS, CONFIG, CODEC_FILE]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Model:
    """A network in float32 on the CPU, with what its weights say; None where they do not say it."""

    network: Network
    recipe: Recipe
    weights: Path
    images_seen: int = 0
    text_fingerprint: str | None = None
    autoencoder_fingerprint: str | None = None
    whitening: LatentStatistics | None = None
    codec: PatchCodec | None = None
    trained_on: TrainedOn = field(default_factory=TrainedOn)


def find_weights(model: Path | str | None = None, revision: str | None = None) -> Path:
    """The weights that a path or a name means.

    A path means itself if it is a file, or a finished run's model, or its newest checkpoint's average. A
    name, which is a `str`, may also be `mini` or a repository of the hub, of which `revision` names a
    commit, a tag or a branch. None is `mini`; for a folder of that name, write `./mini`.
    """
    if model is None or model == SHIPPED_MODEL:
        if revision is not None:
            raise UserError(f"revision {revision!r}: the model {SHIPPED_MODEL} is installed, in one version.")
        return _shipped(SHIPPED_MODEL)
    path = Path(model).expanduser()
    if isinstance(model, str) and not path.exists() and _HUB_NAME.fullmatch(model):
        path = _download(model, revision)
    elif revision is not None:
        raise UserError(f"revision {revision!r}: only models of the Hugging Face hub have one, not {path}.")
    if path.is_file():
        return path
    fault = model_fault(path) if (path / WEIGHTS).is_file() else None
    for name in (WEIGHTS, AVERAGE):
        if (path / name).is_file() and not (fault and (path / CHECKPOINTS).is_dir()):
            return path / name
    record = path / RECIPE
    newest = newest_checkpoint(path / CHECKPOINTS, read_json(record).get("run") if record.is_file() else None)
    if fault and newest is None:
        raise UserError(f"{path / WEIGHTS}: {fault}, and there is no checkpoint to take its place.")
    if fault:
        say(f"{path / WEIGHTS}: {fault}; taken instead: {newest}.")
    if not path.exists():
        raise UserError(
            f"{path}: no such folder or file; give a run folder, a checkpoint, a .safetensors file, or "
            f"`{SHIPPED_MODEL}` for the model that is installed with kilopix."
        )
    if newest is None:
        pickled = sorted(f.name for f in path.glob("*") if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        aside = f" ({pickled[0]} is a pickle, which kilopix does not open.)" if pickled else ""
        raise UserError(
            f"{path}: no weights there; give a run folder, a checkpoint or a .safetensors file.{aside}"
        )
    return newest / AVERAGE


def model_fault(run: Path) -> str | None:
    """Why the model at the end of a run cannot be believed; None where it can, or is not of a run."""
    path, record = run / WEIGHTS, run / FINISHED
    if not is_whole(path):
        return "cut short"
    try:
        digest = check_tensors(path)
    except Damaged:
        return "damaged: its SHA-256 is not that of what was written"
    if not record.is_file():
        return None
    try:
        ended_with = read_json(record)["model"]
    except (UserError, KeyError, TypeError) as error:
        say(f"{record}: damaged, so that {path.name} is taken on trust ({error}).")
        return None
    return None if digest == ended_with else REPLACED


def _shipped(name: str) -> Path:
    path = SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: the weights that ship with kilopix are missing; install kilopix again.")
    check_shipped(path, SHIPPED_SHA256)
    return path


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise UserError(
            f"model {name!r}: it is no folder here, and the Hugging Face hub gave no copy of it{at} "
            f"({first_line(error)}). Give a run folder, a checkpoint or a .safetensors file, or "
            f"`{SHIPPED_MODEL}` for the model that is installed with kilopix."
        ) from None


def load_model(weights: Path) -> Model:
    """The network of a weights file, on the CPU, for sampling; raises `UserError` if it is no model's."""
    tensors, header = read_weights(weights)
    if "recipe" not in header:
        return _load_released(weights, tensors)
    said = WeightsHeader.of(header, f"{weights}: header")
    codec = None
    if said.codec:
        names = [name for name in tensors if name.startswith(CODEC_PREFIX)]
        codec = PatchCodec.from_tensors(
            said.codec, {name.removeprefix(CODEC_PREFIX): tensors.pop(name) for name in names}, weights
        )
    check_depth(said.recipe, tensors, weights)
    network = empty_network(said.recipe, said.latent_channels, said.text_width)
    check_fit(network, tensors, weights)
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return Model(
        _frozen(network),
        said.recipe,
        weights,
        said.images_seen,
        said.text_fingerprint,
        said.autoencoder_fingerprint,
        said.latent_whitening,
        codec,
        said.known_of_training(),
    )


def check_fit(network: Network, tensors: dict[str, Tensor], weights: Path) -> None:
    """Refuse weights that are not those of the recipe in their header."""
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += sorted(
        name
        for name in wanted.keys() & tensors.keys()
        if wanted[name] != tensors[name].shape or tensors[name].dtype not in _FLOATS
    )
    if wrong:
        raise UserError(f"{weights}: its weights do not fit the recipe in its header ({wrong[0]}, ...).")


def _load_released(weights: Path, tensors: dict[str, Tensor]) -> Model:
    recipe, channels, width = read_released(weights, tensors)
    check_depth(recipe, tensors, weights)
    network = empty_network(recipe, channels, width)
    assert isinstance(network, RIN)
    floats = {name: v.float() if v.dtype in _FLOATS else v for name, v in tensors.items()}
    try:
        load_published(network, floats, assign=True)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from None
    return Model(_frozen(network), recipe, weights)


def read_released(weights: Path, tensors: dict[str, Tensor]) -> tuple[Recipe, int, int]:
    """The recipe of a released CAD-I, with latent channels and text width.

    Its config.json, beside the weights, holds the constructor's arguments and not the class.
    """
    config = weights.parent / CONFIG
    if not config.is_file():
        raise UserError(
            f"{weights}: no kilopix recipe in its header, and no {CONFIG} beside it as the released CAD-I "
            "weights have."
        )
    arguments = read_json(config)
    kind = COHERENCE_CLASS if "coherence_positional_embedding" in tensors else "RINTextCond"
    try:
        return released_recipe(kind, arguments)
    except UserError as error:
        raise UserError(f"{config}: {error}") from None


def released_recipe(kind: str, arguments: dict[str, object]) -> tuple[Recipe, int, int]:
    """What samples from released CAD-I weights, with latent channels and text width.

    Pictures are decoded by the autoencoder of Stable Diffusion 1.5, as the released pipeline does; training
    encoded them with `stabilityai/sd-vae-ft-ema`, whose encoder is the same. The training settings of the
    recipe are defaults and say nothing of how the weights were made.
    """
    config, channels, width, side = published_config(kind, arguments)
    recipe = Recipe(
        data=DataConfig(image_size=side * SD_DOWNSAMPLING, captioner="model"),
        text=T5Config(),
        autoencoder=SDAutoencoderConfig(name="benjamin-paine/stable-diffusion-v1-5", subfolder="vae"),
        model=config,
        objective=ObjectiveConfig(path=GammaPath(schedule="linear"), prediction="noise", time=UniformTime()),
        sampling=PRESETS["published"],
    )
    return recipe, channels, width


def _frozen(network: Network) -> Network:
    assert not any(value.is_meta for value in [*network.parameters(), *network.buffers()])
    return network.eval().requires_grad_(False)


def in_low_precision(network: Network, dtype: torch.dtype) -> Network:
    """The large layers in a short type; norms, learned tokens and constants stay in float32."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(dtype)
        elif isinstance(module, torch.nn.RMSNorm):
            module.register_forward_pre_hook(_in_float32)
    return network


def _in_float32(module: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].float(),)
