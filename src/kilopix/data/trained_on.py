"""What a model was trained on: its number of images, its classes, some of its captions, and who wrote them.

In: shards. Out: a `TrainedOn`, which a run keeps and its weights carry, so that whatever speaks of a model
speaks of its own images.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from kilopix.config import Config
from kilopix.data.world.objects import OBJECTS, WorldObject
from kilopix.data.world.words import WorldWords

if TYPE_CHECKING:
    from kilopix.data.manifest import Manifest
    from kilopix.data.shards import Shards

MOST_CLASSES, MOST_CAPTIONS, LONGEST_CAPTION = 1000, 16, 400
_LOOKED_AT = 64
_RULES_OF_WORLD = ("structured", "aio")

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of some items, spread evenly over all."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


class Origin(Config):
    """Where the captions of a manifest come from, and whether its images are of the embedded world."""

    captioner: str = ""
    world: bool = False

    @classmethod
    def of(cls, manifest: "Manifest") -> "Origin":
        """The origin of a manifest, of which the job that made it tells."""
        told: Any = manifest.job.get("captioner", "")
        if isinstance(told, dict):
            told = " ".join(filter(None, (told.get("kind"), told.get("name") or told.get("model"))))
        return cls(captioner=str(told), world=(manifest.root / "scenes.jsonl").is_file())


class TrainedOn(Config):
    """What a model was trained on, as far as it is known.

    `images` is how many different ones there are, `augmented` how many versions of them beside; None if that
    was not recorded. `classes` are at most
    `MOST_CLASSES` of the `class_count`, `captions` a few spread over all images.
    """

    images: int | None = Field(default=None, ge=1)
    augmented: int | None = Field(default=None, ge=0)
    captioner: str = ""
    world: bool = False
    classes: tuple[str, ...] = Field(default=(), max_length=MOST_CLASSES)
    class_count: int = Field(default=0, ge=0)
    captions: tuple[str, ...] = Field(default=(), max_length=MOST_CAPTIONS)

    @classmethod
    def of(cls, shards: "Shards", captioner: str) -> "TrainedOn":
        """What shards hold; `captioner` is the recipe's, for shards that were made before they told."""
        classes = [name for name in shards.column("plain", "class_name").unique().to_pylist() if name]
        column = shards.column("plain", "caption")
        looked_at = [column[i].as_py() for i in spread(range(len(column)), _LOOKED_AT)]
        found = list(dict.fromkeys(text[:LONGEST_CAPTION] for text in looked_at if text.strip()))
        origin = shards.index.origin
        if origin is None:
            objects = {form for item in OBJECTS for form in (item.name, item.folder)}
            world = captioner == "structured" and objects.issuperset(classes)
            origin = Origin(captioner=captioner if world else "", world=world)
        return cls(
            images=len(shards),
            augmented=shards.index.augmented,
            captioner=origin.captioner,
            world=origin.world,
            classes=tuple(classes[:MOST_CLASSES]),
            class_count=len(classes),
            captions=tuple(spread(found, MOST_CAPTIONS)),
        )

    @classmethod
    def by_recipe(cls, captioner: str, classes: int) -> "TrainedOn":
        """What a recipe's model is trained on, if its images are those that the recipe draws."""
        if captioner != "structured":
            return cls(captioner=captioner)
        names = tuple(item.name for item in OBJECTS[:classes])
        return cls(captioner=captioner, world=True, classes=names, class_count=len(names))

    def seen(self, images: int) -> str:
        """In words, how many images training saw, and how many different ones those were."""
        if self.images is None:
            return f"{images:,} images seen"
        each = images / self.images
        times = "once" if each == 1 else f"{each:,.0f} times" if each >= 10 else f"{each:.1f} times"
        return f"{self.images:,} image{'s' * (self.images != 1)}, each seen {times}"

    @property
    def objects(self) -> list[WorldObject]:
        """The objects of the embedded world that it was trained on; none for other images."""
        known = set(self.classes) if self.world else set()
        return [item for item in OBJECTS if known & {item.name, item.folder}]

    def note(self, prompts: Sequence[str]) -> str:
        """One line on what of the prompts a model of the embedded world was never taught; else empty.

        What a model of other images knows, or one whose captions a network wrote, cannot be told by a list.
        """
        names = tuple(item.name for item in self.objects)
        if not names or self.captioner not in _RULES_OF_WORLD:
            return ""
        return WorldWords(names, colored=self.captioner == "structured").note(prompts)
