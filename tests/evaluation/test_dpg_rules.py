import pytest

from kilopix.evaluation.dpg import Item, Question, score_items
from kilopix.types import UserError

CHAIN = (
    Question(1, "entity - whole", (0,)),
    Question(2, "attribute - color", (1,)),
    Question(3, "attribute - shape", (2,)),
    Question(4, "entity - whole"),
)


def test_a_no_silences_all_that_depends_on_it():
    scores = score_items([Item("a", CHAIN, (("no", "yes", "yes", "yes"), ("yes", "yes", "no", "yes")))])
    assert scores.items[0].pictures == (0.25, 0.75)
    assert scores.overall == 50


def test_only_the_word_yes_is_a_yes():
    assert score_items([Item("a", CHAIN[:1], (("Yes",), ("blue",), ("yes",), ("",)))]).overall == 25


def test_categories_count_every_picture_or_the_last_and_before_dependencies():
    item = Item("a", CHAIN, (("no", "yes", "yes", "yes"), ("no", "no", "yes", "no")))
    every = {one.name: (one.value, one.answers) for one in score_items([item]).l2}
    last = {one.name: (one.value, one.answers) for one in score_items([item], "last").l2}
    assert every == {
        "attribute - color": (50, 2),
        "attribute - shape": (100, 2),
        "entity - whole": (25, 4),
    }
    assert last == {"attribute - color": (0, 1), "attribute - shape": (100, 1), "entity - whole": (0, 2)}
    assert [(one.name, one.value) for one in score_items([item]).l1] == [("attribute", 75), ("entity", 25)]


def test_prompts_weigh_the_same_whatever_their_pictures():
    items = [Item("a", CHAIN[:1], (("yes",), ("yes",), ("no",), ("no",))), Item("b", CHAIN[:1], (("yes",),))]
    assert score_items(items).overall == 75


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no prompt"),
        ([Item("a", CHAIN, ())], "a has no questions or no answered picture"),
        ([Item("a", CHAIN, (("yes",),))], "a, picture 0 has 1 answers to 4 questions"),
        ([Item("a", (Question(1, "x", (7,)),), (("yes",),))], "question 1 depends on 7"),
        ([Item("a", (CHAIN[0], CHAIN[0]), (("yes", "no"),))], "two questions of one id"),
    ],
)
def test_what_does_not_fit_is_refused(items, message):
    with pytest.raises(UserError, match=message):
        score_items(items)
