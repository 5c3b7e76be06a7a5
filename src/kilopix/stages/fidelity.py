"""Pictures to scores of fidelity and preference: distances to real pictures, and what people would prefer.

In: a set of pictures, a set of real ones, and the weights of the networks that look at them. Out: a folder
with `card.json`, every score with its protocol, and `observations.jsonl`, the scores of single pictures. All
is computed that the weights allow; what is left out is named with the reason. Features and finished scores
are kept, those of the real pictures in a cache that all runs share, so that a run that was stopped goes on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from kilopix.config import Config, parse, parse_overrides
from kilopix.data.checked import check_pictures
from kilopix.data.parts import open_job
from kilopix.data.picture_sets import SAMPLES, PictureSet, read_picture_set
from kilopix.evaluation.fidelity import frechet_distance
from kilopix.evaluation.made import Made, read_made
from kilopix.evaluation.protocol import Card, Evaluator, LeftOut, Score, Setting, write_card
from kilopix.evaluation.statistics import bootstrap, observe
from kilopix.evaluation.streaming import comparisons, kernel_distance_subsets, neighbours
from kilopix.features import (
    Pictures,
    StoredFeatures,
    WeightsConfig,
    load_network,
    store_features,
    stored_moments,
    versions,
)
from kilopix.pretrained.aesthetic import load_aesthetic
from kilopix.pretrained.vision_hub import CLIP, cosines
from kilopix.runtime import (
    atomic_path,
    cache_folder,
    pick_device,
    progress_bar,
    read_json,
    say,
    sha256_of_text,
    write_json,
)
from kilopix.types import UserError

CARD, OBSERVATIONS = "card.json", "observations.jsonl"
NETWORKS = ("inception", "dinov2", "clip", "efficientnet-lite0")
DISTANCES = ("FID", "Frechet distance", "KID")
PREFERENCES = {
    "clipscore": "CLIPScore",
    "aesthetic": "aesthetic score",
    "pickscore": "PickScore",
    "imagereward": "ImageReward",
}
NO_IMAGEREWARD = (
    "its network reads prompt and picture together in a BLIP of its own, published as a pickle only, "
    "and kilopix has no loader for it"
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
    """What a run scores, how, and where to."""

    images: Pictures
    reference: Pictures
    config: FidelityConfig
    out: Path
    cache: Path
    device: str
    workers: int | None

    def features(self, network: str, real: bool = False) -> StoredFeatures:
        """The features of either set, made where they are not there yet."""
        return store_features(
            self.reference if real else self.images,
            network,
            self.config.weights,
            self.cache if real else self.out,
            f"{network}, {'real pictures' if real else 'pictures'}",
            self.device,
            self.workers,
            self.config.rows_per_part,
        )


def run(
    images: Path,
    reference: Path,
    out: Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    prompts: Path | None = None,
    cache: Path | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> Card:
    """Score pictures; the same command again goes on, and takes up weights that have come since.

    What is named in `only` must work; without it, what does not is left out.
    """
    every = (*NETWORKS, *PREFERENCES)
    unknown = [name for name in only if name not in every]
    if unknown:
        raise UserError(f"{unknown[0]}: no such score; there are {', '.join(every)}.")
    config = parse(FidelityConfig, parse_overrides(overrides), "overrides")
    work = _read(images, reference, out, config, prompts, cache or cache_folder(), workers, device)
    left_out = _left_out(work, only or every, bool(only))
    chosen = [name for name in only or every if name not in left_out]
    if not chosen:
        raise UserError("nothing can be computed: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    scores: list[Score] = []
    values: dict[str, list[float]] = {}
    evaluators: list[Evaluator] = []
    for name in chosen:
        if name in NETWORKS:
            found, evaluator = _fidelity(work, name)
            scores += found
        else:
            values[name], evaluator = _preferences(work, name)
            scores.append(_mean_score(name, values[name], work.images.set.prompts))
        evaluators.append(evaluator)
    _write_observations(out / OBSERVATIONS, work.images.set, values)
    card = _card(work, scores, evaluators, left_out)
    write_card(out / CARD, card)
    for score in scores:
        interval = "" if score.low is None else f" ({score.low:.4g} to {score.high:.4g})"
        say(f"  {score.name}: {score.value:.4g}{interval}")
    for name, because in left_out.items():
        say(f"  {name}: left out, because {because.rstrip('.')}.")
    say(f"{out / CARD}: {len(scores)} scores of {card.images} pictures.")
    return card


def _read(
    images: Path,
    reference: Path,
    out: Path,
    config: FidelityConfig,
    prompts: Path | None,
    cache: Path,
    workers: int | None,
    device: str,
) -> Work:
    """Find both sets and hash every file, before any network is loaded."""
    sets = read_picture_set(images, prompts), read_picture_set(reference)
    say(f"reading {len(sets[0].files)} pictures and {len(sets[1].files)} real ones ...")
    made = check_pictures(sets[0].root, sets[0].files, None, config.allow_doubled, heads_only=True)
    size = made.size
    real = check_pictures(
        sets[1].root,
        sets[1].files,
        "any" if config.fit_reference else size,
        config.allow_doubled,
        heads_only=True,
        other_size="; make them of one size, or say fit_reference=true, which cuts the real ones",
    )
    shas = [sha256_of_text("\n".join(checked.sha256)) for checked in (made, real)]
    if shas[0] == shas[1]:
        raise UserError(f"{images} and {reference} hold the same pictures; give real ones as the second.")
    job = {
        "stage": "fidelity",
        "images": shas[0],
        "reference": shas[1],
        "prompts": sets[0].prompts_sha256,
        "settings": config.protocol(),
    }
    open_job(out, job)
    pair = Pictures(sets[0], shas[0], size), Pictures(sets[1], shas[1], size, config.fit_reference)
    return Work(*pair, config, out, cache, pick_device(device), workers)


def _left_out(work: Work, names: Sequence[str], must_work: bool) -> dict[str, str]:
    """What cannot be computed, with the reasons; an error where all must work."""
    reasons: dict[str, str] = {}
    for name in names:
        try:
            _try(name, work)
        except UserError as error:
            if must_work:
                raise UserError(f"{name}: {error}") from None
            reasons[name] = str(error)
    return reasons


def _try(name: str, work: Work) -> None:
    if name == "imagereward":
        raise UserError(NO_IMAGEREWARD)
    if name in ("clipscore", "pickscore") and work.images.set.prompts is None:
        raise UserError("the pictures have no prompts; give them with --prompts")
    network = load_network(_network_of(name), work.config.weights, work.device)
    if name == "aesthetic":
        head = load_aesthetic(work.config.weights.file(name))
        if head.width != network.width:
            raise UserError(f"its head is for features of width {head.width}, and CLIP's are {network.width}")


def _network_of(name: str) -> str:
    """The network whose features a score comes from."""
    return {"clipscore": "clip", "aesthetic": "clip"}.get(name, name)


def _fidelity(work: Work, name: str) -> tuple[list[Score], Evaluator]:
    """Distances and shares by the features of one network."""
    fingerprint = load_network(name, work.config.weights, work.device).fingerprint
    values = _remember(work.out / "scores" / f"{name}.json", fingerprint, partial(_compare, work, name))
    n = len(work.images.set.files)
    scores = [
        Score(
            name=f"{metric} ({name})",
            value=value,
            n=n,
            unit="lower is better" if metric in DISTANCES else "",
            evaluator=name,
        )
        for metric, value in values.items()
    ]
    return scores, Evaluator(name=name, fingerprint=fingerprint)


def _compare(work: Work, name: str) -> dict[str, float]:
    config = work.config
    real, fake = work.features(name, real=True), work.features(name)
    values = {
        "FID" if name == "inception" else "Frechet distance": frechet_distance(
            stored_moments(real), stored_moments(fake)
        )
    }
    mean, deviation = kernel_distance_subsets(
        real, fake, config.kid_subsets, config.kid_subset_size, config.seed
    )
    values |= {"KID": mean, "KID, deviation of its subsets": deviation}
    with progress_bar() as bar:
        task = bar.add_task(f"{name}, neighbours", total=comparisons(real, fake), note="")
        return values | asdict(neighbours(real, fake, config.neighbours, lambda: bar.advance(task)))


def _remember(path: Path, fingerprint: str, compute: Callable[[], Any]) -> Any:
    """What these weights gave before in this folder, with the same packages, or give now."""
    key = {"weights": fingerprint, "versions": versions()}
    if path.exists() and (stored := read_json(path))["key"] == key:
        return stored["values"]
    values = compute()
    write_json(path, {"key": key, "values": values})
    return values


def _preferences(work: Work, name: str) -> tuple[list[float], Evaluator]:
    """The score of every picture by CLIPScore, an aesthetic head or PickScore."""
    network = load_network(_network_of(name), work.config.weights, work.device)
    assert isinstance(network, CLIP)
    fingerprint = network.fingerprint
    settings: dict[str, Setting] = {}
    if name == "aesthetic":
        fingerprint += " " + load_aesthetic(work.config.weights.file(name)).fingerprint
    else:
        cut = network.too_long(work.images.set.prompts or ())
        settings = {"max_tokens": network.max_tokens, "prompts_cut": cut}
    compute = partial(_score_pictures, work, name, network)
    values = _remember(work.out / "scores" / f"{name}.json", fingerprint, compute)
    return values, Evaluator(name=name, fingerprint=fingerprint, settings=settings)


def _score_pictures(work: Work, name: str, network: CLIP) -> list[float]:
    """Hessel et al. 2021, without their factor of 2.5 and times 100; Kirstain et al. 2023, eq. 1."""
    features = work.features(network.name)
    head = load_aesthetic(work.config.weights.file(name), work.device) if name == "aesthetic" else None
    values: list[float] = []
    with progress_bar() as bar:
        task = bar.add_task(name, total=sum(features.sizes), note="")
        for i, size in enumerate(features.sizes):
            block = features.block(i)
            if head is not None:
                scores = head.score(block)
            else:
                prompts = (work.images.set.prompts or ())[len(values) : len(values) + size]
                cosine = cosines(block, network.text_features(prompts))
                scores = cosine.clamp(min=0) * 100 if name == "clipscore" else cosine * network.scale
            values += scores.tolist()
            bar.advance(task, size)
    return values


def _mean_score(name: str, values: list[float], prompts: tuple[str, ...] | None) -> Score:
    """The mean with an interval from drawing the prompts anew, or the pictures where there are none."""
    ends = bootstrap(observe(values, prompts or range(len(values))))
    return Score(
        name=PREFERENCES[name], value=ends.value, low=ends.low, high=ends.high, n=len(values), evaluator=name
    )


def _write_observations(path: Path, pictures: PictureSet, values: dict[str, list[float]]) -> None:
    """One line a picture, from which `kilopix compare` tests differences."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for i, name in enumerate(pictures.files):
            line: dict[str, Any] = {"file": name}
            if pictures.prompts is not None:
                line["prompt"] = pictures.prompts[i]
            line["values"] = {PREFERENCES[key]: scores[i] for key, scores in values.items()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _card(work: Work, scores: list[Score], evaluators: list[Evaluator], left_out: dict[str, str]) -> Card:
    pictures = work.images.set
    made = _made(pictures.root)
    count = len(pictures.files)
    asked = len(set(pictures.prompts or ()))
    return Card(
        benchmark="fidelity",
        checkpoint=made.checkpoint,
        checkpoint_sha256=made.checkpoint_sha256,
        recipe_sha256=made.recipe_sha256,
        images_sha256=work.images.sha256,
        prompts_sha256=made.prompts_sha256 or pictures.prompts_sha256,
        prompt_style=made.prompt_style or "not stated",
        seeds=made.seeds,
        sampler=made.sampler,
        steps=made.steps,
        guidance=made.guidance,
        resolution=min(work.images.size),
        images_per_prompt=count // asked if asked and count % asked == 0 else None,
        images=count,
        reference_sha256=work.reference.sha256,
        evaluator=", ".join(one.name for one in evaluators),
        evaluator_sha256=sha256_of_text("\n".join(one.fingerprint for one in evaluators)),
        evaluators=tuple(evaluators),
        settings={**work.config.protocol(), "real_images": len(work.reference.set.files)},
        kilopix_version=version("kilopix"),
        versions=versions(),
        left_out=tuple(LeftOut(name=name, because=because) for name, because in left_out.items()),
        scores=tuple(scores),
    )


def _made(root: Path) -> Made:
    """What is known of how the pictures were made: by `kilopix sample`, or as a `made.json` says."""
    if not (root / SAMPLES).is_file():
        return read_made(root)
    made = read_json(root / SAMPLES)
    sampling = made["sampling"]
    return Made(
        checkpoint=Path(made["weights"]).name,
        checkpoint_sha256=made["weights_sha256"],
        prompt_style="as given",
        seeds=tuple(sorted({image["seed"] for image in made["images"]})),
        sampler=sampling["sampler"],
        steps=sampling["steps"],
        guidance=sampling["guidance"]["scale"],
    )
