"""A recipe: everything that describes a run, composed from the libraries' configs and checked as a whole.

In: the name or path of a TOML file, and `section.key=value` overrides. Out: a frozen `Recipe`, or one
`UserError` before any file is opened.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kilopix.config import Config, merge, parse, parse_overrides, read_toml
from kilopix.data.cutmix import SettingChoice
from kilopix.data.text_storage import TextStorage
from kilopix.data.windows import Windows
from kilopix.diffusion.objective import ObjectiveConfig
from kilopix.diffusion.sampling import SamplingConfig
from kilopix.models.dit import DiTConfig
from kilopix.models.rin import RINConfig
from kilopix.pretrained.autoencoder import (
    AutoencoderConfig,
    DiffusersAutoencoderConfig,
    SDAutoencoderConfig,
)
from kilopix.pretrained.patch_codec import PatchCodecConfig
from kilopix.pretrained.text_encoder import MiniLMConfig, TextEncoderConfig
from kilopix.training.averages import AverageConfig, ExponentialConfig
from kilopix.training.float8 import Float8
from kilopix.training.guard import GuardConfig
from kilopix.training.muon import AdamWConfig
from kilopix.training.optim import OptimizerConfig, ScheduleConfig
from kilopix.training.parallel import Style
from kilopix.training.speed import CompileMode, Precision
from kilopix.training.watchdog import WatchdogConfig
from kilopix.training.watching import PreviewConfig, ScoresConfig, TrackerName, ValidationConfig
from kilopix.types import UserError

SD_DOWNSAMPLING = 8


ModelConfig = Annotated[DiTConfig | RINConfig, Field(discriminator="kind")]


class WorldConfig(Config):
    """The embedded world that `kilopix demo` draws and `kilopix evaluate` asks for."""

    classes: int = Field(default=64, ge=3, le=64)
    images_per_class: int = Field(default=400, ge=1, le=10_000_000)
    val_per_class: int = Field(default=20, ge=1, le=10_000_000)


class AugmentConfig(Config):
    """How `kilopix augment` makes the second version of every picture."""

    kind: Literal["cutmix", "crop"] = "cutmix"
    setting: SettingChoice = "all"


class DataConfig(Config):
    """Pictures, captions and augmentation."""

    image_size: int = Field(default=64, ge=24, le=8192)
    captioner: Literal["aio", "structured", "given", "model", "server"] = "structured"
    augment: AugmentConfig = AugmentConfig()
    text_storage: TextStorage = "bfloat16"  # T5's states can be too large for float16
    windows: Windows = Field(
        default="square", description="what a window is a part of: the centred square, or the whole picture"
    )


class TrainingConfig(Config):
    """Length, batch, and what is kept; the clock is images seen.

    `batch_size` is the batch of a step, all devices together; each takes its share in micro-batches.
    """

    images: int = Field(default=100_000, ge=1)
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default="auto", description="images that a device takes at once; auto is the most that fits"
    )
    precision: Precision = "auto"
    residual: Literal["float32", "bfloat16"] = Field(
        default="float32", description="what blocks add to; their norms compute in float32 anyway"
    )
    compile: Literal["auto"] | bool = Field(default="auto", description="auto compiles on NVIDIA GPUs")
    compile_mode: CompileMode = Field(
        default="default", description="max-autotune tries kernels for minutes, and keeps the fastest"
    )
    float8: Float8 = Field(default="off", description="scaling of qkv and MLP products in float8")
    activation_checkpointing: bool = Field(default=False, description="less memory, a third more time")
    parallel: Style = Field(default="ddp", description="fsdp shards weights and states over devices")
    communication: Precision = Field(
        default="auto", description="type of weights and gradients between devices; see docs/training.md"
    )
    clip_norm: float = Field(default=1.0, gt=0, le=1e9)
    schedule: ScheduleConfig = ScheduleConfig()
    average: AverageConfig = ExponentialConfig()
    checkpoint_every: int = Field(default=10_000, ge=1, description="images between checkpoints")
    start_from: str = Field(default="", description="run, or weights, to begin from; none if empty")
    keep_checkpoints: int = Field(default=2, ge=1, le=1_000_000, description="the newest that are kept")
    keep_every: int | None = Field(default=None, ge=1, description="images; one of each stretch is kept, too")
    verify_shards: bool = Field(default=True, description="read them whole and compare SHA-256 at the start")
    guard: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    log_every: int = Field(default=1_000, ge=1, description="images between lines of the log")
    track: tuple[TrackerName, ...] = Field(default=(), description="where else the log goes")


class EvaluationConfig(Config):
    """How many prompts and pictures a score is made of.

    Prompts of two objects are GenEval's own (`plain`), or say where things are, as captions do (`placed`).
    """

    prompts_per_task: int = Field(default=64, ge=1, le=1_000_000)
    images_per_prompt: int = Field(default=1, ge=1, le=10_000)
    fidelity_images: int = Field(default=512, ge=16, le=10_000_000)
    batch_size: int = Field(default=64, ge=1, le=100_000)
    prompt_style: Literal["plain", "placed"] = "plain"


class Recipe(Config):
    """One run, from pictures to scores."""

    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    text: TextEncoderConfig = MiniLMConfig()
    autoencoder: AutoencoderConfig = PatchCodecConfig()
    model: ModelConfig = DiTConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    preview: PreviewConfig = PreviewConfig()
    scores: ScoresConfig = ScoresConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _sections_fit(self):
        unit = self.downsampling * self.model.patch
        if self.data.image_size % unit:
            raise ValueError(
                f"data.image_size {self.data.image_size} must be a multiple of {unit}, which is "
                f"{self.downsampling} pixels per latent times model.patch {self.model.patch}"
            )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels along one side of a latent position."""
        if isinstance(self.autoencoder, SDAutoencoderConfig):
            return SD_DOWNSAMPLING
        if isinstance(self.autoencoder, DiffusersAutoencoderConfig):
            return self.autoencoder.downsampling
        return self.autoencoder.patch

    @property
    def latent_side(self) -> int:
        """Latent positions along one side of a picture."""
        return self.data.image_size // self.downsampling

    def fingerprint(self) -> str:
        """SHA-256 of the resolved recipe."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def recipe_folders() -> list[Path]:
    """Where recipes are looked for by name: beside the installed package, or in the checkout."""
    here = Path(__file__).resolve().parent
    return [f for f in (here / "recipes", here.parents[1] / "recipes") if f.is_dir()]


def recipe_names() -> list[str]:
    """The recipes that can be named without a path."""
    return sorted({f.stem for folder in recipe_folders() for f in folder.glob("*.toml")})


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by name."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return path
    for folder in recipe_folders():
        if (folder / f"{name}.toml").exists():
            return folder / f"{name}.toml"
    raise UserError(f"recipe {name!r}: no such file, and none of the recipes {', '.join(recipe_names())}.")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe."""
    path = find_recipe(name)
    # On top of the defaults, so that a table may leave out its `kind`.
    values = merge(merge(Recipe().model_dump(), read_toml(path)), parse_overrides(overrides))
    return parse(Recipe, values, str(path) + (" with overrides" if overrides else ""))


def check_shards(
    recipe: Recipe, folder: Path, text: dict[str, Any], autoencoder: dict[str, Any], size: int
) -> None:
    """Refuse shards that were made with other encoders or another size than the recipe's."""
    pairs = [
        ("text", text, recipe.text.model_dump()),
        ("autoencoder", autoencoder, recipe.autoencoder.model_dump()),
        ("data", {"image_size": size}, {"image_size": recipe.data.image_size}),
    ]
    for section, made, wanted in pairs:
        for key in wanted:
            if made.get(key) != wanted[key]:
                raise UserError(
                    f"{folder}: its shards were made with {section}.{key} = {made.get(key)!r}, but the "
                    f"recipe says {wanted[key]!r}; encode again, or set {section}.{key} in the recipe."
                )
