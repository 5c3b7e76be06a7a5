"""At which noise levels do CutMix's seams hide? A small network looks for them.

In: pictures of the embedded world and their CutMix versions, as the latents that a network is trained on.
Out: `benchmarks/results/seams.json`: for each level t of the straight path, how often a small convolutional
network, trained at that level alone, tells a CutMix picture from a plain one, and the object's class, on
pictures that it has not seen. `tools/figures.py` draws it.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kilopix.data.cutmix import choose_paste, paste
from kilopix.data.world.objects import OBJECTS
from kilopix.data.world.render import render
from kilopix.data.world.scenes import one_object_scene
from kilopix.diffusion.paths import StraightPath, expand
from kilopix.evaluation.statistics import wilson_interval
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.runtime import seed_from, write_json

LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CLASSES = 8
SIDE = 64
HELD_OUT = 0.25
RESULT = Path(__file__).parent / "results" / "seams.json"


def draw_plain(count: int) -> list[np.ndarray]:
    """Pictures with one object each, of the first classes in turn."""
    names = [OBJECTS[i % CLASSES].name for i in range(count)]
    return [render(one_object_scene(name, 0, "train", f"seam_{i}"), SIDE) for i, name in enumerate(names)]


def mix(pictures: list[np.ndarray], start: int) -> list[np.ndarray]:
    """The CutMix version of every picture, with partners of other classes from the same list."""
    mixed = []
    for i, picture in enumerate(pictures):
        rng = random.Random(seed_from("seams", start + i))
        others = [j for j in range(len(pictures)) if j % CLASSES != i % CLASSES]
        where, partner = choose_paste("all", SIDE, rng), Image.fromarray(pictures[rng.choice(others)])
        small = partner.resize((where.partner_side, where.partner_side), Image.Resampling.LANCZOS)
        mixed.append(paste(picture.copy(), np.asarray(small), where))
    return mixed


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Pictures in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def probe(channels: int, answers: int) -> nn.Sequential:
    """The network that looks: three convolutions over latents of 8 positions a side."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, answers),
    )


def noisy(latents: Tensor, t: float, generator: torch.Generator) -> Tensor:
    """Latents at level t."""
    point = StraightPath().at(expand(torch.full((len(latents),), t)))
    return point.mix(latents, torch.randn(latents.shape, generator=generator))


def accuracy(
    seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor], t: float, answers: int, epochs: int
) -> float:
    """The share of right answers on unseen latents after training at level t."""
    torch.manual_seed(seed_from("seams", "probe", answers))
    generator = torch.Generator().manual_seed(seed_from("seams", "noise", answers))
    latents, truth = seen
    network = probe(latents.shape[1], answers)
    steps = epochs * len(latents) // 64
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    for _ in range(steps):
        rows = torch.randint(len(latents), (64,), generator=generator)
        loss = F.cross_entropy(network(noisy(latents[rows], t, generator)), truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        told = network(noisy(unseen[0], t, generator)).argmax(dim=1)
    return (told == unseen[1]).float().mean().item()


def interval(share: float, count: int) -> list[float]:
    """The 95% interval of a share, as it is kept."""
    found = wilson_interval(share, count)
    return [round(found.low, 4), round(found.high, 4)]


def measure(count: int, epochs: int) -> dict[str, object]:
    """Accuracy at every level, for seams and for classes."""
    unseen = round(count * HELD_OUT)
    pictures = draw_plain(count)
    halves = pictures[unseen:], pictures[:unseen]
    codec = PatchCodec.fit(to_tensor(halves[0]), PatchCodecConfig(whitening=0.5))
    plain = [codec.encode(to_tensor(half)).mean for half in halves]
    mixed = [codec.encode(to_tensor(mix(half, 100_000 * i))).mean for i, half in enumerate(halves)]
    seams = [
        (torch.cat([a, b]), torch.arange(2).repeat_interleave(len(a)))
        for a, b in zip(plain, mixed, strict=True)
    ]
    starts = unseen, 0
    classes = [(x, (torch.arange(len(x)) + s) % CLASSES) for x, s in zip(plain, starts, strict=True)]
    rows = []
    for t in LEVELS:
        seam = accuracy(seams[0], seams[1], t, 2, epochs)
        kind = accuracy(classes[0], classes[1], t, CLASSES, epochs)
        row = {
            "t": t,
            "seam": round(seam, 4),
            "seam_interval": interval(seam, len(seams[1][0])),
            "class": round(kind, 4),
            "class_interval": interval(kind, len(classes[1][0])),
        }
        print(row, flush=True)
        rows.append(row)
    return {"pictures": count, "held_out": unseen, "classes": CLASSES, "epochs": epochs, "levels": rows}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pictures", type=int, default=3200)
    arguments.add_argument("--epochs", type=int, default=8)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    write_json(RESULT, measure(asked.pictures, asked.epochs))
