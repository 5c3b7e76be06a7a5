"""Captions and labels of any type: what is text, what is several texts, and what is refused by name."""

import math

import pytest

from kilopix.errors import UserError
from kilopix.runtime import read_lines, text_lines
from kilopix.values import BadValue, label_of, texts_of


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("A boat.", ("A boat.",)),
        ("  two\n lines\u2028of it ", ("two lines of it",)),
        ("\ufeffA boat.", ("A boat.",)),
        (b"\xef\xbb\xbfcaf\xc3\xa9", ("café",)),
        (None, ()),
        ("", ()),
        (math.nan, ()),
        ("nan", ()),
        ("None", ()),
        ([], ()),
        (["A.", "B.", "A.", None, ""], ("A.", "B.")),
        (("A.", "B."), ("A.", "B.")),
        ("['A boat.', 'It\\'s']", ("A boat.", "It's")),
        ("['A boat.' 'A red boat.'\n \"It's\"]", ("A boat.", "A red boat.", "It's")),
        ("['a', nan, None]", ("a",)),
        ("('A.', 'B.')", ("A.", "B.")),
        ("[]", ()),
        ('["A boat.", "B, c."]', ("A boat.", "B, c.")),
        ("[a boat] on a lake", ("[a boat] on a lake",)),
        ("[a boat]", ("[a boat]",)),
        (["[x]", "['y']"], ("[x]", "['y']")),
    ],
)
def test_texts(value, texts):
    assert texts_of(value) == texts


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (True, "the truth value true"),
        (3, "the number 3"),
        (2.0, "the number 2.0"),
        (math.inf, "the number inf"),
        ({"raw": "A boat."}, r"a record \(raw\)"),
        (["A.", 3], "the number 3"),
        ([["A."]], "a list of 1"),
        (b"\xff\xfe", "not text in UTF-8"),
        ("[1, 2]", "the number 1"),
        ("{'en': 'A boat.'}", r"a record \(en\)"),
        ("b'A boat.'", "a value of type bytes"),
    ],
)
def test_what_is_no_caption_says_what_it_is(value, what):
    with pytest.raises(BadValue, match=f"its caption is {what}"):
        texts_of(value)


@pytest.mark.parametrize("value", ["3", "True", "0 0.5 0.5 0.1 0.1", "a \ud83d", "?!"])
def test_texts_without_words_are_no_captions(value):
    with pytest.raises(BadValue, match=r"no words|half a character"):
        texts_of(value)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("fox", "fox"),
        (" great_white  shark ", "great_white shark"),
        (3, "3"),
        (3.0, "3"),
        ("3.0", "3"),
        ("-1", "-1"),
        (["fox"], "fox"),
        ([3.0], "3"),
        (b"fox\n", "fox"),
        ("['fox']", "fox"),
        ("[]", ""),
        ("003", "3"),
        ("fox, dog", "fox, dog"),
        (None, ""),
        (math.nan, ""),
        ("", ""),
        ([], ""),
    ],
)
def test_labels(value, label):
    assert label_of(value) == label


@pytest.mark.parametrize(
    "value", [True, 3.5, {"id": 3}, ["fox", "cup"], [1, 2], math.inf, "True", "1.5", "['a', 'b']"]
)
def test_what_is_no_label_is_refused(value):
    with pytest.raises(BadValue, match="its label is"):
        label_of(value)


def test_lines_end_with_a_line_feed_and_nothing_else(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red\u2028car\r\na fox\x0c\n\nlast".encode())
    assert text_lines(file) == ["a red\u2028car", "a fox\x0c", "", "last"]
    file.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\r\n{"a": 1}'.encode())
    assert read_lines(file) == [{"a": "x\u2028y"}, {"a": 1}]
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"prompts\.txt: not a text in UTF-8"):
        text_lines(file)
    with pytest.raises(UserError, match="no such file"):
        text_lines(tmp_path / "none")
