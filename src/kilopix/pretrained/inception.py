"""Inception-v3 as FID has it: the TensorFlow graph of December 2015, in plain PyTorch.

In: pictures as 8-bit RGB, and the published weights as safetensors (`kilopix convert` makes them of
`pt_inception-2015-12-05-6726825d.pth`). Out: features, 2048 wide. Three things differ from the Inception-v3
of image classification, and FID depends on each: pictures are resized as TensorFlow 1 did, without
antialiasing and with pixel i of the output at i * in / out; average pooling does not count its padding; and
the last block pools by the maximum.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from kilopix.pretrained.vision import FeatureExtractor, exactly
from kilopix.pretrained.weights import file_digest, read_weights_file
from kilopix.types import UserError

SIDE = 299
PUBLISHED = "6726825d"
"""How the SHA-256 of the published .pth file begins; it is in the file's name."""
_BATCH = 32

Conv = tuple[int, int | tuple[int, int]] | tuple[int, int | tuple[int, int], int]
"""Channels that come out, kernel, and the stride where it is not 1."""


class _Unit(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
    ):
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


class _Mixed(nn.Module):
    """Branches side by side, the last of which pools.

    A branch `name` of several units has them as `name_1`, `name_2`, ...; one in `forked` ends in two units
    side by side, `name_<n>a` of kernel (1, 3) and `name_<n>b` of (3, 1). These are the published names.
    """

    def __init__(
        self,
        inputs: int,
        pool: Callable[[Tensor], Tensor],
        branches: dict[str, Sequence[Conv]],
        forked: Sequence[str] = (),
    ):
        super().__init__()
        self._pool = pool
        self._branches: list[list[list[str]]] = []
        self._pooled: list[str] = []
        for branch, convs in branches.items():
            width = inputs
            steps: list[list[str]] = []
            for i, conv in enumerate(convs, 1):
                name = branch if len(convs) == 1 and branch not in forked else f"{branch}_{i}"
                self.add_module(name, _Unit(width, conv[0], conv[1], conv[2] if len(conv) == 3 else 1))
                steps.append([name])
                width = conv[0]
            if branch in forked:
                ends = {f"{branch}_{len(convs) + 1}a": (1, 3), f"{branch}_{len(convs) + 1}b": (3, 1)}
                for name, kernel in ends.items():
                    self.add_module(name, _Unit(width, 384, kernel))
                steps.append(list(ends))
            if branch == "branch_pool":
                self._pooled = [name for step in steps for name in step]
            else:
                self._branches.append(steps)

    def forward(self, x: Tensor) -> Tensor:
        out = [self._branch(x, steps) for steps in self._branches]
        pooled = self._pool(x)
        for name in self._pooled:
            pooled = self.get_submodule(name)(pooled)
        return torch.cat([*out, pooled], 1)

    def _branch(self, x: Tensor, steps: list[list[str]]) -> Tensor:
        for names in steps:
            ends = [self.get_submodule(name)(x) for name in names]
            x = ends[0] if len(ends) == 1 else torch.cat(ends, 1)
        return x


def _block_a(inputs: int, pooled: int) -> _Mixed:
    branches: dict[str, Sequence[Conv]] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pooled, 1)],
    }
    return _Mixed(inputs, _average, branches)


def _block_b() -> _Mixed:
    branches: dict[str, Sequence[Conv]] = {
        "branch3x3": [(384, 3, 2)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)],
    }
    return _Mixed(288, _halve, branches)


def _block_c(width: int) -> _Mixed:
    across, down = (1, 7), (7, 1)
    branches: dict[str, Sequence[Conv]] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), (width, across), (192, down)],
        "branch7x7dbl": [(width, 1), (width, down), (width, across), (width, down), (192, across)],
        "branch_pool": [(192, 1)],
    }
    return _Mixed(768, _average, branches)


def _block_d() -> _Mixed:
    branches: dict[str, Sequence[Conv]] = {
        "branch3x3": [(192, 1), (320, 3, 2)],
        "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
    }
    return _Mixed(768, _halve, branches)


def _block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> _Mixed:
    branches: dict[str, Sequence[Conv]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1)],
        "branch3x3dbl": [(448, 1), (384, 3)],
        "branch_pool": [(192, 1)],
    }
    return _Mixed(inputs, pool, branches, forked=("branch3x3", "branch3x3dbl"))


class FIDInception(nn.Module):
    """The network, its parameters under the published names; no feature comes from `fc`."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, pad=False)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b()
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, _average)
        self.Mixed_7c = _block_e(2048, _maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        """Features of pictures of any size."""
        x = (tensorflow_bilinear(images.float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halve(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return reduce(x, "b f h w -> b f", "mean")


def tensorflow_bilinear(x: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C side side"]:
    """Resize as `tf.image.resize_bilinear` of TensorFlow 1 does, neither corners nor centres aligned."""
    rows, row_share = _between(x.shape[2], side, x.device)
    columns, column_share = _between(x.shape[3], side, x.device)
    low, high = x[..., columns[0]], x[..., columns[1]]
    x = low + (high - low) * column_share
    low, high = x[..., rows[0], :], x[..., rows[1], :]
    return low + (high - low) * rearrange(row_share, "h -> h 1")


def _between(size: int, side: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """For every pixel of the output the two pixels that it lies between, and how far from the first."""
    place = torch.arange(side, dtype=torch.float32, device=device) * (size / side)
    low = place.floor().long().clamp(max=size - 1)
    return (low, (low + 1).clamp(max=size - 1)), place - low


class _Inception:
    """The network as a `FeatureExtractor`."""

    name = "inception"
    width = 2048

    def __init__(self, network: FIDInception, weights: Path, device: str):
        self._network = network.to(device).eval().requires_grad_(False)
        self._weights = weights
        self._device = device

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{file_digest(self._weights)}"

    def features(self, images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        parts = [torch.zeros(0, self.width, device=self._device)]
        with exactly():
            parts += [self._network(batch.to(self._device)) for batch in images.split(_BATCH)]
        return torch.cat(parts)


def load_inception(weights: Path, device: str = "cpu") -> FeatureExtractor:
    """FID's Inception from a safetensors file; a file that does not fit exactly is a `UserError`."""
    if weights.suffix in (".pth", ".pt"):
        out = weights.with_suffix(".safetensors").name
        raise UserError(f"{weights}: is a pickle; run `kilopix convert {weights} {out}` once, and give that.")
    tensors = read_weights_file(weights)
    with torch.device("meta"):
        network = FIDInception()
    network = network.to_empty(device="cpu")
    check_inception(tensors, weights)
    network.load_state_dict(tensors)
    return _Inception(network, weights, device)


def check_inception(tensors: dict[str, Tensor], origin: Path) -> None:
    """Raise `UserError` unless the names and shapes are those of the published file, all and no others.

    The counters of batch normalisation may be missing, as in files written by old releases of PyTorch.
    """
    with torch.device("meta"):
        expected = {name: value.shape for name, value in FIDInception().state_dict().items()}
    counters = {name for name in expected if name.endswith(".num_batches_tracked")}
    missing = sorted(expected.keys() - counters - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    wrong = sorted(n for n, shape in expected.items() if n in tensors and tensors[n].shape != shape)
    if problem := missing or unknown or wrong:
        what = "lacks" if missing else "has the unknown" if unknown else "has another shape of"
        raise UserError(
            f"{origin}: not the weights of FID's Inception-v3: it {what} {problem[0]} "
            f"({len(problem)} such). Give those of pt_inception-2015-12-05-{PUBLISHED}.pth."
        )
