"""Sources as other tools leave them: what is read rightly, what is named, what is refused and how."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import number, numbered, write_parquet, write_tar
from kilopix.data.sources import Selection, list_source, open_picture
from kilopix.errors import UserError
from tiny import Cli


def images(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(numbered(i))
    return folder


def table(folder: Path, text: str, name: str = "captions.csv") -> list[tuple[str, str, tuple[str, ...]]]:
    images(folder, "1.jpg", "2.jpg", "3.jpg")
    (folder / name).write_text(text, encoding="utf-8")
    return [(item.path, item.class_name, item.captions) for item in list_source(folder).items]


# Tables


@pytest.mark.parametrize("index", ["r1", "0"])
def test_a_column_without_a_name_is_neither_caption_nor_class(tmp_path: Path, index: str):
    assert table(tmp_path, f",file_name,class\n{index},1.jpg,cat\n") == [("1.jpg", "cat", ())]
    assert table(tmp_path, f",file_name,caption\n{index},1.jpg,A cat.\n") == [("1.jpg", "", ("A cat.",))]
    assert table(tmp_path, "file_name,caption,,\n1.jpg,A.,,x\n") == [("1.jpg", "", ("A.",))]


def test_columns_that_come_twice_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="2 columns called 'caption'"):
        table(tmp_path, "file_name,caption,caption\n1.jpg,A.,B.\n")
    columns = [pa.array([numbered(1)]), pa.array(["A."]), pa.array(["B."])]
    both = pa.Table.from_arrays(columns, ["image", "text", "text"])
    (tmp_path / "hub").mkdir()
    pq.write_table(both, tmp_path / "hub" / "a.parquet")
    with pytest.raises(UserError, match="several columns called 'text'"):
        list_source(tmp_path / "hub")


def test_the_column_that_is_spelled_so_is_the_one_that_is_asked_for(tmp_path: Path):
    pq.write_table(
        pa.table({"image": [numbered(1)], "Caption": ["A."], "caption": ["B."]}), tmp_path / "a.parquet"
    )
    assert list_source(tmp_path, Selection.of(caption_column="Caption")).items[0].caption == "A."
    assert list_source(tmp_path).items[0].caption == "B."


def test_the_first_column_that_is_filled_counts(tmp_path: Path):
    assert table(tmp_path, "file_name,caption,text\n1.jpg,,B.\n2.jpg,A.,B.\n") == [
        ("1.jpg", "", ("B.",)), ("2.jpg", "", ("A.",))
    ]  # fmt: skip


def test_csv_as_excel_and_people_write_it(tmp_path: Path):
    expected = [("1.jpg", "", ("a boat, red",))]
    for text in (
        'file_name, caption\n1.jpg, "a boat, red"\n',
        "sep=;\nfile_name;caption\n1.jpg;a boat, red\n",
        "sep=|\nfile_name|caption\n1.jpg|a boat, red\n",
        "file_name;caption\n1.jpg;a boat, red\n",
        "1.jpg;a boat, red\n",
        "1.jpg\ta boat, red\n",
    ):
        assert table(tmp_path, text) == expected, text
    (tmp_path / "captions.csv").write_bytes("file_name,caption\n1.jpg,café\n".encode("cp1252"))
    with pytest.raises(UserError, match="not a text in UTF-8; save it as CSV UTF-8"):
        list_source(tmp_path)


def test_a_second_field_that_is_no_text_does_not_run_to_the_end_of_the_line(tmp_path: Path):
    assert table(tmp_path, "file_name,label\n1.jpg,cat,dog\n2.jpg,cat\n") == [("2.jpg", "cat", ())]
    assert "line 2 has 3 fields" in dict(list_source(tmp_path).unused)["captions.csv, row 1"]


def test_one_bad_row_of_a_tsv_leaves_the_others_as_they_are(tmp_path: Path):
    text = 'file_name\tcaption\n1.jpg\t"a boat\nat sea"\n2.jpg\t"a" car\n3.jpg\ta cup\n'
    assert table(tmp_path, text, "captions.tsv") == [
        ("1.jpg", "", ("a boat at sea",)),
        ("3.jpg", "", ("a cup",)),
    ]
    assert "captions.tsv, row 2" in dict(list_source(tmp_path).unused)


def test_names_are_found_in_other_capitals_forms_and_without_their_ending(tmp_path: Path):
    images(tmp_path, "cafe\u0301.jpg", "B.JPG", "c.png")
    lines = ["caf\u00e9.jpg,A.", "b.jpg,B.", "c,C.", "1,D.", "none,E."]
    found = table(tmp_path, "\n".join(["file_name,caption", *lines]))
    assert [path for path, *_ in found] == ["cafe\u0301.jpg", "B.JPG", "c.png", "1.jpg", "none"]


def test_rows_of_one_image_of_which_one_has_no_class_are_put_together(tmp_path: Path):
    assert table(tmp_path, "file_name,caption,class\n1.jpg,A.,\n1.jpg,B.,Cat\n1.jpg,C.,cat\n") == [
        ("1.jpg", "Cat", ("A.", "B.", "C."))
    ]


@pytest.mark.parametrize("name", ["a\\u0000b.jpg", "\\ud83d.jpg", "x" * 5000])
def test_names_that_no_file_can_have_are_refused_by_row(tmp_path: Path, name: str):
    line = f'{{"file_name": "{name}", "text": "A."}}\n{{"file_name": "1.jpg", "text": "B."}}'
    assert table(tmp_path, line, "captions.jsonl") == [("1.jpg", "", ("B.",))]
    assert "no name that a file can have" in dict(list_source(tmp_path).unused)["captions.jsonl, row 1"]


@pytest.mark.parametrize("bad", ["[" * 100_000, '{"a": ' + "9" * 5001 + "}"])
def test_json_that_no_reader_takes_is_named_at_every_door(tmp_path: Path, bad: str):
    with pytest.raises(UserError, match=r"captions\.jsonl"):
        table(tmp_path, bad, "captions.jsonl")
    beside = images(tmp_path / "beside", "1.jpg")
    (beside / "1.json").write_text(bad)
    write_tar(tmp_path / "a.tar", {"1.jpg": numbered(1), "1.json": bad.encode()})
    for place in (beside, tmp_path / "a.tar"):
        (item,) = list_source(place).items
        assert "is damaged" in item.error


def test_half_a_character_is_refused_by_row_and_not_in_the_middle_of_writing(tmp_path: Path, cli: Cli):
    text = '{"file_name": "1.jpg", "text": "a \\ud83d"}\n{"file_name": "2.jpg", "text": "B."}'
    table(tmp_path, text, "captions.jsonl")
    done = cli("caption", tmp_path, tmp_path / "out" / "c.parquet", "--captioner", "given")
    assert done.code == 0, done.err
    assert "half a character" in done.out


def test_a_json_list_in_place_of_lines_is_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="one JSON list; write its records as JSON lines"):
        table(tmp_path, '[{"file_name": "1.jpg", "text": "A."}]', "metadata.jsonl")


def test_where_knows_truth_values_in_every_notation(tmp_path: Path):
    lines = [{"file_name": f"{i}.jpg", "text": "A.", "nsfw": value} for i, value in ((1, False), (2, True))]
    table(tmp_path, "\n".join(map(json.dumps, lines)), "captions.jsonl")
    for condition in ("nsfw=false", "nsfw=False", "nsfw!=true", "nsfw=0"):
        assert [item.path for item in list_source(tmp_path, Selection.of([condition])).items] == ["1.jpg"]


# Levels and splits


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["PetImages/Cat/1.jpg", "PetImages/Dog/2.jpg"], r"class folders are in PetImages; give .*PetImages"),
        (["images/1.jpg"], r"one folder, images, whose name is no class; give .*/images"),
        (["train2017/a/1.jpg", "val2017/a/1.jpg"], "train2017, val2017, which are splits"),
        (["Training_set/a/1.jpg", "test_set/a/1.jpg"], "which are splits"),
        (["train/cat/1.jpg", "extra/1.jpg"], "holds train, which is a split and no class"),
        (["0/1.jpg", "1/2.jpg"], r"class folders are numbers.*classes\.txt.*--label-column none"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path: Path, names: list[str], why: str):
    with pytest.raises(UserError, match=why):
        list_source(images(tmp_path, *names))


def test_numbered_classes_are_named_by_a_table_or_left_out(tmp_path: Path):
    images(tmp_path, "0/1.jpg", "1/2.jpg")
    assert {i.class_name for i in list_source(tmp_path, Selection.of(label_column="none")).items} == {""}
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert [item.class_name for item in list_source(tmp_path).items] == ["cat", "dog"]


def test_tables_beside_class_folders_are_named(tmp_path: Path):
    images(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "labels.csv").touch()
    assert list_source(tmp_path).unused == [("labels.csv", "not in a class folder")]


def parquets(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [numbered(i)]}), folder / name)
    return folder


def read(folder: Path, split: str | None = None) -> list[str]:
    return [item.path.split("#")[0] for item in list_source(folder, Selection.of(split=split)).items]


@pytest.mark.parametrize("other", ["holdout-0", "unlabeled-0", "extra", "trainval-0"])
def test_files_beside_a_split_are_not_taken_for_it(tmp_path: Path, other: str):
    parquets(tmp_path, "train-0.parquet", f"{other}.parquet")
    assert read(tmp_path) == ["train-0.parquet"]
    assert "holds the splits" in list_source(tmp_path).notes[0]
    assert read(tmp_path, other) == [f"{other}.parquet"]


def test_a_split_is_found_by_its_own_name_too(tmp_path: Path):
    parquets(
        tmp_path, "dev-kit/train_sft-0.parquet", "dev-kit/train_gen-0.parquet", "dev-kit/test_sft-0.parquet"
    )
    assert read(tmp_path, "train_sft") == ["dev-kit/train_sft-0.parquet"]
    assert read(tmp_path, "test") == ["dev-kit/test_sft-0.parquet"]
    with pytest.raises(UserError, match="several splits"):
        read(parquets(tmp_path / "no", "test-0.parquet", "other-0.parquet"))


def test_configurations_are_told_apart(tmp_path: Path):
    parquets(tmp_path, "default/train/0000.parquet", "small/train/0000.parquet", "small/test/0000.parquet")
    with pytest.raises(UserError, match=r"several configurations, default, small; give .*default"):
        list_source(tmp_path)
    assert read(tmp_path / "small") == ["train/0000.parquet"]


def test_a_table_of_images_in_splits_is_one_too(tmp_path: Path):
    images(tmp_path, "train/1.jpg", "test/2.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,caption\ntrain/1.jpg,A.\ntest/2.jpg,B.\n")
    assert read(tmp_path) == ["train/1.jpg"]
    assert read(tmp_path, "test") == ["test/2.jpg"]
    (tmp_path / "metadata.csv").write_text("file_name,caption\ntrain/1.jpg,A.\nboat/2.jpg,B.\n")
    assert read(tmp_path) == ["train/1.jpg", "boat/2.jpg"]  # a train is a thing


# Files that are lost, damaged, or there twice


def tar_of(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(numbered(i))
            opened.addfile(member, io.BytesIO(numbered(i)))
    return file.getvalue()


@pytest.mark.parametrize("how", ["cut at a member", "cut in a header", "damaged", "joined"])
def test_a_tar_that_ends_too_early_says_so(tmp_path: Path, how: str):
    whole = tar_of("1.png", "2.png", "3.png")
    size = 512 + (len(numbered(0)) + 511) // 512 * 512
    content = {
        "cut at a member": whole[:size],
        "cut in a header": whole[: size + 264],
        "damaged": whole[:size] + b"\xff" * 164 + whole[size + 164 :],
        "joined": whole + tar_of("4.png"),
    }[how]
    (tmp_path / "a.tar").write_bytes(whole)
    assert list_source(tmp_path).unused == []
    (tmp_path / "a.tar").write_bytes(content)
    ((path, why),) = list_source(tmp_path).unused
    assert path == "a.tar"
    assert ("goes on behind its end mark" if how == "joined" else "damaged or cut off") in why


def test_broken_links_to_containers_are_named_and_doubles_read_once(tmp_path: Path):
    write_tar(tmp_path / "a.tar", {"1.png": numbered(1)})
    os.symlink("/nowhere/b.tar", tmp_path / "b.tar")
    os.symlink("a.tar", tmp_path / "c.tar")
    os.symlink(tmp_path, tmp_path / "up")
    deep = tmp_path / "deep" / "er" / "still"
    deep.mkdir(parents=True)
    write_tar(deep / "d.tar", {"2.png": numbered(2)})
    source = list_source(tmp_path)
    assert [item.path for item in source.items] == ["a.tar#1.png", "deep/er/still/d.tar#2.png"]
    why = dict(source.unused)
    assert set(why) == {"b.tar", "c.tar", "up"}
    assert why["c.tar"] == "the same file as a.tar"


def test_a_link_to_itself_is_named(tmp_path: Path):
    images(tmp_path, "cat/1.jpg")
    os.symlink("loop", tmp_path / "cat" / "loop")
    source = list_source(tmp_path)
    assert [item.path for item in source.items] == ["cat/1.jpg"]
    assert "cat/loop" in dict(source.unused)


def test_members_that_are_no_part_of_a_sample_are_named_or_counted(tmp_path: Path):
    members = {
        "./1.jpg": numbered(1), "1.txt": b"A boat.", "1.caption": b"B.", "1.en.txt": b"C.", "._1.jpg": b"-",
        ".DS_Store": b"-", "2.png": numbered(2), "2.txt": b"", "2.json": b'{"text": "Two."}',
        "3.png": numbered(3), "3.txt": b"x" * 1_100_000, "4.jfif": numbered(4), "5.png": numbered(5),
        "5.json": b'["Five.", "V."]',
    }  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = list_source(tmp_path)
    found = {item.path: item.captions for item in source.items if not item.error}
    assert found == {
        "a.tar#./1.jpg": ("A boat.",),
        "a.tar#2.png": ("Two.",),
        "a.tar#4.jfif": (),
        "a.tar#5.png": ("Five.", "V."),
    }
    assert [(i.path, "of 1,100,000 bytes" in i.error) for i in source.items if i.error] == [
        ("a.tar#3.png", True)
    ]
    assert set(dict(source.unused)) == {"a.tar#1.caption", "a.tar#1.en.txt"}
    assert source.hidden == 2
    assert number(open_picture(tmp_path, "a.tar#./1.jpg")) == 1


def test_records_of_a_tar_need_not_have_the_same_fields(tmp_path: Path):
    members = {f"{i}.png": numbered(i) for i in range(3)}
    members |= {"0.json": b'{"text": "A."}', "1.json": b'{"text": "B.", "score": 7, "long": "Longer."}'}
    write_tar(tmp_path / "a.tar", members)
    chosen = list_source(tmp_path, Selection.of(["score>5"], "long"))
    assert [(item.path, item.caption) for item in chosen.items] == [("a.tar#1.png", "Longer.")]
    with pytest.raises(UserError, match="no column 'other'; it has text, score, long"):
        list_source(tmp_path, Selection.of(caption_column="other"))


def test_hard_links_before_their_targets_are_followed_and_holes_are_named(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./1.png"
        file.addfile(link)
        member = tarfile.TarInfo("1.png")
        member.size = len(numbered(5))
        file.addfile(member, io.BytesIO(numbered(5)))
    assert [number(open_picture(tmp_path, i.path)) for i in list_source(tmp_path).items] == [5, 5]


def test_parquet_files_without_images_beside_tars_are_passed_over_by_name(tmp_path: Path):
    write_tar(tmp_path / "00000.tar", {"1.png": numbered(1)})
    pq.write_table(pa.table({"url": ["http://x"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    source = list_source(tmp_path)
    assert len(source.items) == 1
    assert [path for path, _ in source.unused] == ["00000.parquet"]


def test_two_rows_of_one_file_are_not_two_images_of_one_name(tmp_path: Path):
    images(tmp_path, "img/1.png")
    image = pa.array([{"bytes": None, "path": "img/1.png"}] * 2)
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    source = list_source(tmp_path)
    assert [item.path for item in source.items] == ["img/1.png", "a.parquet#1"]
    assert "is that of row 0, too" in source.items[1].error
    assert source.unused == []


def test_a_damaged_column_is_an_error_that_names_it(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [numbered(1)] * 50)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = b"\xff" * 36
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: its columns .* cannot be read"):
        list_source(tmp_path)


# Flat folders


def test_the_same_command_on_a_flat_folder_is_complete_the_second_time(tmp_path: Path, cli: Cli):
    images(tmp_path, "1.jpg", "2.jpg")
    for i in (1, 2):
        (tmp_path / f"{i}.txt").write_text(f"Image {'ab'[i - 1]}.")
    (tmp_path / "broken.jpg").write_bytes(b"-")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._1.jpg").write_bytes(b"-")
    (tmp_path / "empty").mkdir()
    for said in (
        "2 images with captions by given, of 4 images and other files",
        "already complete, 2 captions",
    ):
        done = cli("caption", tmp_path, tmp_path / "captions.parquet", "--captioner", "given")
        assert done.code == 0, done.err
        assert said in done.out


def test_a_label_in_a_record_beside_an_image_is_its_class(tmp_path: Path):
    images(tmp_path, "1.jpg")
    (tmp_path / "1.json").write_text('{"label": "red_fox", "text": "A."}')
    (item,) = list_source(tmp_path).items
    assert (item.class_name, item.caption) == ("red fox", "A.")


def test_pointers_of_git_lfs_are_named(tmp_path: Path):
    from kilopix.data.sources import BrokenImage, decode

    with pytest.raises(BrokenImage, match="git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
