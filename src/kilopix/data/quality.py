"""What is wrong with captions: one function a fault, and a report over a whole manifest.

In: captions, and the class names of their pictures. Out: the faults of each, their counts, and the
distribution of lengths.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kilopix.data.duplicates import near_duplicates, words_of
from kilopix.data.sources.classes import synonyms
from kilopix.english import plural
from kilopix.progress import Progress, working

Fault = Literal["empty", "truncated", "loop", "refusal", "duplicate", "class_absent"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
MEANING: dict[Fault, str] = {
    "empty": "no words",
    "truncated": "does not end with a whole sentence, or leaves a bracket or quotation open",
    "loop": "repeats a phrase or a sentence",
    "refusal": "speaks of the model or the request instead of the picture",
    "duplicate": "nearly the same as an earlier caption",
    "class_absent": "names the class by none of its names, nor by the last word of one",
}

_END = re.compile(r"[.!?…][\"'\u201d\u2019)\]]*$")
_LIST_NUMBER = re.compile(r"(?:^|[.:;!?]\s)\s*\d{1,2}\.$")
_REFUSAL = re.compile(
    r"\bas an ai\b|\blanguage model\b|\bi(?:'m| am) (?:sorry|unable|not able)\b|\bi can(?:'t|not| not) "
    r"(?:see|view|describe|help|assist|provide|identify|process)\b|\bno image (?:was|is|has been) "
    r"(?:provided|attached|given)\b|\bhow can i (?:help|assist)\b|<\|",
    re.IGNORECASE,
)
_LONGEST_PHRASE = 12  # words
_MANY = 50_000  # captions that take so long to examine that a bar is shown
_LOOPED_WORDS = 6  # that a phrase repeated at once must fill


@dataclass(frozen=True)
class Quality:
    """The faults of every caption that has some, by its position, and what the whole set is like."""

    count: int
    faults: dict[int, list[Fault]]
    lengths: dict[str, int]
    histogram: dict[str, int]
    class_named: dict[str, int]

    def counts(self) -> dict[Fault, int]:
        """How many captions have each fault."""
        found = Counter(fault for faults in self.faults.values() for fault in faults)
        return {fault: found[fault] for fault in FAULTS}


def is_empty(caption: str) -> bool:
    """No words."""
    return not words_of(caption)


def is_truncated(caption: str) -> bool:
    """It ends in the middle of a sentence, with the number of a list, or inside brackets or quotes."""
    text = caption.strip()
    open_brackets = text.count("(") > text.count(")") or text.count("[") > text.count("]")
    open_quotes = text.count('"') % 2 == 1 or text.count("“") > text.count("”")
    return not _END.search(text) or bool(_LIST_NUMBER.search(text)) or open_brackets or open_quotes


def has_loop(caption: str) -> bool:
    """A phrase follows itself, or a sentence of four words and more comes twice, or few runs are new."""
    sentences = [tuple(words_of(part)) for part in re.split(r"(?<=[.!?])\s+|\n", caption)]
    long_ones = [sentence for sentence in sentences if len(sentence) >= 4]
    if len(set(long_ones)) < len(long_ones):
        return True
    words = words_of(caption)
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    if len(words) >= 30 and len(set(runs)) < 0.6 * len(runs):
        return True
    return any(
        _follows_itself(words, length) for length in range(1, min(_LONGEST_PHRASE, len(words) // 2) + 1)
    )


def _follows_itself(words: list[str], length: int) -> bool:
    """Whether a phrase of `length` words comes again at once, three times if it is of one or two words."""
    times = 3 if length < 3 else 2
    needed = max(length * (times - 1), _LOOPED_WORDS - length)
    run = 0
    for word, later in zip(words, words[length:], strict=False):
        run = run + 1 if word == later else 0
        if run >= needed:
            return True
    return False


def is_refusal(caption: str) -> bool:
    """It answers as an assistant would, instead of describing."""
    return bool(_REFUSAL.search(caption))


def names_class(caption: str, class_name: str) -> Literal["name", "part", "absent"]:
    """How a caption names a class: by one of its names, by the last word of one (`dog` of `Maltese dog`)
    or not at all. Plurals count; names are those of WordNet where the class is one of ImageNet's."""
    text = f" {' '.join(words_of(caption))} "
    names = [" ".join(words_of(name)) for name in synonyms(class_name)]
    if any(f" {form} " in text for name in names if name for form in (name, plural(name))):
        return "name"
    heads = [name.rsplit(" ", 1)[-1] for name in names if name]
    return "part" if any(f" {form} " in text for head in heads for form in (head, plural(head))) else "absent"


def faults_of(caption: str, class_name: str) -> list[Fault]:
    """The faults that one caption has by itself."""
    if is_empty(caption):
        return ["empty"]
    tests: list[tuple[Fault, bool]] = [
        ("truncated", is_truncated(caption)),
        ("loop", has_loop(caption)),
        ("refusal", is_refusal(caption)),
        ("class_absent", bool(class_name) and names_class(caption, class_name) == "absent"),
    ]
    return [fault for fault, found in tests if found]


def examine(captions: Sequence[str], classes: Sequence[str], threshold: float = 0.8) -> Quality:
    """The report over all captions, given the class name of each picture (empty where there is none)."""
    found: dict[int, list[Fault]] = {}
    with Progress("examine", len(captions), unit="caption", quiet=len(captions) < _MANY) as shown:
        for i, (caption, name) in enumerate(zip(captions, classes, strict=True)):
            found[i] = faults_of(caption, name)
            shown.advance()
    with working("look for near duplicates"):
        groups = near_duplicates(captions, threshold)
    for group in groups:
        for i in group[1:]:
            if found[i] != ["empty"]:
                found[i].append("duplicate")
    lengths = sorted(len(words_of(caption)) for caption in captions)
    named = Counter(names_class(c, name) for c, name in zip(captions, classes, strict=True) if name)
    return Quality(
        count=len(captions),
        faults={i: faults for i, faults in found.items() if faults},
        lengths=_percentiles(lengths),
        histogram=_histogram(lengths),
        class_named={how: named[how] for how in ("name", "part", "absent")},
    )


def _percentiles(lengths: list[int]) -> dict[str, int]:
    """Words in the shortest, the middle and the longest captions."""
    if not lengths:
        return {}
    places = {"least": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "most": 100}
    return {name: lengths[(len(lengths) - 1) * part // 100] for name, part in places.items()}


def _histogram(lengths: list[int], step: int = 10, most: int = 200) -> dict[str, int]:
    """How many captions have 0 to 9 words, 10 to 19, and so on."""
    found = Counter(min(length, most) // step for length in lengths)
    return {
        f"{bin * step}+" if bin * step >= most else f"{bin * step}-{bin * step + step - 1}": found[bin]
        for bin in range(max(found, default=0) + 1)
    }
