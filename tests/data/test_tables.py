"""One reader of csv, tsv, JSON lines and Parquet: written by programs or by hand, well or badly."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kilopix.data.sources.tables import read_table
from kilopix.errors import UserError


def captions(file: Path) -> list[str]:
    return [row["caption"] for _, row in read_table(file).rows]


ODD = [
    "two\nlines of a boat",
    'a "quoted" boat',
    "a\tboat",
    "a boat, red",
    "a boat\u2028below",
    "café",
    '"Stop" it',
]


@pytest.mark.parametrize(
    ("ending", "mark"), [("tsv", "\t"), ("csv", ","), ("csv", ";"), ("CSV", ","), ("TSV", "\t")]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_what_a_program_writes_comes_back(tmp_path: Path, ending: str, mark: str, end: str, bom: str):
    file = tmp_path / f"captions.{ending}"
    with file.open("w", newline="", encoding="utf-8") as opened:
        opened.write(bom)
        writer = csv.writer(opened, delimiter=mark, lineterminator=end)
        writer.writerow(["File_Name", "Caption", "label"])
        writer.writerows([f"{i}.jpg", text, "boat"] for i, text in enumerate(ODD))
    table = read_table(file)
    assert table.columns == ("file_name", "caption", "label")
    assert table.wrong == []
    assert captions(file) == ODD


def test_a_tsv_that_is_written_by_hand_keeps_its_quotation_marks(tmp_path: Path):
    texts = ['"Stop", it says', 'a 5" disk', '"unclosed', 'it says "go"']
    file = tmp_path / "captions.tsv"
    lines = [f"{i}.jpg\t{text}" for i, text in enumerate(texts)]
    file.write_text("file_name\tcaption\n" + "\n".join(lines), encoding="utf-8")
    assert captions(file) == texts


def test_marks_that_open_in_one_row_and_close_in_another_do_not_swallow_rows(tmp_path: Path):
    file = tmp_path / "captions.tsv"
    file.write_text('file_name\tcaption\n0.jpg\t"a boat\n1.jpg\ta car\n2.jpg\tfast"\n', encoding="utf-8")
    assert captions(file) == ['"a boat', "a car", 'fast"']


def test_of_two_columns_the_text_goes_to_the_end_of_the_line(tmp_path: Path):
    file = tmp_path / "captions.csv"
    file.write_text(
        'file_name,caption\n0.jpg,A boat, red and small, on a lake\n1.jpg,"A boat, blue"\n', "utf-8"
    )
    assert captions(file) == ["A boat, red and small, on a lake", "A boat, blue"]
    file = tmp_path / "captions.tsv"
    file.write_text("0.jpg\tA boat\tat sea\n1.jpg\tA car\n", "utf-8")
    assert captions(file) == ["A boat\tat sea", "A car"]


def test_rows_longer_or_shorter_than_the_header_are_named(tmp_path: Path):
    file = tmp_path / "captions.csv"
    file.write_text(
        "file_name,caption,label\n0.jpg,A boat, red,boat\n1.jpg,A car,car\n2.jpg,A cup\n\n3.jpg,A,fox,,\n",
        encoding="utf-8",
    )
    table = read_table(file)
    assert [(number, row["label"]) for number, row in table.rows] == [(2, "car"), (4, "fox")]
    assert [number for number, _ in table.wrong] == [1, 3]
    assert "line 2 has 4 fields, and the header names 3 columns; a text with ',' in it" in table.wrong[0][1]
    assert "line 4 has 2 fields" in table.wrong[1][1]


def test_a_row_that_is_no_csv_is_named_and_the_others_are_read(tmp_path: Path):
    file = tmp_path / "captions.csv"
    file.write_text('file_name,caption\n0.jpg,"a "big" boat"\n1.jpg,a car\n', encoding="utf-8")
    table = read_table(file)
    assert [row["file_name"] for _, row in table.rows] == ["1.jpg"]
    assert table.wrong[0][0] == 1
    assert "line 2 is not valid csv" in table.wrong[0][1]


def test_a_line_that_is_no_json_is_named_and_the_others_are_read(tmp_path: Path):
    file = tmp_path / "captions.jsonl"
    file.write_text(
        '{"file_name": "0.jpg"}\n{"file_name": \n\n[1]\n{"file_name": "1.jpg"}\n', encoding="utf-8"
    )
    table = read_table(file)
    assert [(number, row["file_name"]) for number, row in table.rows] == [(1, "0.jpg"), (4, "1.jpg")]
    assert [number for number, _ in table.wrong] == [2, 3]
    assert "line 2: not valid JSON" in table.wrong[0][1]
    assert table.wrong[1][1] == "line 4: not a JSON object"


def test_a_quotation_mark_that_is_never_closed_is_an_error_that_names_its_line(tmp_path: Path):
    file = tmp_path / "captions.csv"
    file.write_text('file_name,caption\n0.jpg,a car\n1.jpg,"a boat\n2.jpg,a cup\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"captions\.csv: the quotation mark in line 3 is never closed"):
        read_table(file)


def test_an_index_column_of_pandas_does_no_harm(tmp_path: Path):
    file = tmp_path / "captions.csv"
    file.write_text(",file_name,caption\n0,a.jpg,A boat\n1,b.jpg,A car\n", encoding="utf-8")
    assert captions(file) == ["A boat", "A car"]


def test_columns_are_found_in_any_capitals_and_the_plain_one_counts(tmp_path: Path):
    rows = [
        {"Caption": "no", "caption": "yes", "FILE_NAME": "a.jpg"},
        {"Caption": "also", "file_name": "b.jpg"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert captions(tmp_path / "a.jsonl") == ["yes", "also"]
    pq.write_table(pa.table({"Caption": ["x"], "File_Name": ["a.jpg"]}), tmp_path / "a.PARQUET")
    assert read_table(tmp_path / "a.PARQUET").columns == ("caption", "file_name")
