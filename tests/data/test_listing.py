import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import number, numbered, write_parquet, write_tar
from kilopix.data.sources import BrokenImage, list_source, open_picture, release_arrays, synonyms
from kilopix.data.sources.classes import imagenet_names
from kilopix.errors import UserError


def found(place: Path) -> list[tuple[str, str, str]]:
    return [(item.path, item.class_name, item.caption) for item in list_source(place).items]


def write_captions(folder: Path, name: str, rows: list[dict]) -> None:
    keys = list(rows[0])
    if name.endswith("jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    else:
        mark = "\t" if name.endswith("tsv") else ","
        quote = '"' if mark == "," else ""
        lines = [mark.join(keys)] + [mark.join(f"{quote}{row[k]}{quote}" for k in keys) for row in rows]
        (folder / name).write_text("\n".join(lines) + "\n")


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_imagenet_has_a_thousand_classes_each_with_a_name_of_its_own():
    names = imagenet_names()
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert all(len(key) == 9 and all(values) for key, values in names.items())
    assert len({values[0].lower() for values in names.values()}) == 1000
    assert names["n01440764"] == ("tench", "Tinca tinca")
    assert list(names).index("n02123045") == 281  # tabby, by ImageNet's order
    assert "kit fox" in synonyms("kit fox")
    assert "ladybird" in synonyms("ladybug")
    assert synonyms("chimera") == ("chimera",)


def test_wordnet_folders_get_their_names_from_the_table_that_ships(tmp_path: Path):
    for name in ("n02119789/n02119789_1.JPEG", "n01440764/n01440764_10026.JPEG", "my_cat/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(numbered(1))
    (tmp_path / "loose.jpg").write_bytes(numbered(2))
    source = list_source(tmp_path)
    assert [(i.path, i.class_name) for i in source.items] == [
        ("my_cat/1.png", "my cat"),
        ("n01440764/n01440764_10026.JPEG", "tench"),
        ("n02119789/n02119789_1.JPEG", "kit fox"),
    ]
    assert source.unused == [("loose.jpg", "not in a class folder")]


def test_a_folder_of_images_alone_says_their_classes_where_their_names_do(tmp_path: Path):
    for name in ("b.png", "n01440764_1.JPEG"):
        (tmp_path / name).write_bytes(numbered(1))
    (tmp_path / "notes.txt").touch()
    assert found(tmp_path) == [("b.png", "", ""), ("n01440764_1.JPEG", "tench", "")]


@pytest.mark.parametrize("name", ["captions.tsv", "captions.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_flat_folder_with_a_captions_file(tmp_path: Path, name: str):
    rows = [
        {"file_name": "b.png", "caption": "A fox, on snow."},
        {"file_name": "sub/n01440764_7.png", "caption": "A fish."},
        {"file_name": "b.png", "caption": "Again."},
    ]
    (tmp_path / "sub").mkdir()
    for file in ("b.png", "sub/n01440764_7.png", "other.png"):
        (tmp_path / file).write_bytes(numbered(3))
    write_captions(tmp_path, name, rows)
    expected = [("b.png", "", "A fox, on snow."), ("sub/n01440764_7.png", "tench", "A fish.")]
    assert found(tmp_path) == expected
    assert found(tmp_path / name) == expected
    source = list_source(tmp_path)
    assert source.items[0].captions == ("A fox, on snow.", "Again.")
    assert source.unused == [("other.png", f"not in {name}")]


def test_a_captions_file_may_name_classes_or_have_no_header(tmp_path: Path):
    write_captions(tmp_path, "a.csv", [{"path": "1.png", "text": "Hello.", "class": "great_white_shark"}])
    assert found(tmp_path / "a.csv") == [("1.png", "great white shark", "Hello.")]
    (tmp_path / "b.tsv").write_text('1.png\tA "fox".\n2.png\tA cup.\n')
    assert found(tmp_path / "b.tsv") == [("1.png", "", 'A "fox".'), ("2.png", "", "A cup.")]


def test_parquet_files_of_the_hub(tmp_path: Path):
    (tmp_path / "data").mkdir()
    image = pa.array([{"bytes": numbered(i), "path": None} for i in range(5)])
    features = {"label": {"_type": "ClassLabel", "names": ["tench, Tinca tinca", "kit fox, Vulpes macrotis"]}}
    table = pa.table({"image": image, "label": [0, 1, 1, -1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "data" / "train-00000.parquet", row_group_size=2)
    texts = pa.table({"image": image, "text": ["A.", "B  b.", None, "D.", "E."]})
    pq.write_table(texts, tmp_path / "data" / "train-00001.parquet")
    items = list_source(tmp_path).items
    assert [i.class_name for i in items[:5]] == ["tench", "kit fox", "kit fox", "", "tench"]
    assert [i.caption for i in items[5:]] == ["A.", "B b.", "", "D.", "E."]
    assert [number(open_picture(tmp_path, i.path)) for i in items] == [*range(5), *range(5)]


def test_numbered_labels_without_names_need_a_table(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [numbered(i) for i in range(2)])
    with pytest.raises(UserError, match=r"a\.parquet: its labels are numbers.*classes\.txt"):
        list_source(tmp_path)
    (tmp_path / "classes.txt").write_text("0 fox\n1 red cup, mug\n")
    assert [name for _, name, _ in found(tmp_path)] == ["fox", "red cup"]


def test_tar_shards_in_the_webdataset_convention(tmp_path: Path):
    members = {
        "a/0.v1.png": numbered(1),  # the key ends at the first dot, so this is of kind `v1.png`: no picture
        "a/1.png": numbered(11),
        "a/1.txt": b"A fox.\nOn snow.",
        "a/1.cls": b"fox",
        "a/n01440764_2.png": numbered(12),
        "a/n01440764_2.json": b'{"caption": "A fish."}',
        "a/3.png": numbered(13),
        "a/3.json": b"{broken",
        "a/4.txt": b"Nothing to see.",
    }
    write_tar(tmp_path / "s-1.tar", members)
    write_tar(tmp_path / "s-0.tar", {"9.jpg": numbered(9)})
    source = list_source(tmp_path)
    assert [(i.path, i.class_name, i.caption) for i in source.items] == [
        ("s-0.tar#9.jpg", "", ""),
        ("s-1.tar#a/1.png", "fox", "A fox. On snow."),
        ("s-1.tar#a/n01440764_2.png", "tench", "A fish."),
        ("s-1.tar#a/3.png", "", ""),
    ]
    assert [bool(i.error) for i in source.items] == [False, False, False, True]
    assert [path for path, _ in source.unused] == ["s-1.tar#a/0.v1.png", "s-1.tar#a/4"]
    assert [number(open_picture(tmp_path, i.path)) for i in source.items] == [9, 11, 12, 13]


def test_the_published_release_keeps_its_arrays(tmp_path: Path):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(7, 2048)).astype(np.float16)
    mean, std = rng.normal(size=(2, 4, 32, 32)).astype(np.float16)
    sample = {
        "jpg": numbered(5),
        "txt": b"A tench.",
        "label.json": b'{"id": 0, "class_name": "tench, Tinca tinca"}',
        "flan_t5_xl_embeddings.npy": npy(text),
        "vae_embeddings_mean_256.npy": npy(mean),
        "vae_embeddings_std_256.npy": npy(std),
    }
    broken = sample | {"flan_t5_xl_embeddings.npy": npy(text * np.float16(np.nan))}
    pickled = sample | {"vae_embeddings_mean_256.npy": npy(np.array([{}], dtype=object))}
    files = {
        f"{key}.{ending}": content
        for key, made in (("0", sample), ("1", broken), ("2", pickled))
        for ending, content in made.items()
    }
    write_tar(tmp_path / "0.tar", files | {"3.jpg": numbered(1)})
    assert found(tmp_path)[0] == ("0.tar#0.jpg", "tench", "A tench.")
    stored = release_arrays(tmp_path, "0.tar#0.jpg")
    assert (stored.text == text).all()
    assert (stored.mean == mean).all()
    assert (stored.std == std).all()
    for path, why in (("0.tar#1.jpg", "finite"), ("0.tar#2.jpg", "no array"), ("0.tar#3.jpg", "no member")):
        with pytest.raises(BrokenImage, match=why):
            release_arrays(tmp_path, path)


def test_a_place_that_could_be_two_sources_is_refused(tmp_path: Path):
    (tmp_path / "captions.tsv").write_text("a.png\tA.\n")
    assert list_source(tmp_path).kind == "captions file"
    write_tar(tmp_path / "0.tar", {"1.jpg": b"x"})
    with pytest.raises(UserError, match="a captions file and tar files"):
        list_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"", "neither a folder of images nor"),
        ("a.tar", b"no tar", "not a whole tar file"),
        ("a.parquet", b"no parquet", "not a Parquet file"),
        ("a.jsonl", b'{"file_name": ', "line 1: not valid JSON"),
        ("a.csv", b"name,words,more\n1,2,3\n", "needs a column of file names"),
        ("a.tsv", b"file_name\tcaption\n\xff\xfe\tx\n", "not a text in UTF-8"),
        ("a.jsonl", b"", "holds no row"),
    ],
)
def test_files_that_are_no_source_say_why(tmp_path: Path, name: str, content: bytes, why: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=why):
        list_source(tmp_path / name)
