"""Between the published checkpoints of CAD-I and kilopix's RIN.

In: a state dict under the published names, or the published constructor's arguments. Out: a RIN with those
weights, or those names again. The published networks carry constants (masks that are all true, the
frequencies of the embeddings) as entries of the state dict: here they are checked and left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from kilopix.models.rin import RIN, RINConfig, embedding_frequencies
from kilopix.types import UserError

COHERENCE_CLASS = "CADRINTextCond"
"""The published class with a coherence token; `RINTextCond` is the one without."""


def published_config(class_name: str, arguments: Mapping[str, object]) -> tuple[RINConfig, int, int, int]:
    """A RIN's config, channels, text width and latent side from the published constructor's arguments."""

    def number(name: str, default: int | None = None) -> int:
        value = arguments.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"published config: {name} = {value!r} is not a whole number.")
        return value

    if class_name not in (COHERENCE_CLASS, "RINTextCond"):
        raise UserError(f"published config: class {class_name!r}; CADRINTextCond and RINTextCond are known.")
    if arguments.get("concat_cond_token_to_latents", True) or not arguments.get("use_cond_rin_block", False):
        raise UserError("published config: only networks with conditional RIN blocks are known.")
    if arguments.get("modulate_conditioning", False):
        raise UserError("published config: modulate_conditioning is not known; no released weights use it.")
    config = RINConfig(
        latents=number("num_latents"),
        latent_width=number("latents_dim"),
        token_width=number("data_dim"),
        blocks=number("num_blocks"),
        layers=number("num_processing_layers"),
        patch=number("path_size"),
        read_write_heads=number("read_write_heads", 16),
        compute_heads=number("compute_heads", 16),
        registers=number("num_text_registers", 16),
        mlp_ratio=number("latent_mlp_multiplier", 4),
        coherence=class_name == COHERENCE_CLASS,
    )
    return config, number("num_input_channels"), number("label_dim"), number("data_size")


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
        if name in fixed and not torch.allclose(value.float(), fixed[name].float(), atol=1e-6):
            raise UserError(f"published weights: the constant {name} is another than the published one.")
    weights = {name: value for name, value in state.items() if name not in fixed}
    network.load_state_dict(weights, assign=assign)


def to_published(network: RIN) -> dict[str, Tensor]:
    """The network's state dict under the published names, constants and all."""
    return network.state_dict() | constants(network)
