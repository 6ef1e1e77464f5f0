"""Explaining shows what `rank` did, and leaves it and the store exactly as they were."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mrr import MiniReranker
from mrr.errors import InputRejected, InvalidConfig, PageLost
from mrr.explain.maps import page_map
from mrr.explain.occlusion import occlude
from mrr.explain.verdict import occlusion_verdict
from mrr.prune import kept_tokens
from mrr.timing import Stages
from mrr.types import SYSTEMS
from tests.tiny import DEVICE, picture

QUERY = "blue page"
SIZES = ((192, 128), (128, 256), (96, 96), (256, 192))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explain") / "store"


@pytest.fixture(scope="module")
def engine(pair: tuple[Path, Path], store: Path) -> Iterator[MiniReranker]:
    engine = MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=store, device=DEVICE, dtype=torch.float32, self_check=False
    )
    engine.add([picture(i, size) for i, size in enumerate(SIZES)])
    yield engine
    engine.close()


def everything(engine: MiniReranker, store: Path) -> tuple[list[tuple], list[list[tuple]]]:
    """The store's files, and the rows of its tables except for when they were last used."""
    files = [
        (path.name, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted((store / "files").iterdir())
    ]
    with engine.store._database.read() as db:
        tables = [
            db.execute(f"SELECT {columns} FROM {table} ORDER BY 1").fetchall()
            for table, columns in (
                ("pages", "*"),
                ("entries", "key, page_id, file, nbytes, digest"),
                ("embeddings", "*"),
                ("catalogue_version", "*"),
            )
        ]
    return files, tables


def test_the_readings_end_at_the_logits_of_rank_and_of_original(engine: MiniReranker) -> None:
    ranked = engine.rank(QUERY)
    original = {h.page.page_id: h.logit for h in engine.rank(QUERY, system="original")}
    for hit in ranked:
        explanation = engine.explain(ranked.query, hit, occlusion=True, n_random=2)
        assert explanation.page == hit.page
        assert explanation.logit == pytest.approx(hit.logit, abs=1e-5)
        assert explanation.lens.mini[-1] == pytest.approx(hit.logit, abs=1e-5)
        assert explanation.occlusion.base_logit == pytest.approx(hit.logit, abs=1e-5)
        assert explanation.lens.dense[-1] == pytest.approx(original[hit.page.page_id], abs=1e-4)
        assert (explanation.lens.band, explanation.lens.exit_layer) == ((2, 4), 4)
        assert explanation.lens.mini.shape == (4,) and explanation.lens.dense.shape == (6,)


def test_blocks_that_cannot_be_are_refused_before_any_pass(
    engine: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    hit = engine.rank(QUERY)[0]
    monkeypatch.setattr("mrr.explain.explanation.trace_attention", None)
    for name in ("block", "n_random"):
        for wrong in (0, 1.5, "2", True, None, np.float64(2)):
            with pytest.raises(InvalidConfig, match=f"^{name} is .* whole number, and at least 1"):
                engine.explain(QUERY, hit, occlusion=True, **{name: wrong})


def test_blocks_may_be_counted_in_numpys_numbers(engine: MiniReranker) -> None:
    hit = engine.rank(QUERY)[0]
    numbers = {"block": np.uint8(3), "n_random": np.int64(2)}
    shown = engine.explain(QUERY, hit, dense=False, occlusion=True, **numbers).occlusion
    assert type(shown.block) is int and shown.block == 3


def test_an_explanation_equals_itself_only(engine: MiniReranker) -> None:
    """Arrays have no one truth value: comparing them raised, and so did hash()."""
    hit = engine.rank(QUERY)[0]
    one, other = (engine.explain(QUERY, hit, occlusion=True, n_random=2) for _ in "ab")
    for name in ("keep", "lens", "attention", "occlusion"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine == mine != theirs and len({mine, theirs}) == 2
    assert one == one != other and len({one, other}) == 2


def test_a_hit_a_page_and_its_id_name_the_same_page(engine: MiniReranker) -> None:
    hit = engine.rank(QUERY)[0]
    logits = {engine.explain(QUERY, it).logit for it in (hit, hit.page, hit.page.page_id)}
    assert len(logits) == 1


def test_the_mask_shown_is_the_stored_one_and_the_importance_is_what_chose_it(
    engine: MiniReranker,
) -> None:
    for hit in engine.rank(QUERY):
        keep = engine.explain(QUERY, hit, dense=False).keep
        (kv,) = engine.cache.load([hit.page], Stages(engine.device))
        np.testing.assert_array_equal(np.flatnonzero(keep.kept), kv.kept)
        assert keep.kept.shape == keep.importance.shape == kv.grid
        assert keep.kept.sum() == hit.n_kept_tokens
        chosen = kept_tokens("embedder", keep.keep_ratio, kv.grid, importance=keep.importance)
        np.testing.assert_array_equal(chosen, kv.kept)


@pytest.mark.parametrize("pruner", ["uniform", "random", "none"])
def test_control_pruners_have_no_importance_to_show(engine: MiniReranker, pruner: str) -> None:
    control = engine.with_config(replace(engine.config, pruner=pruner))
    hit = control.rank(QUERY)[0]
    explanation = control.explain(QUERY, hit, occlusion=True, n_random=2)
    assert explanation.keep.pruner == pruner and explanation.keep.importance is None
    assert explanation.keep.kept.all() == (pruner == "none")
    assert set(explanation.occlusion.top_deltas) == {"contrast", "attention", "occlusion"}


def test_explaining_changes_neither_the_ranking_nor_the_store(
    engine: MiniReranker, store: Path
) -> None:
    before = [engine.rank(QUERY, system=system).hits for system in SYSTEMS]
    stored = everything(engine, store)
    assert len(stored[0]) >= 2 * len(SIZES) and all(stored[1])
    for hit in before[0]:
        engine.explain(QUERY, hit, occlusion=True, n_random=2)
    engine.lenses(QUERY, before[0], dense=True)
    assert everything(engine, store) == stored
    assert [engine.rank(QUERY, system=system).hits for system in SYSTEMS] == before


def test_lenses_of_many_pages_are_those_of_each_alone(engine: MiniReranker) -> None:
    hits = engine.rank(QUERY).hits
    seen: list[tuple[int, int]] = []
    lenses = engine.lenses(QUERY, hits, dense=True, progress=lambda *at: seen.append(at))
    assert list(lenses) == [hit.page.page_id for hit in hits]
    assert seen == [(i, len(hits)) for i in range(1, len(hits) + 1)]
    for hit in hits:
        alone = engine.explain(QUERY, hit).lens
        np.testing.assert_allclose(lenses[hit.page.page_id].mini, alone.mini, atol=1e-5)
        np.testing.assert_allclose(lenses[hit.page.page_id].dense, alone.dense, atol=1e-5)


def test_others_may_rank_while_a_page_is_explained(engine: MiniReranker) -> None:
    hit = engine.rank(QUERY)[0]
    answers: list[int] = []

    def ask(*_: int) -> None:
        someone = threading.Thread(target=lambda: answers.append(len(engine.rank("red"))))
        someone.start()
        someone.join(timeout=60)

    explanation = engine.explain(QUERY, hit, dense=False, occlusion=True, n_random=2, progress=ask)
    assert answers and set(answers) == {len(SIZES)}
    assert explanation.occlusion.measured.all()


def test_the_dense_lens_is_left_out_unless_asked_for(engine: MiniReranker) -> None:
    hits = engine.rank(QUERY).hits
    assert all(lens.dense is None for lens in engine.lenses(QUERY, hits).values())
    assert engine.explain(QUERY, hits[0], dense=False).lens.dense is None
    assert engine.lenses(QUERY, []) == {}


def test_a_page_whose_kv_was_evicted_is_explained_all_the_same(engine: MiniReranker) -> None:
    hit = engine.rank(QUERY)[0]
    page = hit.page
    evicted = engine.with_config(replace(engine.config, instruction="Not cached yet."))
    assert engine.store.contains([evicted.cache.key(page)]) == set()
    explanation = evicted.explain(QUERY, page)
    again = {h.page.page_id: h.logit for h in evicted.rank(QUERY)}
    assert explanation.logit == pytest.approx(again[page.page_id], abs=1e-5)


def test_the_verdict_carries_the_number_of_the_contrast(engine: MiniReranker) -> None:
    occlusion = engine.explain(QUERY, engine.rank(QUERY)[0], occlusion=True).occlusion
    assert set(occlusion.top_deltas) == {"contrast", "attention", "importance", "occlusion"}
    assert occlusion.random_deltas.shape == (20,)
    verdict, delta = occlusion_verdict(occlusion), occlusion.top_deltas["contrast"]
    assert f" by {delta:+.2f};".replace("-0.00", "+0.00").replace("-", "−") in verdict
    assert "−0.00" not in verdict


def test_occlusion_tests_the_maps_that_are_shown(engine: MiniReranker) -> None:
    page = max(engine.rank(QUERY), key=lambda hit: hit.n_kept_tokens).page
    shown = engine.explain(QUERY, page, occlusion=True, block=1, n_random=1, dense=False)
    (kv,) = engine.cache.load([page], Stages(engine.device))
    maps = {
        "contrast": page_map(shown.attention, contrast=True),
        "attention": page_map(shown.attention),
        "importance": shown.keep.importance,
    }
    again = occlude(engine.cache.scorer, QUERY, kv, maps, block=1, n_random=1).top_deltas
    assert len({round(delta, 4) for delta in again.values()}) == 4
    for name, delta in again.items():
        assert shown.occlusion.top_deltas[name] == pytest.approx(delta, abs=1e-5)


def test_notes_about_the_query_reach_the_explanation(engine: MiniReranker) -> None:
    long = engine.explain("page " * 600, engine.rank(QUERY)[0], dense=False)
    assert any("cut to its first" in note for note in long.notes)
    assert len(long.attention.tokens) < 600


def test_an_unknown_page_and_a_page_of_another_scope_are_refused(engine: MiniReranker) -> None:
    private = engine.add([picture(9)], scope="alice").pages[0].page
    for page in ("0" * 64, private, private.page_id):
        with pytest.raises(PageLost, match="no page"):
            engine.explain(QUERY, page)
        with pytest.raises(PageLost, match="no page"):
            engine.lenses(QUERY, [page])
    with pytest.raises(PageLost, match="no page"):
        engine.explain(QUERY, private, scopes="malice")  # a name, not its letters
    for scopes in ("alice", ("alice",)):
        assert engine.explain(QUERY, private, scopes=scopes).page == private


def test_an_order_without_cached_pages_is_refused_by_name(engine: MiniReranker) -> None:
    hit = engine.rank(QUERY)[0]
    other = engine.with_config(replace(engine.config, order="query-first"))
    with pytest.raises(InputRejected, match="query-first"):
        other.explain(QUERY, hit)
