"""Pictures to the features of frozen networks, kept on disk in parts.

In: a set of pictures and the name of a network. Out: `StoredFeatures`, read block by block. A part that
exists is not made again. On one machine's CPU features are the same to the last bit whatever number of
processes makes them, with one thread each; other processors and GPUs round in other ways.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kilopix.artefacts.locks import own_folder
from kilopix.config import Config
from kilopix.data.parts import Parts, make_parts, read_table, threads_here
from kilopix.data.picture_sets import PictureSet, read_pixels
from kilopix.evaluation.fidelity import Moments
from kilopix.evaluation.streaming import moments_of
from kilopix.jobs import PARTS, open_job
from kilopix.pretrained.inception import load_inception
from kilopix.pretrained.vision import FeatureExtractor, load_efficientnet_lite0
from kilopix.pretrained.vision_hub import CLIP, load_clip, load_dinov2
from kilopix.runtime import cache_folder, read_tensors, say, sha256_of_text, write_tensors
from kilopix.types import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def versions() -> dict[str, str]:
    """Versions of the packages that pictures and features go through."""
    return {name: version(name) for name in ("torch", "transformers", "pillow", "numpy")}


class WeightsConfig(Config):
    """Where the networks' weights are: files, or folders and names of the hub."""

    inception: str = ""
    dinov2: str = "facebook/dinov2-large"
    clip: str = "openai/clip-vit-large-patch14"
    aesthetic: str = ""
    pickscore: str = "yuvalkirstain/PickScore_v1"

    def file(self, name: str) -> Path:
        """A weights file that `kilopix convert` wrote, in the cache if no other is given."""
        given = {"inception": self.inception, "aesthetic": self.aesthetic}[name]
        return Path(given).expanduser() if given else cache_folder() / "weights" / f"{name}.safetensors"


@dataclass(frozen=True)
class Pictures:
    """A set of pictures of one size (width, height), with the hash of their contents.

    With `fit`, the centred square of a picture of another size is resized to it.
    """

    set: PictureSet
    sha256: str
    size: tuple[int, int]
    fit: bool = False


def load_network(name: str, weights: WeightsConfig, device: str) -> FeatureExtractor | CLIP:
    """The network of a name; raises `UserError` if its weights cannot be had."""
    return _load(name, weights.model_dump_json(), device)


@lru_cache(maxsize=1)  # one network in memory at a time
def _load(name: str, weights_json: str, device: str) -> FeatureExtractor | CLIP:
    weights = WeightsConfig.model_validate_json(weights_json)
    loaders: dict[str, Callable[[], FeatureExtractor | CLIP]] = {
        "inception": lambda: load_inception(weights.file("inception"), device),
        "dinov2": lambda: load_dinov2(weights.dinov2, device),
        "clip": lambda: load_clip(weights.clip, device),
        "efficientnet-lite0": lambda: load_efficientnet_lite0(device),
        "pickscore": lambda: load_clip(weights.pickscore, device, "pickscore"),
    }
    return loaders[name]()


@dataclass(frozen=True)
class FeaturePart:
    """Makes the features of one part of a set; a value, so that it can be sent to another process."""

    pictures: Pictures
    network: str
    weights: WeightsConfig
    device: str
    rows: int

    def __call__(self, part: int) -> "pa.Table":
        """One row of features for each picture."""
        import pyarrow as pa

        root, size = self.pictures.set.root, self.pictures.size
        files = self.pictures.set.files[part * self.rows : (part + 1) * self.rows]
        with threads_here(1):  # sums in another order differ in their last digits
            network = load_network(self.network, self.weights, self.device)
            features = network.features(read_pixels(root, files, size, self.pictures.fit)).cpu().numpy()
        if not np.isfinite(features).all():
            bad = int((~np.isfinite(features)).any(1).argmax())
            raise UserError(f"{root / files[bad]}: {self.network} gives features that are not finite.")
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        return pa.table({"file": pa.array(files), "features": column})


@dataclass(frozen=True)
class StoredFeatures:
    """Features in parts on disk, as a `FeatureSet`."""

    parts: Parts
    sizes: tuple[int, ...]
    width: int
    device: str

    def block(self, i: int) -> Tensor:
        """The features of one part."""
        column = read_table(self.parts.path(i))["features"].combine_chunks()
        values = np.array(column.flatten(), dtype=np.float32)  # a copy, so that the file is let go
        return torch.from_numpy(values).view(self.sizes[i], self.width).to(self.device)


def store_features(
    pictures: Pictures,
    network: str,
    weights: WeightsConfig,
    base: Path,
    title: str,
    device: str,
    workers: int | None,
    rows: int,
) -> StoredFeatures:
    """The features of a set, made below `base` where they are not there yet, `rows` pictures a part.

    Their folder is named by a hash of all that they depend on, so that it can be shared.
    """
    loaded = load_network(network, weights, device)
    job = {
        "network": loaded.fingerprint,
        "pictures": pictures.sha256,
        "size": list(pictures.size),
        "fit": pictures.fit,
        "rows": rows,
        "versions": versions(),
    }
    folder = base / "features" / f"{network}-{sha256_of_text(json.dumps(job))[:16]}"
    files = pictures.set.files
    sizes = [min(rows, len(files) - start) for start in range(0, len(files), rows)]
    parts = Parts(folder, len(sizes), job=folder.name)
    with own_folder(folder, "fidelity", wait=True):  # who scores others against the same images waits
        open_job(folder, PARTS, job)
        if parts.missing():
            make = FeaturePart(pictures, network, weights, device, rows)
            workers = workers or (os.cpu_count() if device == "cpu" else 1)
            make_parts(parts, make, title, len(files), workers)
    return StoredFeatures(parts, tuple(sizes), loaded.width, device)


def stored_moments(features: StoredFeatures) -> Moments:
    """The moments of stored features, from a file beside them if it is there."""
    path = features.parts.folder / "moments.safetensors"
    stored = _whole_moments(path, features.parts.job)
    if stored is None:
        made = moments_of(features)
        count = torch.tensor(made.count)
        job = {"job": features.parts.job}
        write_tensors(path, {"count": count, "mean": made.mean.cpu(), "scatter": made.scatter.cpu()}, job)
        stored, _ = read_tensors(path)
    device = "cpu" if features.device.startswith("mps") else features.device  # mps has no float64
    mean, scatter = stored["mean"].to(device), stored["scatter"].to(device)
    return Moments(int(stored["count"]), mean, scatter)


def _whole_moments(path: Path, job: str) -> dict[str, Tensor] | None:
    """The moments of an earlier call; None if there are none, or damaged or other ones, which is said."""
    if not path.exists():
        return None
    try:
        stored, header = read_tensors(path)
    except UserError as error:
        say(f"{error} It is made anew.")
        return None
    if header.get("job") == job and stored.keys() == {"count", "mean", "scatter"}:
        return stored
    say(f"{path}: not the moments of these features, and made anew.")
    return None
