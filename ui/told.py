"""Failures as sentences: shown for as long as reading takes, and nothing else changes."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from mrr.errors import MRRError
from ui.markup import esc

_LEAST_S, _WORD_S = 10.0, 0.6  # that a message is shown: at least, and for each word more
log = logging.getLogger("ui")
UNEXPECTED = "Something went wrong inside the app; nothing that was cached is lost. Try it again."


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler, plain or a generator, with its errors told to the user who caused them.

    An empty dict of values, or no values at all, changes nothing: Gradio would empty every output.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            yielded = False
            with _telling() as failed:
                for values in handler(*args, **kwargs):
                    yielded = True
                    yield gr.skip() if values == {} else values
            if failed or not yielded:
                yield gr.skip()

        return stream

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _telling():
            values = handler(*args, **kwargs)
            return gr.skip() if values == {} else values
        return gr.skip()

    return call


@contextmanager
def _telling() -> Iterator[list[str]]:
    """Collects the sentence of an error that happened inside, after showing it."""
    failed: list[str] = []
    try:
        yield failed
    except MRRError as error:
        failed.append(str(error))
    except gr.Error as error:  # ZeroGPU's own words, on a used-up quota say
        failed.append(str(error.message))
    except Exception:  # the boundary of the app: what nobody foresaw is logged, never shown
        log.exception("A handler failed")
        failed.append(UNEXPECTED)
    for sentence in failed:
        tell(sentence)


def tell(sentence: str) -> None:
    """Show a sentence, with time to read it twice. Gradio renders it as HTML, hence the escaping.

    Its title, and that it stands there once however often it is said: shell.css and shell.js.
    """
    gr.Warning(esc(sentence), duration=_LEAST_S + _WORD_S * len(sentence.split()))
