"""What devices can do at most: peak operations a second, memory, bandwidth.

In: a device as torch names it ("cuda:0"), or a name such as "h100-sxm". Out: figures of the makers' data
sheets; none for a CPU, which has no such figure. Utilisation is what a program reaches of the peak, so all
peaks are dense: the makers' figures "with sparsity" are twice as high.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from kilopix.errors import UserError

Precision = Literal["bfloat16", "float16", "float32"]
_TERA, _GB = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """One kind of device: peaks in FLOP/s, `memory` in bytes as the maker counts, `bandwidth` in bytes/s.

    `pattern` is what the driver calls it, whole, in lower case, without the maker's name. A peak of None:
    the device has no instructions for that precision.
    """

    name: str
    pattern: str
    bfloat16: float | None
    float16: float
    float32: float
    memory: float
    bandwidth: float

    def peak(self, precision: Precision) -> float | None:
        """Peak FLOP/s at a precision."""
        return {"bfloat16": self.bfloat16, "float16": self.float16, "float32": self.float32}[precision]


def _device(
    name: str,
    pattern: str,
    half: int | float,
    single: int | float,
    memory: int | float,
    bandwidth: int | float,
    has_bfloat16: bool = True,
) -> Device:
    """A row of the table: peaks in TFLOP/s, memory in GB, bandwidth in GB/s."""
    bfloat16 = half * _TERA if has_bfloat16 else None
    return Device(name, pattern, bfloat16, half * _TERA, single * _TERA, memory * _GB, bandwidth * _GB)


DEVICES = (
    # NVIDIA's data sheets of B200 (in HGX), H200, H100, GH200.
    _device("b200", "b200", 2250, 75, 180, 7700),
    _device("h200", "h200|gh200.*", 989.4, 66.9, 141, 4800),
    _device("h200-nvl", "h200 nvl", 835.5, 60, 141, 4800),
    _device("h100-sxm", r"h100 80gb hbm\d\w?|h100 sxm.*", 989.4, 66.9, 80, 3350),
    _device("h100-pcie", "h100 pcie", 756, 51, 80, 2000),
    _device("h100-nvl", "h100 nvl", 835, 60, 94, 3900),
    # NVIDIA's data sheets of A100, A40, A10, RTX A6000.
    _device("a100-80gb", r"a100-sxm4-80gb|a100 80gb pcie|a100-sxm-80gb|a100-pcie-80gb", 312, 19.5, 80, 2039),
    _device("a100-40gb", r"a100-(sxm4|sxm|pcie)-40gb", 312, 19.5, 40, 1555),
    _device("a40", "a40", 149.7, 37.4, 48, 696),
    _device("a10", "a10", 125, 31.2, 24, 600),
    _device("a6000", "rtx a6000", 154.8, 38.7, 48, 768),
    # NVIDIA's data sheets of L40S, L4, RTX 6000 Ada.
    _device("l40s", "l40s", 362, 91.6, 48, 864),
    _device("l4", "l4", 121, 30.3, 24, 300),
    _device("rtx-6000-ada", "rtx 6000 ada generation", 364.2, 91.1, 48, 960),
    # NVIDIA's architecture papers (GA102, AD102, RTX Blackwell), sums kept in float32, as torch keeps them:
    # with sums in float16 GeForce cards are twice as fast.
    _device("rtx-3090", "geforce rtx 3090", 71, 35.6, 24, 936),
    _device("rtx-3090-ti", "geforce rtx 3090 ti", 80, 40, 24, 1008),
    _device("rtx-4080", "geforce rtx 4080", 97.5, 48.7, 16, 717),
    _device("rtx-4090", "geforce rtx 4090", 165.2, 82.6, 24, 1008),
    _device("rtx-5090", "geforce rtx 5090", 209.5, 104.8, 32, 1792),
    # NVIDIA's data sheets of T4 and V100 (SXM2), which know float16 alone.
    _device("t4", "t4", 65, 8.1, 16, 320, has_bfloat16=False),
    _device("v100-32gb", r"v100-sxm\d-32gb.*", 125, 15.7, 32, 900, has_bfloat16=False),
    _device("v100-16gb", r"v100-sxm\d-16gb.*", 125, 15.7, 16, 900, has_bfloat16=False),
    # AMD's data sheets; of an MI250X, torch sees each half as a device.
    _device("mi300x", "instinct mi300x.*", 1307.4, 163.4, 192, 5300),
    _device("mi250x", "instinct mi250x.*", 191.5, 47.9, 64, 1638),
    # Apple's GPUs with all their cores; half precision is no faster than single. Apple gives no FLOP/s: cores
    # times 128 lanes times two operations times the clock. The memory is the largest on sale, shared by all.
    _device("m1-max", "apple m1 max", 10.6, 10.6, 64, 400),
    _device("m1-ultra", "apple m1 ultra", 21.2, 21.2, 128, 800),
    _device("m2-max", "apple m2 max", 13.6, 13.6, 96, 400),
    _device("m2-ultra", "apple m2 ultra", 27.2, 27.2, 192, 800),
    _device("m3-max", "apple m3 max", 14.1, 14.1, 128, 400),
    _device("m4-max", "apple m4 max", 16.1, 16.1, 128, 546),
)


def find_device(driver_name: str) -> Device | None:
    """The device that a driver calls so; None for one that is not known, or is a part of one (MIG)."""
    plain = re.sub(r"^(nvidia\s+)?(tesla\s+)?(amd\s+)?", "", driver_name.strip().lower())
    return next((device for device in DEVICES if re.fullmatch(device.pattern, plain)), None)


def device_named(name: str) -> Device:
    """The device of a name of this table, such as `h100-sxm`; an unknown name is a `UserError`."""
    wanted = re.sub(r"[\s_]+", "-", name.strip().lower())
    for device in DEVICES:
        if device.name == wanted:
            return device
    names = [device.name for device in DEVICES]
    near = [one for one in names if wanted in one.split("-") or (len(wanted) > 2 and one.startswith(wanted))]
    near = near or difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {' or '.join(map(repr, near))}? Known" if near else "known"
    raise UserError(f"device {name!r} is not known; {hint} are {', '.join(names)}.")


def this_device(device: str) -> Device | None:
    """The table's row of a torch device of this machine; None for a CPU and for what is not known."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return find_device(torch.cuda.get_device_name(device))
    return find_device(_apple_chip()) if kind == "mps" else None


def peak_flops(device: str, precision: Precision) -> float | None:
    """Peak FLOP/s of a torch device of this machine, such as `cuda:0`; None where it is not known.

    It is not known of a CPU: a product measured now tells more of what else the machine does than of it.
    """
    known = this_device(device)
    return known.peak(precision) if known else None


def _apple_chip() -> str:
    """What the machine calls its processor, which torch does not tell."""
    import subprocess

    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
