"""The names of classes: from a folder's name, a table `classes.txt`, or ImageNet's own table.

In: names of folders and files, and labels. Out: names that a caption can use.
"""

import re
from functools import cache
from importlib import resources
from pathlib import Path

from kilopix.errors import UserError

CLASS_TABLE = "classes.txt"
_WORDNET_ID = re.compile(r"n\d{8}")


@cache
def imagenet_names() -> dict[str, tuple[str, ...]]:
    """All names of ImageNet-1k's 1000 classes by WordNet id, in the order of their labels.

    The first is the one for captions, and no two classes share it.
    """
    text = (resources.files("kilopix.data.sources") / "imagenet.tsv").read_text("utf-8")
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {wordnet_id: tuple(names.split(", ")) for wordnet_id, names in lines}


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


def read_class_table(folder: Path) -> dict[str, str]:
    """Lines of a folder (or label) and its class name from `classes.txt`, if there is one."""
    path = folder / CLASS_TABLE
    if not path.is_file():
        return {}
    lines = [line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip()]
    wrong = [i for i, line in enumerate(lines, 1) if len(line) < 2]
    if wrong:
        raise UserError(f"{path}: line {wrong[0]} is not a folder or label and its class name.")
    return {label: names.split(",")[0].strip() for label, names in lines}


def name_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """The class name of every folder: from `classes.txt` if it is there, else from the folder's own name."""
    table = read_class_table(root)
    names = {folder: table.get(folder) or class_name_of(folder) for folder in folders}
    for folder, name in names.items():
        if _WORDNET_ID.fullmatch(name):
            raise UserError(
                f"{root / folder}: named by a WordNet id that is none of ImageNet-1k's. Put a file "
                f"{CLASS_TABLE} into {root}, with a line '{folder} NAME' for every such folder."
            )
        if not name:
            raise UserError(f"{root / folder}: gives no class name; rename the folder.")
    return names


def name_label(label: object, names: list[str] | None, table: dict[str, str], place: Path) -> str:
    """The class name of a label of a container: a number looked up in `names` or `classes.txt`, or words."""
    if label is None or label == "":
        return ""
    known = table.get(str(label))
    if known:
        return known
    if not str(label).lstrip("-").isdecimal():
        return class_name_of(str(label))
    number = int(str(label))
    if names is not None and 0 <= number < len(names):
        return class_name_of(names[number])
    if number == -1:
        return ""  # how the hub's data sets mark a picture without a label
    raise UserError(
        f"{place}: its labels are numbers, and nothing says what {number} stands for. Put a file "
        f"{CLASS_TABLE} into {place.parent}, with a line '{number} NAME' for every label."
    )
