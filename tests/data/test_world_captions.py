import re
from collections import Counter

import pytest

from kilopix.data.world import phrases
from kilopix.data.world.backgrounds import COLORS, Background
from kilopix.data.world.captions import FEWEST_WORDS, MOST_WORDS, short_caption, structured_caption
from kilopix.data.world.objects import HUES, OBJECTS
from kilopix.data.world.scenes import Scene, SceneObject, one_object_scene
from kilopix.english import indefinite_article


@pytest.fixture(scope="module")
def told():
    scenes = [one_object_scene(OBJECTS[k % 64].name, 11, "train", str(k)) for k in range(4000)]
    return [(scene, structured_caption(scene, k)) for k, scene in enumerate(scenes)]


def test_captions_have_30_to_80_words(told):
    lengths = [len(caption.split()) for _, caption in told]
    assert (FEWEST_WORDS, MOST_WORDS) == (30, 80)
    assert min(lengths) >= 30
    assert max(lengths) <= 80


def test_captions_name_the_object_its_colors_the_background_and_the_light(told):
    for scene, caption in told:
        text = caption.lower()
        assert re.search(rf"\b{scene.object.name}\b", text)
        for color in (*scene.object.colors, *scene.background.colors):
            assert re.search(rf"\b{color}\b", text), (color, caption)
        assert any(phrase in text for phrase in phrases.LIGHTS[scene.light]), caption
        assert any(phrase in text for phrase in phrases.places(scene.object.x, scene.object.y)), caption
        size = phrases.size_of(scene.object.size)
        assert any(phrase in text for phrase in (*phrases.SIZES[size], *phrases.SIZE_VERBS[size])), caption


def test_captions_name_no_other_color_object_size_or_light(told):
    ranked = sorted({*HUES, *COLORS, *(c for item in OBJECTS for c in item.colors)}, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(ranked)})\b")
    names = {item.name for item in OBJECTS}
    light_words = {"dim", "bright", "soft light", "cool", "warm", "from above", "even light"}
    for scene, caption in told:
        text = caption.lower()
        found = set(pattern.findall(text))
        assert found == {*scene.object.colors, *scene.background.colors} - _covered(scene, text), caption
        others = {name for name in names - {scene.object.name} if re.search(rf"\b{name}s?\b", text)}
        assert not others, caption
        own = " ".join(phrases.LIGHTS[scene.light])
        assert all(word in own for word in light_words if word in text), caption


def _covered(scene, text):
    """Colours that the pattern sees only inside a longer name, such as `grey` in `light grey`."""
    names = {*scene.object.colors, *scene.background.colors}
    return {c for c in names if not re.search(rf"(?<!light )(?<!pale )(?<!dark )\b{c}\b", text)} - {
        c for c in names if " " in c
    }


@pytest.mark.parametrize(
    ("x", "y"), [(0.3, 0.5), (0.7, 0.5), (0.5, 0.3), (0.5, 0.7), (0.3, 0.3), (0.7, 0.7), (0.5, 0.5)]
)
def test_place_words_agree_with_the_place(x, y):
    item = SceneObject("bucket", "red", x, y, 0.6)
    scene = Scene((item,), Background("plain", ("white",)), "even")
    right = {
        "left": x < 0.4,
        "right": x > 0.6,
        "upper": y < 0.4,
        "above": y < 0.4,
        "top": y < 0.4,
        "lower": y > 0.6,
        "below": y > 0.6,
        "bottom": y > 0.6,
    }
    for seed in range(150):
        words = set(re.findall(r"[a-z]+", structured_caption(scene, seed).lower()))
        assert all(right[word] for word in words & set(right)), structured_caption(scene, seed)
        if x != 0.5:
            assert words & {"left", "right"}
        if y != 0.5:
            assert words & {"upper", "above", "top", "lower", "below", "bottom"}


def test_lean_words_agree_with_the_tilt():
    assert all("left" in phrase for phrase in phrases.lean("bell", 15.0))
    assert all("right" in phrase for phrase in phrases.lean("bell", -15.0))
    assert phrases.lean("bell", 3.0) == phrases.lean("guitar", 15.0) == ()


def test_captions_are_clean_english(told):
    for _, caption in told:
        assert "  " not in caption
        assert caption == caption.strip()
        assert caption.endswith(".")
        assert ".." not in caption
        assert not re.search(r"\s[.,]", caption)
        for article, word in re.findall(r"\b([Aa]n?) ([a-z]+)", caption):
            assert article.lower() == indefinite_article(word), caption
        for first in re.findall(r"\. (\w)", caption):
            assert first.isupper(), caption


def test_a_third_begin_as_prompts_do(told):
    plain = re.compile(
        r"^((an?|A[n]?) (photo|picture|image|photograph|view) of )?an? [a-z ,]+ on an? ", re.IGNORECASE
    )
    share = sum(bool(plain.match(caption)) for _, caption in told) / len(told)
    assert 0.28 < share < 0.45
    small = sum(caption[0].islower() for _, caption in told) / len(told)
    assert 0.1 < small < 0.3


def test_captions_vary_and_depend_on_the_seed_alone(told):
    assert len({caption for _, caption in told}) == len(told)
    starts = Counter(" ".join(caption.split()[:3]).lower() for _, caption in told)
    assert starts.most_common(1)[0][1] < 0.15 * len(told)
    bones = Counter(_bones(scene, caption) for scene, caption in told)
    assert bones.most_common(1)[0][1] < 0.01 * len(told)
    scene = told[0][0]
    assert structured_caption(scene, 4) == structured_caption(scene, 4)
    assert len({structured_caption(scene, seed) for seed in range(50)}) == 50


def _bones(scene, caption):
    """A caption without its particulars: what a reader would see as its template."""
    text = caption.lower()
    for word in sorted(
        {scene.object.name, *scene.object.colors, *scene.background.colors}, key=len, reverse=True
    ):
        text = text.replace(word, "_")
    return text


def test_short_captions_are_short_and_true():
    texts = set()
    for i in range(600):
        item = OBJECTS[i % len(OBJECTS)]
        scene = one_object_scene(item.name, 0, "train", f"{item.folder}_{i}")
        text = short_caption(scene, i)
        assert text == short_caption(scene, i)
        assert len(text.split()) <= 12
        assert item.name in text
        others = [hue for hue in HUES if hue != scene.object.color and hue not in scene.background.colors[0]]
        ground = (
            f" on {'an' if scene.background.colors[0][0] in 'aeiou' else 'a'} {scene.background.colors[0]} "
        )
        assert (" background" not in text) or ground in text
        subject = text.split(" on ")[0].replace(item.name, "")
        assert not any(f" {hue} " in f" {subject} " for hue in others)
        texts.add(text)
    assert len(texts) > 300
