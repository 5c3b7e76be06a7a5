"""Keeps the CutMix pictures in which the judge finds both objects, and leaves out what the paste has hidden.

    kilopix augment captions.parquet augmented --setting 1/4 --size 64
    python benchmarks/study/visible.py augmented --out visible.parquet
    kilopix encode captions.parquet shards --augmented visible.parquet

A caption made of two captions names both things, also where the pasted picture hides the first; a captioner
that looks at the picture would not. In: folders that `kilopix augment` wrote from pictures of the embedded
world. Out: a manifest of those of all folders that are kept; a plain picture may have several.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ceiling import found

from kilopix.data.manifest import Row, read_manifest, write_manifest
from kilopix.runtime import say
from kilopix.types import UserError

BATCH = 500


def keep_visible(folders: list[Path], out: Path) -> None:
    """Write the manifest `out`, which lies above all `folders`, and say how many are kept."""
    root = out.resolve().parent
    kept: list[Row] = []
    of = 0
    for folder in folders:
        manifest = read_manifest(folder / "manifest.parquet")
        of += len(manifest.rows)
        if not manifest.root.resolve().is_relative_to(root):
            raise UserError(f"{out}: give it a place in a folder above {folder}, whose pictures it names.")
        below = manifest.root.resolve().relative_to(root)
        for i in range(0, len(manifest.rows), BATCH):
            rows = manifest.rows[i : i + BATCH]
            seen = zip(rows, found(manifest.root, rows), strict=True)
            kept += [replace(row, path=(below / row.path).as_posix()) for row, both in seen if all(both)]
    write_manifest(out, root, kept, {"stage": "visible", "of": [str(folder) for folder in folders]})
    say(f"{out}: {len(kept)} of {of} pictures are kept.")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("augmented", type=Path, nargs="+", help="folders that `kilopix augment` wrote")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write, in a folder above them")
    arguments = parser.parse_args()
    keep_visible(arguments.augmented, arguments.out)


if __name__ == "__main__":
    main()
