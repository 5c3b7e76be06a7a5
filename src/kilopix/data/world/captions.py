"""Long captions of one-object scenes, put together at random from what is true of the scene.

In: a `Scene` and a seed. Out: a caption of 30 to 80 words that names the object, its colours, size and place,
the background and the light. About a third begin with a short plain phrase, as prompts do.
"""

import random

from kilopix.data.world import phrases
from kilopix.data.world.scenes import Scene
from kilopix.english import indefinite_article, sentence
from kilopix.runtime import seed_from

FEWEST_WORDS, MOST_WORDS = 30, 80
_PLAIN_SHARE = 0.36

_SHOWS = (
    "this picture shows",
    "the image shows",
    "the photo shows",
    "here is",
    "we see",
    "one can see",
    "pictured is",
    "shown here is",
    "the subject is",
    "the main subject is",
    "this is a view of",
    "what we have here is",
)
_PLAIN = ("a photo of", "a photo of", "a picture of", "an image of", "a photograph of", "a view of", "")
_IS = ("is", "appears", "is placed", "is shown", "can be seen", "is located", "has been placed", "is visible")
_BEFORE = ("in front of", "against", "before", "set against")
_IN_LIGHT = ("in", "under", "lit by")


class _Teller:
    """The facts of one scene, each told once in words drawn at random."""

    def __init__(self, scene: Scene, rng: random.Random):
        self.rng, self.scene, self.item = rng, scene, scene.object
        self.left = ["color", "size", "place", "ground", "light"]

    def pick(self, options: tuple[str, ...]) -> str:
        return self.rng.choice(options)

    def tell(self, fact: str) -> str:
        """The bare words of a fact, which counts as told from now on."""
        self.left.remove(fact)
        if fact == "size":
            return self.pick(phrases.SIZES[phrases.size_of(self.item.size)])
        if fact == "place":
            return self.pick(phrases.places(self.item.x, self.item.y))
        if fact == "ground":
            return self.pick(phrases.grounds(self.scene.background))
        if fact == "light":
            return self.pick(phrases.LIGHTS[self.scene.light])
        return phrases.listed(self.item.colors)

    def noun(self) -> str:
        """The object with its article, mostly with its colours, sometimes with its size."""
        size = self.tell("size") + " " if self.rng.random() < 0.3 else ""
        draw = self.rng.random()
        if draw < 0.62:
            phrase = f"{size}{self.tell('color')} {self.item.name}"
        elif draw < 0.8:
            phrase = f"{size}{self.item.name} in {self.tell('color')}"
        else:
            phrase = f"{size}{self.item.name}"
        return f"{indefinite_article(phrase)} {phrase}"

    def it(self) -> str:
        return self.rng.choice(("it", "it", f"the {self.item.name}", f"the {self.item.name}"))

    def opening(self) -> str:
        """The first sentence, in one of five styles."""
        style = self.rng.randrange(5)
        if style == 0:
            return f"{self.pick(_SHOWS)} {self.noun()}{self._rider()}"
        if style == 1:
            start = f"{self.pick(_BEFORE)} {self.tell('ground')}"
            verb = self.pick(("there is", "one sees", "we see", "you can see"))
            return f"{start}, {verb} {self.noun()}"
        if style == 2:
            verb = self.pick(("there is", "one sees", "we find", "you can see"))
            return f"{self.tell('place')}, {verb} {self.noun()}"
        if style == 3:
            start = f"{self.pick(_IN_LIGHT)} {self.tell('light')}"
            return f"{start}, {self.noun()} {self.pick(_IS)} {self.tell('place')}"
        return f"{self.noun()} {self.pick(_IS)} {self.tell('place')}{self._rider()}"

    def plain_opening(self) -> str:
        """A short phrase, such as `a photo of a red car on a pale blue background`."""
        phrase = f"{self.tell('color')} {self.item.name}"
        ground = phrases.short_ground(self.scene.background)
        self.left.remove("ground")
        start = self.pick(_PLAIN)
        noun = f"{indefinite_article(phrase)} {phrase}"
        return f"{start} {noun} on {indefinite_article(ground)} {ground}".strip()

    def _rider(self) -> str:
        """Perhaps one more fact at the end of the opening."""
        fact = self.rng.choice([None, *(f for f in ("place", "ground", "light") if f in self.left)])
        if fact == "place":
            return f" {self.tell('place')}"
        if fact == "ground":
            return f" {self.pick(_BEFORE)} {self.tell('ground')}"
        return f" {self.pick(_IN_LIGHT)} {self.tell('light')}" if fact else ""

    def rest(self) -> list[str]:
        """Sentences for all that is still untold, two facts in one where they go together."""
        pairs = [
            (("size", "place"), self._size_and_place),
            (("place", "ground"), self._place_and_ground),
            (("ground", "light"), self._ground_and_light),
            (("color", "size"), self._color_and_size),
        ]
        self.rng.shuffle(pairs)
        told = []
        for facts, tell_both in pairs:
            if all(fact in self.left for fact in facts) and self.rng.random() < 0.5:
                told.append(tell_both())
        single = {"color": self._color, "size": self._size, "place": self._place}
        single |= {"ground": self._ground, "light": self._light}
        told += [single[fact]() for fact in list(self.left)]
        self.rng.shuffle(told)
        return told

    def _size_and_place(self) -> str:
        adjective = self.pick(phrases.SIZES[phrases.size_of(self.item.size)])
        self.left.remove("size")
        return f"{self.it()} is {adjective} and {self.pick(_IS)} {self.tell('place')}"

    def _place_and_ground(self) -> str:
        return (
            f"{self.it()} {self.pick(_IS)} {self.tell('place')}, {self.pick(_BEFORE)} {self.tell('ground')}"
        )

    def _ground_and_light(self) -> str:
        link = self.pick((", all of it in", ", seen in", ", lit by", ", with everything in"))
        return f"behind {self.it()} is {self.tell('ground')}{link} {self.tell('light')}"

    def _color_and_size(self) -> str:
        size = self.tell("size")
        return f"{self.it()} is {size}, and in color it is {self.tell('color')}"

    def _color(self) -> str:
        color = self.tell("color")
        if len(self.item.colors) == 1:
            return self.pick((f"its color is {color}", f"the {self.item.name} itself is {color}"))
        return self.pick((f"its colors are {color}", f"the {self.item.name} is {color} in color"))

    def _size(self) -> str:
        self.left.remove("size")
        return f"{self.it()} {self.pick(phrases.SIZE_VERBS[phrases.size_of(self.item.size)])}"

    def _place(self) -> str:
        return f"{self.it()} {self.pick(_IS)} {self.tell('place')}"

    def _ground(self) -> str:
        ground = self.tell("ground")
        return self.pick(
            (
                f"behind {self.it()} is {ground}",
                f"behind {self.it()} one sees {ground}",
                f"{self.it()} is set against {ground}",
                f"{self.it()} stands out against {ground}",
                f"{ground} fills the rest of the picture",
                f"around {self.it()} there is {ground}",
            )
        )

    def _light(self) -> str:
        light = self.tell("light")
        return self.pick(
            (
                f"{light} falls on the scene",
                f"the picture is lit by {light}",
                f"everything is seen in {light}",
                f"the scene is shown in {light}",
                f"it was taken in {light}",
                f"the whole picture lies in {light}",
                f"all of this is lit by {light}",
            )
        )

    def extras(self) -> list[str]:
        """True things that nobody needs, in random order: they fill captions that are too short."""
        name = self.item.name
        more = [
            self.pick(("nothing else is in the picture", "there is no other object in the picture")),
            f"the {name} is the only thing to be seen here",
            f"apart from the {name}, only the background is visible",
        ]
        lean = phrases.lean(self.item.name, self.item.tilt)
        self.rng.shuffle(more)
        return [f"the {name} {self.pick(lean)}", *more] if lean else more


def structured_caption(scene: Scene, seed: int) -> str:
    """A caption of 30 to 80 words, true in every word; another seed tells the same scene differently."""
    rng = random.Random(seed_from(seed, "caption", repr(scene)))
    teller = _Teller(scene, rng)
    plain = rng.random() < _PLAIN_SHARE
    sentences = [teller.plain_opening() if plain else teller.opening(), *teller.rest()]
    extras = teller.extras()
    wanted = FEWEST_WORDS + (rng.randrange(14) if rng.random() < 0.5 else 0)
    while extras and sum(len(part.split()) for part in sentences) < wanted:
        sentences.insert(rng.randint(1, len(sentences)), extras.pop(0))
    # Prompts are mostly written small, so half of the plain openings are.
    small = plain and rng.random() < 0.5
    first = sentences[0] + "." if small else sentence(sentences[0])
    return " ".join([first, *map(sentence, sentences[1:])])


def short_caption(scene: Scene, seed: int) -> str:
    """A caption of a few words, as prompts are: the object, often its given colour and a plain background."""
    rng = random.Random(seed_from("short caption", seed))
    item, ground = scene.object, scene.background
    noun = f"{item.color} {item.name}" if item.color and rng.random() < 0.7 else item.name
    text = f"{rng.choice(_PLAIN[:-1])} {indefinite_article(noun)} {noun}"
    if ground.kind == "plain" and rng.random() < 0.6:
        text += f" on {indefinite_article(ground.colors[0])} {ground.colors[0]} background"
    return sentence(text)
