"""What a score of fidelity compares: pictures and real ones, found, checked and hashed.

In: the places that a user names and the settings. Out: `Work`, in which a set is known by its contents. The
real pictures may be given by the statistics of their features, for which there is FID alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from kilopix.config import Config
from kilopix.data.checked import Checked, check_pictures
from kilopix.data.image_arrays import holds_images
from kilopix.data.picture_sets import ARRAYS, PictureSet, read_picture_set
from kilopix.english import counted
from kilopix.evaluation.protocol import Setting
from kilopix.evaluation.reference_statistics import ReferenceStatistics, read_statistics
from kilopix.features import Pictures, StoredFeatures, WeightsConfig, store_features
from kilopix.jobs import OPTION, Folder, open_job
from kilopix.runtime import pick_device, say, sha256_of_text
from kilopix.types import UserError

FOLDER = Folder(
    ("features/*/part-*", "scores/*", "card.json", "observations.jsonl"), ("features/*",), instead=OPTION
)


class FidelityConfig(Config):
    """Settings of the scores; `neighbours` is k of precision, recall, density and coverage."""

    weights: WeightsConfig = WeightsConfig()
    neighbours: int = Field(default=3, ge=1)
    kid_subsets: int = Field(default=100, ge=1)
    kid_subset_size: int = Field(default=1000, ge=2)
    seed: int = 0
    fit_reference: bool = False
    allow_doubled: bool = False
    rows_per_part: int = Field(default=512, ge=1)

    def protocol(self) -> dict[str, Setting]:
        """The settings that a score depends on; weights have fingerprints instead."""
        return self.model_dump(mode="json", exclude={"weights", "rows_per_part"})


@dataclass(frozen=True)
class Work:
    """What a run scores, how, and where to; `reference` or `statistics` is there, or both.

    `source` is what the user named as images; `fitted` says whether real pictures are cut, and `doubled`
    whether a picture is there twice.
    """

    source: Path
    images: Pictures
    reference: Pictures | None
    statistics: ReferenceStatistics | None
    fitted: bool
    doubled: bool
    config: FidelityConfig
    out: Path
    cache: Path
    device: str
    workers: int | None

    @property
    def reference_sha256(self) -> str:
        """Hash of the file of statistics, else of the contents of all real pictures."""
        if self.statistics is not None:
            return self.statistics.sha256
        assert self.reference is not None
        return self.reference.sha256

    @property
    def job(self) -> dict[str, Any]:
        """What a folder of scores is of."""
        return {
            "stage": "fidelity",
            "images": self.images.sha256,
            "reference": self.reference_sha256,
            "prompts": self.images.set.prompts_sha256,
            "settings": self.config.protocol(),
        }

    def features(self, network: str, real: bool = False) -> StoredFeatures:
        """The features of either set, made where they are not there yet."""
        pictures = self.reference if real else self.images
        assert pictures is not None
        return store_features(
            pictures,
            network,
            self.config.weights,
            self.cache if real else self.out,
            f"{network}, {'real pictures' if real else 'pictures'}",
            self.device,
            self.workers,
            self.config.rows_per_part,
        )


def read_work(
    images: Path,
    reference: Path,
    out: Path,
    config: FidelityConfig,
    prompts: Path | None,
    cache: Path,
    workers: int | None,
    device: str,
    overwrite: bool = False,
) -> Work:
    """Find both sets and hash every file, before any network is loaded."""
    statistics = read_statistics(reference) if reference.suffix.lower() == ARRAYS else None
    found = read_picture_set(images, prompts, cache)
    real = None
    if statistics is None or holds_images(reference):
        real = read_picture_set(reference, None, cache)
    others = f"{len(real.files)} real ones" if real else f"the statistics of {reference}"
    say(f"reading {counted(len(found.files), 'picture')} and {others} ...")
    made = check_pictures(found.root, found.files, None, config.allow_doubled, heads_only=True)
    pictures = Pictures(found, _sha256_of_all(made), made.size)
    checked = _check_real(real, made.size, config) if real else None
    shown = (
        Pictures(real, _sha256_of_all(checked), made.size, config.fit_reference) if real and checked else None
    )
    if shown and shown.sha256 == pictures.sha256:
        raise UserError(f"{images} and {reference} hold the same pictures; give real ones as the second.")
    work = Work(
        source=images,
        images=pictures,
        reference=shown,
        statistics=statistics,
        fitted=checked is not None and checked.sizes != {made.size},
        doubled=made.doubled or (checked is not None and checked.doubled),
        config=config,
        out=out,
        cache=cache,
        device=pick_device(device),
        workers=workers,
    )
    open_job(out, FOLDER, work.job, overwrite)
    return work


def _check_real(real: PictureSet, size: tuple[int, int], config: FidelityConfig) -> Checked:
    return check_pictures(
        real.root,
        real.files,
        "any" if config.fit_reference else size,
        config.allow_doubled,
        heads_only=True,
        other_size="; make them of one size, or add fit_reference=true, which cuts the real ones",
    )


def _sha256_of_all(checked: Checked) -> str:
    return sha256_of_text("\n".join(checked.sha256))
