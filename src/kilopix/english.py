"""The little English that captions and prompts need: articles and plurals of nouns."""

_SILENT_H = ("hour", "honest", "honor", "honour", "heir")
# Vowels that are said as "you" or "w" take "a": a unicycle, a ukulele, a one-way sign.
_CONSONANT_SOUND = (
    "uni",
    "use",
    "usu",
    "uku",
    "uke",
    "eu",
    "ewe",
    "one-",
    "one ",
    "once",
    "uro",
    "ura",
    "ute",
)
_VOWEL_AFTER_UNI = ("unin", "unim", "unid")  # unintended, unimportant, unidentified: "un-i..."
_SAID_WITH_VOWEL = ("x-ray", "x ray", "f-", "h-", "l-", "m-", "n-", "r-", "s-", "x-", "suv", "mp3", "rv")
_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
    "shelf": "shelves",
    "wolf": "wolves",
    "calf": "calves",
    "loaf": "loaves",
    "scarf": "scarves",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "jellyfish": "jellyfish",
    "starfish": "starfish",
    "goldfish": "goldfish",
    "ox": "oxen",
    "broccoli": "broccoli",
    "person": "people",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "monarch": "monarchs",
}
_PLURAL_ONLY = {"scissors", "jeans", "skis", "sunglasses", "binoculars", "trousers", "grapes"}


def with_article(noun: str) -> str:
    """`a fox`, `an umbrella`, `an hourglass`, `a unicycle`; nouns without a singular take `a pair of`
    (`a bunch of grapes`)."""
    lower = noun.lower()
    if lower.split()[-1] in _PLURAL_ONLY:
        return f"a {'bunch' if lower.endswith('grapes') else 'pair'} of {noun}"
    return f"{indefinite_article(lower)} {noun}"


def indefinite_article(phrase: str) -> str:
    """`a` or `an`, by the sound with which a phrase begins."""
    lower = phrase.lower()
    if lower.startswith((*_SILENT_H, *_SAID_WITH_VOWEL)):
        return "an"
    if lower.startswith(_CONSONANT_SOUND) and not lower.startswith(_VOWEL_AFTER_UNI):
        return "a"
    return "an" if lower[:1] in set("aeiou") else "a"


def plural(noun: str) -> str:
    """The plural of a noun or of the last word of a phrase."""
    *before, last = noun.split(" ")
    return " ".join([*before, _plural_word(last)])


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`, `1,281,167 images`."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def _plural_word(word: str) -> str:
    if word in _PLURAL_ONLY:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("man") and word not in ("human", "german", "roman"):
        return word[:-3] + "men"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in set("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def sentence(text: str) -> str:
    """The text with its first letter large and a full stop at its end."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
