"""The app: `python app.py`, and what HuggingFace Spaces runs. Engine, UI and every launch flag.

The page answers first; torch, transformers and the models come while somebody looks at it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from traceback import format_exception, print_exc
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # There is no garbage in what is only being imported, and looking for it takes a fifth of the
    # time. load() switches it on again.
    gc.disable()

import gradio as gr
from starlette.middleware import Middleware

from cache_db import PageStore, default_store
from mrr.config import default_limits
from mrr.errors import MRRError
from mrr.waiting import spin_less
from ui.bodies import ShortBodies
from ui.examples import Examples, load_examples
from ui.gpu import Gpu, zero_gpu
from ui.layout import build_ui
from ui.opening import Opening
from ui.own_paths import OwnPaths
from ui.session import remove_left_over, remove_visitors
from ui.temporary import remove_own_folder, use_own_folder
from ui.theme import css, javascript, theme
from ui.visits import Heartbeats
from ui.warming import start_examples
from ui.workbench import Workbench

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

ROOT = Path(__file__).resolve().parent
ON_SPACES = "SPACE_ID" in os.environ
HOST = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if ON_SPACES else "127.0.0.1")  # noqa: S104
# Behind a proxy on this machine the address does not tell, so it can be said.
SAID_HOSTED = os.environ.get("MRR_HOSTED") == "1"
# Strangers may reach it: no loading of models by name, no totals over all sessions.
HOSTED = ON_SPACES or SAID_HOSTED or HOST not in ("127.0.0.1", "localhost", "::1")


def build(examples: Examples | None = None) -> tuple[gr.Blocks, Workbench]:
    """Engine and UI, from $MRR_MODEL, $MRR_EMBEDDER, $MRR_CACHE_DIR, $MRR_BUDGET_GIB,
    $MRR_MAX_FILE_MB and $MRR_KEEP_UPLOADS.

    At home uploads stay in the store for good, unless MRR_KEEP_UPLOADS is 0; where strangers may
    come they always go with their tab. examples: the bundled ones unless given. Uploads that a
    crashed app left behind are removed, its temporary files too. The models are loaded when they
    are first asked for.
    """
    use_own_folder()
    # Gradio would keep the names of the sessions of the last 10,000 events, and count them all anew
    # after each event (some 10 ms, four times a query), for figures that nobody can look at.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    on_gpu = zero_gpu()
    first = os.environ.get("MRR_MODEL") or "tiny"
    store, limits = PageStore(default_store()), default_limits()

    def load_model(model: str, embedder: str, device: str | None = None) -> MiniReranker:
        from mrr import MiniReranker

        return MiniReranker.from_pretrained(
            model or first, embedder=embedder or None, store=store, limits=limits, device=device
        )

    def load_first() -> MiniReranker:
        return load_model(first, os.environ.get("MRR_EMBEDDER") or "", "cpu" if on_gpu else None)

    opening = Opening(load_first)
    bench = Workbench(
        opening,
        store,
        examples or load_examples(),
        limits=limits,
        load_model=None if HOSTED else load_model,
        keep_uploads=not HOSTED and os.environ.get("MRR_KEEP_UPLOADS") != "0",
        hosted=HOSTED,
        run=Gpu(opening, store, on_gpu),
    )
    if not bench.keep_uploads:
        remove_left_over(store)
    return build_ui(bench), bench


def launch_flags(bench: Workbench) -> dict[str, Any]:
    """Every flag, in one place. Nothing here is left to a default that a release may change."""
    return {
        "server_name": HOST,
        "share": False,
        # Where a file is larger, Gradio refuses the whole drop in a message that goes away; the app
        # refuses the file alone, and says so in its line.
        "max_file_size": 3 * bench.limits.max_file_bytes,
        # Far more than ui/visits.py keeps of those who have left; beyond it anyone may be dropped.
        "state_session_capacity": 10_000,
        # Names of sessions are kept; two visitors may upload the same file; and who leaves is to
        # be noticed.
        "app_kwargs": {
            "middleware": [
                Middleware(ShortBodies),
                Middleware(OwnPaths),
                Middleware(Heartbeats, visits=bench.visits),
            ]
        },
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
        # Gradio's own words lack those of a button beside what is being uploaded.
        "i18n": gr.I18n(en={"common.upload": "Add files"}),
        "theme": theme(),
        "css": css(),
        "js": javascript(),
    }


def main() -> None:
    """Serve until interrupted, or asked to end by SIGTERM; what visitors added goes then, too.

    Models and examples come while the page can already be seen.
    """
    spin_less()
    # A signal is only noted: an exception in the midst of an import may be lost, or end the process
    # otherwise than by what follows.
    end: SimpleQueue[None] = SimpleQueue()  # which a handler may interrupt anywhere
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: end.put(None))
    demo, bench = build()
    # As it starts, Gradio asks itself for the page and gives up where the answer takes 3 s.
    demo.launch(**launch_flags(bench), prevent_thread_lock=True)
    start_examples(bench)
    failed: list[Exception] = []
    threading.Thread(target=_load_or_end, args=(bench, end, failed), daemon=True).start()
    end.get()
    try:
        for error in failed:
            said = [f"The app cannot start. {error}\n"]
            sys.stderr.writelines(said if isinstance(error, MRRError) else format_exception(error))
        remove_visitors(bench.store)
        bench.close()
    except Exception:
        print_exc()
    try:
        remove_own_folder()
        sys.stdout.flush()
    finally:
        os._exit(1 if failed else 0)  # Python's own end aborts where a thread is in torch


def _load_or_end(bench: Workbench, end: SimpleQueue[None], failed: list[Exception]) -> None:
    try:
        load(bench)
    except Exception as error:
        failed.append(error)
        end.put(None)


def load(bench: Workbench) -> None:
    """Load the models; what stays for good is no garbage to look for."""
    gc.disable()  # as it is already where this file is run
    try:
        bench.opening()
    finally:
        gc.enable()
    gc.freeze()


if __name__ == "__main__":
    try:
        main()
    except MRRError as error:  # a setting that is none
        sys.exit(str(error))
