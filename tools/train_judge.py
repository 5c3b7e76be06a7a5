"""Train the judge of the embedded world, and write the weights that ship with kilopix.

In: nothing but seeds; pictures are drawn in rounds, one round ahead of the training. Out: `judge.safetensors`
in `src/kilopix/pretrained/assets`. The shipped weights come from (half an hour on one free core)

    OMP_NUM_THREADS=1 python tools/train_judge.py --work scratch/judge

The same command again goes on after the last round that was finished. `--check` only measures the weights.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from kilopix.data.world.backgrounds import draw_background, random_background
from kilopix.data.world.composed import composed_scene
from kilopix.data.world.objects import HUES, OBJECTS
from kilopix.data.world.render import object_box, render
from kilopix.data.world.scenes import Scene, one_object_scene
from kilopix.data.world.scoring import judge_scene, shares
from kilopix.pretrained.judge import GRID, SIDE, JudgeNet, JudgeOutput, load_judge
from kilopix.runtime import read_json, seed_from, torch_generator, write_json, write_tensors
from kilopix.types import UserError

ASSET = Path(__file__).parent.parent / "src/kilopix/pretrained/assets/judge.safetensors"
COMMAND = "OMP_NUM_THREADS=1 python tools/train_judge.py --work scratch/judge"
SEED = 71
HELD_OUT_SEED = 909_090  # never used in training; the test suite draws its scenes from it
THRESHOLD_SEED = 808_080
NAMES = [item.name for item in OBJECTS]
MOST = 4  # objects in a picture

ROUNDS, PICTURES, BATCH = 32, 8_000, 64  # pictures per round
RATE = 2e-3
HARDER_FROM = 9  # the round from which pictures of nothing are harder


# ---- pictures ----------------------------------------------------------------------------------------------


def draw_round(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of one round (composed scenes, single ones, pictures of nothing) and their truth.

    Truth: for up to four objects each, (name, colour or -1, x, y, w, h); a name of -1 is no object.
    """
    images = np.zeros((PICTURES, SIDE, SIDE, 3), np.uint8)
    truth = np.full((PICTURES, MOST, 6), -1, np.float32)
    for k in range(PICTURES):
        rng = random.Random(seed_from(SEED, "judge", number, k))
        draw = rng.random()
        if draw < (0.13 if number < HARDER_FROM else 0.2):
            images[k] = picture_of_nothing(rng, number)
            continue
        scene = (
            composed_scene(SEED, number * PICTURES + k)
            if draw < 0.8
            else one_object_scene(rng.choice(NAMES), SEED, "judge", f"{number}-{k}")
        )
        images[k] = render(scene, SIDE)
        truth[k, : len(scene.objects)] = truth_of(scene)
    return images, truth


def truth_of(scene: Scene) -> np.ndarray:
    """Rows (name, colour or -1, x, y, w, h) of a scene; boxes are cut at the picture's edges."""
    rows = []
    for item in scene.objects:
        x1, y1, x2, y2 = (min(max(edge, 0.0), 1.0) for edge in object_box(item))
        color = HUES.index(item.color) if item.color else -1
        rows.append((NAMES.index(item.name), color, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
    return np.array(rows, np.float32)


def picture_of_nothing(rng: random.Random, number: int) -> np.ndarray:
    """A picture in which a judge must find no object: bare, blobs, noise, or an object beyond recognition.

    Once the objects are known, from round `HARDER_FROM` on, smooth ovals and noise come in.
    """
    kinds = ("bare", "blobs", "blobs", "blurred", "scrambled")
    kind = rng.choice(kinds if number < HARDER_FROM else (*kinds, "ovals", "ovals", "noise"))
    scene = one_object_scene(rng.choice(NAMES), rng.randrange(1 << 30), "nothing", "")
    if kind == "blurred":
        # So strong that neither outline nor parts are left.
        radius = rng.uniform(0.13, 0.22) * scene.object.size * SIDE
        image = Image.fromarray(render(scene, SIDE)).filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(image)
    if kind == "scrambled":
        return _scrambled(rng, render(scene, SIDE))
    if kind == "noise":
        side = rng.choice((1, 1, 2, 4, 8))
        noise = np.random.Generator(np.random.PCG64(rng.randrange(1 << 30)))
        return (
            noise.integers(0, 256, (SIDE // side, SIDE // side, 3), np.uint8).repeat(side, 0).repeat(side, 1)
        )
    ground = draw_background(random_background(rng, []), SIDE)
    if kind == "ovals":
        return _with_ovals(rng, ground)
    return ground if kind == "bare" else _with_blobs(rng, ground)


def _with_ovals(rng: random.Random, ground: np.ndarray) -> np.ndarray:
    """One or two shaded ovals with soft or hard edges."""
    lines = (np.arange(SIDE) + 0.5) / SIDE
    picture = ground.astype(np.float64)
    for _ in range(rng.randint(1, 2)):
        x, y = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
        width, height, turn = rng.uniform(0.08, 0.35), rng.uniform(0.08, 0.35), rng.uniform(0, math.pi)
        right, down = lines[None, :] - x, lines[:, None] - y
        along = right * math.cos(turn) + down * math.sin(turn)
        across = down * math.cos(turn) - right * math.sin(turn)
        inside = np.exp(-(((along / width) ** 2 + (across / height) ** 2) ** rng.choice((1, 2, 4, 12))))
        color = np.array([rng.randrange(256) for _ in range(3)])
        shade = 1 + rng.uniform(-0.35, 0.35) * (along / width) + rng.uniform(-0.35, 0.35) * (across / height)
        picture += inside[..., None] * (color * np.clip(shade, 0.3, 1.7)[..., None] - picture)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _scrambled(rng: random.Random, image: np.ndarray) -> np.ndarray:
    """The picture cut into small squares that change places."""
    side = rng.choice((8, 8, 16))
    count = SIDE // side
    tiles = image.reshape(count, side, count, side, 3).swapaxes(1, 2).reshape(count * count, side, side, 3)
    order = list(range(count * count))
    rng.shuffle(order)
    return tiles[order].reshape(count, count, side, side, 3).swapaxes(1, 2).reshape(SIDE, SIDE, 3)


def _with_blobs(rng: random.Random, ground: np.ndarray) -> np.ndarray:
    """Smooth round or cornered patches of colour, softly shaded, one to three of them."""
    image = Image.fromarray(ground).resize((4 * SIDE, 4 * SIDE))
    for _ in range(rng.randint(1, 3)):
        mask = Image.new("L", image.size)
        cx, cy = (rng.uniform(0.15, 0.85) * 4 * SIDE for _ in range(2))
        r, corners = rng.uniform(24, 90), rng.randint(5, 9)
        ring = [
            (cx + r * s * math.cos(a), cy + r * s * math.sin(a))
            for a, s in ((2 * math.pi * i / corners, rng.uniform(0.5, 1.1)) for i in range(corners))
        ]
        ImageDraw.Draw(mask).polygon(ring, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(3, 16)))
        paint = Image.new("RGB", image.size, tuple(rng.randrange(256) for _ in range(3)))
        image.paste(paint, (0, 0), mask)
    return np.asarray(image.reduce(4))


# ---- corruptions -------------------------------------------------------------------------------------------


def corrupt(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (0 to 1) with the flaws of generated ones, so that the judge leans on no exact edge."""
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    def sometimes(share: float) -> Tensor:
        return (torch.rand(count, generator=generator) < share).view(-1, 1, 1, 1)

    # Warps: a smooth field of shifts, up to about two pixels.
    field = F.interpolate(uniform(-1, 1, 2, 5, 5), (SIDE, SIDE), mode="bicubic") * uniform(0, 0.06, 1, 1, 1)
    field = field * sometimes(0.45)
    lines = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    still = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), -1)
    warped = still + field.permute(0, 2, 3, 1)
    images = F.grid_sample(images, warped, padding_mode="border", align_corners=False)
    # Blur by a fine and a coarse kernel, and loss of resolution.
    small = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = uniform(0.2, 1.0, 1, 1, 1) * sometimes(0.35)
    images = images + share * (small - images)
    coarse = F.interpolate(F.avg_pool2d(images, 2), (SIDE, SIDE), mode="bilinear")
    images = torch.where(sometimes(0.12), coarse, images)
    # Colour and contrast, and offsets from patch to patch.
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + uniform(-0.3, 0.12, 1, 1, 1) * sometimes(0.5)) + mean
    images = images * (1 + uniform(-0.07, 0.07, 3, 1, 1) * sometimes(0.5)) + uniform(-0.06, 0.06, 1, 1, 1)
    patches = F.interpolate(torch.randn(count, 3, 8, 8, generator=generator), scale_factor=8.0)
    images = images + patches * uniform(0, 0.03, 1, 1, 1) * sometimes(0.3)
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise * uniform(0, 0.06, 1, 1, 1) * sometimes(0.4)).clamp(0, 1)


def mirrored(images: Tensor, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pictures seen in a mirror."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
    truth = truth.clone()
    truth[..., 2] = torch.where(flip[:, None], 1 - truth[..., 2], truth[..., 2])
    return images, truth


# ---- learning ----------------------------------------------------------------------------------------------


def loss_of(output: JudgeOutput, truth: Tensor) -> Tensor:
    """Focal loss of the heat (arXiv 1904.07850, eq. 1), and at the centres the losses of the rest."""
    present = truth[..., 0] >= 0
    cells = (torch.arange(GRID) + 0.5) / GRID
    dx = cells.view(1, 1, 1, GRID) - truth[..., 2, None, None]
    dy = cells.view(1, 1, GRID, 1) - truth[..., 3, None, None]
    wide = truth[..., 4:6].clamp(min=0.1)[..., None, None] * 0.16
    near = (
        torch.exp(-0.5 * ((dx / wide[:, :, 0]) ** 2 + (dy / wide[:, :, 1]) ** 2)) * present[..., None, None]
    )
    nearest, owner = near.max(1)
    # The cell in which a centre lies is the one certain positive.
    column = (truth[..., 2] * GRID).long().clamp(0, GRID - 1)
    row = (truth[..., 3] * GRID).long().clamp(0, GRID - 1)
    batch, slot = torch.nonzero(present, as_tuple=True)
    centre = torch.zeros_like(nearest)
    centre[batch, row[batch, slot], column[batch, slot]] = 1
    sure = output.heat.sigmoid()
    log_yes, log_no = F.logsigmoid(output.heat), F.logsigmoid(-output.heat)
    heat = -(centre * (1 - sure) ** 2 * log_yes + (1 - centre) * (1 - nearest) ** 4 * sure**2 * log_no).sum()
    # Cells around the centre learn the rest too, since the hottest cell may be a neighbour.
    weight = torch.maximum(nearest * (nearest > 0.55), centre)
    b, i, j = torch.nonzero(weight > 0, as_tuple=True)
    w = weight[b, i, j]
    mine = truth[b, owner[b, i, j]]
    names = F.cross_entropy(
        output.names[b, :, i, j], mine[:, 0].long(), reduction="none", label_smoothing=0.02
    )
    hue = mine[:, 1].long()
    colors = F.cross_entropy(output.colors[b, :, i, j], hue, reduction="none", ignore_index=-1)
    target = torch.stack(
        [
            (mine[:, 2] - cells[j]) * GRID,
            (mine[:, 3] - cells[i]) * GRID,
            mine[:, 4].clamp(min=0.02).log(),
            mine[:, 5].clamp(min=0.02).log(),
        ],
        1,
    )
    boxes = F.smooth_l1_loss(output.box[b, :, i, j], target, reduction="none", beta=0.1).sum(1)
    rest = (w * (names + colors + boxes)).sum() / w.sum()
    return heat / max(int(present.sum()), 1) + rest


class Trainer:
    """Network and optimizer; both go to disk after each round."""

    def __init__(self, work: Path, rounds: int):
        torch.manual_seed(SEED)
        self.work, self.rounds = work, rounds
        self.net = JudgeNet(len(NAMES), len(HUES)).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            self.net.heads.bias[0] = -3.0  # at first, an object is unlikely anywhere
        self.optimizer = torch.optim.AdamW(self.net.parameters(), RATE, weight_decay=0.02)
        self.done = 0

    def resume(self) -> None:
        """Go on from the last finished round, if there is one."""
        if not (self.work / "state.json").exists():
            return
        self.done = read_json(self.work / "state.json")["rounds"]
        state = load_file(self.work / f"state-{self.done}.safetensors")
        weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
        self.net.load_state_dict(weights)
        for index, parameter in enumerate(self.net.parameters()):
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimizer.state[parameter] = {key: state[f"adam.{index}.{key}"] for key in keys}

    def save(self) -> None:
        """Write the state of this round, then point to it, then drop the one before."""
        state = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        for index, parameter in enumerate(self.net.parameters()):
            moments = self.optimizer.state[parameter]
            state |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        path = self.work / f"state-{self.done}.safetensors"
        write_tensors(path, {k: v.contiguous() for k, v in state.items()})
        write_json(self.work / "state.json", {"rounds": self.done})
        (self.work / f"state-{self.done - 1}.safetensors").unlink(missing_ok=True)

    def learn(self, all_images: Tensor, all_truth: Tensor) -> float:
        """One pass through one round's pictures; the mean loss."""
        generator = torch_generator(SEED, "learn", self.done)
        self.net.train()
        total, batches = 0.0, list(_batches(len(all_images), generator))
        for number, chosen in enumerate(batches):
            self.optimizer.param_groups[0]["lr"] = self._rate(self.done + number / len(batches))
            images, truth = mirrored(all_images[chosen].float() / 255, all_truth[chosen], generator)
            images = (corrupt(images, generator) * 2 - 1).contiguous(memory_format=torch.channels_last)
            loss = loss_of(self.net(images), truth)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
            self.optimizer.step()
            total += loss.item()
        self.done += 1
        return total / len(batches)

    def _rate(self, passed: float) -> float:
        """Up in the first round, level, and down to nothing in the last 45% of all rounds."""
        left = (self.rounds - passed) / (0.45 * self.rounds)
        return RATE * min(1.0, passed + 0.02) * min(1.0, left)


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=generator)
    yield from order[: count // BATCH * BATCH].split(BATCH)


# ---- the finished judge ------------------------------------------------------------------------------------


def export(net: JudgeNet, path: Path, threshold: float, accuracy: dict[str, float]) -> None:
    """Write the weights in half precision, with the header that the judge reads."""
    header = {
        "names": json.dumps(NAMES),
        "colors": json.dumps(HUES),
        "recolorable": json.dumps([item.name for item in OBJECTS if item.recolorable]),
        "threshold": str(threshold),
        "command": COMMAND,
        "held_out_accuracy": json.dumps(accuracy),
    }
    weights = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    write_tensors(path, {k: v.contiguous() for k, v in weights.items()}, header)


def measure(path: Path, seed: int, scenes: int) -> dict[str, float]:
    """The shares that the judge in `path` has right on composed scenes."""
    judge = load_judge(path=path)
    drawn = [composed_scene(seed, index) for index in range(scenes)]
    found = judge.detect(_stack([render(scene, SIDE) for scene in drawn]))
    return shares([judge_scene(scene, seen) for scene, seen in zip(drawn, found, strict=True)])


def main() -> None:
    """Train, choose the threshold, measure, export."""
    parser = argparse.ArgumentParser(description="Train the judge of the embedded world.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the state after each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--check", action="store_true", help="only measure the weights in --out")
    arguments = parser.parse_args()
    if arguments.check:
        print(measure(arguments.out, HELD_OUT_SEED, 3000))
        return
    if arguments.rounds < 1:
        raise UserError("--rounds: must be at least 1.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(arguments.work, arguments.rounds)
    trainer.resume()
    start = time.monotonic()
    with ProcessPoolExecutor(1) as pool:
        ahead = pool.submit(draw_round, trainer.done)
        while trainer.done < arguments.rounds:
            images, truth = ahead.result()
            if trainer.done + 1 < arguments.rounds:
                ahead = pool.submit(draw_round, trainer.done + 1)
            loss = trainer.learn(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(truth))
            trainer.save()
            print(f"round {trainer.done}: loss {loss:.4f}, {time.monotonic() - start:.0f} s", flush=True)
            if trainer.done % 3 == 0:
                trial = arguments.work / "trial.safetensors"
                export(trainer.net, trial, 0.3, {})
                print(measure(trial, THRESHOLD_SEED, 400), flush=True)
    finish(trainer.net, arguments.work, arguments.out)


def finish(net: JudgeNet, work: Path, out: Path) -> None:
    """Choose the threshold on scenes and pictures of nothing, measure on held-out scenes, write."""
    trial = work / "trial.safetensors"
    scenes = [composed_scene(THRESHOLD_SEED, index) for index in range(1200)]
    images = _stack([render(scene, SIDE) for scene in scenes])
    rng = random.Random(THRESHOLD_SEED)
    nothing = _stack([picture_of_nothing(rng, HARDER_FROM) for _ in range(400)])
    right = {}
    for threshold in (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5):
        export(net, trial, threshold, {})
        judge = load_judge(path=trial)
        found = zip(scenes, judge.detect(images), strict=True)
        empty = sum(not seen for seen in judge.detect(nothing))
        right[threshold] = sum(judge_scene(*item).everything for item in found) + empty
    best = max(right, key=right.__getitem__)
    export(net, trial, best, {})
    accuracy = measure(trial, HELD_OUT_SEED, 3000)
    export(net, out, best, accuracy)
    print(f"threshold {best} of {right}; held out: {accuracy}; {out.stat().st_size} bytes")


def _stack(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
