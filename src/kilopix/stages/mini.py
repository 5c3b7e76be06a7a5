"""Make the embedded world's training set: class folders like ImageNet's, one object in every picture.

In: seeds. Out: `OUT/train/<class>/<id>.jpg` and `OUT/val/...`, each split with a `scenes.jsonl` that says
what every picture shows, and `OUT/mini.json`, the arguments.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kilopix.artefacts.locks import delete_temporary, owns
from kilopix.data.engines import run_local
from kilopix.english import counted
from kilopix.jobs import Folder, clear, state_of
from kilopix.progress import Progress
from kilopix.runtime import atomic_path, is_whole, name_some, read_json, say, write_json
from kilopix.types import UserError

RECORD = "mini.json"
FOLDER = Folder(("train/*", "val/*"), record=RECORD)
_CHUNK = 128  # pictures that a worker draws at a time
_QUALITY = 92
_SMALLEST, _LARGEST = 16, 512


@dataclass(frozen=True)
class _Picture:
    """One picture to draw."""

    name: str
    split: str
    file: str
    image_id: str


@dataclass(frozen=True)
class _Draw:
    """Draws pictures in chunks; a value, so that it can be sent to a worker."""

    out: Path
    seed: int
    size: int
    chunks: tuple[tuple[_Picture, ...], ...]

    def start(self, worker: int) -> Callable[[int], None]:
        """Nothing is loaded before the first chunk."""
        return self._draw

    def _draw(self, number: int) -> None:
        """Draw and write the pictures of one chunk."""
        from PIL import Image

        from kilopix.data.world.render import render
        from kilopix.data.world.scenes import one_object_scene

        for picture in self.chunks[number]:
            scene = one_object_scene(picture.name, self.seed, picture.split, picture.image_id)
            path = self.out / picture.split / picture.file
            image = Image.fromarray(render(scene, self.size))
            with atomic_path(path, flush=False) as temporary:
                image.save(temporary, format="JPEG", quality=_QUALITY, subsampling=0)


@owns("out")
def run(
    out: Path,
    images_per_class: int = 400,
    size: int = 64,
    seed: int = 0,
    classes: int = 64,
    val_per_class: int = 20,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Draw the pictures of the first `classes` objects; the same command again goes on where it stopped.

    Raises `UserError` for values out of range, and for a folder that other arguments or other files fill.
    """
    arguments = {
        "images_per_class": images_per_class,
        "size": size,
        "seed": seed,
        "classes": classes,
        "val_per_class": val_per_class,
    }
    _check(arguments, workers)
    splits = {"train": images_per_class, "val": val_per_class}
    pictures = {split: _pictures(split, count, classes) for split, count in splits.items()}
    if _claim(out, arguments, overwrite):
        files = [f"{p.split}/{p.file}" for split in splits for p in pictures[split]]
        lost = [name for name in (*files, *(f"{s}/scenes.jsonl" for s in splits)) if not is_whole(out / name)]
        if not lost:
            say(f"{out}: already complete.")
            return
        say(f"{out}: was complete, but these are missing or cut short, and made anew: {name_some(lost)}.")
    _draw_all(out, seed, size, [*pictures["train"], *pictures["val"]], workers or os.cpu_count() or 1)
    for split in splits:
        _write_scenes(out / split, seed, pictures[split])
    write_json(out / RECORD, {"complete": True, **arguments})
    total = classes * (images_per_class + val_per_class)
    say(f"{out}: {counted(total, 'picture')} of {counted(classes, 'class')}, {size} x {size} pixels.")


def _check(arguments: dict[str, int], workers: int | None) -> None:
    from kilopix.data.world.objects import OBJECTS

    ranges = {
        "images_per_class": (1, 99_999),
        "size": (_SMALLEST, _LARGEST),
        "classes": (1, len(OBJECTS)),
        "val_per_class": (1, 99_999),
    }
    for key, (low, high) in ranges.items():
        if not low <= arguments[key] <= high:
            raise UserError(f"{key}: must be between {low} and {high} (got {arguments[key]}).")
    if workers is not None and workers < 1:
        raise UserError(f"workers: must be at least 1 (got {workers}).")


def _claim(out: Path, arguments: dict[str, int], overwrite: bool) -> bool:
    """Take the folder for these arguments; true if they are done already."""
    record = out / RECORD
    state = state_of(out, FOLDER, arguments, overwrite, lambda path: {**read_json(path), "complete": False})
    if state == "same":
        return bool(read_json(record)["complete"])
    if state == "other":
        clear(out, FOLDER)
    write_json(record, {"complete": False, **arguments})
    return False


def _pictures(split: str, count: int, classes: int) -> list[_Picture]:
    from kilopix.data.world.objects import OBJECTS

    pictures = []
    for item in OBJECTS[:classes]:
        for number in range(count):
            image_id = f"{item.folder}_{number:05d}"
            pictures.append(_Picture(item.name, split, f"{item.folder}/{image_id}.jpg", image_id))
    return pictures


def _draw_all(out: Path, seed: int, size: int, pictures: list[_Picture], workers: int) -> None:
    for folder in {(out / picture.split / picture.file).parent for picture in pictures}:
        folder.mkdir(parents=True, exist_ok=True)
        delete_temporary(folder)
    left = [picture for picture in pictures if not is_whole(out / picture.split / picture.file)]
    chunks = tuple(tuple(left[i : i + _CHUNK]) for i in range(0, len(left), _CHUNK))
    with Progress("draw", len(pictures), len(pictures) - len(left)) as shown:
        draw = _Draw(out, seed, size, chunks)
        run_local(draw, range(len(chunks)), workers, lambda number: shown.advance(len(chunks[number])))


def _write_scenes(folder: Path, seed: int, pictures: list[_Picture]) -> None:
    from kilopix.data.world.scenes import one_object_scene, scene_to_json

    with atomic_path(folder / "scenes.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for picture in pictures:
            scene = one_object_scene(picture.name, seed, picture.split, picture.image_id)
            file.write(json.dumps(scene_to_json(scene, picture.file)) + "\n")
