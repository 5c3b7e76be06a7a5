import random

import pytest

from kilopix.data.duplicates import near_duplicates, shingles, similarity
from kilopix.data.quality import (
    FAULTS,
    MEANING,
    examine,
    faults_of,
    has_loop,
    is_refusal,
    is_truncated,
    names_class,
)

GOOD = (
    "The image shows a red fox standing on fresh snow, with three pines behind it. "
    "The fox looks to the left, and its bushy tail hangs down. "
    "The light is soft, as on a cloudy morning in winter."
)


def test_a_good_caption_has_no_fault():
    assert faults_of(GOOD, "red fox") == []
    assert set(MEANING) == set(FAULTS)


@pytest.mark.parametrize(
    ("caption", "fault"),
    [
        ("", "empty"),
        (" . ", "empty"),
        ("A fox on", "truncated"),
        ("A fox (on snow.", "truncated"),
        ('A sign reads "stop.', "truncated"),
        ("Seen here: 1.", "truncated"),
        ("A fox sits on snow. A fox sits on snow.", "loop"),
        ("A fox and a fox and a fox and a fox and a fox.", "loop"),
        ("A fox is very very very very very very red.", "loop"),
        ("I'm sorry, but I cannot see a fox.", "refusal"),
        ("As an AI, I see a fox.", "refusal"),
        ("A dog on snow.", "class_absent"),
    ],
)
def test_each_fault_is_found(caption: str, fault: str):
    assert fault in faults_of(caption, "fox")


@pytest.mark.parametrize(
    "caption",
    [
        "A cup on the left and a cup on the right.",
        "Two dogs stand side by side by side.",
        'A sign reads "stop."',
        "He shouts: stop!",
        "It was taken in 2010.",
        "A black and white and black and white scarf.",
    ],
)
def test_honest_captions_are_left_alone(caption: str):
    assert not is_truncated(caption)
    assert not has_loop(caption)
    assert not is_refusal(caption)


def test_a_class_is_found_by_any_of_its_names():
    assert names_class("Two ladybirds on a leaf.", "ladybug") == "name"
    assert names_class("A Maltese terrier.", "Maltese dog") == "name"
    assert names_class("A small white dog.", "Maltese dog") == "part"
    assert names_class("A hotdog.", "Maltese dog") == "absent"
    assert names_class("Three wolves.", "wolf") == "name"


def sentence(rng: random.Random, words: int = 40) -> list[str]:
    return [f"word{rng.randrange(3000)}" for _ in range(words)]


def test_near_duplicates_are_those_of_exact_comparison():
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(150):
        words = sentence(rng)
        texts.append(" ".join(words))
        if rng.random() < 0.3:
            changed = words.copy()
            for _ in range(rng.choice([1, 1, 2, 5])):
                changed[rng.randrange(len(changed))] = "other"
            texts.append(" ".join(changed))
    texts += [texts[3].upper() + "!", texts[3]]
    sets = [shingles(text) for text in texts]
    pairs = {(i, j) for j in range(len(texts)) for i in range(j) if similarity(sets[i], sets[j]) >= 0.8}
    assert 20 < len(pairs) < 80
    groups = near_duplicates(texts)
    together = {(i, j) for group in groups for j in group for i in group if i < j}
    assert pairs <= together
    assert len(together - pairs) <= 3  # joined by way of a third


def test_ten_thousand_equal_captions_are_one_group_at_once():
    texts = ["An image of a fox."] * 10_000 + ["An image of a cup."]
    assert [len(group) for group in near_duplicates(texts)] == [10_000]


def test_the_report_counts_every_caption_once():
    captions = [GOOD, "", "A dog runs", GOOD.replace("soft", "dim"), "A fox."]
    quality = examine(captions, ["red fox", "cup", "dog", "", "fox"])
    assert quality.faults == {1: ["empty"], 2: ["truncated"], 3: ["duplicate"]}
    assert quality.counts() == {
        "empty": 1, "truncated": 1, "loop": 0, "refusal": 0, "duplicate": 1, "class_absent": 0
    }  # fmt: skip
    assert quality.class_named == {"name": 3, "part": 0, "absent": 1}
    assert sum(quality.histogram.values()) == quality.count == 5
    assert (quality.lengths["least"], quality.lengths["most"]) == (0, 38)
    assert examine([], []).count == 0
