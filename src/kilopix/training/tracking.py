"""Where else the numbers and sheets of a run go: TensorBoard, Weights & Biases.

In: names of trackers, numbers, PNG files, the number of images seen. Out: event files in `RUN/tensorboard`,
or a run at W&B. A tracker that is not installed, or cannot be reached at the start, is named once and left
out: `log.jsonl` has all of it in any case.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kilopix.faults import first_line
from kilopix.runtime import read_json, say, write_json
from kilopix.training.watching import TrackerName

WANDB_ID = "wandb.json"


class TensorBoard:
    """Event files; those of moments after the one from which a run goes on are hidden by TensorBoard."""

    def __init__(self, folder: Path, images_seen: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=images_seen + 1 if images_seen else None)

    def numbers(self, values: Mapping[str, int | float], images_seen: int) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Add an image."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, images_seen, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WandB:
    """A run at W&B, the same one when training goes on; its settings are those of W&B's own variables."""

    def __init__(self, run_folder: Path, recipe: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        record = run_folder / WANDB_ID
        name = read_json(record)["id"] if record.exists() else wandb.util.generate_id()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "kilopix"),
                name=run_folder.resolve().name,
                id=name,
                resume="allow",
                dir=str(run_folder),
                config=dict(recipe),
            )
        except wandb.Error as error:  # no login, no network, ...
            raise RuntimeError(str(error)) from error
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")
        write_json(record, {"id": name})

    def numbers(self, values: Mapping[str, int | float], images_seen: int) -> None:
        """Log numbers against images seen."""
        self._run.log({**values, "images": images_seen})

    def picture(self, name: str, path: Path, images_seen: int) -> None:
        """Log a picture."""
        import wandb  # pyright: ignore[reportMissingImports]

        self._run.log({name: wandb.Image(str(path)), "images": images_seen})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


Tracker = TensorBoard | WandB


def open_trackers(
    names: Sequence[TrackerName], run_folder: Path, recipe: Mapping[str, Any], images_seen: int
) -> list[Tracker]:
    """The trackers that can be used here; of the others the user is told, once."""
    opened: list[Tracker] = []
    for name in names:
        try:
            if name == "tensorboard":
                opened.append(TensorBoard(run_folder / "tensorboard", images_seen))
            else:
                opened.append(WandB(run_folder, recipe))
        except ImportError:
            say(
                f"training.track: {name} is not installed, so this run is not tracked there; "
                "`pip install kilopix[track]` brings it."
            )
        except (OSError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            say(f"training.track: {name} cannot be used ({reason}); this run is not tracked there.")
    return opened
