"""The named endpoints for programs: rank, add and explain, for `gradio_client`.

A client is a session of its own, as a browser tab is: it sees the examples and what it added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import gradio as gr

from mrr.errors import InputRejected, MRRError
from mrr.json_forms import added_json, ranked_json
from mrr.types import SYSTEMS
from ui.caching import read_uploads, upload
from ui.session import Session
from ui.workbench import Workbench

ENDPOINTS = ("rank", "add", "explain")
MAX_TOP_K = 100


def _refusing(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as sentences for a program: the only thing that Gradio passes on."""

    @wraps(endpoint)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return endpoint(*args, **kwargs)
        except MRRError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except UnicodeEncodeError as error:
            said = "A text is not Unicode: it has half of a surrogate pair. Send it as UTF-8."
            raise gr.Error(said, print_exception=False) from error

    return call


def build_api(bench: Workbench, state: gr.State) -> None:
    """Three endpoints on components that no browser shows."""

    @_refusing
    def rank(query: str, top_k: float, system: str, session: Session) -> dict[str, Any]:
        if system not in SYSTEMS:
            raise InputRejected(f"No system {system!r}; choose one of {', '.join(SYSTEMS)}.")
        if not isinstance(query, str):
            raise InputRejected(f"query is {query!r:.40}; it is a text.")
        is_whole = isinstance(top_k, int | float) and not isinstance(top_k, bool)
        if not is_whole or top_k % 1 or not 1 <= top_k <= MAX_TOP_K:
            said = f"{top_k:g}" if is_whole else f"{top_k!r:.40}"
            raise InputRejected(
                f"top_k is {said}; it must be a whole number from 1 to {MAX_TOP_K}."
            )
        engine = bench.engine(session.settings)
        ranked = bench.run(
            type(engine).rank,
            engine,
            query,
            top_k=int(top_k),
            system=system,  # type: ignore[arg-type]  # checked above
            scopes=bench.scopes(session),
        )
        answer = ranked_json(ranked)
        return {**answer, "notes": [*filter(None, [session.lost()]), *answer["notes"]]}

    @_refusing
    def add(
        files: Sequence[str] | None, page_range: str | None, session: Session
    ) -> dict[str, Any]:
        received = read_uploads(bench, session, files)
        *_, work = upload(bench, session, received, (page_range or "").strip() or None)
        return {
            "pages": [added_json(line.added) for line in work.lines if line.added is not None],
            "failed": [
                {"file": line.label, "reason": line.reason}
                for line in work.lines
                if line.state == "failed"
            ],
        }

    @_refusing
    def explain(query: str, page_id: str, session: Session) -> dict[str, Any]:
        page = bench.page(session, page_id)
        engine = bench.engine(session.settings)
        found = bench.run(
            type(engine).explain,
            engine,
            query,
            page,
            scopes=bench.scopes(session),
            dense=False,
        )
        importance = found.keep.importance
        return {
            "query": found.query,
            "page_id": page.page_id,
            "label": page.label,
            "logit": found.logit,
            "kept": found.keep.kept.tolist(),
            "importance": None if importance is None else importance.tolist(),
            "lens": found.lens.mini.tolist(),
            "exit_layer": found.lens.exit_layer,
            "band_layers": list(range(*found.lens.band)),
            "tokens": list(found.attention.tokens),
            "mass": found.attention.mass.mean(axis=1).tolist(),
            "notes": list(found.notes),
        }

    with gr.Column(visible=False):
        query = gr.Textbox(label="query")
        top_k = gr.Number(10, label="top_k")
        system = gr.Textbox("mini", label="system")
        files = gr.File(file_count="multiple", type="filepath", label="files")
        page_range = gr.Textbox("", label="page_range")
        page_id = gr.Textbox(label="page_id")
        answer = gr.JSON(label="answer")
        inputs: tuple[list[Any], ...] = (
            [query, top_k, system],
            [files, page_range],
            [query, page_id],
        )
        for name, endpoint, given in zip(ENDPOINTS, (rank, add, explain), inputs, strict=True):
            # Each has a limit of its own: files that are added hold up no ranking.
            gr.Button(name).click(endpoint, [*given, state], answer, api_name=name)
