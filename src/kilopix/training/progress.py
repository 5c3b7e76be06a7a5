"""What training costs, and how well it uses its devices.

In: what an image costs. Out: the share of the devices' peak that a rate is, and device hours.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What training costs: FLOPs of one image, devices, and the peak of one, if known."""

    flops_per_image: float
    devices: int = 1
    peak_flops: float | None = None

    def utilisation(self, images_per_second: float) -> float | None:
        """Share of the devices' peak that the network's own arithmetic takes (PaLM, appendix B)."""
        if not self.peak_flops:
            return None
        return images_per_second * self.flops_per_image / (self.devices * self.peak_flops)

    def device_hours(self, seconds: float) -> float:
        """Hours of one device."""
        return seconds * self.devices / 3600

    def notes(self, loss: float | None, images_per_second: float | None, seconds: float) -> list[str]:
        """What is shown beside the progress of training, the most important first."""
        parts = [] if loss is None else [f"loss {loss:.4f}"]
        if share := self.utilisation(images_per_second or 0.0):
            parts.append(f"MFU {share:.1%}")
        return [*parts, f"{self.device_hours(seconds):.2f} device hours"]
