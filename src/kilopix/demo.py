"""The demo: every stage of the flow on the embedded world, one after the other.

In: a recipe. Out: a folder with all that the stages make, and `report.html`. Typed again, it skips what
is finished and goes on with the rest.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kilopix.artefacts.locks import owns
from kilopix.data.world.objects import OBJECTS, training_colors
from kilopix.english import with_article
from kilopix.errors import UserError
from kilopix.jobs import Folder, open_job
from kilopix.progress import rough
from kilopix.recipe import Recipe, load_recipe
from kilopix.runtime import read_json, say, write_json

Result = TypeVar("Result")
SHOWN = 12
INSTALLED, INSTALLED_SAMPLES = "mini", "pictures_of_mini"
STAGES = {
    "mini": "draw the embedded world",
    "caption": "describe its pictures",
    "augment": "paste pictures into one another",
    "encode": "turn pictures and captions into latents and text states",
    "train": "train the network",
    "sample": "make pictures with it",
    "installed": "make the same pictures with the installed model",
    "evaluate": "make pictures for the scores, and judge them",
    "report": "put all of it on one page",
}
"""The stages in their order, and what each does."""
_FLOPS, _FORWARD = 90e9, 3.0
"""FLOP/s that training reaches on two CPU cores that do nothing else, and what a step of it costs over one
pass forward (measured with the recipe `mini`)."""
_DRAWN, _ENCODED, _INSTALLED = 0.003, 0.014, 0.25
"""Seconds there of a picture drawn, captioned or pasted, of one encoded, of one by the installed model."""
_START = 2.0
"""Seconds in which a stage begins."""
FOLDER = Folder(("*",), record="demo.json")
BACKGROUNDS = (None, "pale blue", None, "dark green", None, "beige")


def prompts_for(recipe: Recipe) -> list[str]:
    """Prompts for the first objects that a recipe trains on, some with a colour, some with a background."""
    prompts = []
    for i, item in enumerate(OBJECTS[: min(SHOWN, recipe.world.classes)]):
        colors = training_colors(item.name)
        color = colors[i % len(colors)]
        thing = with_article(f"{color} {item.name}" if color else item.name)
        ground = BACKGROUNDS[i % len(BACKGROUNDS)]
        prompts.append(f"a photo of {thing}" + (f" on a {ground} background" if ground else ""))
    return prompts


@owns("out")
def run(out: Path, recipe_name: str, overrides: Sequence[str] = (), overwrite: bool = False) -> Path | None:
    """Run the whole flow into `out` and return the report; None if training was asked to stop."""
    recipe = load_recipe(recipe_name, overrides)
    from kilopix.stages import augment, caption, encode, evaluate, mini, report, sample, train

    world, data = recipe.world, recipe.data
    open_job(out, FOLDER, {"stage": "demo", **recipe.model_dump(mode="json")}, overwrite)
    clock = Clock(out / "times.json", estimate(recipe))
    clock.announce()
    clock.run(
        "mini",
        lambda: mini.run(
            out / "world",
            world.images_per_class,
            data.image_size,
            recipe.seed,
            world.classes,
            world.val_per_class,
        ),
    )

    captioner = data.captioner
    if captioner not in ("aio", "structured"):
        raise UserError(f"data.captioner {captioner!r}: the demo's captions are 'aio' or 'structured'.")

    def write_captions() -> None:
        caption.run(out / "world" / "train", out / "captions.parquet", captioner, recipe.seed)
        caption.run(out / "world" / "val", out / "held_out.parquet", captioner, recipe.seed)

    clock.run("caption", write_captions)
    clock.run(
        "augment",
        lambda: augment.run(
            out / "captions.parquet",
            out / "augmented",
            data.augment.kind,
            data.augment.setting,
            data.image_size,
            recipe.seed,
        ),
    )
    augmented = out / "augmented" / augment.MANIFEST
    clock.run("encode", lambda: encode.run(out / "captions.parquet", out / "shards", recipe, augmented))
    if not clock.run("train", lambda: train.run(out / "shards", out / "run", recipe)):
        return None
    clock.run(
        "sample", lambda: sample.run(out / "run", prompts_for(recipe), out / "pictures", images_per_prompt=4)
    )
    # The same prompts by the model that is installed: what hours bring, beside what minutes bring.
    clock.run(
        "installed",
        lambda: sample.run(INSTALLED, prompts_for(recipe), out / INSTALLED_SAMPLES, images_per_prompt=4),
    )
    settings = [f"evaluation.{key}={value}" for key, value in recipe.evaluation.model_dump().items()]
    clock.run(
        "evaluate",
        lambda: evaluate.run(out / "run", out / "held_out.parquet", out / "scores", overrides=settings),
    )
    clock.head("report")
    page = out / "report.html"
    report.run(
        out / "run",
        page,
        [out / "scores"],
        out / "pictures",
        augmented,
        out / "times.json",
        out / INSTALLED_SAMPLES,
    )
    say(f"The report is at {page.resolve()}")
    return page


def estimate(recipe: Recipe) -> dict[str, float]:
    """About how many seconds each stage takes on two CPU cores that do nothing else.

    Of the network, its arithmetic is counted; what it reaches of the cores was measured, as were the rest.
    """
    from kilopix.budget import Budget, Encoded

    world, sampling, judged = recipe.world, recipe.sampling, recipe.evaluation
    flops = Budget(recipe, Encoded.of(recipe)).flops_per_image
    plain = world.classes * world.images_per_class
    pictures = plain + world.classes * world.val_per_class
    # With guidance, a step is two passes forward.
    sampled = sampling.steps * 2 * flops / _FORWARD / _FLOPS
    shown = 4 * len(prompts_for(recipe))
    scored = 6 * judged.prompts_per_task * judged.images_per_prompt + judged.fidelity_images
    seconds = {
        "mini": _DRAWN * pictures,
        "caption": _DRAWN * pictures,
        "augment": _DRAWN * plain,
        "encode": _ENCODED * 2 * plain,
        "train": recipe.training.images * flops / _FLOPS,
        "sample": shown * sampled,
        "installed": _INSTALLED * shown,
        "evaluate": scored * sampled,
        "report": 0.0,
    }
    return {name: _START + seconds[name] for name in STAGES}


class Clock:
    """Seconds of every stage, kept in a file; an interrupted stage adds up, a finished one is left."""

    def __init__(self, path: Path, expected: dict[str, float]):
        self.path, self.expected = path, expected

    def announce(self) -> None:
        """Say how long all takes that is not finished."""
        times = self._times()
        left = {name: seconds for name, seconds in self.expected.items() if not _is_finished(times, name)}
        finished = len(self.expected) - len(left)
        begun = f", {finished} of them finished" if finished else ""
        say(
            f"{len(self.expected)} stages{begun}: about {rough(sum(left.values()))} on two CPU cores that do "
            "nothing else."
        )
        say("Ctrl-C stops, and the same command goes on from there.")

    def head(self, name: str) -> None:
        """Say which stage begins."""
        number = list(self.expected).index(name) + 1
        finished = _is_finished(self._times(), name)
        about = "finished before" if finished else f"about {rough(self.expected[name])}"
        say(f"\n[{number}/{len(self.expected)}] {name}: {STAGES[name]} ({about})")

    def run(self, name: str, stage: Callable[[], Result]) -> Result:
        """Run a stage, add its time, and return what it returns."""
        self.head(name)
        started = time.perf_counter()
        finished = False
        try:
            result = stage()
            finished = result is not False
            return result
        finally:
            times = self._times()
            before = times.get(name, {"seconds": 0.0, "finished": False})
            if not before["finished"]:
                seconds = before["seconds"] + time.perf_counter() - started
                times[name] = {"seconds": seconds, "finished": finished}
                write_json(self.path, times)

    def _times(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.exists() else {}


def _is_finished(times: dict[str, Any], name: str) -> bool:
    return bool(times.get(name, {}).get("finished"))
