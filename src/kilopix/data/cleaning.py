"""What is kept of a captioner's answer.

In: the text that a chat model generated, with or without the conversation before it. Out: a caption that
ends with a whole sentence; an empty one if the answer has no words.
"""

import re
from typing import Literal

Cleaning = Literal["recommended", "published"]

# In small letters, as chat templates write it; a caption begins with a large letter.
_CONVERSATION = re.compile(r"\s*user\s.*?\bassistant\b:?(?=\s|$)", re.DOTALL)
_ROLE = re.compile(r"\s*assistant(?:\s*:|\s*\n|\s*$)", re.IGNORECASE)
_CHAT_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")
_MARKDOWN = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+•][ \t]+)|\*\*|__|`+", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|e\.g|i\.e|vs|etc|approx|no|Dr|Mr|Mrs|Ms|St|Jr|Sr)\.$")
_LIST_NUMBER = re.compile(r"(?:^|[.:;!?]\s)\s*\d{1,2}\.$")
_DANGLING = re.compile(
    r"[\s,;:]+(?:a|an|the|and|or|but|of|in|on|at|by|to|from|for|with|is|are|which|that|its|their)$"
)


def clean(answer: str, how: Cleaning) -> str:
    """The caption in an answer, by the recommended or by the published rule."""
    return recommended(answer) if how == "recommended" else published(answer)


def published(answer: str) -> str:
    """What the published data set keeps: what follows the last `assistant`, without newlines, cut at the
    last full stop; a single full stop of an answer without words."""
    return answer.split("assistant")[-1].replace("\n", "").rsplit(".", 1)[0] + "."


def recommended(answer: str) -> str:
    """The answer in one line, up to the end of its last whole sentence.

    Mends what the published rule does to captions: one that mentions an assistant keeps its beginning,
    words on two lines stay apart, and a point inside a number or after an abbreviation ends no sentence.
    """
    text = _CHAT_TOKEN.sub("\n", answer)
    conversation = _CONVERSATION.match(text)
    if conversation:
        text = text[conversation.end() :]
    role = _ROLE.match(text)
    if role:
        text = text[role.end() :]
    text = " ".join(_MARKDOWN.sub("", text).split()).lstrip(":.,; ")
    if not re.search(r"\w", text):
        return ""
    ends = [end.end() for end in _SENTENCE_END.finditer(text) if _ends_sentence(text, end.end())]
    if ends:
        return text[: ends[-1]]
    while _DANGLING.search(text):
        text = _DANGLING.sub("", text)
    return text.rstrip(" ,;:-") + "."


def _ends_sentence(text: str, at: int) -> bool:
    """Whether the mark before `at` ends a sentence rather than an abbreviation or the number of a list."""
    if _LIST_NUMBER.search(text[:at]):
        return False
    return at == len(text) or not _ABBREVIATION.search(text[:at])
