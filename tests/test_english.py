import pytest

from kilopix.english import indefinite_article, plural, sentence, with_article

ARTICLES = {
    "fox": "a fox",
    "umbrella": "an umbrella",
    "hourglass": "an hourglass",
    "honeycomb": "a honeycomb",
    "unicycle": "a unicycle",
    "ukulele": "a ukulele",
    "eucalyptus": "a eucalyptus",
    "x-ray": "an x-ray",
    "oxcart": "an oxcart",
    "one-armed bandit": "a one-armed bandit",
    "onion": "an onion",
    "unidentified object": "an unidentified object",
    "scissors": "a pair of scissors",
    "sunglasses": "a pair of sunglasses",
    "Great Dane": "a Great Dane",
    "Irish setter": "an Irish setter",
}
PLURALS = {
    "fox": "foxes",
    "butterfly": "butterflies",
    "toy": "toys",
    "bus": "buses",
    "snowman": "snowmen",
    "wolf": "wolves",
    "potted plant": "potted plants",
    "jellyfish": "jellyfish",
    "sunglasses": "sunglasses",
    "ox": "oxen",
    "tomato": "tomatoes",
}


@pytest.mark.parametrize(("noun", "phrase"), ARTICLES.items())
def test_articles(noun: str, phrase: str):
    assert with_article(noun) == phrase


@pytest.mark.parametrize(("noun", "many"), PLURALS.items())
def test_plurals(noun: str, many: str):
    assert plural(noun) == many


def test_article_of_a_phrase_follows_its_first_word():
    assert indefinite_article("orange car") == "an"
    assert indefinite_article("large umbrella") == "a"


def test_sentences_begin_large_and_end_once():
    assert sentence("a fox ") == "A fox."
    assert sentence("A fox!") == "A fox!"
