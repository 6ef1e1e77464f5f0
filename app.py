"""The app: `python app.py`, and what HuggingFace Spaces runs. Engine, UI and every launch flag."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gradio as gr

from mrr import MiniReranker
from mrr.build import default_store
from mrr.errors import MRRError
from ui.caching import start_examples
from ui.examples import Examples, load_examples
from ui.gpu import Gpu, zero_gpu
from ui.layout import build_ui
from ui.session import remove_left_over
from ui.theme import css, javascript, theme
from ui.workbench import Workbench

ROOT = Path(__file__).resolve().parent
ON_SPACES = "SPACE_ID" in os.environ
HOST = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if ON_SPACES else "127.0.0.1")  # noqa: S104
# Strangers may reach it: no loading of models by name, no totals over all sessions.
HOSTED = ON_SPACES or HOST not in ("127.0.0.1", "localhost", "::1")


def build(examples: Examples | None = None) -> tuple[gr.Blocks, Workbench]:
    """Engine and UI, from $MRR_MODEL, $MRR_EMBEDDER, $MRR_CACHE_DIR and $MRR_KEEP_UPLOADS.

    At home uploads stay in the store for good, unless MRR_KEEP_UPLOADS is 0; where strangers may
    come they always go with their tab. examples: the bundled ones unless given. Uploads that a
    crashed app left behind are removed.
    """
    on_gpu = zero_gpu()
    first = os.environ.get("MRR_MODEL") or "tiny"
    reranker = MiniReranker.from_pretrained(
        first,
        embedder=os.environ.get("MRR_EMBEDDER") or None,
        device="cpu" if on_gpu else None,
    )

    def load_model(model: str, embedder: str) -> MiniReranker:
        return MiniReranker.from_pretrained(
            model or first, embedder=embedder or None, store=reranker.store, limits=reranker.limits
        )

    bench = Workbench(
        reranker,
        examples or load_examples(),
        load_model=None if HOSTED else load_model,
        keep_uploads=not HOSTED and os.environ.get("MRR_KEEP_UPLOADS") != "0",
        hosted=HOSTED,
        run=Gpu(reranker, on_gpu),
    )
    if not bench.keep_uploads:
        remove_left_over(reranker)
    return build_ui(bench), bench


def launch_flags() -> dict[str, Any]:
    """Every flag, in one place. Nothing here is left to a default that a release may change."""
    return {
        "server_name": HOST,
        "share": False,
        "max_file_size": "20mb",
        # Nothing on this disk is for visitors: not the code, not the weights, not the store.
        "allowed_paths": [],
        "blocked_paths": [str(ROOT), str(default_store())],
        "show_error": False,
        "strict_cors": True,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "footer_links": ["api"],
        "theme": theme(),
        "css": css(),
        "js": javascript(),
    }


def main() -> None:
    """Serve until interrupted. The examples are cached while the page can already be used."""
    try:
        demo, bench = build()
    except MRRError as error:
        sys.exit(f"The app cannot start. {error}")
    # As it starts, Gradio asks itself for the page and gives up where the answer takes 3 s.
    demo.launch(**launch_flags(), prevent_thread_lock=True)
    start_examples(bench)
    demo.block_thread()


if __name__ == "__main__":
    main()
