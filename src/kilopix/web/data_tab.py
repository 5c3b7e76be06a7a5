"""The tab that explores the data: what a picture of the shards is to the network at each noise level."""

import asyncio
import random
from typing import Any

import gradio as gr

from kilopix.plain_text import in_html
from kilopix.web import markup
from kilopix.web.data_view import TIMES, DataView, Look, Version
from kilopix.web.worker import Closing, QueueFull, Worker


def build_data_tab(worker: Worker, view: DataView, tab: gr.Tab) -> None:
    """The tab's fields, and what they do."""
    gr.HTML(markup.note(view.about()))
    with gr.Row(elem_classes="kp-bar"):
        number = gr.Number(
            0, label=f"Picture, 0 to {len(view) - 1}", precision=0, minimum=0, maximum=len(view) - 1
        )
        other = gr.Button("Another", variant="primary", elem_id="kp-another")
    shown = gr.HTML(markup.empty("A picture of the data appears here."), elem_id="kp-data")

    async def look(picture: int | float | None) -> str:
        wanted = int(picture or 0)
        if not 0 <= wanted < len(view):
            raise gr.Error(f"picture: must be 0 to {len(view) - 1}.", print_exception=False)
        try:
            ticket = worker.call(lambda: view.look(wanted))
        except (QueueFull, Closing) as refused:
            raise gr.Error(str(refused), print_exception=False) from None
        try:
            return look_html(await asyncio.wrap_future(ticket.future), view)
        finally:
            ticket.drop()

    told: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on([number.change, tab.select], look, number, shown, **told)
    other.click(lambda: random.randrange(len(view)), None, number, **told)


def look_html(look: Look, view: DataView) -> str:
    """One picture with everything that training knows of it."""
    threshold, share = view.objective.augment_above, view.objective.augment_probability
    parts = [f"<h3>{in_html(look.class_name)} <small>{in_html(look.path)}</small></h3>"]
    for version in look.versions:
        plain = version.kind == "plain"
        name = {"plain": "Plain", "cutmix": "CutMix", "crop": "Crop"}.get(version.kind) or in_html(
            version.kind
        )
        seen = "" if plain else f"seen above t = {threshold:g}, by {share:.0%} of the draws"
        parts.append(
            f'<section class="kp-version"><h4>{name} <small>{seen}</small></h4>'
            f'<div class="kp-top">{markup.card(version.picture, "decoded", version.caption)}'
            f"{markup.card(version.latents, 'latents, by channel', 'latents')}"
            f"<blockquote>{in_html(version.caption)}</blockquote></div>"
            f"{_noise_row(version, 0.0 if plain else threshold)}</section>"
        )
    parts.append(
        markup.note(
            "Each row shows the latents mixed with noise, decoded. Where noise hides the edges of a paste, "
            "the network learns what belongs where and cannot learn the edges; faded ones are not used."
        )
    )
    return "".join(parts)


def _noise_row(version: Version, threshold: float) -> str:
    cells = []
    for time, image in zip(TIMES, version.noisy, strict=True):
        unused = time <= threshold and threshold > 0
        cells.append(
            f'<div class="{"kp-unused" if unused else ""}">'
            f"{markup.card(image, f't = {time:g}', f'with noise at t = {time:g}')}</div>"
        )
    return f'<div class="kp-noise">{"".join(cells)}</div>'
