"""The demo: every stage of the flow on the embedded world, one after the other.

In: a recipe. Out: a folder with all that the stages make, and `report.html`. Typed again, it skips what
is finished and goes on with the rest.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from kilopix.data.world.objects import OBJECTS, training_colors
from kilopix.english import with_article
from kilopix.errors import UserError
from kilopix.recipe import Recipe, load_recipe
from kilopix.runtime import read_json, say, write_json

Result = TypeVar("Result")
SHOWN = 12
INSTALLED, INSTALLED_SAMPLES = "mini", "pictures_of_mini"
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


def run(out: Path, recipe_name: str, overrides: Sequence[str] = ()) -> Path | None:
    """Run the whole flow into `out` and return the report; None if training was asked to stop."""
    recipe = load_recipe(recipe_name, overrides)
    from kilopix.stages import augment, caption, encode, evaluate, mini, report, sample, train

    world, data = recipe.world, recipe.data
    clock = Clock(out / "times.json")
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


class Clock:
    """Seconds of every stage, kept in a file; an interrupted stage adds up, a finished one is left."""

    def __init__(self, path: Path):
        self.path = path

    def run(self, name: str, stage: Callable[[], Result]) -> Result:
        """Run a stage, add its time, and return what it returns."""
        say(f"\n== {name}")
        started = time.perf_counter()
        finished = False
        try:
            result = stage()
            finished = result is not False
            return result
        finally:
            times = read_json(self.path) if self.path.exists() else {}
            before = times.get(name, {"seconds": 0.0, "finished": False})
            if not before["finished"]:
                seconds = before["seconds"] + time.perf_counter() - started
                times[name] = {"seconds": seconds, "finished": finished}
                write_json(self.path, times)
