"""Every kind of odd input at every door where it can come in: the same answer, or the same refusal."""

import io
import json
import math
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import number, numbered, write_tar
from kilopix.data.sources import Selection, Source, list_source, open_picture
from kilopix.data.sources.classes import imagenet_names
from kilopix.errors import UserError

Row = dict[str, Any]
Door = Callable[[Path, list[Row]], None]


def captions_jsonl(folder: Path, rows: list[Row]) -> None:
    _images(folder, len(rows))
    lines = [json.dumps({"file_name": f"{i}.png"} | row, ensure_ascii=False) for i, row in enumerate(rows)]
    (folder / "captions.jsonl").write_text("\n".join(lines), "utf-8")


def metadata_parquet(folder: Path, rows: list[Row]) -> None:
    _images(folder, len(rows))
    named = [{"file_name": f"{i}.png"} | row for i, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(named), folder / "metadata.parquet")


def hub_parquet(folder: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist([{"image": {"bytes": numbered(i)}} | row for i, row in enumerate(rows)])
    pq.write_table(table, folder / "data.parquet")


def tar_records(folder: Path, rows: list[Row]) -> None:
    members = {f"{i}.png": numbered(i) for i in range(len(rows))}
    members |= {f"{i}.json": json.dumps(row).encode() for i, row in enumerate(rows)}
    write_tar(folder / "a.tar", members)


def records_beside(folder: Path, rows: list[Row]) -> None:
    _images(folder, len(rows))
    for i, row in enumerate(rows):
        (folder / f"{i}.json").write_text(json.dumps(row), "utf-8")


TYPED: list[Door] = [captions_jsonl, metadata_parquet, hub_parquet, tar_records, records_beside]
"""Doors that keep the type of a value."""
WITH_LABELS = TYPED[:-1]


def captions_csv(folder: Path, texts: list[str]) -> None:
    _images(folder, len(texts))
    quoted = [text.replace('"', '""') for text in texts]
    lines = ["file_name,caption"] + [f'{i}.png,"{text}"' for i, text in enumerate(quoted)]
    (folder / "captions.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


def captions_tsv(folder: Path, texts: list[str]) -> None:
    _images(folder, len(texts))
    lines = ["File_name\tCaption"] + [f"{i}.png\t{text}" for i, text in enumerate(texts)]
    (folder / "captions.TSV").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


def jsonl_with_mark(folder: Path, texts: list[str]) -> None:
    captions_jsonl(folder, [{"Text": text} for text in texts])
    file = folder / "captions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))


def tar_texts(folder: Path, texts: list[str]) -> None:
    members = {f"{i}.png": numbered(i) for i in range(len(texts))}
    members |= {f"{i}.txt": b"\xef\xbb\xbf" + text.encode() + b"\r\n" for i, text in enumerate(texts)}
    write_tar(folder / "a.tar", members)


def texts_beside(folder: Path, texts: list[str]) -> None:
    _images(folder, len(texts))
    for i, text in enumerate(texts):
        ending = ("txt", "caption", "TXT")[i % 3]
        (folder / f"{i}.{ending}").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")


def texts_in_class_folders(folder: Path, texts: list[str]) -> None:
    (folder / "boat").mkdir()
    texts_beside(folder / "boat", texts)


TEXTS: list[Callable[[Path, list[str]], None]] = [
    captions_csv, captions_tsv, jsonl_with_mark, tar_texts, texts_beside, texts_in_class_folders
]  # fmt: skip


def _images(folder: Path, count: int) -> None:
    for i in range(count):
        (folder / f"{i}.png").write_bytes(numbered(i))


def reasons(source: Source) -> dict[str, str]:
    return {item.path: item.error for item in source.items if item.error} | dict(source.unused)


@pytest.mark.parametrize("door", TYPED)
def test_captions_of_any_type(tmp_path: Path, door: Door):
    door(
        tmp_path,
        [{"caption": ["A red boat.", "A boat\non a lake."]}, {"caption": ["A car."]}, {"caption": []}],
    )
    source = list_source(tmp_path)
    assert [item.captions for item in source.items] == [("A red boat.", "A boat on a lake."), ("A car.",), ()]
    assert source.items[0].caption == "A red boat."


@pytest.mark.parametrize("door", TYPED)
@pytest.mark.parametrize("value", [None, math.nan])
def test_missing_captions_are_none(tmp_path: Path, door: Door, value: object):
    door(tmp_path, [{"caption": value}, {"caption": value}])
    assert [item.captions for item in list_source(tmp_path).items] == [(), ()]


@pytest.mark.parametrize("door", TYPED)
@pytest.mark.parametrize("value", [2.0, 7, True, {"raw": "A boat."}])
def test_captions_that_are_no_text_are_refused_by_row(tmp_path: Path, door: Door, value: object):
    door(tmp_path, [{"caption": value}])
    (item,) = list_source(tmp_path).items
    assert item.error.startswith("its caption is ")
    assert item.captions == ()


@pytest.mark.parametrize("door", WITH_LABELS)
def test_labels_of_any_type(tmp_path: Path, door: Door):
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbf0 fox\r\n3 cup\r\n")
    door(tmp_path, [{"Label": 3.0}, {"Label": None}, {"Label": 0.0}])
    assert [item.class_name for item in list_source(tmp_path).items] == ["cup", "", "fox"]


@pytest.mark.parametrize("door", WITH_LABELS)
@pytest.mark.parametrize("value", [True, 3.5, {"id": 1}, ["fox", "cup"]])
def test_labels_that_are_none_are_refused_by_row(tmp_path: Path, door: Door, value: object):
    door(tmp_path, [{"label": value, "text": "A."}])
    (item,) = list_source(tmp_path).items
    assert item.error.startswith("its label is ")
    (item,) = list_source(tmp_path, Selection.of(label_column="none")).items
    assert (item.caption, item.class_name, item.error) == ("A.", "", "")


@pytest.mark.parametrize("door", WITH_LABELS)
def test_numbers_that_nothing_explains_are_refused_at_every_door(tmp_path: Path, door: Door):
    door(tmp_path, [{"label": 3, "text": "A."}])
    with pytest.raises(UserError, match=r"nothing says what 3 stands for.*classes\.txt.*--label-column none"):
        list_source(tmp_path)


@pytest.mark.parametrize("door", WITH_LABELS)
def test_a_column_of_another_name_is_asked_for(tmp_path: Path, door: Door):
    door(tmp_path, [{"Prompt": "A.", "Kind": "fox", "label": 3}])
    (item,) = list_source(tmp_path, Selection.of(caption_column="prompt", label_column="kind")).items
    assert (item.caption, item.class_name) == ("A.", "fox")
    with pytest.raises(UserError, match="no column 'colour'"):
        list_source(tmp_path, Selection.of(label_column="colour"))


@pytest.mark.parametrize("door", TEXTS)
def test_texts_with_marks_and_line_ends_of_every_kind(
    tmp_path: Path, door: Callable[[Path, list[str]], None]
):
    door(tmp_path, ["A red\u2028boat.", 'A "car", blue.', "Ein Café.", "['A.', 'B.']"])
    source = list_source(tmp_path)
    found = [item.captions for item in source.items]
    assert found == [("A red boat.",), ('A "car", blue.',), ("Ein Café.",), ("A.", "B.")]
    assert source.unused == []


def test_rows_of_one_image_are_its_captions_unless_their_classes_differ(tmp_path: Path):
    _images(tmp_path, 2)
    lines = ["0.png,A.,fox", "1.png,C.,cup", "./0.png,B.,fox", "0.png,A.,fox", "1.png,D.,fox"]
    (tmp_path / "captions.csv").write_text("\n".join(["path,text,label", *lines]), "utf-8")
    source = list_source(tmp_path)
    assert [(item.path, item.captions) for item in source.items] == [
        ("0.png", ("A.", "B.")),
        ("1.png", ("C.",)),
    ]
    assert source.unused == [("captions.csv, row 5", "1.png has another class in a row before, 'cup'")]


@pytest.mark.parametrize("door", [tar_texts, texts_beside])
def test_each_line_of_a_text_is_a_caption_if_asked(tmp_path: Path, door: Callable[[Path, list[str]], None]):
    door(tmp_path, ["A boat.\r\nA red boat.\n\n", "A car."])
    (first, second) = list_source(tmp_path, Selection.of(caption_lines=True)).items
    assert (first.captions, second.captions) == (("A boat.", "A red boat."), ("A car.",))
    assert list_source(tmp_path).items[0].captions == ("A boat. A red boat.",)


def test_a_text_belongs_to_all_images_of_its_name_and_others_are_named(tmp_path: Path):
    for name in ("1.jpg", "1.png", "2.jpg", "my.photo.jpg"):
        (tmp_path / name).write_bytes(numbered(1))
    for name in ("1.txt", "2.txt", "2.caption", "3.txt", "my.photo.txt"):
        (tmp_path / name).write_text(f"text {name}", "utf-8")
    (tmp_path / "2.json").write_text("{}")
    source = list_source(tmp_path)
    expected = {"1.jpg": "1", "1.png": "1", "2.jpg": "2", "my.photo.jpg": "my.photo"}
    assert {item.path: item.caption for item in source.items} == {
        k: f"text {v}.txt" for k, v in expected.items()
    }
    assert dict(source.unused) == {
        "2.caption": "the caption is taken from 2.txt",
        "3.txt": "a text, and no image of its name is beside it",
    }


def test_a_text_beside_an_image_that_is_damaged_is_named(tmp_path: Path):
    _images(tmp_path, 3)
    (tmp_path / "0.txt").write_bytes(b"caf\xe9")
    (tmp_path / "1.json").write_bytes(b"{")
    (tmp_path / "2.txt").write_bytes(b"x" * 2_000_000)
    why = reasons(list_source(tmp_path))
    assert ["0.txt is damaged" in why["0.png"], "1.json is damaged" in why["1.png"]] == [True, True]
    assert "of 2,000,000 bytes, no caption" in why["2.png"]


# Paths in tables


def test_paths_of_a_table_are_followed_or_refused_by_row(tmp_path: Path):
    folder = tmp_path / "set"
    (folder / "img").mkdir(parents=True)
    for i in range(4):
        (folder / "img" / f"{i}.png").write_bytes(numbered(i))
    (tmp_path / "outside.png").write_bytes(numbered(9))
    paths = ["./img/0.png", "img\\1.png", str(folder / "img/2.png"), "img/../img/3.png"]
    bad = ["../outside.png", str(tmp_path / "outside.png"), "https://host/x.png", "", "img/.."]
    rows = [{"file_name": path, "text": "A."} for path in paths + bad] + [{"file_name": 3, "text": "A."}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    source = list_source(folder)
    assert [item.path for item in source.items] == [f"img/{i}.png" for i in range(4)]
    why = dict(source.unused)
    assert len(why) == 6
    assert "lies outside" in why["metadata.jsonl, row 5"]
    assert "lies outside" in why["metadata.jsonl, row 6"]
    assert "an address" in why["metadata.jsonl, row 7"]
    assert why["metadata.jsonl, row 10"] == "names no file"
    assert source.seen == 10


# What is passed over


def tree_with_links(folder: Path, inside: Path) -> None:
    """Images, links to images, broken ones and hidden files, below `inside` of a folder."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "linked.png").write_bytes(numbered(2))
    inside.mkdir(parents=True, exist_ok=True)
    (inside / "real.png").write_bytes(numbered(1))
    (inside / ".hidden.png").write_bytes(numbered(3))
    os.symlink(elsewhere / "linked.png", inside / "link.png")
    os.symlink("/nonexistent/annex/key.png", inside / "broken.png")


def test_links_of_class_folders_are_followed_or_named(tmp_path: Path):
    folder = tmp_path / "set"
    tree_with_links(folder, folder / "boat")
    os.symlink(tmp_path / "elsewhere", folder / "boat" / "sub")
    os.symlink(folder, folder / "boat" / "ring")
    os.symlink("/nonexistent/gone", folder / "gone")
    (folder / "empty").mkdir()
    source = list_source(folder)
    assert [item.path for item in source.items] == ["boat/link.png", "boat/real.png", "boat/sub/linked.png"]
    assert [number(open_picture(folder, item.path)) for item in source.items] == [2, 1, 2]
    why = dict(source.unused)
    assert set(why) == {"boat/broken.png", "boat/ring", "gone", "empty"}
    assert "/nonexistent/annex/key.png, which is not there (git-annex" in why["boat/broken.png"]
    assert why["boat/ring"] == "a link to a folder above it"
    assert (source.hidden, source.seen) == (1, 7)


def test_a_flat_folder_names_what_it_passes_over(tmp_path: Path):
    folder = tmp_path / "set"
    tree_with_links(folder, folder)
    for name in ("photo.HEIC", "photo.cr2", "drawing.svg", "no_ending", "map.ppm"):
        (folder / name).write_bytes(b"nothing")
    (folder / "README.md").touch()
    source = list_source(folder)
    tried = ["drawing.svg", "link.png", "map.ppm", "no_ending", "photo.HEIC", "photo.cr2", "real.png"]
    assert [item.path for item in source.items] == tried
    assert set(dict(source.unused)) == {"broken.png", "README.md"}
    assert source.hidden == 1


def test_links_of_a_captions_file_are_followed_or_named(tmp_path: Path):
    folder = tmp_path / "set"
    tree_with_links(folder, folder)
    (folder / "captions.csv").write_text("real.png,A.\nlink.png,B.\n", "utf-8")
    source = list_source(folder)
    assert [item.path for item in source.items] == ["real.png", "link.png"]
    assert [number(open_picture(folder, item.path)) for item in source.items] == [1, 2]
    assert "broken.png" in dict(source.unused)


def test_links_of_a_tar_are_followed_or_named(tmp_path: Path):
    links = [
        ("b/2.png", tarfile.SYMTYPE, "../a/1.png"),
        ("b/3.png", tarfile.LNKTYPE, "a/1.png"),
        ("b/4.png", tarfile.SYMTYPE, "/data/4.png"),
        ("b/5.png", tarfile.SYMTYPE, "5.png"),
        ("b/6.png", tarfile.SYMTYPE, "2.png"),
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        member = tarfile.TarInfo("a/1.png")
        member.size = len(numbered(7))
        file.addfile(member, io.BytesIO(numbered(7)))
        for name, kind, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            file.addfile(link)
    source = list_source(tmp_path)
    assert [item.path for item in source.items] == [f"a.tar#{p}.png" for p in ("a/1", "b/2", "b/3", "b/6")]
    assert [number(open_picture(tmp_path, item.path)) for item in source.items] == [7, 7, 7, 7]
    assert dict(source.unused) == {
        "a.tar#b/4.png": "a link to /data/4.png, which is not in this tar file",
        "a.tar#b/5.png": "a link to 5.png, which is not in this tar file",
    }


def test_names_that_come_twice_in_a_tar_are_named_and_the_last_counts(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, content in [
            ("1.png", numbered(1)), ("1.txt", b"first"), ("1.png", numbered(3)), ("1.txt", b"third"),
            ("2.jpg", numbered(4)), ("2.png", numbered(5)), ("2.txt", b"two"),
            ("3.PNG", numbered(6)), ("3.png", numbered(7)), ("3.txt", b"three"), ("notes", b"-"),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    source = list_source(tmp_path)
    assert [(i.path, i.caption) for i in source.items] == [
        ("a.tar#1.png", "third"), ("a.tar#2.jpg", "two"), ("a.tar#3.png", "three")
    ]  # fmt: skip
    assert [number(open_picture(tmp_path, i.path)) for i in source.items] == [3, 4, 7]
    assert [path for path, _ in source.unused] == [
        "a.tar#1.png", "a.tar#1.txt", "a.tar#notes", "a.tar#2.png", "a.tar#3.PNG"
    ]  # fmt: skip


def test_packed_files_beside_tars_are_named_and_alone_refused(tmp_path: Path):
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b\.tar\.gz: is packed; unpack it first"):
        list_source(tmp_path)
    with pytest.raises(UserError, match="is packed"):
        list_source(tmp_path / "b.tar.gz")
    write_tar(tmp_path / "a.TAR", {"1.png": numbered(1)})
    (tmp_path / "loose.jpg").write_bytes(numbered(2))
    source = list_source(tmp_path)
    assert number(open_picture(tmp_path, source.items[0].path)) == 1
    assert [path for path, _ in source.unused] == ["b.tar.gz", "loose.jpg"]


# Names of classes


def hub_labels(folder: Path, names: list[str], labels: list[int]) -> None:
    features = {"Label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": [numbered(i) for i in range(len(labels))], "Label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "a.parquet")


def test_imagenet_has_the_same_names_by_every_door(tmp_path: Path):
    cranes = {"n02012849": 134, "n03126707": 517, "n03710637": 638, "n03710721": 639}
    wanted = [imagenet_names()[wnid][0] for wnid in cranes]
    assert len(set(wanted)) == 4
    doors = {name: tmp_path / name for name in ("hub", "folders", "tar", "table")}
    for folder in doors.values():
        folder.mkdir()
    published = [", ".join(names[-1:] if i in cranes.values() else names)
                 for i, names in enumerate(imagenet_names().values())]  # fmt: skip
    hub_labels(doors["hub"], published, list(cranes.values()))
    for wnid in cranes:
        (doors["folders"] / wnid).mkdir()
        (doors["folders"] / wnid / "1.png").write_bytes(numbered(1))
    write_tar(doors["tar"] / "a.tar", {f"{wnid}_1.png": numbered(1) for wnid in cranes})
    _images(doors["table"], 4)
    lines = [f"{i}.png,A.,{wnid}" for i, wnid in enumerate(cranes)]
    (doors["table"] / "captions.csv").write_text("\n".join(["path,text,class", *lines]), "utf-8")
    for folder in doors.values():
        assert [item.class_name for item in list_source(folder).items] == wanted


def test_two_labels_whose_first_names_are_the_same_stay_two_classes(tmp_path: Path):
    names = ["maillot", "maillot, tank suit", "fox, Vulpes"]
    hub, folders, table = (tmp_path / name for name in ("hub", "folders", "table"))
    hub.mkdir()
    hub_labels(hub, names, [0, 1, 2])
    for name in names:
        (folders / name).mkdir(parents=True)
        (folders / name / "1.png").write_bytes(numbered(1))
    for i in range(3):
        (table / str(i)).mkdir(parents=True)
        (table / str(i) / "1.png").write_bytes(numbered(1))
    (table / "classes.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)), "utf-8")
    for folder in (hub, folders, table):
        assert {item.class_name for item in list_source(folder).items} == {
            "maillot",
            "maillot, tank suit",
            "fox",
        }
    hub_labels(hub, ["crane", "crane"], [0, 1])
    with pytest.raises(UserError, match="labels 0 and 1 are both called 'crane'"):
        list_source(hub)


def test_imagenets_own_table_is_read_by_its_own_name(tmp_path: Path):
    (tmp_path / "n00000001").mkdir()
    (tmp_path / "n00000001" / "1.png").write_bytes(numbered(1))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n00000001 tench, Tinca tinca\n", "utf-8")
    source = list_source(tmp_path)
    assert [item.class_name for item in source.items] == ["tench"]
    assert source.unused == []


def test_numbered_folders_are_a_count_and_a_name(tmp_path: Path):
    for name in ("10_animals", "5_red cars"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(numbered(1))
    source = list_source(tmp_path)
    assert [item.class_name for item in source.items] == ["animals", "red cars"]
    assert "'10_animals'" in source.notes[0]
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "1.png").write_bytes(numbered(1))
    assert [item.class_name for item in list_source(tmp_path).items] == ["10 animals", "5 red cars", "fox"]


# Splits and levels


def test_a_split_of_files_is_taken_by_name(tmp_path: Path):
    for kind, write in (("parquet", lambda f: pq.write_table(pa.table({"image": [numbered(1)]}), f)),
                        ("tar", lambda f: write_tar(f, {"1.png": numbered(1)}))):  # fmt: skip
        folder = tmp_path / kind
        (folder / "data").mkdir(parents=True)
        for split in ("test", "train", "validation"):
            write(folder / "data" / f"{split}-00000-of-00001.{kind}")
        source = list_source(folder)
        assert [item.path.split("#")[0] for item in source.items] == [f"data/train-00000-of-00001.{kind}"]
        assert "holds the splits test (1 file), train (1 file), validation" in source.notes[0]
        assert "data/test" in list_source(folder, Selection.of(split="test")).items[0].path
        assert "data/validation" in list_source(folder, Selection.of(split="val")).items[0].path
        with pytest.raises(UserError, match="has no split 'dev2'"):
            list_source(folder, Selection.of(split="dev2"))
        (folder / "data" / f"train-00000-of-00001.{kind}").unlink()
        with pytest.raises(UserError, match=r"several splits.*--split"):
            list_source(folder)


def test_folders_that_are_splits_are_no_classes(tmp_path: Path):
    for split in ("train", "val"):
        (tmp_path / split / "fox").mkdir(parents=True)
        (tmp_path / split / "fox" / "a.png").write_bytes(numbered(1))
    with pytest.raises(
        UserError, match=r"holds train, val, which are splits.*give .*/train, or say --split train"
    ):
        list_source(tmp_path)
    source = list_source(tmp_path, Selection.of(split="validation"))
    assert source.root == tmp_path / "val"
    (tmp_path / "val").rename(tmp_path / "boat")
    with pytest.raises(UserError, match="holds train, which is a split and no class"):
        list_source(tmp_path)
    (tmp_path / "train" / "b.png").write_bytes(numbered(2))
    assert {item.class_name for item in list_source(tmp_path).items} == {
        "train",
        "boat",
    }  # a train is a thing
    (tmp_path / "boat").rename(tmp_path / "train" / "more")
    with pytest.raises(UserError, match="holds train, which is a split"):
        list_source(tmp_path)


def test_the_level_that_is_meant_is_named(tmp_path: Path):
    deep = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "n02012849"
    deep.mkdir(parents=True)
    (deep / "a.png").write_bytes(numbered(1))
    with pytest.raises(UserError, match=r"class folders are in ILSVRC/Data/CLS-LOC; give"):
        list_source(tmp_path)
    (tmp_path / "hub" / "images").mkdir(parents=True)
    (tmp_path / "hub" / "images" / "a.png").write_bytes(numbered(1))
    (tmp_path / "hub" / "images" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A."}\n')
    with pytest.raises(UserError, match=r"its captions file is in images, metadata\.jsonl; give .*/images"):
        list_source(tmp_path / "hub")


def test_parquet_of_images_given_by_path(tmp_path: Path):
    (tmp_path / "img").mkdir()
    for i in range(3):
        (tmp_path / "img" / f"{i}.png").write_bytes(numbered(i))
    places = [str(tmp_path / "img" / "0.png"), "img/1.png", "/elsewhere/2.png", None]
    image = pa.array(
        [{"bytes": None, "path": place} for place in places] + [{"bytes": numbered(2), "path": "x"}]
    )
    pq.write_table(pa.table({"image": image, "text": list("ABCDE")}), tmp_path / "a.parquet")
    source = list_source(tmp_path)
    assert [item.path for item in source.items] == [
        "img/0.png", "img/1.png", "a.parquet#2", "a.parquet#3", "a.parquet#4"
    ]  # fmt: skip
    assert "its file /elsewhere/2.png is not below" in source.items[2].error
    good = [source.items[i] for i in (0, 1, 4)]
    assert [(number(open_picture(tmp_path, i.path)), i.caption) for i in good] == [
        (0, "A"),
        (1, "B"),
        (2, "E"),
    ]


def test_a_data_set_that_was_saved_to_disk_is_refused_with_what_reads_it(tmp_path: Path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=r"`save_to_disk` wrote; `kilopix fetch "):
        list_source(tmp_path)
