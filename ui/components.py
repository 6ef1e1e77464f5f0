"""The shell's own components: HTML whose buttons reach Python, downloads made in the browser.

Functions, not subclasses: Gradio writes a .pyi file beside every subclass of a component.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from mrr.errors import InputRejected

_JS = Path(__file__).parent / "assets" / "js"
_FORGED = "The browser sent something unexpected. Reload the page."


def actions(events: Sequence[str], elem_id: str, value: str = "") -> gr.HTML:
    """HTML in which a click on `data-event="name" data-x="…"` triggers the event `name` with {x}.

    {nth} comes with it: its place among all events of the tab, from 1. What arrives in Python came
    from a browser: read it with `field` and `number`.
    """
    script = (_JS / "actions.js").read_text("utf-8").replace('["events"]', json.dumps(events))
    return gr.HTML(value, js_on_load=script, apply_default_css=False, elem_id=elem_id)


def text(elem_id: str, value: str = "") -> gr.HTML:
    """HTML without events."""
    return gr.HTML(value, js_on_load=None, apply_default_css=False, elem_id=elem_id)


def running() -> gr.HTML:
    """Room under the button of long work, in which Gradio shows how far it is."""
    return gr.HTML(
        visible=False, js_on_load=None, apply_default_css=False, elem_classes="mrr-running"
    )


def heading(words: str) -> gr.HTML:
    """A section's name."""
    return gr.HTML(f'<h2 class="mrr">{words}</h2>', js_on_load=None, apply_default_css=False)


@dataclass(frozen=True, slots=True)
class File:
    """A text file for the user's disk; it never touches the server's."""

    name: str
    mime: str
    text: str

    def value(self) -> dict[str, object]:
        """For the download component; it differs each time, so that saving twice works."""
        return {"name": self.name, "mime": self.mime, "text": self.text, "n": time.time_ns()}


def download() -> gr.HTML:
    """Saves the File value that it is given. Nothing is written here, so nothing can be served."""
    return gr.HTML(
        html_template="",
        js_on_load=(_JS / "download.js").read_text("utf-8"),
        elem_classes=["mrr-hidden"],
    )


def field(event: gr.EventData, name: str) -> str:
    """One field of a browser event, as a short string; InputRejected for anything else."""
    data: Any = event._data
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, str) or len(value) > 200:
        raise InputRejected(_FORGED)
    return value


def number(event: gr.EventData, name: str, below: int) -> int:
    """One field of a browser event, from 0 to below; InputRejected for anything else."""
    digits = field(event, name)
    if not (digits.isascii() and digits.isdecimal() and int(digits) < below):
        raise InputRejected(_FORGED)
    return int(digits)
