"""The words for sizes, places, backgrounds, lights and tilts that captions draw from.

In: the numbers and names of a scene. Out: phrases that are true of it.
"""

from collections.abc import Sequence

from kilopix.data.world.backgrounds import Background
from kilopix.english import indefinite_article

_SMALL_BELOW, _LARGE_FROM = 0.58, 0.74
_MIDDLE = 0.06  # offset from the middle within which an object is in the center
_LEANS_FROM = 9.0  # degrees

SIZES = {
    "small": ("small", "rather small", "little", "fairly small"),
    "medium": ("medium-sized", "mid-sized", "moderately sized"),
    "large": ("large", "big", "rather large", "fairly big"),
}
SIZE_VERBS = {
    "small": (
        "is small",
        "is rather small in the frame",
        "spans only about half of the picture",
        "leaves a lot of room around it",
        "takes up a small part of the frame",
    ),
    "medium": (
        "is medium-sized",
        "is of medium size in the frame",
        "spans more than half of the picture",
        "is neither very small nor very large",
        "is moderately sized",
    ),
    "large": (
        "is large",
        "is big in the frame",
        "spans most of the picture",
        "takes up much of the frame",
        "is so large that it fills much of the picture",
    ),
}
LIGHTS = {
    "even": ("even light", "even, neutral light", "steady, even light", "plain, even light"),
    "bright": ("bright light", "strong, bright light", "clear, bright light", "very bright light"),
    "soft": ("soft light", "soft, gentle light", "soft light with little contrast", "mild, soft light"),
    "dim": ("dim light", "low, dim light", "rather dim light", "faint, dim light"),
    "cool": ("cool light", "cool, crisp light", "rather cool light", "clear, cool light"),
    "warm": ("warm light", "warm, cosy light", "pleasantly warm light", "mild, warm light"),
    "warm from the left": (
        "warm light from the left",
        "warm light that comes from the left",
        "light that falls warm from the left",
    ),
    "warm from the right": (
        "warm light from the right",
        "warm light that comes from the right",
        "light that falls warm from the right",
    ),
    "from above": ("light from above", "light that falls from above", "light coming from above"),
}
# These are drawn slanting or round, so that their tilt cannot be seen as one.
_NEVER_LEAN = {
    "guitar",
    "key",
    "airplane",
    "rocket",
    "carrot",
    "pizza",
    "watermelon",
    "soccer ball",
    "banana",
}
_NEVER_LEAN |= {"doughnut", "broccoli", "strawberry", "pineapple", "balloon", "star"}


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def size_of(size: float) -> str:
    """Small, medium or large, by the object's longer side."""
    return "small" if size < _SMALL_BELOW else "large" if size >= _LARGE_FROM else "medium"


def places(x: float, y: float) -> tuple[str, ...]:
    """Phrases for where an object's centre is."""
    across = "left" if x < 0.5 - _MIDDLE else "right" if x > 0.5 + _MIDDLE else ""
    up = "upper" if y < 0.5 - _MIDDLE else "lower" if y > 0.5 + _MIDDLE else ""
    if not across and not up:
        return (
            "in the center of the picture",
            "in the middle of the frame",
            "at the center of the image",
            "close to the center of the picture",
            "in the middle",
        )
    if across and up:
        beyond = "above" if up == "upper" else "below"
        return (
            f"in the {up} {across} part of the picture",
            f"toward the {up} {across} of the frame",
            f"{beyond} the center and to its {across}",
            f"in the {up} {across} of the image",
            f"on the {across}, in the {up} half of the picture",
        )
    if across:
        return (
            f"to the {across} of the center",
            f"in the {across} half of the picture",
            f"toward the {across} side of the frame",
            f"on the {across} side of the image",
            f"{across} of the middle",
        )
    beyond = "above" if up == "upper" else "below"
    return (
        f"{beyond} the center of the picture",
        f"in the {up} half of the picture",
        f"toward the {'top' if up == 'upper' else 'bottom'} of the frame",
        f"in the {up} part of the image",
        f"{beyond} the middle of the frame",
    )


def lean(name: str, tilt: float) -> tuple[str, ...]:
    """Phrases for a tilt that is seen; none for a small one, or an object that slants of itself."""
    if abs(tilt) < _LEANS_FROM or name in _NEVER_LEAN:
        return ()
    side = "left" if tilt > 0 else "right"
    return (f"leans to the {side}", f"is tilted a little to the {side}", f"tips slightly to the {side}")


def short_ground(ground: Background) -> str:
    """A background in few words, without its article, such as `pale blue background`."""
    both = listed(ground.colors)
    words = {
        "plain": f"{both} background",
        "gradient": f"{ground.colors[0]} to {ground.colors[-1]} background",
        "stripes": f"{both} striped background",
        "dots": f"{ground.colors[0]} background with {ground.colors[-1]} dots",
        "checker": f"{both} checkered background",
        "speckle": f"cloudy {both} background",
    }
    return words[ground.kind]


def grounds(ground: Background) -> tuple[str, ...]:
    """Phrases for a background, with article."""
    short = short_ground(ground)
    first, second = ground.colors[0], ground.colors[-1]
    if ground.kind == "gradient":
        more = _gradients(first, second, ground.direction)
    elif ground.kind == "stripes":
        more = _stripes(first, second, ground.direction)
    else:
        more = {
            "plain": (f"plain {first} background", f"plain {first} backdrop", f"simple {first} background"),
            "dots": (f"{first} backdrop dotted with {second}", f"{first} background with {second} spots"),
            "checker": (
                f"checkered background of {first} and {second}",
                f"checkerboard of {first} and {second} squares",
            ),
            "speckle": (
                f"blotchy background of {first} and {second}",
                f"blurry, cloudy mix of {first} and {second}",
                f"soft pattern of {first} and {second} patches",
            ),
        }[ground.kind]
    return tuple(f"{indefinite_article(phrase)} {phrase}" for phrase in (short, *more))


def _gradients(first: str, second: str, direction: str) -> tuple[str, ...]:
    start, end = {
        "down": ("at the top", "at the bottom"),
        "right": ("on the left", "on the right"),
        "diagonal": ("in the top left corner", "in the bottom right corner"),
    }[direction]
    return (
        f"background that fades from {first} {start} to {second} {end}",
        f"backdrop that changes smoothly from {first} to {second}",
        f"gradient background, {first} {start} and {second} {end}",
        f"smooth gradient from {first} to {second}",
    )


def _stripes(first: str, second: str, direction: str) -> tuple[str, ...]:
    return (
        f"background of {direction} {first} and {second} stripes",
        f"pattern of {direction} stripes in {first} and {second}",
        f"backdrop with {first} and {second} stripes",
    )
