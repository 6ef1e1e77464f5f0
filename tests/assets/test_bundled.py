"""The pair that ships ranks the pages that ship with it, and no empty picture before them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

from mrr import MiniReranker
from mrr.types import SYSTEMS, System
from tests.assets.test_examples import CORPUS, EXAMPLES, QRELS, QUERIES

KEYWORDS = [
    (query["query"], *QRELS[query["query_id"]])
    for query in QUERIES
    if query["kind"] == "keyword" and len(QRELS[query["query_id"]]) == 1
][:3]
FILES = {page["page_id"]: EXAMPLES / page["file"] for page in CORPUS}
SMALL = ((1, 1), (64, 64), (448, 320), (640, 480), (1024, 768))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniReranker]:
    """Some example pages, and small pictures on which there is nothing."""
    store = tmp_path_factory.mktemp("bundled") / "store"
    with MiniReranker.from_pretrained("tiny", store=store) as engine:
        engine.add([FILES[page_id] for _, page_id in KEYWORDS])
        engine.add([(f"blank {size}", Image.new("RGB", size, "white")) for size in SMALL])
        yield engine


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_page_comes_first_for_its_own_keyword_in_every_system(
    engine: MiniReranker, system: System
) -> None:
    query, page_id = KEYWORDS[0]
    pages = engine.store.pages(["public"])
    empty = [page for page in pages if page.label.startswith("blank")]
    # Full depth takes its time: with one of the empty ones beside the others it takes half of it.
    some = [page for page in pages if page not in empty[1:]]
    ranked = engine.rank(query, system=system, pages=some)
    assert len(ranked) == len(KEYWORDS) + 1
    assert ranked[0].page.source == FILES[page_id].name
    assert ranked[0].score > 0.5 > ranked[1].score


def test_a_small_picture_with_nothing_on_it_is_relevant_to_nothing(engine: MiniReranker) -> None:
    for query in QUERIES[::12]:
        for hit in engine.rank(query["query"]):
            if hit.page.label.startswith("blank"):
                assert hit.score < 0.5, (query["query"], hit.page.label)
