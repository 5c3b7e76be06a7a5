"""The first tab: a prompt, the settings, the pictures as they come, and what was made before.

What was made before is kept in the visitor's own browser, as settings and small pictures: the same prompt,
settings and seed give the same pictures again, so nothing of it is kept on the server.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.diffusion.samplers import SAMPLERS
from kilopix.plain_text import in_html
from kilopix.web import markup
from kilopix.web.following import Sight, follow
from kilopix.web.models import ServedModel
from kilopix.web.requests import LARGEST_SEED, Limits, Order, Refused, read_request, request_type, to_order
from kilopix.web.rest import to_base64
from kilopix.web.worker import Closing, QueueFull, Worker

REMEMBERED = 24
"""Requests that a browser keeps."""
_THUMB = 56
_ASK = """element.addEventListener('click', (event) => {
    const button = event.target.closest('[data-index]');
    if (button) trigger('select', { index: Number(button.dataset.index) });
});"""


_SHOW_RESULT = """() => {
    if (innerWidth < 700) document.getElementById('kp-result').scrollIntoView({ behavior: 'smooth' });
}"""


@dataclass(frozen=True)
class Server:
    """What the tabs share: the worker, the limits, the models that can be asked for, whether with a token."""

    worker: Worker
    limits: Limits
    models: dict[str, ServedModel]
    has_token: bool = False

    def order(self, **values: Any) -> Order:
        """Check the fields of the page as a request; what is wrong is shown to the visitor."""
        try:
            request = read_request(request_type(self.limits), values)
            return to_order(request, {name: model.offer for name, model in self.models.items()})
        except Refused as refused:
            raise gr.Error(str(refused), print_exception=False) from None

    def _notes(self, orders: list[Order]) -> list[str]:
        """What of the prompts the models were never taught, each line once."""
        notes = [self.models[order.model].note([prompt for prompt, _ in order.jobs]) for order in orders]
        return list(dict.fromkeys(filter(None, notes)))

    async def follow(self, orders: list[Order]) -> AsyncIterator[tuple[list[Sight], str]]:
        """Sights of orders, each with how far they are; a full queue is shown to the visitor."""
        started = time.monotonic()
        notes = "".join(markup.note(text, "warning") for text in self._notes(orders))
        walk = follow(self.worker, orders)
        try:
            async for sights in walk:
                yield sights, markup.progress(sights, time.monotonic() - started) + notes
        except (QueueFull, Closing) as refused:
            raise gr.Error(str(refused), print_exception=False) from None
        finally:
            await walk.aclose()  # pyright: ignore[reportAttributeAccessIssue] - so that orders are dropped now


@dataclass(frozen=True)
class SamplingFields:
    """The fields of sampling settings."""

    sampler: gr.Dropdown
    steps: gr.Slider
    guidance: gr.Slider
    negative: gr.Textbox

    @property
    def all(self) -> list[Any]:
        """In the order in which handlers take them."""
        return [self.sampler, self.steps, self.guidance, self.negative]


def sampling_fields(server: Server) -> SamplingFields:
    """The fields, set to the first model's own settings."""
    own = next(iter(server.models.values())).offer.sampling
    limits = server.limits
    with gr.Row():
        sampler = gr.Dropdown(list(SAMPLERS), value=own.sampler, label="Sampler", min_width=120)
        steps = gr.Slider(1, limits.steps, min(own.steps, limits.steps), step=1, label="Steps", min_width=140)
    scale = min(own.guidance.scale, limits.guidance)
    guidance = gr.Slider(
        0, limits.guidance, scale, step=0.1, label="Guidance", info="1 is off; more follows the prompt closer"
    )
    negative = gr.Textbox(
        own.negative_prompt,
        label="Lead away from",
        max_length=limits.prompt,
        placeholder="nothing in particular",
    )
    return SamplingFields(sampler, steps, guidance, negative)


def build_make_tab(server: Server) -> None:
    """The tab's fields, and what they do."""
    limits, first = server.limits, next(iter(server.models.values()))
    examples = prompts_to_try(first.generator.trained_on)
    history = gr.BrowserState([], storage_key="kilopix-history", secret="kilopix")
    last = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            prompt = gr.Textbox(
                label="Prompt",
                lines=1,  # so that Enter makes pictures; it grows with the text
                max_lines=8,
                max_length=limits.prompt,
                placeholder=examples[0],
                elem_id="kp-prompt",
                autofocus=True,
            )
            with gr.Row():
                go = gr.Button("Make pictures", variant="primary", elem_id="kp-go", scale=3, min_width=140)
                stop = gr.Button("Stop", elem_id="kp-stop", scale=1, min_width=70)
            model = gr.Dropdown(
                list(server.models), value=first.name, label="Model", visible=len(server.models) > 1
            )
            number = gr.Slider(1, limits.images, min(4, limits.images), step=1, label="Pictures")
            with gr.Row(elem_classes="kp-seed"):
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, min_width=120)
                fresh = gr.Checkbox(True, label="a new seed each time", container=False, min_width=120)
            with gr.Accordion("Settings", open=False):
                fields = sampling_fields(server)
        with gr.Column(scale=7, min_width=300):
            result = gr.HTML(markup.empty("What you ask for appears here."), elem_id="kp-result")
            tried = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[text] for text in examples],
                label="Prompts to try",
                elem_id="kp-try",
                samples_per_page=len(examples),
            )
            gr.HTML('<h2 class="kp-title">Made before</h2>')
            shown = gr.HTML(history_html([]), js_on_load=_ASK, elem_id="kp-history")
            forget = gr.Button("Forget all", size="sm", elem_id="kp-forget")

    async def make(
        prompt: str,
        pictures: int | float,
        seed: int | float | None,
        new_seed: bool,
        sampler: str,
        steps: int | float,
        guidance: int | float,
        lead_away_from: str,
        model: str,
    ) -> AsyncIterator[tuple[str, Any, Any]]:
        order = server.order(
            prompt=prompt,
            n=whole(pictures),
            seed=None if new_seed or seed is None else whole(seed),
            sampler=sampler,
            steps=whole(steps),
            guidance=guidance,
            negative_prompt=lead_away_from,
            model=model,
        )
        sights: list[Sight] = []
        async for sights, words in server.follow([order]):
            page = words + markup.grid(markup.sight_cards(sights[0])) + markup.made_with(sights[0])
            yield page, gr.skip(), gr.skip()
        yield page, order.jobs[0][1], remembered(sights[0])  # pyright: ignore[reportPossiblyUnboundVariable]

    asked = [prompt, number, seed, fresh, *fields.all, model]
    event = gr.on(
        [go.click, prompt.submit],
        make,
        asked,
        [result, seed, last],
        api_name="make",
        api_description="Pictures from a prompt, as HTML with the PNG files in it; programs better use /v1.",
        show_progress="hidden",
        concurrency_limit=None,
        trigger_mode="multiple",
    )
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    event.success(remember, [last, history], history, **quiet)
    history.change(history_html, history, shown, **quiet)
    stop.click(None, cancels=[event])
    go.click(None, js=_SHOW_RESULT)
    tried.click(lambda sample: sample[0] if sample else gr.skip(), tried, prompt, **quiet)
    shown.select(restore, history, [prompt, number, seed, fresh, *fields.all, model, result], **quiet)
    forget.click(lambda: [], None, history, **quiet)


def whole(value: Any) -> Any:
    """A whole number as an int, as browsers send some as 4.0; the check tells what is wrong with others."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def remembered(sight: Sight) -> dict[str, Any]:
    """What a browser keeps of a request: from it, the same pictures can be made again."""
    order, images = sight.order, sight.images or []
    side = _THUMB
    strip = Image.new("RGB", (side * min(4, len(images)), side))
    for i, image in enumerate(images[:4]):
        strip.paste(image.resize((side, side), Image.Resampling.LANCZOS), (i * side, 0))
    sampling = order.sampling
    return {
        "prompt": order.jobs[0][0],
        "n": len(order.jobs),
        "seed": order.jobs[0][1],
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "guidance": sampling.guidance.scale,
        "negative": sampling.negative_prompt,
        "model": order.model,
        "strip": to_base64(strip, "WEBP"),
    }


def remember(entry: dict[str, Any] | None, history: Any) -> list[dict[str, Any]]:
    """The history with one more entry, the newest first."""
    kept = history if isinstance(history, list) else []
    return [entry, *kept][:REMEMBERED] if entry else kept


def history_html(history: Any) -> str:
    """What was made before, each a button that brings its settings back."""
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    if not entries:
        return markup.note("Nothing yet. It is kept in this browser only.")
    buttons = "".join(
        f'<button type="button" data-index="{i}" title="Bring the settings back">'
        f'<img alt="" src="data:image/webp;base64,{in_html(str(entry.get("strip", "")))}">'
        f"<span>{in_html(str(entry.get('prompt', ''))[:120])}</span>"
        f"<small>seed {in_html(str(entry.get('seed', ''))[:20])}</small></button>"
        for i, entry in enumerate(entries[:REMEMBERED])
    )
    return f'<div class="kp-history">{buttons}</div>'


def restore(history: Any, event: gr.EventData) -> list[Any]:
    """Put the settings of an entry back into the fields."""
    try:
        entry = history[event.index] if isinstance(history, list) else None
    except (AttributeError, TypeError, IndexError):  # no page of ours sends that
        entry = None
    if not isinstance(entry, dict):
        return [gr.skip()] * 10
    values = [entry.get(key) for key in ("prompt", "n", "seed")]
    settings = [entry.get(key) for key in ("sampler", "steps", "guidance", "negative", "model")]
    told = markup.empty("The settings are back; “Make pictures” makes the same pictures again.")
    return [*values, False, *settings, told]
