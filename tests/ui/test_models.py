"""Another checkpoint in place of the first one: what is loaded, what is kept, what is let go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.errors import Closed, MRRError
from tests.tiny import save_checkpoint
from tests.ui.conftest import N_PAGES, SAMPLES, Running, png
from ui import explaining
from ui.caching import upload
from ui.examples import Examples
from ui.opening import Opening
from ui.session import Settings
from ui.workbench import Workbench


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a band of its own, different from what its depth would suggest."""
    folder = tmp_path_factory.mktemp("models") / "second-reranker"
    return save_checkpoint(folder, seed=7, band=[1, 5], exit_layer=5)


@pytest.fixture
def bench(reranker: MiniReranker, pair: tuple[Path, Path]) -> Iterator[Workbench]:
    def load(model: str, embedder: str) -> MiniReranker:
        return MiniReranker.from_pretrained(
            model or pair[0], embedder=embedder or None, store=reranker.store, self_check=False
        )

    opening = Opening(lambda: reranker)
    yield Workbench(opening, reranker.store, Examples(finished=True), load_model=load)


def test_another_model_runs_with_the_band_it_was_trained_for(
    bench: Workbench, second: Path
) -> None:
    engine = bench.engine(Settings(RerankConfig(keep_ratio=0.4), model=str(second)))
    assert (engine.config.band, engine.config.exit_layer) == ((1, 5), 5)
    assert engine.config.keep_ratio == 0.4 and engine.store is bench.base.store


def test_another_embedder_alone_goes_with_the_first_model(
    bench: Workbench, pair: tuple[Path, Path]
) -> None:
    engine = bench.engine(Settings(embedder=str(pair[0])))
    assert engine.loaded.digest == bench.base.loaded.digest
    assert engine.embedder is not None and bench.base.embedder is not None
    assert engine.embedder.loaded.digest != bench.base.embedder.loaded.digest


def test_a_trace_of_one_embedders_page_is_not_shown_for_anothers(
    bench: Workbench, pair: tuple[Path, Path]
) -> None:
    session = bench.session()
    list(upload(bench, session, [("mine.png", png(6))], None))
    bench.rank(session, "blue page")
    first = explaining.trace(bench, session)
    session.settings = Settings(embedder=str(pair[0]))
    bench.rank(session, "blue page")
    assert explaining.known(session) is None
    assert (explaining.trace(bench, session).keep.kept != first.keep.kept).any()


def test_of_other_models_only_the_last_one_is_kept(
    bench: Workbench, second: Path, pair: tuple[Path, Path]
) -> None:
    before = weakref.ref(bench.engine(Settings(model=str(second))).loaded.model)
    assert bench.engine(Settings(model=str(second))).loaded.model is before()
    bench.engine(Settings(model=str(pair[1])))
    gc.collect()
    assert before() is None, "a model that nobody uses is still in memory"
    assert bench.engine(Settings()) is bench.base


def test_removing_a_page_takes_its_dense_kv_under_the_other_model_along(
    bench: Workbench, second: Path
) -> None:
    session = bench.session()
    session.settings = Settings(model=str(second))
    list(upload(bench, session, [("mine.png", png(5))], None))
    run = bench.rank(session, "blue page")
    list(bench.dense(session, run, "dense-reuse"))
    dense = bench.engine(session.settings).dense_cache.kv
    assert dense.stats().n_entries == 1
    assert bench.remove_scope(session.scope) == 1
    assert dense.stats().n_entries == 0


def test_an_engine_leaves_the_shared_store_open_and_the_app_closes_all_of_it(
    bench: Workbench, second: Path
) -> None:
    other = bench.engine(Settings(model=str(second)))
    dense = [engine.dense_cache.kv for engine in (bench.base, other)]
    other.close()
    assert bench.pages(bench.session()) == []
    bench.close()
    for store in (bench.store, *dense):
        with pytest.raises(Closed, match="closed"):
            store.pages(["public"])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "damaged"),
        (lambda f: (f / "tokenizer.json").write_text("[]"), "damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence_and_changes_nothing(
    bench: Workbench, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    broken = save_checkpoint(tmp_path / "broken-model", seed=3)
    damage(broken)
    with pytest.raises(MRRError, match=words) as refusal:
        bench.engine(Settings(model=str(broken)))
    assert str(tmp_path) not in str(refusal.value)
    assert bench.engine(Settings()) is bench.base


def open_model(tab: Page) -> None:
    tab.locator(".sidebar .toggle-button").click()
    tab.get_by_role("button", name="Model").click()


def apply(tab: Page, model: str) -> None:
    field = tab.locator("#model input, #model textarea")
    field.clear()
    field.press_sequentially(model)
    if model:  # the server has what was typed
        expect(tab.locator("#plan")).to_contain_text("Apply will load that model")
    tab.click("#apply")


@pytest.mark.browser
def test_a_visitor_switches_to_a_second_model_and_back(
    visit: Callable[..., Page], running: Running, second: Path
) -> None:
    tab = visit()
    tab.fill("#query textarea, #query input", SAMPLES[0])
    tab.keyboard.press("Enter")
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    first_scores = tab.locator("#hits .value").all_inner_texts()
    open_model(tab)

    apply(tab, str(second))
    expect(tab.locator("#header")).to_contain_text("second-reranker")
    expect(tab.locator("#plan")).to_contain_text(f"Applied. {N_PAGES} pages encoded")
    expect(tab.locator("#summary")).to_contain_text("No embedder is loaded")
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    expect(tab.locator("#hits .value")).not_to_have_text(first_scores)

    apply(tab, "/nowhere/no-such-model")
    message = tab.locator(".toast-body")
    expect(message).to_have_count(1)
    expect(message).to_contain_text("There is no checkpoint folder no-such-model")
    expect(tab.locator("#plan")).to_contain_text("Apply will load that model")
    expect(tab.locator("#header")).to_contain_text("second-reranker")
    expect(tab.locator("#hits li")).to_have_count(N_PAGES)
    tab.locator(".toast-close").first.click()

    apply(tab, "")
    expect(tab.locator("#plan")).to_contain_text("Applied. Every page was cached already")
    expect(tab.locator("#header")).to_contain_text("tiny-reranker")
    expect(tab.locator("#summary")).not_to_contain_text("No embedder is loaded")
    expect(tab.locator("#hits .value")).to_have_text(first_scores)
    tab.get_by_role("tab", name="History", exact=True).click()
    expect(tab.locator("#history tbody tr")).to_have_count(3)
