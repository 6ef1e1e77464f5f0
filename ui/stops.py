"""Buttons that stop something: they appear when it begins, and say so until it has stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import gradio as gr

from ui.parts import Values


def stoppable(
    start: gr.Button, stop: gr.Button, busy: gr.HTML, work: Callable[[], Values]
) -> Iterator[Values]:
    """Do the work with the button that stops it in the place of the one that started it."""
    shown, hidden = gr.update(visible=True), gr.update(visible=False)
    idle = {start: shown, stop: hidden, busy: hidden}
    yield {start: hidden, stop: ready(stop), busy: shown}
    try:
        values = work()
    except Exception:
        yield idle
        raise
    yield {**idle, **values}


def ready(stop: gr.Button) -> dict[str, object]:
    """A button that stops something, when that begins."""
    update: dict[str, object] = gr.update(visible=True, value=stop.value, interactive=True)
    return update


def stopping() -> dict[str, object]:
    """What a button that stops something shows until that has stopped."""
    update: dict[str, object] = gr.update(value="Stopping…", interactive=False)
    return update
