import pytest

from kilopix.training.progress import Work


def test_utilisation_is_the_networks_arithmetic_over_the_peak_of_all_devices():
    work = Work(flops_per_image=3e9, devices=4, peak_flops=1e12)
    assert work.utilisation(500.0) == pytest.approx(3e9 * 500 / 4e12)
    assert work.device_hours(1800.0) == 2.0
    assert Work(3e9).utilisation(500.0) is None


def test_what_stands_beside_the_progress_of_training():
    on_gpus = Work(2e9, devices=2, peak_flops=1e12)
    assert on_gpus.notes(0.5, 50.0, 3600.0) == ["loss 0.5000", "MFU 5.0%", "2.00 device hours"]
    assert on_gpus.notes(None, None, 1800.0) == ["1.00 device hours"]
