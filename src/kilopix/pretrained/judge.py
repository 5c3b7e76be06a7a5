"""The judge of the embedded world: a small detector that names objects, their colours and their boxes.

In: pictures. Out: `Detection`s. Its weights ship with kilopix; `tools/train_judge.py` makes them. Class
names, colours and the threshold come from the header of the weights file.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from kilopix.artefacts.digests import check_shipped
from kilopix.runtime import read_tensors, sha256_of_file
from kilopix.types import Detection, UserError

SIDE = 64  # pixels of the pictures that the network sees
GRID = 16  # cells of its answer along a side
_WEIGHTS = "judge.safetensors"
_SHA256 = "34f03314b7143ca58fc64eb347b616f8aecc0daeea26a9ca0aa78984e54f5796"
_SAME_PLACE = 0.4  # intersection over union from which two boxes are the same object


class ConvBlock(nn.Module):
    """Convolution 3x3, normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """Features, at half the resolution if the stride is 2."""
        return F.relu(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = ConvBlock(channels, channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Refined features."""
        return x + self.second(self.first(x))


@dataclass(frozen=True)
class JudgeOutput:
    """What the network says of every cell of the 16 x 16 grid.

    `heat` is the logit that an object's centre lies there; `box` is the centre's offset from the cell's
    centre (x, y, in cells) and the logarithms of width and height as fractions of the picture.
    """

    heat: Float[Tensor, "B 16 16"]
    names: Float[Tensor, "B K 16 16"]
    colors: Float[Tensor, "B G 16 16"]
    box: Float[Tensor, "B 4 16 16"]


class JudgeNet(nn.Module):
    """Fully convolutional, centre-based detector (after "Objects as points", arXiv 1904.07850)."""

    def __init__(self, names: int, colors: int):
        super().__init__()
        self.parts = [1, names, colors, 4]
        self.at_32 = nn.Sequential(ConvBlock(3, 32, 2), ConvBlock(32, 32))
        self.at_16 = nn.Sequential(ConvBlock(32, 64, 2), ResidualBlock(64))
        self.at_8 = nn.Sequential(ConvBlock(64, 128, 2), ResidualBlock(128))
        self.at_4 = ConvBlock(128, 128, 2)
        self.from_8 = nn.Conv2d(128, 96, 1)
        self.from_16 = nn.Conv2d(64, 96, 1)
        self.from_4 = nn.Conv2d(128, 96, 1)
        self.fuse = ConvBlock(96, 96)
        self.heads = nn.Conv2d(96, sum(self.parts), 1)

    def forward(self, images: Float[Tensor, "B 3 64 64"]) -> JudgeOutput:
        """Read pictures with values -1 to 1."""
        fine = self.at_16(self.at_32(images))
        middle = self.at_8(fine)
        deep = F.interpolate(self.from_4(self.at_4(middle)), scale_factor=2.0)
        deep = F.interpolate(F.relu(deep + self.from_8(middle)), scale_factor=2.0)
        features = self.fuse(F.relu(deep + self.from_16(fine)))
        heat, names, colors, box = self.heads(features).split(self.parts, 1)
        return JudgeOutput(heat[:, 0], names, colors, box)


@dataclass(frozen=True)
class JudgeHeader:
    """What the weights file says of itself."""

    names: tuple[str, ...]
    colors: tuple[str, ...]
    recolorable: frozenset[str]
    threshold: float


class Judge:
    """Finds the objects of the embedded world in pictures."""

    def __init__(self, net: JudgeNet, header: JudgeHeader, fingerprint: str, device: str = "cpu"):
        self.header = header
        self.fingerprint = fingerprint
        self._net = net.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def detect(self, images: UInt8[Tensor, "B 3 H W"], batch: int = 256) -> list[list[Detection]]:
        """The objects of each picture, best first, boxes in its pixels; a side other than 64 is resized."""
        found: list[list[Detection]] = []
        for part in images.split(batch):
            pictures = part.to(self._device).float()
            if pictures.shape[-2:] != (SIDE, SIDE):
                pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
            output = self._net(pictures / 127.5 - 1)
            found += self._decode(output, height=images.shape[-2], width=images.shape[-1])
        return found

    def _decode(self, output: JudgeOutput, height: int, width: int) -> list[list[Detection]]:
        """Local maxima of the heat whose score passes the threshold, without doubles at the same place."""
        heat = output.heat.sigmoid()
        peaks = F.max_pool2d(heat[:, None], 3, stride=1, padding=1)[:, 0] == heat
        sure, name = output.names.softmax(1).max(1)
        score = heat * sure * peaks
        color = output.colors.argmax(1)
        boxes = _corners(output.box, height, width)
        found = []
        for b in range(len(heat)):
            rows, columns = torch.nonzero(score[b] > self.header.threshold, as_tuple=True)
            candidates = []
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
                label = self.header.names[int(name[b, i, j])]
                hue = self.header.colors[int(color[b, i, j])] if label in self.header.recolorable else None
                x1, y1, x2, y2 = boxes[b, :, i, j].tolist()
                candidates.append(Detection(label, (x1, y1, x2, y2), float(score[b, i, j]), hue))
            found.append(_without_doubles(candidates))
        return found


def _corners(box: Float[Tensor, "B 4 16 16"], height: int, width: int) -> Float[Tensor, "B 4 16 16"]:
    """Boxes (x1, y1, x2, y2) in pixels, cut at the picture's edges."""
    cells = torch.arange(GRID, device=box.device) + 0.5
    x, y = (cells + box[:, 0]) / GRID, (cells[:, None] + box[:, 1]) / GRID
    w, h = box[:, 2].clamp(max=0.2).exp() / 2, box[:, 3].clamp(max=0.2).exp() / 2
    edges = torch.stack([x - w, y - h, x + w, y + h], 1).clamp(0, 1)
    return edges * torch.tensor([width, height, width, height], device=box.device).view(1, 4, 1, 1)


def _without_doubles(candidates: list[Detection]) -> list[Detection]:
    kept: list[Detection] = []
    for item in sorted(candidates, key=lambda detection: -detection.score):
        if all(_overlap(item.box, other.box) < _SAME_PLACE for other in kept):
            kept.append(item)
    return kept


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return width * height / (areas - width * height)


def load_judge(device: str = "cpu", path: Path | None = None) -> Judge:
    """The judge that ships with kilopix, or one from another weights file; a broken file is a `UserError`."""
    if path is not None:
        return _load(path, device)
    with resources.as_file(resources.files("kilopix.pretrained") / "assets" / _WEIGHTS) as shipped:
        if shipped.is_file():
            check_shipped(shipped, _SHA256)
        return _load(shipped, device)


def _load(path: Path, device: str) -> Judge:
    if not path.is_file():
        raise UserError(f"{path}: the judge's weights are missing; reinstall kilopix.")
    weights, metadata = read_tensors(path)
    try:
        header = JudgeHeader(
            tuple(json.loads(metadata["names"])),
            tuple(json.loads(metadata["colors"])),
            frozenset(json.loads(metadata["recolorable"])),
            float(metadata["threshold"]),
        )
        net = JudgeNet(len(header.names), len(header.colors))
        net.load_state_dict({key: w.float() if w.is_floating_point() else w for key, w in weights.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not the weights of a judge ({error}).") from None
    return Judge(net.to(memory_format=torch.channels_last), header, sha256_of_file(path), device)  # pyright: ignore[reportCallIssue]
