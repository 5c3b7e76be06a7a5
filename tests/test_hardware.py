"""Devices are known by the names that drivers give, and peaks are dense figures of data sheets."""

import pytest
import torch

from kilopix.errors import UserError
from kilopix.hardware import DEVICES, device_named, find_device, peak_flops, this_device


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Apple M2 Max", "m2-max"),
    ],
)
def test_devices_are_known_by_their_drivers_names(driver: str, name: str):
    found = find_device(driver)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "driver",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a seventh of the device has not its peak
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA L40",
        "NVIDIA A10G",
        "Some new card",
        "",
    ],
)
def test_other_devices_are_not_taken_for_known_ones(driver: str):
    assert find_device(driver) is None


def test_the_table_is_sound():
    names = [device.name for device in DEVICES]
    assert len(set(names)) == len(names) >= 20
    for device in DEVICES:
        assert device_named(device.name) is device
        assert device.float16 >= device.float32 > 1e12
        assert device.bfloat16 in (None, device.float16)
        assert 8e9 < device.memory < 300e9
        assert 2e11 < device.bandwidth < 1e13
    assert device_named("H100 SXM").peak("bfloat16") == pytest.approx(989.4e12)
    assert device_named("t4").peak("bfloat16") is None


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(UserError, match="did you mean 'h100-sxm'"):
        device_named("h100-smx")


def test_no_peak_is_known_of_a_cpu():
    """One that is measured is that of what else the machine does: 210% was shown of it."""
    assert peak_flops("cpu", "float32") is None


def test_the_cuda_device_is_asked_for_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L40S")
    assert peak_flops("cuda:1", "bfloat16") == pytest.approx(362e12)
    found = this_device("cuda")
    assert found is not None
    assert found.name == "l40s"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card of next year")
    assert peak_flops("cuda:0", "bfloat16") is None
