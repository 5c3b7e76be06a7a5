"""The little English that captions and prompts need: articles and plurals of nouns."""

_SILENT_H = ("hour", "honest", "honor", "honour", "heir")
_CONSONANT_SOUND = ("uni", "use", "usu", "uke", "euro", "ewe", "one", "once", "uro", "ura", "ute")
_VOWEL_AFTER_UNI = ("unin", "unim", "unid")  # unintended, unimportant, unidentified: "un-i..."
_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
    "sheep": "sheep",
    "fish": "fish",
    "scissors": "scissors",
    "jeans": "jeans",
    "broccoli": "broccoli",
    "person": "people",
    "foot": "feet",
    "tooth": "teeth",
}
_PLURAL_ONLY = {"scissors", "jeans", "skis", "sunglasses", "binoculars", "trousers"}


def with_article(noun: str) -> str:
    """`a fox`, `an umbrella`, `an hourglass`, `a unicycle`; nouns without a singular take `a pair of`."""
    lower = noun.lower()
    if lower.split()[-1] in _PLURAL_ONLY:
        return f"a pair of {noun}"
    return f"{indefinite_article(lower)} {noun}"


def indefinite_article(phrase: str) -> str:
    """`a` or `an`, by the sound with which a phrase begins."""
    lower = phrase.lower()
    if lower.startswith(_SILENT_H):
        return "an"
    if lower.startswith(_CONSONANT_SOUND) and not lower.startswith(_VOWEL_AFTER_UNI):
        return "a"
    return "an" if lower[:1] in set("aeiou") else "a"


def plural(noun: str) -> str:
    """The plural of a noun or of the last word of a phrase."""
    *before, last = noun.split(" ")
    return " ".join([*before, _plural_word(last)])


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return word[:-1] + "ies"
    if word in ("tomato", "potato"):
        return word + "es"
    return word + "s"


def sentence(text: str) -> str:
    """The text with its first letter large and a full stop at its end."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
