"""From a model to an object that turns prompts into pictures.

In: the name or path of a model. Out: PIL images. A picture depends on the weights, its prompt, its seed and
the sampling settings alone: not on the batch that it is made in.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kilopix.compiled_step import CompiledStep
from kilopix.data.pictures import save_png
from kilopix.data.trained_on import TrainedOn
from kilopix.diffusion.samplers import OnStep, SamplerName
from kilopix.diffusion.sampling import PresetName, SamplingChanges, SamplingConfig
from kilopix.errors import PromptWarning
from kilopix.model_files import find_weights, in_low_precision, load_model
from kilopix.models.rin import RIN
from kilopix.network import Network, sample_latents
from kilopix.pretrained.autoencoder import CODEC_FILE, Autoencoder, AutoencoderConfig, load_autoencoder
from kilopix.pretrained.patch_codec import PatchCodec, PatchCodecConfig
from kilopix.pretrained.text_cache import TextCache
from kilopix.pretrained.text_encoder import MiniLMConfig, TextEncoder, TextEncoderConfig, load_text_encoder
from kilopix.pretrained.weights import DtypeName, torch_dtype
from kilopix.previews import OnSamplingStep, SamplingStep, as_images, cheap_decoder
from kilopix.progress import Progress
from kilopix.recipe import Recipe
from kilopix.runtime import pick_device, sha256_of_file
from kilopix.types import LatentStatistics, UserError

OnImage = Callable[[int], None]
Size = int | tuple[int, int]
"""Pixels of both sides, or width and height."""


@dataclass(frozen=True)
class Generator:
    """A network with its text encoder and autoencoder; call it with prompts.

    The encoders are loaded when they are first used.
    """

    network: Network
    recipe: Recipe
    weights: Path
    images_seen: int
    device: str
    text_fingerprint: str | None
    autoencoder_fingerprint: str | None
    whitening: LatentStatistics | None = None
    codec: PatchCodec | None = None
    dtype: torch.dtype = torch.float32
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    run: CompiledStep | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str | None = None,
        device: str = "auto",
        *,
        revision: str | None = None,
        dtype: DtypeName = "auto",
        text_encoder: Path | str | None = None,
        autoencoder: Path | str | None = None,
        compiled: bool = False,
    ) -> "Generator":
        """Load a model by path or name: `mini` (also without a name), a run folder, a checkpoint, a
        safetensors file, or a repository on the Hugging Face hub, where `revision` pins a version.

        `text_encoder` and `autoencoder` say where those are, in place of the names that the model was
        trained with. `dtype` is what the network computes in: `auto` is bfloat16 on CUDA and float32
        elsewhere. With `compiled` a step is compiled when it is first made, which takes up to minutes, and
        then many small batches are made sooner on a GPU.
        """
        model = load_model(find_weights(path, revision))
        device = pick_device(device)
        kind = torch_dtype(dtype, device)
        network = model.network if kind == torch.float32 else in_low_precision(model.network, kind)
        recipe, codec = model.recipe, model.codec
        if text_encoder is not None:
            recipe = recipe.model_copy(update={"text": _text_at(recipe.text, text_encoder)})
        if autoencoder is not None and isinstance(recipe.autoencoder, PatchCodecConfig):
            file = Path(autoencoder)
            codec = PatchCodec.load(file / CODEC_FILE if file.is_dir() else file)
        elif autoencoder is not None:
            recipe = recipe.model_copy(
                update={"autoencoder": _autoencoder_at(recipe.autoencoder, autoencoder)}
            )
        network = network.to(device)
        return cls(
            network,
            recipe,
            model.weights,
            model.images_seen,
            device,
            model.text_fingerprint,
            model.autoencoder_fingerprint,
            model.whitening,
            codec,
            kind,
            model.trained_on,
            CompiledStep(network) if compiled else None,
        )

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The recipe's text encoder."""
        encoder = load_text_encoder(self.recipe.text, self.device)
        self._check("text encoder", encoder.fingerprint, self.text_fingerprint)
        return encoder

    @cached_property
    def text_cache(self) -> TextCache:
        """The text encoder, with the states of the last prompts kept."""
        return TextCache(self.text_encoder)

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The recipe's autoencoder; a patch codec comes with the weights or lies beside them."""
        if self.codec is not None:
            autoencoder: Autoencoder = self.codec.to(self.device)
        else:
            folder = _find_beside(self.weights, CODEC_FILE)
            autoencoder = load_autoencoder(self.recipe.autoencoder, folder, self.device)
        self._check("autoencoder", autoencoder.fingerprint, self.autoencoder_fingerprint)
        return autoencoder

    def _check(self, what: str, found: str, made_with: str | None) -> None:
        if made_with is not None and found != made_with:
            raise UserError(f"{self.weights}: was trained with {what} {made_with}, but {found} is here.")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights file."""
        return sha256_of_file(self.weights)

    @cached_property
    def _cheap_decode(self) -> Callable[[Tensor], Tensor]:
        return cheap_decoder(self.autoencoder)

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int = 32,
        on_image: OnImage | None = None,
        *,
        num_images: int | None = None,
        seed: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        sampler: SamplerName | None = None,
        negative_prompt: str | None = None,
        preset: PresetName | None = None,
        size: Size | None = None,
        on_step: OnSamplingStep | None = None,
    ) -> list[Image.Image]:
        """`num_images` pictures of every prompt: all of the first prompt, then of the second, ...

        Their seeds are `seed`, `seed` + 1, ..., or exactly `seeds`. What is None is the model's own setting;
        a `preset` replaces all of them first. `on_step` is called after every step of every batch, `on_image`
        after every batch with the number of pictures done; an exception in either ends the call. Words that a
        model of the embedded world was never taught are named in a `PromptWarning`.
        """
        prompts = [prompts] if isinstance(prompts, str) else _listed("prompts", prompts)
        if seeds is not None and (num_images is not None or seed is not None):
            raise UserError("seeds: give either seeds, or num_images and seed.")
        if seeds is None:
            first = 0 if seed is None else _whole("seed", seed)
            seeds = range(first, first + (1 if num_images is None else _whole("num_images", num_images, 1)))
        seeds = [_whole("seeds", number) for number in _listed("seeds", seeds)]
        changes = SamplingChanges(sampler, steps, guidance, negative_prompt, preset)
        settings = self.settings(changes, sampling)
        jobs = [(prompt, number) for prompt in prompts for number in seeds]
        if note := self.trained_on.note([prompt for prompt in prompts if isinstance(prompt, str)]):
            warnings.warn(note, PromptWarning, stacklevel=2)
        return self.generate(jobs, settings, batch_size, on_image, on_step, size)

    def settings(self, changes: SamplingChanges, sampling: SamplingConfig | None = None) -> SamplingConfig:
        """The model's own sampling settings, or those given, with checked changes."""
        return changes.apply(sampling or self.recipe.sampling)

    def generate(
        self,
        jobs: Sequence[tuple[str, int]],
        sampling: SamplingConfig | None = None,
        batch_size: int = 32,
        on_image: OnImage | None = None,
        on_step: OnSamplingStep | None = None,
        size: Size | None = None,
    ) -> list[Image.Image]:
        """One picture for every (prompt, seed); `on_image` is told after each batch how many are done."""
        images: list[Image.Image] = []
        settings = sampling or self.recipe.sampling
        wrong = next((prompt for prompt, _ in jobs if not isinstance(prompt, str)), None)
        if wrong is not None:
            raise UserError(f"prompts: each must be a text (got {wrong!r}).")
        batch_size = _whole("batch_size", batch_size, 1)
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            latents = self.latents(
                [prompt for prompt, _ in batch],
                [seed for _, seed in batch],
                settings,
                self._step_reporter(start, settings.steps, on_step) if on_step else None,
                size,
            )
            images += self.pictures(latents)
            if on_image:
                on_image(len(images))
        return images

    def write(
        self,
        jobs: Sequence[tuple[Path, str, int]],
        sampling: SamplingConfig,
        batch_size: int,
        shown: Progress,
    ) -> None:
        """Make PNG files, each of (file, prompt, seed), and show how far they are.

        All pictures of a batch are finished at once, so after every step of it a part of them is counted.
        """
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            before = shown.done

            def count(step: SamplingStep, before: float = before, size: int = len(batch)) -> None:
                shown.update(before + size * step.number / step.steps)

            asked = [(prompt, seed) for _, prompt, seed in batch]
            images = self.generate(asked, sampling, batch_size, on_step=count)
            for (file, _, _), image in zip(batch, images, strict=True):
                save_png(image, file)
            shown.update(before + len(batch))

    def _step_reporter(self, first: int, steps: int, on_step: OnSamplingStep) -> OnStep:
        def report(number: int, state: Tensor, data: Tensor) -> None:
            on_step(SamplingStep(number + 1, steps, first, data, self._preview))

        return report

    @torch.inference_mode()
    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """Latents that `latents` sampled, decoded."""
        if self.whitening:
            latents = self.whitening.restore(latents)
        return as_images(self.autoencoder.decode(latents))

    @torch.inference_mode()
    def _preview(self, latents: Tensor, exact: bool) -> list[Image.Image]:
        if exact:
            return self.pictures(latents)
        return as_images(self._cheap_decode(self.whitening.restore(latents) if self.whitening else latents))

    @torch.inference_mode()
    def latents(
        self,
        prompts: list[str],
        seeds: list[int],
        sampling: SamplingConfig,
        on_step: OnStep | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """Sample latents, one per prompt and seed; `on_step` sees number, state and data of every step."""
        encode = self.text_cache.encode
        return sample_latents(
            self.network,
            self.recipe.objective,
            sampling,
            encode(prompts),
            encode([sampling.negative_prompt]),
            seeds,
            self._latent_shape(size),
            on_step,
            self._precision,
            self.run,
        )

    def _precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, self.dtype)

    def _latent_shape(self, size: Size | None) -> tuple[int, int, int]:
        """Channels, height and width of a picture's latents."""
        own = self.recipe.data.image_size
        width, height = (own, own) if size is None else _sides(size)
        if isinstance(self.network, RIN) and (width, height) != (own, own):
            raise UserError(f"size {width} x {height}: this network makes pictures of {own} x {own} only.")
        unit = self.recipe.downsampling * self.recipe.model.patch
        if width < unit or height < unit or width % unit or height % unit:
            raise UserError(f"size {width} x {height}: both sides must be multiples of {unit} pixels.")
        per_latent = self.autoencoder.downsampling
        return self.autoencoder.channels, height // per_latent, width // per_latent


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    """A list of at least one value."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise UserError(f"{name}: must be a list (got {values!r}).")
    listed = list(values)
    if not listed:
        raise UserError(f"{name}: the list is empty.")
    return listed


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, of NumPy too; true and false are none."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(f"{name}: must be a whole number (got {value!r}).")
    if least is not None and value < least:
        raise UserError(f"{name}: must be at least {least} (got {value}).")
    return int(value)


def _sides(size: Size) -> tuple[int, int]:
    """Width and height."""
    pair = (size, size) if isinstance(size, Integral) else size
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"size: must be a number of pixels, or width and height (got {size!r}).")
    width, height = pair
    return _whole("size", width), _whole("size", height)


def _find_beside(weights: Path, name: str) -> Path | None:
    """The folder at or up to two levels above the weights that holds a file of this name.

    A link is followed only where nothing lies beside it: the hub's cache links files to where they all are.
    """
    for path in (weights.absolute(), weights.resolve()):
        for folder in list(path.parents)[:3]:
            if (folder / name).is_file():
                return folder
    return None


def _text_at(config: TextEncoderConfig, place: Path | str) -> TextEncoderConfig:
    if isinstance(config, MiniLMConfig):
        raise UserError("text_encoder: this model's is all-MiniLM-L6-v2, which is installed with kilopix.")
    return config.model_copy(update={"name": str(place), "revision": None})


def _autoencoder_at(config: AutoencoderConfig, place: Path | str) -> AutoencoderConfig:
    folder = Path(place).expanduser()
    inside = "vae" if not (folder / "config.json").is_file() and (folder / "vae").is_dir() else ""
    return config.model_copy(update={"name": str(place), "revision": None, "subfolder": inside})
