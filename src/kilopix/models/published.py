"""Between the published checkpoints of CAD-I and kilopix's RIN.

In: a state dict under the published names, or the published constructor's arguments. Out: a RIN with those
weights, or those names again. The published networks carry constants (masks that are all true, the
frequencies of the embeddings) as entries of the state dict: here they are checked and left out.
"""

import difflib
import re
from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from kilopix.models.rin import RIN, RINConfig, embedding_frequencies
from kilopix.types import UserError

COHERENCE_CLASS = "CADRINTextCond"
"""The published class with a coherence token; `RINTextCond` is the one without."""

_FIELDS = {
    "num_latents": "latents",
    "latents_dim": "latent_width",
    "data_dim": "token_width",
    "num_blocks": "blocks",
    "num_processing_layers": "layers",
    "path_size": "patch",
    "read_write_heads": "read_write_heads",
    "compute_heads": "compute_heads",
    "num_text_registers": "registers",
    "latent_mlp_multiplier": "mlp_ratio",
    "data_mlp_multiplier": "token_mlp_ratio",
}
"""The published arguments that are settings of a RIN."""

_INPUTS = ("num_input_channels", "label_dim", "data_size")
"""Those that say what goes in."""

_LARGEST_INPUT = {"num_input_channels": 4096, "label_dim": 65536, "data_size": 1024}

_DEFAULTS = {
    "read_write_heads": 16,
    "compute_heads": 16,
    "num_text_registers": 16,
    "latent_mlp_multiplier": 4,
    "data_mlp_multiplier": 4,
}

_WITHOUT_EFFECT = ("num_cond_tokens",)
"""Read by the published code only where conditions are joined to the latents, which is refused below."""

_ONE_VALUE: dict[str, tuple[object, object, str]] = {
    "concat_cond_token_to_latents": (True, False, "conditions are read by blocks of their own"),
    "use_cond_rin_block": (False, True, "conditions are read by blocks of their own"),
    "use_cond_token": (True, True, "the network always reads a text"),
    "modulate_conditioning": (False, False, "no released weights use it"),
    "use_biases": (True, True, "all layers have biases"),
    "time_scaling": (1000.0, 1000.0, "the time's sinusoid is of 1000 times it"),
    "noise_embedding_type": ("positional", "positional", "the time's frequencies are fixed ones"),
    "data_positional_embedding_type": ("learned", "learned", "positions of patches are learned"),
    "retrieve_attention_scores": (False, False, "attention is computed without keeping its scores"),
    "use_16_bits_layer_norm": (False, False, "norms are computed in float32"),
    "rw_dropout": (0.0, 0.0, "the network has no dropout; 0 here gives the same images"),
    "compute_dropout": (0.0, 0.0, "the network has no dropout; 0 here gives the same images"),
    "rw_stochastic_depth": (0.0, 0.0, "no layer is left out in training; 0 here gives the same images"),
    "compute_stochastic_depth": (0.0, 0.0, "no layer is left out in training; 0 here gives the same images"),
    "weight_init": ("xavier_uniform", "xavier_uniform", "weights that are loaded replace it"),
    "bias_init": ("zeros", "zeros", "weights that are loaded replace it"),
}
"""Of the others the published default, the only value that is known here, and why."""


def published_config(class_name: str, arguments: Mapping[str, object]) -> tuple[RINConfig, int, int, int]:
    """A RIN's config, channels, text width and latent side from the published constructor's arguments.

    Every argument is honoured, or a `UserError` with its name, its value and what is known in its place.
    """
    if class_name not in (COHERENCE_CLASS, "RINTextCond"):
        raise UserError(
            f"published config: class {class_name!r}; {COHERENCE_CLASS} and RINTextCond are known."
        )
    only = {
        k: v for k, v in _ONE_VALUE.items() if k != "modulate_conditioning" or class_name == COHERENCE_CLASS
    }
    known = {*_FIELDS, *_INPUTS, *_WITHOUT_EFFECT, *only}
    for name in sorted(arguments.keys() - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"{class_name} has no such argument."
        raise UserError(f"published config: unknown argument {name!r}; {hint}")
    for name, (default, value, reason) in only.items():
        given = arguments.get(name, default)
        # 0 stands for 0.0, but not for false.
        if given != value or isinstance(given, bool) != isinstance(value, bool):
            raise UserError(f"published config: {name} = {given!r}; only {value!r} is known ({reason}).")

    def number(name: str) -> int:
        value = arguments.get(name, _DEFAULTS.get(name))
        if value is None:
            raise UserError(f"published config: {name} is missing.")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"published config: {name} = {value!r} is not a whole number.")
        return value

    for name in _WITHOUT_EFFECT:
        if name in arguments:
            number(name)
    channels, text_width, side = (number(name) for name in _INPUTS)
    values = {field: number(name) for name, field in _FIELDS.items()}
    for name in _INPUTS:
        if not 1 <= number(name) <= _LARGEST_INPUT[name]:
            raise UserError(
                f"published config: {name} = {number(name)} must lie between 1 and {_LARGEST_INPUT[name]}."
            )
    try:
        config = RINConfig.model_validate({**values, "coherence": class_name == COHERENCE_CLASS})
    except ValidationError as error:
        raise UserError(f"published config: {_explain(error)}.") from None
    if side % config.patch:
        raise UserError(f"published config: data_size = {side} is no multiple of path_size = {config.patch}.")
    return config, channels, text_width, side


def _explain(error: ValidationError) -> str:
    """What is wrong, under the published names."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        name = next(name for name, field in _FIELDS.items() if field == first["loc"][0])
        return f"{name} = {first['input']!r}: {message}"
    for name, field in _FIELDS.items():
        message = re.sub(rf"\b{field}\b", name, message)
    return message


def constants(network: RIN) -> dict[str, Tensor]:
    """The published state dict's entries that are no weights."""
    out: dict[str, Tensor] = {}
    for name, _ in network.named_modules():
        if name.endswith((".sa", ".ca")):
            out[f"{name[:-3]}.attention_mask_dummy"] = torch.ones(1, 1, dtype=torch.bool)
    frequencies = embedding_frequencies(network.config.latent_width // 4)
    out["time_embedder.encode_time.freqs"] = frequencies
    if network.config.coherence:
        registers = network.config.registers
        out["coherence_embedder.encode_time.freqs"] = frequencies.clone()
        out["registers_coherence_mask"] = torch.ones(registers + 1, dtype=torch.bool)
        out["cond_mask"] = torch.ones(registers + 2, dtype=torch.bool)
    return out


def load_published(network: RIN, state: Mapping[str, Tensor], assign: bool = False) -> None:
    """Load a published state dict strictly; a missing, unknown or misshapen entry is a `UserError`.

    With `assign` the network takes the tensors themselves, without a copy.
    """
    fixed = constants(network)
    expected = fixed | network.state_dict()
    for title, names in (("lack", expected.keys() - state.keys()), ("know", state.keys() - expected.keys())):
        if names:
            some = ", ".join(sorted(names)[:3])
            text = "the weights lack" if title == "lack" else "the network does not know"
            raise UserError(f"published weights: {text} {len(names)} entries ({some}, ...).")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise UserError(f"published weights: {name} has shape {shapes}.")
        if name not in fixed and not value.is_floating_point():
            raise UserError(f"published weights: {name} is of type {value.dtype}, which weights are not.")
        if name in fixed and not torch.allclose(value.float(), fixed[name].float(), atol=1e-6):
            raise UserError(f"published weights: the constant {name} is another than the published one.")
    weights = {name: value for name, value in state.items() if name not in fixed}
    network.load_state_dict(weights, assign=assign)


def to_published(network: RIN) -> dict[str, Tensor]:
    """The network's state dict under the published names, constants and all."""
    return network.state_dict() | constants(network)
