"""Text from outside stays text wherever it is shown: in a terminal, on a page, in Markdown.

In: captions, prompts, names of classes, files and models. Out: the same text, which moves no cursor,
turns no line around it, and is no markup.
"""

import html
import re
import unicodedata

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")
"""Controls other than line feed and tab, what turns the direction of text, and halves of characters."""
_MARKUP = re.compile(r"(\[\d+\](?![(\[:]))|([\\`*\[\]<>|&~$]|(?<!\w)_|_(?!\w))")
"""A number in brackets, which names a source, is no link; all the others are written with a backslash."""
_RIGHT_TO_LEFT = ("R", "AL", "AN")
_ISOLATED, _END = "\u2068", "\u2069"


def visible(text: str) -> str:
    """The text with every control character written out, such as `\\x1b`, for a terminal."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def isolated(text: str) -> str:
    """Visible text whose direction is its own: words from right to left turn nothing beside them."""
    shown = visible(text)
    if shown.isascii() or not any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in shown):
        return shown
    return f"{_ISOLATED}{shown}{_END}"


def in_html(text: str) -> str:
    """The text in HTML, between tags or in a quoted attribute."""
    return html.escape(isolated(text))


def on_page(value: object) -> object:
    """What a template of a page shows for a value; what is markup already stays so."""
    return isolated(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def in_markdown(text: str) -> str:
    """The text in Markdown, in a line or the cell of a table."""
    return _MARKUP.sub(lambda m: m[1] or f"\\{m[2]}", isolated(" ".join(text.split())))


def code_in_markdown(text: str) -> str:
    """The text as code in a line of Markdown, whatever backticks it holds."""
    shown = visible(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"
