"""The names of classes: from a folder's name, a table `classes.txt`, or ImageNet's own table.

In: names of folders and files, and labels. Out: names that a caption can use.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

from kilopix.english import counted
from kilopix.errors import UserError
from kilopix.runtime import text_lines

CLASS_TABLE = "classes.txt"
CLASS_TABLES = (CLASS_TABLE, "LOC_synset_mapping.txt")
"""Files that name classes: one's own, and the one that comes with ImageNet's Kaggle archive."""
_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"\d+[_.](?P<name>.*[^\W\d].*)")


@cache
def imagenet_names() -> dict[str, tuple[str, ...]]:
    """All names of ImageNet-1k's 1000 classes by WordNet id, in the order of their labels.

    The first is the one for captions, and no two classes share it.
    """
    text = (resources.files("kilopix.data.sources") / "imagenet.tsv").read_text("utf-8")
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {wordnet_id: tuple(names.split(", ")) for wordnet_id, names in lines}


def is_wordnet_id(name: str) -> bool:
    """Whether a folder is named as ImageNet's are."""
    return bool(_WORDNET_ID.fullmatch(name))


@cache
def _synonyms_by_name() -> dict[str, tuple[str, ...]]:
    return {names[0].lower(): names for names in imagenet_names().values()}


def synonyms(class_name: str) -> tuple[str, ...]:
    """The class name and, if it is one of ImageNet's, its other names."""
    return _synonyms_by_name().get(class_name.lower(), (class_name,))


def class_of_file(name: str) -> str:
    """The class of a file named as ImageNet's are (`n01440764_10026.JPEG`); else an empty string."""
    match = _WORDNET_ID.match(name)
    return imagenet_names().get(match[0], ("",))[0] if match else ""


def class_name_of(label: str) -> str:
    """The class name that the name of a folder or a label in words stands for.

    Of several names with commas between, the first is taken; a WordNet id of ImageNet gives its name.
    """
    if label in imagenet_names():
        return imagenet_names()[label][0]
    return " ".join(label.split(",")[0].replace("_", " ").split())


def distinct_names(labels: Sequence[str]) -> list[str]:
    """The class name of every label, such that two that differ stay two classes.

    The first of several names is taken, as in `class_name_of`. Where two labels share it (`maillot` and
    `maillot, tank suit`), those with several names keep them all.
    """
    short = [class_name_of(label) for label in labels]
    whole: dict[str, set[str]] = {}
    for name, label in zip(short, labels, strict=True):
        whole.setdefault(name.lower(), set()).add(_whole_name(label))
    return [
        name if len(whole[name.lower()]) == 1 else _whole_name(label)
        for name, label in zip(short, labels, strict=True)
    ]


def _whole_name(label: str) -> str:
    if label in imagenet_names():
        return imagenet_names()[label][0]
    return ", ".join(" ".join(part.replace("_", " ").split()) for part in label.split(",") if part.strip())


def names_of_numbers(names: Sequence[str], place: Path) -> list[str]:
    """The class names of a hub data set's numbered labels, from the names that it keeps for them.

    ImageNet's own 1000, in their order, are those of kilopix's table, so that a class has one name whichever
    way its pictures come. Of others, two numbers of one name are a `UserError`: they would become one class.
    """
    table = list(imagenet_names().values())
    if len(names) == len(table):
        known = sum(
            class_name_of(name).lower() in map(str.lower, entry)
            for name, entry in zip(names, table, strict=True)
        )
        if known > 0.9 * len(table):
            return [entry[0] for entry in table]
    found = distinct_names(names)
    first: dict[str, int] = {}
    for number, name in enumerate(found):
        if first.setdefault(name.lower(), number) != number:
            raise UserError(
                f"{place}: its labels {first[name.lower()]} and {number} are both called {name!r}. Put a "
                f"file {CLASS_TABLE} into {place.parent}, with a line 'NUMBER NAME' for every label, or "
                "leave labels out with --label-column none."
            )
    return found


def read_class_table(folder: Path) -> dict[str, str]:
    """Folder (or label) and class name of every line of `classes.txt`, or of ImageNet's own table of them.

    Lines of one word each are the names of the labels 0, 1, and so on.
    """
    path = next((file for name in CLASS_TABLES if (file := folder / name).is_file()), None)
    if path is None:
        return {}
    lines = [(i, line.split(maxsplit=1)) for i, line in enumerate(text_lines(path), 1) if line.strip()]
    if lines and all(len(line) == 1 for _, line in lines):  # names alone: those of the labels 0, 1, ...
        return {str(number): class_name_of(line[0]) for number, (_, line) in enumerate(lines)}
    wrong = [i for i, line in lines if len(line) < 2]
    if wrong:
        raise UserError(f"{path}: line {wrong[0]} is not a folder or label and its class name.")
    names = distinct_names([names.strip() for _, (_, names) in lines])
    return {label: name for (_, (label, _)), name in zip(lines, names, strict=True)}


def name_folders(root: Path, folders: list[str]) -> tuple[dict[str, str], list[str]]:
    """The class name of every folder, from a table of classes or else from the folder's own name; and notes.

    Folders that are all numbered, as kohya's (`10_fox`: repeats and a name) and CUB's (`001.Fox`), are named
    by what follows.
    """
    table = read_class_table(root)
    numbered = [_NUMBERED.fullmatch(folder) for folder in folders]
    own, notes = dict(zip(folders, folders, strict=True)), []
    if folders and all(numbered) and not any(folder in table for folder in folders):
        own = {match[0]: match["name"] for match in numbered if match}
        notes = [
            f"{root}: the folders are numbered, as {folders[0]!r} is; a class is called by what follows, "
            f"{class_name_of(own[folders[0]])!r}, and each image is taken once, whatever its number. "
            f"{len(folders)} folders are {len({class_name_of(name) for name in own.values()})} classes."
        ]
    made = distinct_names([own[folder] for folder in folders])
    names = {folder: table.get(folder) or name for folder, name in zip(folders, made, strict=True)}
    if folders and all(name.isdecimal() for name in names.values()):
        raise UserError(
            f"{root}: its class folders are numbers, and nothing says what {folders[0]} stands for. Put a "
            f"file {CLASS_TABLE} into {root}, with a line '{folders[0]} NAME' for every folder, or leave "
            "classes out with --label-column none."
        )
    for folder, name in names.items():
        if _WORDNET_ID.fullmatch(name):
            raise UserError(
                f"{root / folder}: named by a WordNet id that is none of ImageNet-1k's. Put a file "
                f"{CLASS_TABLE} into {root}, with a line '{folder} NAME' for every such folder."
            )
        if not name:
            raise UserError(f"{root / folder}: gives no class name; rename the folder.")
    return names, notes


@dataclass(frozen=True)
class LabelNames:
    """What the labels of a source stand for: `numbers` of a hub data set, and a `table` of classes."""

    place: Path
    table: dict[str, str] = field(default_factory=dict)
    numbers: Sequence[str] | None = None

    @classmethod
    def of(cls, place: Path, folders: Iterable[Path], numbers: Sequence[str] | None = None) -> "LabelNames":
        """Those of the file `place`, with the first table of classes that lies in one of `folders`."""
        table = next((table for folder in folders if (table := read_class_table(folder))), {})
        if numbers is None or all(str(number) in table for number in range(len(numbers))):
            return cls(place, table)
        return cls(place, table, names_of_numbers(numbers, place))

    def look_up(self, label: str, otherwise: str = "") -> str:
        """The class name of a label that `label_of` gave; `otherwise` for a number that nothing explains.

        Raises `UserError` if there is nothing else, either.
        """
        if not label:
            return otherwise
        if label in self.table:
            return self.table[label]
        if not label.removeprefix("-").isdecimal():
            return class_name_of(label)
        number = int(label)
        if self.numbers is not None and 0 <= number < len(self.numbers):
            return self.numbers[number]
        if otherwise or number == -1:  # -1 is how the hub's data sets mark a picture without a label
            return otherwise
        raise UserError(
            f"{self.place}: its labels are numbers, and nothing says what {number} stands for. Put a file "
            f"{CLASS_TABLE} into {self.place.parent}, with a line '{number} NAME' for every label, or leave "
            "labels out with --label-column none."
        )


def tell_classes(names: Iterable[str], shown: int = 6) -> str:
    """The classes of images in one line, `2 classes: cat (3 images), dog (1)`; empty where none has one.

    So that whoever captions sees at once that a folder was taken for a class that is none.
    """
    counts = Counter(names)
    without = counts.pop("", 0)
    if not counts:
        return ""
    first, *others = sorted(counts.items())[:shown]
    told = [f"{first[0]} ({counted(first[1], 'image')})"]
    told += [f"{name} ({count:,})" for name, count in others]
    more = [f"and {len(counts) - shown:,} more"] if len(counts) > shown else []
    left = f"; {without:,} of no class" if without else ""
    return f"{counted(len(counts), 'class')}: {', '.join([*told, *more])}{left}"
