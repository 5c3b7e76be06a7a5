"""The card of a model: what it is, how it was trained, what it scored and how that was measured.

In: a generator, protocol cards, samples. Out: the text of `README.md`, as the Hugging Face hub reads it.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from kilopix.data.trained_on import TrainedOn
from kilopix.english import counted
from kilopix.evaluation.protocol import Card, Score
from kilopix.generator import Generator
from kilopix.models.rin import RIN
from kilopix.plain_text import code_in_markdown, in_markdown, visible

PAPER = "2502.21318"
NAMED_CLASSES = 12
FULL_NAMES = {"rin": "CAD-I, a recurrent interface network", "dit": "DiT-I, a diffusion transformer"}


@dataclass(frozen=True)
class Sample:
    """A picture of the card, by its file's place below the folder, and what it was asked for."""

    file: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class About:
    """What only the owner of a model knows: its name, licence, and data sets by their names on the hub."""

    name: str
    license: str | None = None
    datasets: tuple[str, ...] = ()


def model_card(
    generator: Generator, about: About, cards: Sequence[Card], samples: Sequence[Sample], diffusers: bool
) -> str:
    """The whole of README.md."""
    recipe, sampling = generator.recipe, generator.recipe.sampling
    parameters = sum(p.numel() for p in generator.network.parameters())
    kind = FULL_NAMES[recipe.model.kind]
    parts = [
        f"---\n{_front_matter(generator, about, cards, samples, diffusers)}\n---",
        f"# {in_markdown(about.name)}",
        f"A text-to-image diffusion model: {kind} of {parameters / 1e6:.1f} million parameters for pictures "
        f"of {recipe.data.image_size} x {recipe.data.image_size} pixels, trained with "
        f"kilopix after *How far can we go with ImageNet for "
        f"Text-to-Image generation?* ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})).",
        _pictures(samples),
        "## Use",
        _use(about, samples, diffusers),
        f"Its own sampling settings: `{sampling.sampler}`, {counted(sampling.steps, 'step')}, guidance scale "
        f"{sampling.guidance.scale:g} (1 is off).",
        "## Training",
        _training(generator, about),
        "## Scores",
        *(_scores(card) for card in cards),
    ]
    if not cards:
        parts.append("None were measured for this card.")
    parts += [
        "## Limits",
        "It knows what its training captions name, and little else: words that they lack, long texts, "
        "numbers above a few, and writing in pictures fail. Like its data, it can show people and places "
        "one-sidedly. What it makes is no evidence of anything.",
        "## Recipe",
        f"```json\n{json.dumps(recipe.model_dump(mode='json'), indent=1)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(
    generator: Generator, about: About, cards: Sequence[Card], samples: Sequence[Sample], diffusers: bool
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=card.benchmark or "kilopix",
            dataset_name=card.benchmark or "kilopix evaluate",
            metric_type=score.name,
            metric_value=score.value,
            metric_name=score.name,
        )
        for card in cards
        for score in card.scores
    ]
    network = "rin" if isinstance(generator.network, RIN) else "dit"
    data = ModelCardData(
        license=about.license,
        library_name="diffusers" if diffusers else "kilopix",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusion", "kilopix", network, f"arxiv:{PAPER}"],
        datasets=list(about.datasets) or None,
        model_name=about.name if results else None,
        eval_results=results or None,
        widget=[{"text": s.prompt, "output": {"url": s.file}} for s in samples] or None,
    )
    return data.to_yaml().strip()


def _pictures(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    heads = " | ".join(f"![{in_markdown(s.prompt)}]({s.file})" for s in samples)
    rules = " | ".join("---" for _ in samples)
    texts = " | ".join(f"{in_markdown(s.prompt)} (seed {s.seed})" for s in samples)
    return f"| {heads} |\n| {rules} |\n| {texts} |"


def _use(about: About, samples: Sequence[Sample], diffusers: bool) -> str:
    prompt = samples[0].prompt if samples else "a photo"
    quoted, name = (visible(json.dumps(text, ensure_ascii=False)) for text in (prompt, about.name))
    if diffusers:
        return (
            "With diffusers and transformers; kilopix is not needed. The pipeline's code is in this folder, "
            "so read it before you trust it.\n\n"
            "```python\nfrom diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({name}, trust_remote_code=True)\n"
            f"image = pipeline({quoted}, seed=0).images[0]\n```"
        )
    return (
        "```python\nfrom kilopix import Generator\n\n"
        f"generator = Generator.from_pretrained({name})\n"
        f"image = generator({quoted}, seed=0)[0]\n```\n\n"
        f"or {code_in_markdown(f'kilopix sample {shlex.quote(about.name)} {shlex.quote(prompt)}')}."
    )


def _training(generator: Generator, about: About) -> str:
    recipe = generator.recipe
    objective = recipe.objective
    trained_on = generator.trained_on
    number = generator.images_seen
    seen = trained_on.seen(number) if number else "images of a number not recorded"
    rows = {
        "data": in_markdown(", ".join(about.datasets)) or "not named",
        "images": f"{seen}, in batches of {recipe.training.batch_size}",
        "classes": _classes(trained_on),
        "captions": in_markdown(trained_on.captioner) or "of a source not recorded",
        "objective": f"{objective.prediction} on the {objective.path.kind} path",
        "text encoder": in_markdown(generator.text_fingerprint or recipe.text.kind),
        "autoencoder": in_markdown(generator.autoencoder_fingerprint or recipe.autoencoder.kind),
        "weights' SHA-256": f"`{generator.fingerprint}`",
        "kilopix": version("kilopix"),
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def _classes(trained_on: TrainedOn) -> str:
    """The number of classes, and the first few by name."""
    shown = in_markdown(", ".join(trained_on.classes[:NAMED_CLASSES]))
    more = ", ..." if trained_on.class_count > NAMED_CLASSES else ""
    return f"{trained_on.class_count:,}: {shown}{more}" if shown else "not recorded"


def _scores(card: Card) -> str:
    """A table of one benchmark, and the protocol without which its numbers mean nothing."""
    lines = [
        f"### {in_markdown(card.benchmark or card.evaluator)}",
        "",
        "| score | value | 95% interval | n |",
    ]
    lines += ["|---|---|---|---|", *(_row(score) for score in card.scores), ""]
    protocol = {
        "sampler": card.sampler,
        "steps": card.steps,
        "guidance scale": card.guidance,
        "pixels": card.resolution,
        "pictures": card.images,
        "pictures a prompt": card.images_per_prompt,
        "prompts": card.prompt_style,
        "prompts' SHA-256": card.prompts_sha256,
        "reference's SHA-256": card.reference_sha256,
        "evaluator": card.evaluator,
        "evaluator's SHA-256": card.evaluator_sha256,
        "kilopix": card.kilopix_version,
    }
    known = [f"{key} {in_markdown(str(value))}" for key, value in protocol.items() if value is not None]
    return "\n".join([*lines, f"Protocol: {'; '.join(known)}."])


def _row(score: Score) -> str:
    value = f"{score.value:.4g} {score.unit}".strip()
    between = f"{score.low:.4g} to {score.high:.4g}" if score.low is not None else "not estimated"
    return f"| {in_markdown(score.name)} | {in_markdown(value)} | {between} | {score.n} |"


def read_cards(paths: Sequence[Path]) -> list[Card]:
    """Protocol cards, each given as a file or as the folder that holds `card.json`."""
    from kilopix.evaluation.protocol import card_of, read_card

    return [read_card(card_of(path)) for path in paths]
