"""The web page: its tabs, its looks, and how it is put on the REST app.

In: the worker and what is to be shown. Out: one ASGI app. The page uses the system's fonts and loads nothing
from the internet; pictures are inside it as data, so no route of it hands out files.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from tempfile import TemporaryDirectory
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which reads it then

import gradio as gr
from fastapi import FastAPI

from kilopix.web import markup
from kilopix.web.api_tab import build_api_tab
from kilopix.web.compare_tab import build_compare_tab
from kilopix.web.data_tab import build_data_tab
from kilopix.web.data_view import DataView
from kilopix.web.make_tab import Server, build_make_tab
from kilopix.web.requests import Limits
from kilopix.web.rest import build_rest
from kilopix.web.training_tab import build_training_tab
from kilopix.web.training_view import TrainingView
from kilopix.web.worker import Worker

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


@dataclass(frozen=True)
class Site:
    """The whole app, and what ends the connections that browsers keep open."""

    app: FastAPI
    hang_up: Callable[[], None]


@contextmanager
def build_site(
    worker: Worker,
    limits: Limits,
    data: DataView | None = None,
    training: TrainingView | None = None,
    has_token: bool = False,
) -> Iterator[Site]:
    """The REST endpoint with the page on it."""
    with TemporaryDirectory(prefix="kilopix-page-", ignore_cleanup_errors=True) as folder:
        # Gradio keeps the files of a page in a folder that all its pages share, unless it is told another.
        os.environ["GRADIO_TEMP_DIR"] = folder
        server = Server(worker, limits, dict(worker.models), has_token)
        yield asyncio.run(_site(server, data, training))


async def _site(server: Server, data: DataView | None, training: TrainingView | None) -> Site:
    """Build inside an event loop, without which Gradio makes some of its own and leaves them open."""
    limits = server.limits
    app = build_rest(server.worker, limits)
    page = build_page(server, data, training)
    page.queue(max_size=2 * limits.queue, default_concurrency_limit=8)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        blocked_paths=["/"],
        show_error=False,
        max_file_size=1,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=_theme(),
        css=resources.files("kilopix.web").joinpath("style.css").read_text(encoding="utf-8"),
    )
    return Site(app, lambda: page.app.stop_event.set())


class _Page(gr.Blocks):
    """Blocks to which a value that does not fit its field is a visitor's mistake, and nothing for the log."""

    async def preprocess_data(self, block_fn: Any, *arguments: Any, **named: Any) -> Any:
        """What handlers get, from what a browser or a program sends."""
        if block_fn.fn is None:
            raise gr.Error("this is for the browser alone.", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, *arguments, **named)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # noqa: BLE001 - each field fails in its own way, and only over its value
            told = f"the fields cannot be read ({type(error).__name__}); load the page again."
            raise gr.Error(told, print_exception=False) from None


def build_page(server: Server, data: DataView | None, training: TrainingView | None) -> gr.Blocks:
    """The tabs; those without anything to show are left out."""
    first = next(iter(server.models.values()))
    with _Page(title=f"kilopix: {first.name}", analytics_enabled=False) as page:
        gr.HTML(markup.header(first.name, first.facts))
        with gr.Tabs():
            tabs = [_tab("Make", lambda _: build_make_tab(server))]
            if len(server.models) > 1:
                tabs.append(_tab("Compare", lambda _: build_compare_tab(server)))
            if data is not None:
                tabs.append(_tab("Data", lambda tab: build_data_tab(server.worker, data, tab)))
            if training is not None:
                with gr.Tab("Training") as watched:
                    timer = build_training_tab(training, watched)
            tabs.append(_tab("API", lambda _: build_api_tab(server)))
            if training is not None:
                _run_while_seen(timer, watched, tabs)
    return page


def _tab(name: str, build: Callable[[gr.Tab], None]) -> gr.Tab:
    with gr.Tab(name) as tab:
        build(tab)
    return tab


def _run_while_seen(timer: gr.Timer, watched: gr.Tab, others: list[gr.Tab]) -> None:
    """Let a timer run only while its tab is open, so that a page left open elsewhere asks for nothing."""
    for tab, active in [(watched, True), *((other, False) for other in others)]:
        tab.select(
            lambda active=active: gr.Timer(active=active),
            None,
            timer,
            show_progress="hidden",
            api_visibility="private",
        )


def _theme() -> gr.themes.Base:
    """Quiet greys, one blue, the fonts of the visitor's system."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.gray,
        radius_size=gr.themes.sizes.radius_md,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="#fafbfc",
        body_background_fill_dark="#101216",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_title_text_weight="600",
        button_primary_background_fill="#4c6ef5",
        button_primary_background_fill_hover="#3b5bdb",
        button_primary_background_fill_dark="#4c6ef5",
        button_primary_background_fill_hover_dark="#5c7cfa",
        button_primary_text_color="white",
        slider_color="#4c6ef5",
    )
