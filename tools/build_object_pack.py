"""Build the object pack of the embedded world: 64 emoji renders in one WebP atlas, and their table.

In: the unpacked npm package `@lobehub/fluent-emoji-3d` 1.1.0 (MIT). Out: `objects.webp`, `objects.json` and
`ASSETS_LICENSE.txt` in `src/kilopix/data/world/assets`.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python tools/build_object_pack.py package
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kilopix.types import UserError

PACKAGE = "@lobehub/fluent-emoji-3d"
VERSION = "1.1.0"
CELL = 128
COLUMNS = 8
ASSETS = Path(__file__).parent.parent / "src/kilopix/data/world/assets"


@dataclass(frozen=True)
class Entry:
    """One object: its own colours, most dominant first, or the range of hues (degrees) to recolour."""

    name: str
    category: str
    code: str
    colors: tuple[str, ...] = ()
    hue: tuple[int, int] | None = None


# The order matters: the first 16 and the first 32 are worlds of their own, half of them recolourable.
ENTRIES = (
    Entry("car", "vehicle", "1f697", hue=(292, 20)),
    Entry("cat", "animal", "1f408", ("orange", "brown")),
    Entry("umbrella", "thing", "2602-fe0f", hue=(225, 300)),
    Entry("banana", "food", "1f34c", ("yellow",)),
    Entry("balloon", "thing", "1f388", hue=(280, 25)),
    Entry("penguin", "animal", "1f427", ("purple", "white", "orange")),
    Entry("teapot", "thing", "1fad6", hue=(290, 30)),
    Entry("sunflower", "plant", "1f33b", ("yellow", "brown", "green")),
    Entry("backpack", "thing", "1f392", hue=(290, 25)),
    Entry("pizza", "food", "1f355", ("yellow", "red", "orange")),
    Entry("butterfly", "animal", "1f98b", hue=(325, 28)),
    Entry("airplane", "vehicle", "2708-fe0f", ("grey", "blue")),
    Entry("star", "shape", "2b50", hue=(10, 70)),
    Entry("frog", "animal", "1f438", ("green", "yellow")),
    Entry("shirt", "clothing", "1f455", hue=(60, 170)),
    Entry("house", "thing", "1f3e0", ("beige", "red", "blue")),
    Entry("bus", "vehicle", "1f68c", hue=(5, 60)),
    Entry("fox", "animal", "1f98a", ("orange", "black")),
    Entry("guitar", "thing", "1f3b8", hue=(295, 15)),
    Entry("strawberry", "food", "1f353", ("red", "green")),
    Entry("dress", "clothing", "1f457", hue=(170, 300)),
    Entry("panda", "animal", "1f43c", ("white", "purple")),
    Entry("mushroom", "plant", "1f344", hue=(300, 20)),
    Entry("cactus", "plant", "1f335", ("green",)),
    Entry("book", "thing", "1f4d5", hue=(290, 20)),
    Entry("elephant", "animal", "1f418", ("grey",)),
    Entry("telephone", "thing", "260e-fe0f", hue=(290, 20)),
    Entry("soccer ball", "thing", "26bd", ("white", "blue")),
    Entry("fish", "animal", "1f41f", hue=(160, 260)),
    Entry("bicycle", "vehicle", "1f6b2", ("red", "black")),
    Entry("heart", "shape", "2764-fe0f", hue=(280, 30)),
    Entry("hamburger", "food", "1f354", ("brown", "orange", "green")),
    Entry("tulip", "plant", "1f337", hue=(270, 355)),
    Entry("pig", "animal", "1f416", ("pink",)),
    Entry("cap", "clothing", "1f9e2", hue=(160, 260)),
    Entry("pineapple", "food", "1f34d", ("orange", "green")),
    Entry("tractor", "vehicle", "1f69c", hue=(110, 178)),
    Entry("owl", "animal", "1f989", ("brown", "pink", "yellow")),
    Entry("key", "thing", "1f511", hue=(5, 70)),
    Entry("doughnut", "food", "1f369", ("brown",)),
    Entry("bell", "thing", "1f514", hue=(350, 70)),
    Entry("flamingo", "animal", "1f9a9", ("pink",)),
    Entry("scooter", "vehicle", "1f6f5", hue=(300, 15)),
    Entry("carrot", "food", "1f955", ("orange", "green")),
    Entry("suitcase", "thing", "1f9f3", hue=(165, 245)),
    Entry("lion", "animal", "1f981", ("brown", "orange")),
    Entry("gem", "thing", "1f48e", hue=(160, 260)),
    Entry("sailboat", "vehicle", "26f5", ("orange", "blue")),
    Entry("purse", "thing", "1f45b", hue=(292, 8)),
    Entry("broccoli", "food", "1f966", ("green",)),
    Entry("anchor", "thing", "2693", hue=(160, 260)),
    Entry("dog", "animal", "1f436", ("brown",)),
    Entry("bucket", "thing", "1faa3", hue=(160, 260)),
    Entry("watermelon", "food", "1f349", ("red", "green")),
    Entry("lock", "thing", "1f512", hue=(340, 70)),
    Entry("rocket", "vehicle", "1f680", ("grey", "red")),
    Entry("palm tree", "plant", "1f334", ("green", "brown")),
    Entry("clock", "thing", "23f0", ("red", "orange", "white")),
    Entry("turtle", "animal", "1f422", ("green",)),
    Entry("chair", "thing", "1fa91", ("brown",)),
    Entry("ice cream", "food", "1f366", ("beige",)),
    Entry("train", "vehicle", "1f682", ("red", "black", "blue")),
    Entry("camera", "thing", "1f4f7", ("grey", "black")),
    Entry("snowman", "thing", "26c4", ("white", "blue")),
)

LICENSE = f"""The pictures in objects.webp are 64 renders from the npm package {PACKAGE} {VERSION}
(https://github.com/lobehub/fluent-emoji), cropped and reduced. They are Microsoft's Fluent emoji
(https://github.com/microsoft/fluentui-emoji), published under the MIT License as well.

MIT License

Copyright (c) 2023 LobeHub
Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def cut_out(path: Path) -> Image.Image:
    """The render at `path`, cropped to its opaque part, its longer side reduced to one cell."""
    if not path.is_file():
        raise UserError(f"{path}: missing; unpack {PACKAGE} {VERSION} and give its folder.")
    with Image.open(path) as file:
        image = file.convert("RGBA")
    # Nearly clear pixels (soft shadows) would make the box too wide.
    solid = [0] * 25 + [255] * 231
    image = image.crop(image.getchannel("A").point(solid).getbbox())
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def build(package: Path, out: Path) -> None:
    """Write the atlas, the table and the licence to `out`."""
    rows = -(-len(ENTRIES) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    table = []
    for index, entry in enumerate(ENTRIES):
        sprite = cut_out(package / "assets" / f"{entry.code}.webp")
        left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
        atlas.paste(sprite, (left, top))
        table.append(
            {
                "name": entry.name,
                "category": entry.category,
                "code_point": entry.code,
                "recolorable": entry.hue is not None,
                "colors": list(entry.colors),
                "hue": list(entry.hue) if entry.hue else None,
                "box": [left, top, left + sprite.width, top + sprite.height],
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    atlas.save(out / "objects.webp", quality=90, alpha_quality=100, method=6)
    lines = ",\n".join(" " + json.dumps(row) for row in table)
    (out / "objects.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (out / "ASSETS_LICENSE.txt").write_text(LICENSE, encoding="utf-8")


def main() -> None:
    """Read the folder from the command line and build."""
    parser = argparse.ArgumentParser(description="Build the object pack.")
    parser.add_argument("package", type=Path, help="folder of the unpacked npm package")
    parser.add_argument("--out", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    build(arguments.package, arguments.out)


if __name__ == "__main__":
    main()
