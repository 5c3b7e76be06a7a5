"""Published networks: outputs to 1e-5, and the released checkpoint's entries."""

import json

import torch
from networks import below, network_of, read

from kilopix.models.published import published_config, to_published
from kilopix.models.rin import RIN
from kilopix.types import TextStates


def test_outputs_agree(golden_files):
    for path in golden_files("network/*.safetensors"):
        tensors, _ = read(path)
        network, inputs, expected = network_of(path), below(tensors, "inputs"), below(tensors, "outputs")
        text = TextStates(inputs["text_tokens_embeddings"], inputs["text_tokens_mask"])
        with torch.no_grad():
            context = network.encode_text(text, inputs.get("coherence"))
            prediction, latents = network(inputs["y"], inputs["gamma"], context, inputs["previous_latents"])
        torch.testing.assert_close(prediction, expected["prediction"], atol=1e-5, rtol=0)
        torch.testing.assert_close(latents, expected["latents"], atol=1e-5, rtol=0)


def test_weights_come_back_under_their_published_names(golden_files):
    for path in golden_files("network/*.safetensors"):
        tensors, _ = read(path)
        expected, found = below(tensors, "weights"), to_published(network_of(path))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_released_size_has_the_released_entries(golden_files):
    for path in golden_files("network/shapes_*.json"):
        released = json.loads(path.read_text(encoding="utf-8"))
        kind = path.stem.removeprefix("shapes_").split("_")[0]  # shapes_<class>.json, or shapes_<class>_512
        arguments = published_config(kind, released["config"])
        with torch.device("meta"):
            network = RIN(*arguments)
        found = {
            name: [list(value.shape), str(value.dtype).removeprefix("torch.")]
            for name, value in to_published(network).items()
        }
        assert found == released["state_dict"]
        assert sum(p.numel() for p in network.parameters()) == released["parameters"]
