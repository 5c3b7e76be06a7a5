"""The words of the embedded world: what a model of it was taught, and what of a prompt it was not.

In: the objects that a model was trained on, and prompts. Out: one line that names the words, the colours of
objects and the backgrounds that none of its captions has, or nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from kilopix.data.world.backgrounds import COLORS
from kilopix.data.world.objects import HUES, find_object
from kilopix.data.world.phrases import SIZES, listed
from kilopix.english import plural

BEYOND = "Beyond this model's world: "
"""How every line begins."""
_TOLD = """
    above against all apart appears around backdrop background before behind below big blotchy blurry bottom
    bright center changes checkerboard checkered clear close cloudy color come comes coming contrast cool
    corner cosy crisp diagonal dim dots dotted edge else even everything fades faint fairly fall falls fills
    find frame from front gentle gradient half horizontal image large lean leans leaves left lies lit little
    located lot low lower main medium mid middle mild mix moderately more most much nearly neither neutral
    nor nothing object other part patches pattern photo photograph picture pictured placed plain pleasantly
    rather rest right room scene see seen sees set shown shows side simple size sized slightly small smooth
    smoothly soft spans spots squares stand stands steady striped stripes strong subject taken takes thing
    tilted tips top toward towards upper vertical very view visible warm whole
"""
"""The words of captions that are neither objects nor colours."""
_GRAMMAR = """
    a about after again along also am an and any are as at be been being beside between but by can could did
    do does done down each either for had has have he her here hers him his how i if in inside into is it its
    itself just may me might my near next no not of off on one only onto or our out outside over please she
    should so some such than that the their them then there these they this those through to together too
    under up upon us was we were what when where which while who whose will with within without would you
    your
"""
_KNOWN = frozenset(f"{_TOLD} {_GRAMMAR}".split())
_ALIKE = {"gray": "grey", "colour": "color", "coloured": "color", "colored": "color", "centre": "center"}
_SHADES = frozenset({"pale", "light", "dark", "bright"})
_SIZE_WORDS = {
    word for some in SIZES.values() for phrase in some for word in phrase.replace("-", " ").split()
}
_BETWEEN = frozenset({"and", "to", "striped", "checkered", "plain", *_SIZE_WORDS})
_LINKS = (["in"], ["is"], ["are"], ["itself", "is"], ["that", "is"], ["which", "is"], ["that", "are"])
_GROUNDS = frozenset({"background", "backdrop"})
_ON_GROUNDS = _GROUNDS | {"checkerboard", "checkered", "dots", "gradient", "light", "patches", "spots"}
_ON_GROUNDS |= {"squares", "striped", "stripes"}
_COLORS = frozenset({*HUES, *(color.split()[-1] for color in COLORS)})
_TOKEN = re.compile(r"([^\W_]+)(?:['\u2019][^\W_]+)?|[.;:!?]")
_MOST_NAMED, _LONGEST_NAMED = 8, 40


Kind = Literal["object", "color", "word", "stop"]


@dataclass(frozen=True)
class _Item:
    """A piece of a prompt; `text` is an object's name, a colour, or a word as it is written."""

    kind: Kind
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class WorldWords:
    """What a model of the embedded world was taught: its objects by name; colours and backgrounds too, unless
    its captions name objects alone."""

    names: tuple[str, ...]
    colored: bool = True

    def note(self, prompts: Sequence[str]) -> str:
        """One line on what of the prompts the model was never taught; empty where there is nothing."""
        strange: dict[str, None] = {}
        pairs: dict[str, str] = {}
        for prompt in prompts:
            items = self._items(prompt)
            strange |= dict.fromkeys(self._strange(items, prompt))
            if self.colored:
                pairs |= _object_pairs(items) | _ground_pairs(items)
        told = [f'"{text}"' for text in strange]
        told += [f'"{text}" ({why})' for text, why in pairs.items()]
        if not told:
            return ""
        more = len(told) - _MOST_NAMED
        told = [*told[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
        return f"{BEYOND}{', '.join(told)}.{f' {self._known()}' if strange else ''}"

    def _known(self) -> str:
        names = ", ".join(self.names)
        if not self.colored:
            return f"It knows {names}, and no colours."
        return f"It knows {names}; the colours {', '.join(HUES)}; backgrounds in {', '.join(COLORS)}."

    @cached_property
    def _forms(self) -> dict[tuple[str, ...], str]:
        """The names by their words, in singular and plural."""
        return {tuple(form.split()): name for name in self.names for form in (name, plural(name))}

    @cached_property
    def _lengths(self) -> list[int]:
        """How many words names have, the most first."""
        return sorted({len(form) for form in self._forms}, reverse=True)

    @cached_property
    def _vocabulary(self) -> frozenset[str]:
        known = _KNOWN | {word for form in self._forms for word in form}
        return known | _COLORS | _SHADES if self.colored else known

    def _items(self, prompt: str) -> list[_Item]:
        """The objects, colours, other words and ends of sentences of a prompt."""
        found = list(_TOKEN.finditer(prompt))
        words = [_ALIKE.get(word, word) for word in ((token[1] or "").lower() for token in found)]
        items: list[_Item] = []
        i = 0
        while i < len(found):
            kind, text, length = self._read(words[i:])
            items.append(_Item(kind, text, found[i].start(), found[i + length - 1].end()))
            i += length
        return items

    def _read(self, words: Sequence[str]) -> tuple[Kind, str, int]:
        """What the first of some words are, and how many of them."""
        for length in self._lengths:
            form = tuple(words[:length])
            if name := self._forms.get(form):
                return "object", name, len(form)
        length = 2 if words[0] in _SHADES else 1
        if self.colored and len(words) >= length and words[length - 1] in _COLORS:
            return "color", " ".join(words[:length]), length
        return "word" if words[0] else "stop", words[0], 1

    def _strange(self, items: Sequence[_Item], prompt: str) -> list[str]:
        """The words that no caption has; those that stand beside one another are told as one."""
        spans: list[tuple[int, int]] = []
        for item in items:
            if item.kind != "word" or self._knows(item.text):
                continue
            joined = bool(spans) and prompt[spans[-1][1] : item.start].isspace()
            start = spans.pop()[0] if joined else item.start
            spans.append((start, item.end))
        return [_shorten(prompt[start:end]) for start, end in spans]

    def _knows(self, word: str) -> bool:
        """Whether captions have a word, in this number or another."""
        forms = {word, word.removesuffix("s"), word.removesuffix("es"), f"{word}s"}
        return not forms.isdisjoint(self._vocabulary)


def _shorten(text: str) -> str:
    """A text on one line, and not too long to be told back."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_NAMED else f"{line[: _LONGEST_NAMED - 3]}..."


def _object_pairs(items: Sequence[_Item]) -> dict[str, str]:
    """Objects in colours that they never have, each with those that it has.

    Colours that training holds out of those that an object can have are not among them: networks draw these
    as they draw the others.
    """
    pairs: dict[str, str] = {}
    for i, item in enumerate(items):
        if item.kind != "object":
            continue
        own = find_object(item.text).colors or HUES
        asked = [*_colors_before(items[:i]), *_colors_after(items[i + 1 :])]
        wrong = [color for color in asked if color.split()[-1] not in own]
        pairs |= {f"{color} {item.text}": f"{plural(item.text)} are {listed(own)} there" for color in wrong}
    return pairs


def _ground_pairs(items: Sequence[_Item]) -> dict[str, str]:
    """Backgrounds in a colour that none has in any shade."""
    grounds = [(i, item.text) for i, item in enumerate(items) if item.text.removesuffix("s") in _GROUNDS]
    asked = [(color, text) for i, text in grounds for color in _colors_before(items[:i])]
    own = {word for color in COLORS for word in color.split()}
    return {
        f"{color} {text}": f"backgrounds are {listed(list(COLORS))} there"
        for color, text in asked
        if color.split()[-1] not in own
    }


def _colors_before(items: Sequence[_Item]) -> list[str]:
    """The colours that stand before an object or a background: `red`, `small red`, `white and black`."""
    colors: list[str] = []
    for item in reversed(items):
        if item.kind == "color":
            colors.insert(0, item.text)
        elif item.kind != "word" or item.text not in _BETWEEN:
            break
    return colors


def _colors_after(items: Sequence[_Item]) -> list[str]:
    """The colours that are told of an object behind it: `in red`, `is white and black`."""
    words = [item.text for item in items[:2]]
    link = next((link for link in _LINKS if words[: len(link)] == link), None)
    if link is None:
        return []
    colors: list[str] = []
    for item in items[len(link) :]:
        if item.kind == "color":
            colors.append(item.text)
        elif item.text != "and":
            return [] if item.text in _ON_GROUNDS else colors
    return colors
