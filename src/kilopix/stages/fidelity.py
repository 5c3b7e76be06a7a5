"""Pictures to scores of fidelity and preference: distances to real pictures, and what people would prefer.

In: a set of pictures, a set of real ones or the statistics of their features, and the weights of the
networks that look at them. Out: a folder with `card.json`, every score with its protocol, and
`observations.jsonl`, the scores of single pictures. All is computed that the weights allow; what is left out
is named with the reason. Features and finished scores are kept, those of the real pictures in a cache that
all runs share, so that a run that was stopped goes on.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kilopix.artefacts.locks import owns
from kilopix.config import parse, parse_overrides
from kilopix.data.picture_sets import ARRAYS, SAMPLES, PictureSet
from kilopix.english import counted
from kilopix.evaluation.fidelity import frechet_distance
from kilopix.evaluation.made import MADE, Made, made_by_sampling, read_made
from kilopix.evaluation.protocol import (
    CARD,
    OBSERVATIONS,
    Card,
    Evaluator,
    LeftOut,
    Score,
    Setting,
    check_card,
    write_card,
)
from kilopix.evaluation.reference_statistics import ORIGIN
from kilopix.evaluation.statistics import bootstrap, observe
from kilopix.evaluation.streaming import comparisons, kernel_distance_subsets, neighbours, subset_size
from kilopix.features import load_network, stored_moments, versions
from kilopix.fidelity_sets import FidelityConfig, Work, read_work
from kilopix.pretrained.aesthetic import load_aesthetic
from kilopix.pretrained.vision_hub import CLIP, cosines
from kilopix.progress import Progress, working
from kilopix.runtime import (
    atomic_path,
    cache_folder,
    read_json,
    say,
    sha256_of_text,
    write_json,
)
from kilopix.types import UserError

NETWORKS = ("inception", "dinov2", "clip", "efficientnet-lite0")
DISTANCES = ("FID", "Frechet distance", "KID")
OF_IMAGES = ("KID", "precision", "recall", "density", "coverage")
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
NO_IMAGES = "the reference is mean and covariance of Inception's features, and this needs the real images"
NO_SPATIAL = "kilopix has no spatial features of Inception, which mu_s and sigma_s are of"


@owns("out")
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
    overwrite: bool = False,
) -> Card:
    """Score pictures; the same command again goes on, and takes up weights that have come since.

    What is named in `only` must work; without it, what does not is left out.
    """
    every = (*NETWORKS, *PREFERENCES)
    unknown = [name for name in only if name not in every]
    if unknown:
        raise UserError(f"{unknown[0]}: no such score; there are {', '.join(every)}.")
    config = parse(FidelityConfig, parse_overrides(overrides), "overrides")
    places = out, config, prompts, cache or cache_folder()
    work = read_work(images, reference, *places, workers, device, overwrite)
    left_out = _left_out(work, only or every, bool(only))
    chosen = [name for name in only or every if name not in left_out]
    if not chosen:
        raise UserError("nothing can be computed: " + "; ".join(f"{k}: {v}" for k, v in left_out.items()))
    if "inception" in chosen:
        left_out |= _beyond_statistics(work)
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
    card = _card(work, scores, evaluators, left_out)
    check_card(out / CARD, card, overwrite)
    _write_observations(out / OBSERVATIONS, work.images.set, values)
    write_card(out / CARD, card)
    for score in scores:
        interval = "" if score.low is None else f" ({score.low:.4g} to {score.high:.4g})"
        say(f"  {score.name}: {score.value:.4g}{interval}")
        if score.caution:
            say(f"    {score.caution}.")
    for name, because in left_out.items():
        say(f"  {name}: left out, because {because.rstrip('.')}.")
    say(f"{out / CARD}: {counted(len(scores), 'score')} of {counted(card.images, 'picture')}.")
    return card


def _beyond_statistics(work: Work) -> dict[str, str]:
    """The scores by Inception's features that statistics do not give, with the reasons."""
    reasons: dict[str, str] = {}
    if work.reference is None:
        reasons |= {f"{metric} (inception)": NO_IMAGES for metric in OF_IMAGES}
    if work.statistics is not None and work.statistics.spatial:
        reasons["sFID (inception)"] = NO_SPATIAL
    return reasons


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
        raise UserError("the pictures, or some of them, have no prompts; give them with --prompts")
    if name in NETWORKS and name != "inception" and work.reference is None:
        raise UserError(NO_IMAGES)
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
    network = load_network(name, work.config.weights, work.device)
    fingerprint = network.fingerprint
    values = _remember(work, name, fingerprint, partial(_compare, work, name))
    n = len(work.images.set.files)
    real = n if work.reference is None else len(work.reference.set.files)
    caution = few_images(min(n, real), network.width)
    scores = [
        Score(
            name=f"{metric} ({name})",
            value=value,
            n=n,
            unit="lower is better" if metric in DISTANCES else "",
            evaluator=name,
            caution=caution if metric in ("FID", "Frechet distance") else "",
        )
        for metric, value in values.items()
    ]
    return scores, Evaluator(name=name, fingerprint=fingerprint)


def few_images(images: int, width: int) -> str:
    """What to know of a Frechet distance by so many images and features; empty where there are enough."""
    if images > width:
        return ""
    return (
        f"by {images:,} images and {width:,} features: the covariance of so few is singular, and the "
        "distance comes out too large (Chong and Forsyth 2020). It compares only with one of as many images. "
        "KID has no such bias, only a wider spread; means over single images hold at any number; precision, "
        "recall, density and coverage, too, compare only between sets of one size"
    )


def _compare(work: Work, name: str) -> dict[str, float]:
    config = work.config
    real = work.features(name, real=True) if work.reference is not None else None
    fake = work.features(name)
    if name == "inception" and work.statistics is not None:
        moments = work.statistics.on(fake.device)
    else:
        assert real is not None
        moments = stored_moments(real)
    distance = "FID" if name == "inception" else "Frechet distance"
    with working(f"{name}, {distance}"):
        values = {distance: frechet_distance(moments, stored_moments(fake))}
    if real is None:
        return values
    with working(f"{name}, KID"):
        mean, deviation = kernel_distance_subsets(
            real, fake, config.kid_subsets, config.kid_subset_size, config.seed
        )
    values |= {"KID": mean, "KID, deviation of its subsets": deviation}
    with Progress(f"{name}, neighbours", comparisons(real, fake), unit="comparison") as shown:
        return values | asdict(neighbours(real, fake, config.neighbours, shown.advance))


def _remember(work: Work, name: str, fingerprint: str, compute: Callable[[], Any]) -> Any:
    """What these weights gave before for the same images, with the same packages, or give now."""
    path = work.out / "scores" / f"{name}.json"
    key = {"weights": fingerprint, "versions": versions(), "job": sha256_of_text(json.dumps(work.job))}
    try:
        if path.exists():
            if (stored := read_json(path, sealed=True))["key"] == key:
                return stored["values"]
            say(f"{path}: by other images, weights or packages, and made anew.")
    except UserError as error:
        say(f"{error} It is made anew.")
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
    values = _remember(work, name, fingerprint, compute)
    return values, Evaluator(name=name, fingerprint=fingerprint, settings=settings)


def _score_pictures(work: Work, name: str, network: CLIP) -> list[float]:
    """Hessel et al. 2021, without their factor of 2.5 and times 100; Kirstain et al. 2023, eq. 1."""
    features = work.features(network.name)
    head = load_aesthetic(work.config.weights.file(name), work.device) if name == "aesthetic" else None
    values: list[float] = []
    with Progress(name, sum(features.sizes)) as shown:
        for i, size in enumerate(features.sizes):
            block = features.block(i)
            if head is not None:
                scores = head.score(block)
            else:
                prompts = (work.images.set.prompts or ())[len(values) : len(values) + size]
                cosine = cosines(block, network.text_features(prompts))
                scores = cosine.clamp(min=0) * 100 if name == "clipscore" else cosine * network.scale
            values += scores.tolist()
            shown.advance(size)
    return values


def _mean_score(name: str, values: list[float], prompts: tuple[str, ...] | None) -> Score:
    """The mean with an interval from drawing the prompts anew, or the images where there are none.

    Images of one prompt alone do not tell how prompts differ: there is no interval then.
    """
    seen = observe(values, prompts or range(len(values)))
    ends = bootstrap(seen)
    low, high = (ends.low, ends.high) if len(seen.keys) > 1 else (None, None)
    return Score(name=PREFERENCES[name], value=ends.value, low=low, high=high, n=len(values), evaluator=name)


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
    made = _made(work)
    count = len(pictures.files)
    repeats = set(Counter(pictures.prompts or ()).values())
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
        images_per_prompt=repeats.pop() if len(repeats) == 1 else None,
        images=count,
        reference_sha256=work.reference_sha256,
        evaluator=", ".join(one.name for one in evaluators),
        evaluator_sha256=sha256_of_text("\n".join(one.fingerprint for one in evaluators)),
        evaluators=tuple(evaluators),
        settings=_settings(work, [one.name for one in evaluators]),
        kilopix_version=version("kilopix"),
        versions=versions(),
        left_out=tuple(LeftOut(name=name, because=because) for name, because in left_out.items()),
        scores=tuple(scores),
    )


def _settings(work: Work, evaluators: Sequence[str]) -> dict[str, Setting]:
    """What was done: settings that were cut to the size of the sets, and none that were not used."""
    config = work.config
    settings: dict[str, Setting] = {"fit_reference": work.fitted, "allow_doubled": work.doubled}
    width, height = work.images.size
    if width != height:
        settings["image_size"] = f"{width}x{height}"
    if work.statistics is not None and "inception" in evaluators:
        settings["reference_statistics"] = ORIGIN
    if work.reference is None:
        return settings
    real = len(work.reference.set.files)
    settings["real_images"] = real
    if set(evaluators) & set(NETWORKS):
        settings |= {
            "neighbours": config.neighbours,
            "kid_subsets": config.kid_subsets,
            "kid_subset_size": subset_size(config.kid_subset_size, real, len(work.images.set.files)),
            "seed": config.seed,
        }
    return settings


def _made(work: Work) -> Made:
    """What is known of how the pictures were made: by `kilopix sample`, or as a `made.json` says."""
    root = work.images.set.root
    if work.source.suffix.lower() == ARRAYS:  # the root is a place in the cache
        beside = work.source.parent
        return read_made(beside) if (beside / MADE).is_file() else Made(checkpoint=work.source.stem)
    if (root / SAMPLES).is_file():
        return made_by_sampling(root / SAMPLES, work.images.set.files)
    return read_made(root)
