import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from containers import number, numbered, write_parquet, write_tar
from kilopix.data.sources import BrokenImage, open_picture, reference, split_reference


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "a#1.png").write_bytes(numbered(200))
    write_parquet(tmp_path / "train-0.parquet", [numbered(i) for i in range(40)])
    write_tar(
        tmp_path / "s-0.tar", {f"{i:04d}.png": numbered(i) for i in range(40)} | {"d/x#y.png": numbered(99)}
    )
    return tmp_path


def test_a_path_leads_to_a_file_a_row_or_a_member(root: Path):
    assert number(open_picture(root, "fox/a#1.png")) == 200
    assert number(open_picture(root, "s-0.tar#d/x#y.png")) == 99
    for i in (39, 0, 7, 6, 21):
        assert number(open_picture(root, f"train-0.parquet#{i}")) == i
        assert number(open_picture(root, f"s-0.tar#{i:04d}.png")) == i


def test_references_are_read_as_they_were_written():
    assert split_reference(reference("a/b.tar", "x.tar#1.jpg")) == ("a/b.tar", "x.tar#1.jpg")
    assert split_reference(reference("b.parquet", 12)) == ("b.parquet", "12")
    assert split_reference("fox/a#1.jpg") is None
    assert split_reference("x.tar") is None


def test_a_file_whose_name_looks_like_a_reference_is_a_file(root: Path):
    (root / "s-0.tar#0001.png").write_bytes(numbered(77))
    assert number(open_picture(root, "s-0.tar#0001.png")) == 77


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none.png", "no such file"),
        ("none.parquet#0", "no such file"),
        ("none.tar#a", "no such file"),
        ("train-0.parquet#40", "has no row 40"),
        ("train-0.parquet#x", "has no row x"),
        ("s-0.tar#9.png", "has no member"),
        ("text.parquet#0", "arquet"),
        ("text.tar#0", "no tar file"),
        ("labels.parquet#0", "needs a column of pictures"),
        ("holes.parquet#1", "holds no bytes"),
        ("holes.parquet#2", "not an image"),
        ("cut.tar#b.png", r"cut off|no tar file"),
        ("/etc/passwd", "not below the root"),
    ],
)
def test_what_cannot_be_had_says_why(root: Path, path: str, why: str):
    for name in ("text.parquet", "text.tar"):
        (root / name).write_bytes(b"this is text, and long enough to be looked at " * 40)
    pq.write_table(pa.table({"label": [1]}), root / "labels.parquet")
    write_parquet(root / "holes.parquet", [numbered(1), None, b"text"])
    write_tar(root / "cut.tar", {"a.png": numbered(1), "b.png": os.urandom(5000)})
    content = (root / "cut.tar").read_bytes()
    (root / "cut.tar").write_bytes(content[: len(numbered(1)) // 512 * 512 + 512 * 5])
    with pytest.raises(BrokenImage, match=why):
        open_picture(root, path)


def test_a_container_that_was_replaced_is_read_anew(root: Path):
    assert number(open_picture(root, "train-0.parquet#3")) == 3
    assert number(open_picture(root, "s-0.tar#0003.png")) == 3
    write_parquet(root / "train-0.parquet", [numbered(100 + i) for i in range(10)])
    write_tar(root / "s-0.tar", {"pad": b"x" * 999, "0003.png": numbered(103)})
    assert number(open_picture(root, "train-0.parquet#3")) == 103
    assert number(open_picture(root, "s-0.tar#0003.png")) == 103


def paths_and_numbers() -> list[tuple[str, int]]:
    pairs = [(f"train-0.parquet#{i}", i) for i in range(40)] + [
        (f"s-0.tar#{i:04d}.png", i) for i in range(40)
    ]
    return [pairs[i * 37 % len(pairs)] for i in range(3 * len(pairs))]


def open_all(root: Path) -> list[int]:
    return [number(open_picture(root, path)) for path, _ in paths_and_numbers()]


def test_threads_and_processes_read_at_once(root: Path):
    expected = [i for _, i in paths_and_numbers()]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_all, [root] * 4)) == [expected] * 4
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(open_all, [root] * 3)) == [expected] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_reads_what_its_parent_had_open(root: Path):
    open_all(root)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if open_all(root) == [i for _, i in paths_and_numbers()] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_row_group_is_read_whole_only_for_a_second_row_of_it(root: Path, monkeypatch: pytest.MonkeyPatch):
    from kilopix.data.sources import containers

    whole, groups = containers._row_group, []
    monkeypatch.setattr(
        containers, "_row_group", lambda file, stamp, group: groups.append(group) or whole(file, stamp, group)
    )
    for i in (3, 38, 13, 20, 27):  # each in another row group of seven rows
        assert number(open_picture(root, f"train-0.parquet#{i}")) == i
    assert groups == []
    assert [number(open_picture(root, f"train-0.parquet#{i}")) for i in range(14)] == list(range(14))
    assert groups == [0] * 7 + [1] * 7
