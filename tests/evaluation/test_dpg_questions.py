import csv
from pathlib import Path

import pytest

from kilopix.evaluation.dpg_questions import Asked, published_fails, read_questions
from kilopix.types import UserError

HEADER = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad"),
    *("category_detailed", "tuple", "question_natural_language"),
)


def row(
    item: str, number: int, parents: str = "0", text: str = "", category: str = "entity - whole"
) -> list[str]:
    asked = f"Is {number} of {item} true?"
    return [
        item,
        text or f"prompt of {item}",
        "",
        str(number),
        parents,
        "x",
        "y",
        f"{category} (a, b)",
        asked,
    ]


def write(path: Path, rows: list[list[str]], header: tuple[str, ...] = HEADER) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def ids(asked: Asked) -> list[int]:
    return [question.id for question in asked.questions]


def test_every_row_counts(tmp_path: Path):
    text = 'a "blue" hat, and\na dog'
    rows = [
        row("b", 1, text=text),
        row("b", 2, "1", text, "attribute - color"),
        row("a", 1, "0", category="global - "),
        row("a", 2, "0, 1"),
    ]
    found = read_questions(write(tmp_path / "q.csv", rows))
    assert [one.name for one in found.items] == ["b", "a"]
    assert found.items[0].prompt == text
    assert [q.category for q in found.items[0].questions] == ["entity - whole", "attribute - color"]
    assert found.items[1].questions[0].category == "global -"
    assert found.items[1].questions[1].depends_on == (0, 1)
    assert found.items[0].questions[1].text == "Is 2 of b true?"
    assert found.oddities == ()


def test_the_published_reading_leaves_out_the_first_row(tmp_path: Path):
    path = write(tmp_path / "q.csv", [row("b", 1), row("b", 2, "1"), row("a", 1)])
    found = read_questions(path, "published")
    assert [(one.name, ids(one)) for one in found.items] == [("b", [2]), ("a", [1])]
    assert found.items[0].questions[0].depends_on == (1,), "what it stumbles over is kept"
    assert read_questions(path).items[0].questions[1].depends_on == (1,)


def test_a_prompt_in_two_blocks(tmp_path: Path):
    rows = [row("z", 1), row("a", 1), row("a", 2), row("b", 1), row("a", 3)]
    path = write(tmp_path / "q.csv", rows)
    assert {one.name: ids(one) for one in read_questions(path).items} == {"z": [1], "a": [1, 2, 3], "b": [1]}
    published = {one.name: ids(one) for one in read_questions(path, "published").items}
    assert published == {"b": [1], "a": [3]}


def test_odd_rows_are_told(tmp_path: Path):
    rows = [row("z", 1), row("a", 1), row("a", 2, "9"), [*row("a", 1, "2")[:-1], "Later?"]]
    found = read_questions(write(tmp_path / "q.csv", rows))
    assert ids(found.items[1]) == [1, 2]
    assert found.items[1].questions[0].text == "Later?"
    assert found.items[1].questions[1].depends_on == ()
    assert len(found.oddities) == 2
    assert "a has two questions 1; the later counts" in found.oddities[0]
    assert "a: question 2 depends on 9, which does not exist" in found.oddities[1]


@pytest.mark.parametrize(
    ("answers", "fails"),
    [
        (("yes", "yes", "yes"), True),  # looks for 7, which is not there
        (("no", "yes", "yes"), False),  # 3 is silenced by 2 before it looks for 7
        (("yes", "no", "yes"), False),
    ],
)
def test_when_the_published_scorer_stops(tmp_path: Path, answers: tuple[str, ...], fails: bool):
    rows = [row("z", 1), row("a", 1), row("a", 2, "1"), row("a", 3, "2, 7")]
    asked = read_questions(write(tmp_path / "q.csv", rows), "published").items[0]
    assert published_fails(asked, answers) is fails


def test_files_that_are_no_questions_are_refused(tmp_path: Path):
    def expect(message: str, rows: list[list[str]], header: tuple[str, ...] = HEADER) -> None:
        with pytest.raises(UserError, match=message):
            read_questions(write(tmp_path / "q.csv", rows, header))

    expect("holds no question", [])
    expect("has no column 'tuple'", [row("a", 1)], tuple("triple" if c == "tuple" else c for c in HEADER))
    expect("row 3: proposition_id and dependency must be whole numbers", [row("a", 1), row("a", 2, "one")])
    expect("row 2: question_natural_language is empty", [[*row("a", 1)[:-1], " "]])
    expect("row 3: has more fields than the header", [row("a", 1), [*row("a", 2), "or not?"]])
    expect("a has no prompt", [["a", "", *row("a", 1)[2:]]])
    with pytest.raises(UserError, match="kilopix fetch-dpg"):
        read_questions(tmp_path / "nowhere.csv")
