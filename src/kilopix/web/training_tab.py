"""The tab that shows a training run as it goes."""

import gradio as gr

from kilopix.english import counted
from kilopix.plain_text import in_html
from kilopix.web import markup
from kilopix.web.curve import curve_html
from kilopix.web.markup import Fact
from kilopix.web.training_view import TrainingView

_EVERY = 5.0


def build_training_tab(view: TrainingView, tab: gr.Tab) -> gr.Timer:
    """The tab's parts; the timer that renews them is to run only while the tab is looked at."""
    timer = gr.Timer(_EVERY, active=False)
    facts = gr.HTML(facts_html(view), elem_id="kp-facts")
    plot = gr.HTML(curve_html(view.curve()), elem_id="kp-curve")
    gr.HTML('<h2 class="kp-title">The same prompts and seeds after each checkpoint</h2>')
    pictures = gr.HTML(pictures_html(view), elem_id="kp-milestones")

    def renew() -> tuple[str, str, str]:
        view.look_for_pictures()
        return facts_html(view), curve_html(view.curve()), pictures_html(view)

    gr.on(
        [timer.tick, tab.select],
        renew,
        None,
        [facts, plot, pictures],
        show_progress="hidden",
        api_visibility="private",
    )
    return timer


def facts_html(view: TrainingView) -> str:
    """Where the run is, in numbers."""
    if not view.begun():
        return markup.note(f"No run in {view.folder} yet. What it does appears here once it has begun.")
    log, total = view.log(), view.total()
    if not log:
        return markup.note(
            f"The run has begun, but no line of its log is written yet; {total:,} images to see."
        )
    last = log[-1]
    loss = next((line["loss"] for line in reversed(log) if line["loss"] is not None), None)
    speed = float(last.get("images_per_second") or 0)
    left = (total - last["images"]) / speed if speed else None
    going = view.going()
    facts = [
        Fact("images seen", f"{last['images']:,} of {total:,}"),
        Fact("loss", "not finite" if loss is None else f"{loss:.4f}"),
        Fact("images a second", f"{speed:,.1f}"),
    ]
    if "lr" in last:
        facts.append(Fact("learning rate", f"{last['lr']:.2g}"))
    if going and left is not None:
        facts.append(Fact("time left", clock(left)))
    state = "training" if going else ("done" if last["images"] >= total else "not running now")
    share = 100 * min(1.0, last["images"] / total)
    bar = f'<div class="kp-progress"><i style="width:{share:.1f}%"></i></div>'
    name = in_html(view.folder.resolve().name)
    badge = (
        f'<p class="kp-run"><b>{name}</b> <span class="{"kp-on" if going else "kp-off"}">{state}</span></p>'
    )
    return badge + bar + markup.facts_row(facts)


def clock(seconds: float) -> str:
    """A duration in the two units that matter."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def pictures_html(view: TrainingView) -> str:
    """A row of pictures for each checkpoint, the newest first."""
    if not view.milestones:
        return markup.note("Pictures appear here after the first checkpoint, while this tab is open.")
    names = "".join(f"<span>{in_html(prompt)}</span>" for prompt in view.prompts)
    rows = "".join(
        f"<h4>{counted(stone.images_seen, 'image')}</h4><div>"
        + "".join(
            markup.card(image, "", prompt) for image, prompt in zip(stone.pictures, view.prompts, strict=True)
        )
        + "</div>"
        for stone in reversed(view.milestones)
    )
    return f'<div class="kp-stones"><div class="kp-names">{names}</div>{rows}</div>'
