"""Pictures are chosen by a column's threshold: in Parquet files, captions files, and tar samples' records."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kilopix.data.sources import Selection, list_source
from kilopix.data.sources.selection import Condition
from kilopix.errors import UserError
from tiny import Cli

SCORES = [5.0, 6.5, None, 7.1, float("nan")]
"""Of a set with LAION-POP's columns, of which two captions are by models."""


def picture(i: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(out, "PNG")
    return out.getvalue()


def rows() -> list[dict]:
    return [
        {
            "key": str(i),
            "url": f"http://nowhere/{i}",
            "alt_txt": f"alt {i}",
            "llava_caption": f"A llava caption {i}.",
            "cogvlm_caption": f"A cogvlm caption {i}.",
            "aesthetic": score,
            "language": "en" if i % 2 else "de",
        }
        for i, score in enumerate(SCORES)
    ]


def as_parquet(folder: Path) -> Path:
    pq.write_table(
        pa.Table.from_pylist([row | {"jpg": {"bytes": picture(i)}} for i, row in enumerate(rows())]),
        folder / "part.parquet",
    )
    return folder


def as_captions_file(folder: Path) -> Path:
    for i in range(len(SCORES)):
        (folder / f"{i}.png").write_bytes(picture(i))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", *rows()[0]])
        writer.writeheader()
        writer.writerows({"file_name": f"{i}.png"} | row for i, row in enumerate(rows()))
    return folder


def as_tar(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as file:
        for i, row in enumerate(rows()):
            for ending, content in (("png", picture(i)), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return folder


@pytest.mark.parametrize("write", [as_parquet, as_captions_file, as_tar])
def test_pictures_above_a_threshold_are_chosen_and_counted(write, tmp_path: Path):
    source = list_source(write(tmp_path), Selection.of(["Aesthetic>=6.5"], "cogvlm_caption"))
    assert [item.caption for item in source.items] == ["A cogvlm caption 1.", "A cogvlm caption 3."]
    tally = source.tally
    assert tally is not None
    assert (tally.wanted, tally.unwanted, tally.without) == (2, 1, 2)
    assert str(tally) == "2 of 5 pictures are selected, 2 of the others have no value"


@pytest.mark.parametrize("write", [as_parquet, as_captions_file, as_tar])
def test_a_column_that_is_not_there_is_named_with_those_that_are(write, tmp_path: Path):
    with pytest.raises(UserError, match=r"no column 'beauty'; it has .*aesthetic"):
        list_source(write(tmp_path), Selection.of(["beauty>1"]))


@pytest.mark.parametrize("write", [as_parquet, as_captions_file, as_tar])
def test_nothing_left_is_an_error(write, tmp_path: Path):
    with pytest.raises(UserError, match="0 of 5 pictures are selected"):
        list_source(write(tmp_path), Selection.of(["aesthetic>9"], "llava_caption"))


@pytest.mark.parametrize(
    ("text", "value", "held"),
    [
        ("a>=6.5", 6.5, True),
        ("a>6.5", 6.5, False),
        ("a<6.5", "6", True),
        ("a<=-1", -2, True),
        ("a=3", 3.0, True),
        ("a==3", "3", True),
        ("a!=3", 3.0, False),
        ("a = en", "en", True),
        ("a!=en", "de", True),
        ("a>1", None, None),
        ("a>1", "no number", None),
        ("a=en", None, None),
    ],
)
def test_conditions(text, value, held):
    assert Condition.parse(text).holds(value) is held


@pytest.mark.parametrize("text", ["aesthetic", ">=5", "a>=", "a>=big", "a==", ""])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(UserError, match="--where"):
        Condition.parse(text)


def test_several_conditions_hold_together(tmp_path: Path):
    chosen = Selection.of(["aesthetic>=5", "language=en"], "llava_caption")
    assert len(list_source(as_parquet(tmp_path), chosen).items) == 2
    assert len(list_source(tmp_path, Selection.of(["language=de"], "llava_caption")).items) == 3


def test_on_the_command_line(tmp_path: Path, cli: Cli):
    (tmp_path / "set").mkdir()
    folder, out = as_parquet(tmp_path / "set"), tmp_path / "chosen.parquet"
    given = ["--captioner", "given", "--caption-column", "llava_caption", "--where", "aesthetic>=6.5"]
    done = cli("caption", folder, out, *given)
    assert done.code == 0, done.err
    assert "2 of 5 pictures are selected" in done.out
    assert pq.read_table(out).column("caption").to_pylist() == ["A llava caption 1.", "A llava caption 3."]
    refused = cli("caption", out, tmp_path / "again.parquet", "--where", "aesthetic>1")
    assert "a manifest has no columns" in refused.err
