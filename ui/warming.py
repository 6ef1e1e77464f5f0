"""The bundled example pages come in, in the background, and what a dense page costs is measured."""

from __future__ import annotations

import importlib
import logging
import threading
from contextlib import suppress
from dataclasses import replace

from mrr.errors import MRRError
from mrr.pages.ingest import read_pages
from mrr.types import FailedFile, System
from ui.session import PUBLIC
from ui.workbench import Workbench

log = logging.getLogger("ui")

# Imported by what visitors do next: half a second that nobody need wait for.
_SLOW_IMPORTS = ("mrr.measure.metrics",)


def start_examples(bench: Workbench) -> threading.Thread:
    """Recognise and cache the bundled pages in the background; the app is usable meanwhile."""

    def work() -> None:
        with suppress(MRRError):  # the model's, which whoever started the app is told
            cache_examples(bench)

    thread = threading.Thread(target=work, name="examples", daemon=True)
    thread.start()
    return thread


def recognise_examples(bench: Workbench) -> None:
    """Find the example pages that an earlier start has stored, by their names.

    What waits for the model is ranked with its labels then. Whether they are the same to the pixel
    is known when they are cached, which would hold up the model.
    """
    known = {(page.label, page.source): page.page_id for page in bench.store.pages([PUBLIC])}
    for example in bench.examples.pages:
        if (found := known.get((example.title, example.file.name))) is not None:
            bench.examples.page_ids[example.key] = found


def cache_examples(bench: Workbench) -> None:
    """Bring every example page into the store, then measure one dense page for the estimates.

    Raises what loading the model raises.
    """
    examples = bench.examples
    recognise_examples(bench)
    bench.opening()
    try:
        for example in examples.pages:
            for item in read_pages(bench.decoder, [(example.file.name, example.file)]):
                if isinstance(item, FailedFile):
                    log.warning("Example %s: %s", example.key, item.reason)
                    continue
                added = bench.base.add_page(replace(item, label=example.title), PUBLIC)
                examples.page_ids[example.key] = added.page.page_id
                examples.added[added.page.page_id] = added
                bench.thumbnails.put(added.page.page_id, item.image)
                if added.outcome == "encoded":
                    bench.pace.saw(bench.base, "encode", added.elapsed_ms)
        for module in _SLOW_IMPORTS:
            importlib.import_module(module)
        _measure_once(bench)
    except MRRError as error:
        log.warning("The examples stop here: %s", error)
    finally:
        examples.finished = True
    tell_of_public_pages(bench)


def tell_of_public_pages(bench: Workbench) -> None:
    """Warn who hosts the app of pages that strangers see, and that he may take for his own."""
    if bench.hosted and (others := bench.other_public_pages()):
        log.warning(
            "Everyone who opens this app sees %d pages that are no examples: they were added to "
            "its store at home, or by mrr add. Choose another MRR_CACHE_DIR if they should not.",
            len(others),
        )


def _measure_once(bench: Workbench) -> None:
    """One page by each dense system, and one encoding where every page was a hit: what they cost
    can then be said before they are asked for."""
    if not bench.examples.page_ids:
        return
    one = next(iter(bench.examples.page_ids.values()))
    systems: list[System] = ["original"]
    if bench.base.cache.scorer.image_first:
        systems.append("dense-reuse")
    for system in systems:
        for _ in ("to warm up", "to measure"):  # the first pass of all takes up to twice the time
            usage = bench.base.rank("warm up", system=system, pages=[one], scopes=(PUBLIC,)).usage
        bench.pace.saw(bench.base, system, usage.total_ms - usage.ms.get("encode", 0.0))
    if bench.pace.ms(bench.base, "encode") is None:
        from mrr.measure.latency import encode_again

        page = bench.store.page(one)
        assert page is not None, "it was added a moment ago"
        with bench.base.lock:
            stages, _ = encode_again(bench.base.cache, page)
        bench.pace.saw(bench.base, "encode", sum(stages.values()))
