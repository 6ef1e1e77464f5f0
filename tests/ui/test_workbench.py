"""What the app does with the engine, without a browser."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrr.errors import InputRejected
from tests.ui.conftest import N_PAGES, SAMPLES, Running, make_corpus, png
from ui import explaining
from ui.caching import upload
from ui.examples import load_examples
from ui.exports import ranking_rows, run_record
from ui.session import Session, Settings
from ui.views import history, labels, ranking, settings, start
from ui.views.report import report
from ui.workbench import Workbench, dense_list, dense_ranks


@pytest.fixture
def bench(running: Running) -> Workbench:
    return running.bench


def test_bundled_examples_are_complete() -> None:
    examples = load_examples()
    assert len(examples.pages) == 32
    assert all(page.file.is_file() for page in examples.pages)
    keys = {page.key for page in examples.pages}
    assert examples.samples
    for query in examples.samples:
        assert examples.relevant[query] and examples.relevant[query] <= keys


def test_an_installation_without_examples_starts_empty(tmp_path) -> None:
    examples = load_examples(tmp_path)
    assert examples.finished and not examples.pages and not examples.samples


def test_a_known_failure_is_the_last_sample_and_says_so(bench: Workbench, tmp_path) -> None:
    examples = load_examples(make_corpus(tmp_path / "corpus"))
    assert examples.known_failure == SAMPLES[2]
    chips = start.samples(bench)
    assert chips.index(SAMPLES[1]) < chips.index(SAMPLES[2])
    assert f"{SAMPLES[2]} (one it gets wrong)" in chips


def test_dense_scores_one_page_at_a_time_and_ranks_when_all_are_in(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    for n, hit in enumerate(bench.dense(session, run, "original"), start=1):
        assert len(run.dense) == n and hit.page.page_id in run.dense
        assert bool(dense_ranks(run)) == (n == N_PAGES)
    assert sorted(dense_ranks(run).values()) == list(range(1, N_PAGES + 1))
    logits = [hit.logit for hit in dense_list(run)]
    assert logits == sorted(logits, reverse=True)
    whole = bench.base.rank(SAMPLES[0], system="original", scopes=bench.scopes(session))
    assert [h.page.page_id for h in whole] == [h.page.page_id for h in dense_list(run)]


def test_mini_is_not_kept_waiting_between_dense_pages(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    dense = bench.dense(session, run, "original")
    next(dense)
    assert len(bench.base.rank(SAMPLES[1], scopes=bench.scopes(session))) == N_PAGES
    dense.close()


def test_the_merged_list_marks_moves_with_arrows_and_words(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    list(bench.dense(session, run, "dense-reuse"))
    html = ranking.hits(bench, session)
    moved = [h for h in run.mini if dense_ranks(run)[h.page.page_id] != h.rank]
    assert html.count("▲") + html.count("▼") == len(moved)
    assert html.count("mini ranks it") == len(moved)
    only = ranking.hits(bench, session, only_changes=True)
    assert only.count("data-item") == len(moved)


def test_a_plan_counts_what_is_missing_and_encoding_brings_it_in(bench: Workbench) -> None:
    session = Session()
    same = bench.plan(session, Settings(bench.base.config))
    assert same.n_missing == 0 and same.n_pages == N_PAGES
    wanted = Settings(replace(bench.base.config, keep_ratio=0.35))
    assert bench.plan(session, wanted).n_missing == N_PAGES
    session.settings = wanted
    assert list(bench.encode_missing(session))[-1] == (N_PAGES, N_PAGES)
    assert bench.plan(session, wanted).n_missing == 0
    run = bench.rank(session, SAMPLES[0])
    assert run.mini.usage.missed_pages == 0
    assert "35%" in run.described


def test_settings_that_cannot_be_are_refused_in_words(bench: Workbench) -> None:
    base = bench.base.config
    good = (3, 1, 3, 0.5, "embedder", "int8", 10, "Find it.", True, "", "")
    assert settings.read(base, *good).config.band == (1, 3)
    for position, value, words in ((2, 5, "band"), (1, 3, "band"), (7, "  ", "instruction")):
        bad = [*good[:position], value, *good[position + 1 :]]
        with pytest.raises(InputRejected, match=words):
            settings.read(base, *bad)


def test_presets_are_the_three_promised(bench: Workbench) -> None:
    base, n_layers = bench.base.config, bench.base.loaded.n_layers
    paper = settings.preset_values("Paper default", base, n_layers)
    assert paper == (base.exit_layer, *base.band, base.keep_ratio, base.pruner)
    dense = settings.preset_values("Dense", base, n_layers)
    assert dense == (n_layers, 0, n_layers, 1.0, "none")
    assert settings.preset_values("Fastest", base, n_layers)[3] < base.keep_ratio


def test_an_upload_can_be_cancelled_and_keeps_what_is_done(bench: Workbench) -> None:
    session = Session()
    work = upload(bench, session, [(f"{n}.png", png(60 + n)) for n in range(4)], None)
    for step in work:
        if step.n_done == 2:
            session.busy = False
    assert step.cancelled and step.n_done == 2
    assert [line.state for line in step.lines].count("queued") == 2
    assert len(bench.pages(session)) == N_PAGES + 2
    bench.remove_own(session)


def test_one_bad_file_stops_no_other(bench: Workbench) -> None:
    session = Session()
    files = [("x.png", b"junk"), ("y.png", png(70)), ("x.png", b"junk")]
    *_, done = upload(bench, session, files, None)
    assert [line.state for line in done.lines] == ["failed", "cached", "failed"]
    assert all(line.reason for line in done.lines if line.state == "failed")
    bench.remove_own(session)


def test_traces_are_kept_and_a_new_query_makes_new_ones(bench: Workbench) -> None:
    session = Session()
    with pytest.raises(InputRejected, match="Rank something first"):
        explaining.trace(bench, session)
    bench.rank(session, SAMPLES[0])
    first = explaining.trace(bench, session)
    assert explaining.trace(bench, session) is first
    assert first.logit == pytest.approx(session.run.mini[0].logit, abs=1e-4)
    assert first.occlusion is None
    assert explaining.trace(bench, session, occlusion=True).occlusion is not None
    assert explaining.known(session).occlusion is not None
    other = explaining.trace(bench, session, keep=(0.2, "uniform"))
    assert other.keep.pruner == "uniform" and other.keep.kept.sum() < first.keep.kept.sum()
    bench.rank(session, SAMPLES[1])
    assert explaining.known(session) is None


def test_lenses_cover_every_candidate_and_dense_only_on_demand(bench: Workbench) -> None:
    session = Session()
    bench.rank(session, SAMPLES[0])
    lenses = explaining.lenses(bench, session)
    assert len(lenses) == N_PAGES and all(lens.dense is None for lens in lenses.values())
    assert explaining.lenses(bench, session) is lenses
    seen: list[tuple[int, int]] = []
    full = explaining.lenses(bench, session, dense=True, progress=lambda *at: seen.append(at))
    assert all(len(lens.dense) == bench.base.loaded.n_layers for lens in full.values())
    assert seen[-1] == (N_PAGES, N_PAGES)


def test_labels_of_the_examples_and_ticks_make_metrics(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    (relevant,) = session.relevant[SAMPLES[0]]
    (row,) = labels.rows(session)
    rank = next(hit.rank for hit in run.mini if hit.page.page_id == relevant)
    assert row["mrr"] == pytest.approx(1 / rank, abs=1e-4)
    list(bench.dense(session, run, "original"))
    assert [r["system"] for r in labels.rows(session)] == ["mini", "original"]
    assert labels.qrels(session) == f"{SAMPLES[0]}\t0\t{relevant}\t1\n"


def test_the_record_says_what_was_asked_and_under_which_settings(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    record = run_record(run)
    assert record["query"] == SAMPLES[0] and len(record["candidates"]) == N_PAGES
    assert "tiny-reranker, exit 3 of 6" in record["settings"]
    assert "/" not in record["settings"], "a path of the server"
    assert ranking_rows(run)[0]["dense_rank"] is None
    (row,) = history.rows(session)
    assert row["first_page"] == run.mini[0].page.label


def test_the_report_stands_alone(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, "<script>alert(1)</script>")
    explanation = explaining.trace(bench, session, occlusion=True)
    explaining.lenses(bench, session)
    text = report(bench, session, run, explanation).text
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http:" not in text and "https:" not in text and "//" not in text.split("<body>")[0]
    assert text.count("<polyline") == N_PAGES
    assert "random cells" in text, "no map without its control"
    assert "default-src 'none'" in text
