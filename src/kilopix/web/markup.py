"""The HTML of the page: pictures inside it as data, never as files; every text from outside is escaped.

In: pictures, prompts, numbers. Out: HTML for `gr.HTML`, styled by style.css.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from kilopix.english import counted
from kilopix.plain_text import in_html
from kilopix.web.following import Sight
from kilopix.web.rest import to_base64

_SMALL = 192
"""Pixels of a side below which a finished image is enlarged without a filter."""
LOGO = (
    '<svg class="kp-logo" viewBox="0 0 4 4" aria-hidden="true" shape-rendering="crispEdges">'
    + "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="{color}"/>'
        for x, y, color in (
            *((0, y, "#4c6ef5") for y in range(4)),
            (1, 2, "#748ffc"),
            (1, 1, "#748ffc"),
            *((2, 0, "#ff922b"), (2, 3, "#ff922b"), (3, 0, "#ffc078"), (3, 3, "#ffc078")),
        )
    )
    + "</svg>"
)


@dataclass(frozen=True)
class Fact:
    """A number with its name, for a row of facts."""

    name: str
    value: str


def header(name: str, facts: Sequence[str]) -> str:
    """The head of the page: whose it is, and the facts of the model."""
    told = " ".join(f"<span>{in_html(fact)}</span>" for fact in facts)
    return (
        f'<header class="kp-head">{LOGO}<div><h1>kilopix</h1>'
        f"<p><b>{in_html(name)}</b> {told}</p></div></header>"
    )


def note(text: str, kind: str = "hint") -> str:
    """A line of text."""
    return f'<p class="kp-note kp-{kind}">{in_html(text)}</p>'


def picture_uri(image: Image.Image, final: bool = True) -> str:
    """A picture as data: a PNG, or, for a preview, a smaller WebP."""
    return f"data:image/{'png' if final else 'webp'};base64,{to_base64(image, 'PNG' if final else 'WEBP')}"


def card(image: Image.Image | None, caption: str, alt: str, final: bool = True, file: str = "") -> str:
    """One picture with a caption below; `file` is the name that it is saved under."""
    if image is None:
        inner = '<div class="kp-empty"></div>'
    else:
        size = f'width="{image.width}" height="{image.height}"'
        small = "kp-small" * (max(image.size) < _SMALL)
        kind = f' class="{small if final else "kp-forming"}"'
        inner = f'<img{kind} {size} alt="{in_html(alt)}" src="{picture_uri(image, final)}">'
    save = ""
    if file and final and image is not None:
        save = f'<a download="{in_html(file)}" href="{picture_uri(image)}" title="Save as PNG">save</a>'
    return f"<figure>{inner}<figcaption><span>{in_html(caption)}</span>{save}</figcaption></figure>"


def grid(cards: Sequence[str], kind: str = "") -> str:
    """Cards beside one another, as many as fit."""
    return f'<div class="kp-grid {kind} kp-of-{min(len(cards), 8)}">{"".join(cards)}</div>'


def file_name(prompt: str, seed: int) -> str:
    """The name under which a picture is saved."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{words or 'picture'}-{seed}.png"


def sight_cards(sight: Sight) -> list[str]:
    """A card for every picture of an order, made or not yet."""
    images = sight.images or [None] * len(sight.order.jobs)
    return [
        card(image, f"seed {seed}", prompt, sight.done, file_name(prompt, seed))
        for image, (prompt, seed) in zip(images, sight.order.jobs, strict=True)
    ]


def progress(sights: Sequence[Sight], seconds: float) -> str:
    """How far orders are, as a bar and in words."""
    pictures = sum(len(sight.order.jobs) for sight in sights)
    if all(sight.done for sight in sights):
        made = f"{counted(pictures, 'picture')} in {seconds:.1f} s"
        return f'<div class="kp-progress kp-full"><i style="width:100%"></i></div>{note(made, "done")}'
    ahead = max(sight.ahead for sight in sights)
    steps = sum(sight.steps or sight.order.sampling.steps for sight in sights)
    done = sum((sight.steps or sight.order.sampling.steps) if sight.done else sight.step for sight in sights)
    words = f"step {done} of {steps}, {counted(pictures, 'picture')}" if done else "starting"
    if ahead and not done:
        words = f"{counted(ahead, 'request')} before yours"
    share = 100 * done / steps
    return f'<div class="kp-progress"><i style="width:{share:.0f}%"></i></div>{note(words, "going")}'


def made_with(sight: Sight) -> str:
    """The settings of an order, in a line."""
    sampling = sight.order.sampling
    told = f"{sampling.sampler}, {counted(sampling.steps, 'step')}, guidance {sampling.guidance.scale:g}"
    if sampling.negative_prompt:
        told += f", away from “{sampling.negative_prompt}”"
    return note(told, "settings")


def facts_row(facts: Sequence[Fact]) -> str:
    """Numbers in a row."""
    cells = "".join(
        f"<div><dt>{in_html(fact.name)}</dt><dd>{in_html(fact.value)}</dd></div>" for fact in facts
    )
    return f'<dl class="kp-facts">{cells}</dl>'


def empty(text: str) -> str:
    """What stands where pictures will be."""
    return f'<div class="kp-nothing">{LOGO}<p>{in_html(text)}</p></div>'
