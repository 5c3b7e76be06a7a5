"""Published noise schedules and sampled images."""

import json
import re

import torch
from networks import below, network_of, read

from kilopix.diffusion.guidance import ConstantGuidance, LinearGuidance
from kilopix.diffusion.paths import GammaPath
from kilopix.diffusion.sampling import Clamp, SamplingConfig, sample
from kilopix.network import sampling_predictor
from kilopix.types import TextStates


def schedule(name: str, parameters: str = "") -> GammaPath:
    """A path from the form in which the golden files write schedules: `start=-3,end=3,tau=0.9`."""
    values = {key: float(value) for key, value in re.findall(r"(start|end|tau)=([-\d.]+)", parameters)}
    return GammaPath(schedule=name, **({} if name in ("linear", "cosine_simple") else values))


PARAMETERS = {"sigmoid": "start=-3 end=3 tau=0.9", "cosine": "start=1 end=0 tau=1"}
"""Of the schedules that a case names without them."""

OPTIONS = {"sampler", "num_steps", "cfg_rate", "sched", "guidance_start_step", "guidance_type"}


def test_gamma_schedules(golden_files):
    for path in golden_files("sampling/gamma_schedules*.safetensors"):
        tensors, metadata = read(path)
        names = tensors.keys() - {"t"}
        assert names
        for name in names:
            found = schedule(name, metadata.get(name, "")).gamma(tensors["t"])
            torch.testing.assert_close(found, tensors[name], atol=1e-6, rtol=1e-5)


def test_sampled_images(golden_files):
    cases = 0
    for path in golden_files("sampling/samplers*.safetensors"):
        tensors, metadata = read(path)
        network = network_of(path.parents[1] / "network" / metadata["network"])
        for case in sorted({name.split(".")[0] for name in tensors}):
            options, given = json.loads(metadata[case]), below(tensors, case)
            out = run(network, options, metadata, given)
            torch.testing.assert_close(out, given["out"], atol=1e-4, rtol=0)
            cases += 1
    assert cases


def run(network, options: dict, metadata: dict[str, str], given: dict) -> torch.Tensor:
    """One golden case through the library."""
    assert options.keys() <= OPTIONS, options
    assert options["sampler"] == "ddim_sampler", options
    name, *written = options.get("sched", "linear").split()
    steps, path = options["num_steps"], schedule(name, " ".join(written) or PARAMETERS.get(name, ""))
    first = options.get("guidance_start_step", 0)
    guidance = {"linear": LinearGuidance, "constant": ConstantGuidance}[
        options.get("guidance_type", "constant")
    ]
    levels = dict.fromkeys(("conditional", "unconditional"))
    levels.update(
        (name, float(x)) for x, name in re.findall(r"([\d.]+) (\w+)", metadata.get("coherence", ""))
    )
    config = SamplingConfig(
        sampler="ddim",
        steps=steps,
        guidance=guidance(scale=1 + options["cfg_rate"], start=max(0.0, 1 - (first + 0.5) / steps)),
        threshold=Clamp(value=float(metadata.get("clamp_value", 1.2))),
        coherence=1.0 if levels["conditional"] is None else levels["conditional"],
        coherence_without_text=levels["unconditional"] or 0.0,
    )
    predict = sampling_predictor(
        network,
        path,
        "noise",
        TextStates(given["cond_embeddings"], given["cond_mask"]),
        TextStates(given["uncond_embeddings"], given["uncond_mask"]),
        config,
    )
    with torch.no_grad():
        return sample(predict, given["noise"], config, path, "noise", lambda: torch.empty(0))
