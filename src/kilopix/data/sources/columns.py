"""The columns and fields that hold what kilopix wants to know of an image, whatever their capitals.

In: the names that a table, a record or a Parquet file has. Out: those that are meant.
"""

from collections.abc import Iterable

PATH_COLUMNS = ("file_name", "path", "file", "image", "image_path", "filename")
CAPTION_COLUMNS = ("caption", "text", "captions")
CLASS_COLUMNS = ("class_name", "class", "label", "cls")


def find_columns(columns: Iterable[str], names: Iterable[str]) -> list[str]:
    """All of `names` that `columns` have, in the order of `names`, as they spell them."""
    columns = list(columns)
    spelled = {column.lower(): column for column in columns} | {column: column for column in columns}
    return [spelled[name] for name in names if name in spelled]
