"""One published training step: loss and gradients; LAMB; learning rates."""

import json
import re

import torch
from networks import below, network_of, read
from test_published_sampling import schedule

from kilopix.diffusion.objective import ObjectiveConfig, loss_per_sample
from kilopix.network import training_predictor
from kilopix.training.lamb import Lamb, LambConfig
from kilopix.training.optim import ScheduleConfig, lr_factor
from kilopix.types import TextStates


def test_one_training_step(golden_files):
    for path in golden_files("training/train_step_*.safetensors"):
        given, metadata = read(path)
        network = network_of(path.parents[1] / "network" / metadata["network"]).train()
        name, *parameters = metadata["schedule"].split()
        objective = ObjectiveConfig(path=schedule(name, ",".join(parameters)), prediction="noise")
        states, mask, dropped = given["text_embeddings"], given["text_mask"], given["drop_text"]
        states[dropped], mask[dropped] = 0, False
        states[dropped, 0], mask[dropped, 0] = given["uncond_embedding"][0], True
        text = TextStates(states, mask)
        coherence = given["coherence"] * ~given["drop_text"] if "coherence" in given else None
        predict = training_predictor(
            network,
            objective.path,
            network.encode_text(text, coherence),
            torch.zeros(len(given["t"]), 4),
            given["keep_self_condition"],
        )
        losses = loss_per_sample(objective, predict, given["x_0"], given["noise"], given["t"])
        losses.mean().backward()
        torch.testing.assert_close(losses, given["loss_per_sample"], atol=0, rtol=1e-5)
        torch.testing.assert_close(losses.mean()[None], given["loss"], atol=0, rtol=1e-5)
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()
        }
        norms, whole = below(given, "grad_norm"), below(given, "grad")
        assert norms.keys() == gradients.keys()
        assert whole
        for name, norm in norms.items():
            torch.testing.assert_close(gradients[name].norm()[None], norm, atol=1e-8, rtol=1e-3, msg=name)
        for name, gradient in whole.items():
            far = (gradients[name] - gradient).abs().max()
            assert far <= 1e-4 * gradient.abs().max(), (name, far)


def test_lamb(golden_files):
    for path in golden_files("training/lamb*.safetensors"):
        given, metadata = read(path)
        steps = len(below(given, "w_grad"))
        assert steps
        betas = tuple(float(x) for x in re.findall(r"[\d.]+", metadata["betas"]))
        config = LambConfig(
            lr=float(metadata["lr"]),
            betas=betas,
            weight_decay=float(metadata["weight_decay"]),
            eps=float(metadata["eps"]),
        )
        weight, bias = (torch.nn.Parameter(given[f"{name}.0"].clone()) for name in ("w", "b"))
        optimizer = Lamb(config, [weight], [bias])
        for step in range(steps):
            weight.grad, bias.grad = given[f"w_grad.{step}"].clone(), given[f"b_grad.{step}"].clone()
            optimizer.step()
            torch.testing.assert_close(weight.data, given[f"w.{step + 1}"], atol=1e-6, rtol=0)
            torch.testing.assert_close(bias.data, given[f"b.{step + 1}"], atol=1e-6, rtol=0)


DECAYS = {"warmup": "constant", "warmup_cosine_decay": "cosine", "warmup_sqrt_decay": "sqrt"}


def test_learning_rates(golden_files):
    for path in golden_files("training/lr_schedules*.json"):
        given = json.loads(path.read_text(encoding="utf-8"))
        base = given.pop("base_lr")
        assert given
        for title, rates in given.items():
            options = {key: float(value) for key, value in re.findall(r"(\w+)=([\d.e+-]+)", title)}
            total = int(options.get("total_steps", 10**9))
            config = ScheduleConfig(
                warmup_images=int(options["warmup_steps"]),
                warmup_share=1.0,
                decay=DECAYS[title.split("(")[0]],
                cosine_rate=options.get("rate", 1.0),
                decay_fraction=options.get("decay_steps", total) / total,
            )
            for step, rate in rates.items():
                found = base * lr_factor(config, int(step), total)
                assert abs(found - rate) <= 1e-6 * base, (title, step, found, rate)
