"""A manifest that another program saved, such as pandas after a caption was corrected, as kilopix writes it.

In: a table whose columns may be in another order and of wider types. Out: the columns of a manifest. What
is lacking, or of another kind, is a `UserError` that names the column, its type and the type that is wanted.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from kilopix.errors import UserError
from kilopix.faults import first_line

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = ("path", "class_name", "caption")


def to_columns(table: "pa.Table", wanted: "pa.Schema", place: Path) -> "pa.Table":
    """The wanted columns in their order and types; nulls for those that are neither there nor required.

    Further columns, as an index of pandas, are passed over.
    """
    import pyarrow as pa

    if missing := [name for name in REQUIRED if name not in table.schema.names]:
        has = ", ".join(table.schema.names) or "none"
        raise UserError(f"{place}: not a manifest: no column {', '.join(map(repr, missing))}; it has {has}.")
    if set(wanted.names) <= set(table.schema.names) and table.select(wanted.names).schema.equals(wanted):
        table = table.select(wanted.names)  # as kilopix wrote it
        if table.column("path").null_count == 0:
            return table
    columns = [
        _cast(table.column(field.name), field, place)
        if field.name in table.schema.names
        else pa.chunked_array([pa.nulls(len(table), field.type)])
        for field in wanted
    ]
    made = pa.Table.from_arrays(columns, schema=wanted)
    _check_texts(made, place)
    return made


def _cast(column: "pa.ChunkedArray", field: "pa.Field", place: Path) -> "pa.ChunkedArray":
    import pyarrow as pa

    found = column.type
    if pa.types.is_dictionary(found):  # a categorical column
        column = column.cast(found.value_type)
    try:
        if _kind(column.type) in (_kind(field.type), "nothing"):
            return column.cast(field.type)
        why = ""
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        why = f" ({first_line(error)})"
    raise UserError(f"{place}: the column {field.name!r} is of type {found}, and must be {field.type}{why}.")


def _kind(of: "pa.DataType") -> str:
    import pyarrow as pa

    types = pa.types
    if types.is_null(of):
        return "nothing"
    if types.is_string(of) or types.is_large_string(of) or types.is_string_view(of):
        return "text"
    if types.is_integer(of) or types.is_floating(of):
        return "number"
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return "nothing" if types.is_null(of.value_type) else f"list of {_kind(of.value_type)}"
    return str(of)


def _check_texts(table: "pa.Table", place: Path) -> None:
    """Refuse a row without a path or a caption, and a path that is there twice: it is the image's id."""
    import pyarrow.compute as pc

    for name in ("path", "caption"):
        texts = table.column(name).to_pylist()
        empty = next((i for i, text in enumerate(texts) if not text), None)
        if empty is not None:
            which = table.column("path")[empty].as_py()
            raise UserError(f"{place}: row {empty} ({which}) has no {name}.")
    paths = table.column("path")
    if pc.count_distinct(paths).as_py() < len(paths):  # pyright: ignore[reportAttributeAccessIssue]
        seen: set[str] = set()
        twice = next(path for path in paths.to_pylist() if path in seen or seen.add(path))
        raise UserError(f"{place}: lists {twice!r} twice.")
