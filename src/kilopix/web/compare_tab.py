"""The tab that compares two models: the same prompt, seeds and settings, side by side."""

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.plain_text import in_html
from kilopix.web import markup
from kilopix.web.following import Sight
from kilopix.web.make_tab import Server, sampling_fields, whole
from kilopix.web.requests import LARGEST_SEED


def build_compare_tab(server: Server) -> None:
    """The tab's fields, and what they do."""
    names = list(server.models)
    examples = prompts_to_try(server.models[names[0]].generator.trained_on)
    limits = server.limits
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            prompt = gr.Textbox(examples[0], label="Prompt", lines=3, max_lines=8, max_length=limits.prompt)
            with gr.Row():
                go = gr.Button("Compare", variant="primary", elem_id="kp-compare", scale=3, min_width=140)
                stop = gr.Button("Stop", scale=1, min_width=70)
            with gr.Row():
                left = gr.Dropdown(names, value=names[0], label="Left", min_width=120)
                right = gr.Dropdown(names, value=names[1], label="Right", min_width=120)
            number = gr.Slider(1, limits.images, min(3, limits.images), step=1, label="Pairs")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
            with gr.Accordion("Settings", open=False):
                fields = sampling_fields(server)
        with gr.Column(scale=7, min_width=300):
            result = gr.HTML(
                markup.empty("The same prompt and seeds with both models, side by side."),
                elem_id="kp-compared",
            )

    async def compare(
        prompt: str,
        left: str,
        right: str,
        pairs: int | float,
        seed: int | float | None,
        sampler: str,
        steps: int | float,
        guidance: int | float,
        lead_away_from: str,
    ) -> AsyncIterator[str]:
        orders = [
            server.order(
                prompt=prompt,
                n=whole(pairs),
                seed=0 if seed is None else whole(seed),
                sampler=sampler,
                steps=whole(steps),
                guidance=guidance,
                negative_prompt=lead_away_from,
                model=model,
            )
            for model in (left, right)
        ]
        async for sights, words in server.follow(orders):
            yield words + pairs_html(sights) + markup.made_with(sights[0])

    inputs: list[Any] = [prompt, left, right, number, seed, *fields.all]
    event = gr.on(
        [go.click, prompt.submit],
        compare,
        inputs,
        result,
        api_name="compare",
        api_description="The pictures of two models for the same prompt and seeds, as HTML.",
        show_progress="hidden",
        concurrency_limit=None,
    )
    stop.click(None, cancels=[event])


def pairs_html(sights: list[Sight]) -> str:
    """Two columns under the models' names, one row a seed."""
    columns = "".join(
        f"<div><h3>{in_html(sight.order.model)}</h3>{''.join(markup.sight_cards(sight))}</div>"
        for sight in sights
    )
    return f'<div class="kp-pairs">{columns}</div>'
