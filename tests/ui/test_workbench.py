"""What the app does with the engine, without a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import ir_measures
import pytest

from mrr.errors import InputRejected
from mrr.types import Usage
from tests.ui.conftest import N_PAGES, SAMPLES, Running, make_corpus, pdf, png
from ui import explaining
from ui.caching import Line, Upload, upload
from ui.examples import load_examples
from ui.exports import ranking_rows, run_record
from ui.lenses import settled_sentence
from ui.markup import esc, shortened
from ui.session import Session, Settings
from ui.terms import TERMS
from ui.views import history, inspector, labels, ranking, ranking_words, settings, start
from ui.views.report import report
from ui.views.upload import known_pages, progress
from ui.views.upload import pages as stored_pages
from ui.warming import cache_examples
from ui.workbench import Pace, Workbench


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


def test_a_page_that_is_looked_at_again_is_not_compressed_again(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = bench.pages(Session())[0]
    first = bench.picture(page)
    monkeypatch.setattr("ui.pictures.data_uri", lambda *args: "drawn anew")
    assert bench.picture(page) == first


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
        assert bool(run.dense_ranks) == (n == N_PAGES)
    assert sorted(run.dense_ranks.values()) == list(range(1, N_PAGES + 1))
    assert run.dense_took_ms.keys() == run.dense.keys() and min(run.dense_took_ms.values()) > 0
    for row in ranking_rows(run):
        page_id = str(row["page_id"])
        assert row["dense_ms"] == run.dense_took_ms[page_id]
        assert row["ms_even_share"] == run.mini.usage.total_ms / N_PAGES
    logits = [hit.logit for hit in run.dense_list]
    assert logits == sorted(logits, reverse=True)
    whole = bench.base.rank(SAMPLES[0], system="original", scopes=bench.scopes(session))
    assert [h.page.page_id for h in whole] == [h.page.page_id for h in run.dense_list]


def test_mini_is_not_kept_waiting_between_dense_pages(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    dense = bench.dense(session, run, "original")
    next(dense)
    assert len(bench.base.rank(SAMPLES[1], scopes=bench.scopes(session))) == N_PAGES
    dense.close()


def test_pages_move_up_alike_in_every_system_when_one_is_removed(bench: Workbench) -> None:
    session = Session()
    list(upload(bench, session, [(f"{n}.png", png(40 + n)) for n in range(3)], None))
    run = bench.rank(session, SAMPLES[0])
    list(bench.dense(session, run, "dense-reuse"))
    before = {hit.page.page_id: hit.rank for hit in run.mini}
    share, ranks = run.mini_page_ms, run.dense_ranks
    gone = next(page.page_id for page in bench.pages(session) if page.label == "1.png")
    bench.remove(session, gone)
    after = {hit.page.page_id: hit.rank for hit in run.mini}
    for known, now in ((before, after), (ranks, run.dense_ranks)):
        assert now == {
            page_id: rank - (rank > known[gone])
            for page_id, rank in known.items()
            if page_id != gone
        }
    assert run.mini_page_ms == share, "the query ran over that page too"
    summary = ranking_words.summary(run)
    assert f"{N_PAGES + 3} pages" in summary and "1 of them removed since" in summary
    bench.remove_own(session)


def test_a_comparison_passes_over_a_page_that_is_removed_meanwhile(bench: Workbench) -> None:
    session = Session()
    list(upload(bench, session, [("passing.png", png(47))], None))
    run = bench.rank(session, SAMPLES[0])
    dense = bench.dense(session, run, "original")
    scored = next(dense)
    other = scored.page.label != "passing.png"
    bench.remove_own(session)
    assert len(list(dense)) == (N_PAGES - 1 if other else N_PAGES)
    assert run.dense_done


def test_what_a_stopped_comparison_has_left_is_what_its_estimate_counts(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    assert ranking_words.compare_label(run) == "Compare"
    dense = bench.dense(session, run, "original")
    next(dense)
    dense.close()
    assert ranking_words.compare_label(run) == "Go on"
    seconds = bench.dense_estimate(run, "original")
    assert f"for {N_PAGES - 1} pages" in ranking_words.estimate(run, seconds)
    per_page = bench.pace.ms(bench.base, "original")
    assert per_page is not None
    assert seconds == pytest.approx(per_page * (N_PAGES - 1) / 1e3)


def test_the_ranking_that_stays_below_an_encoding_is_named(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    for said in (
        ranking_words.encoding(1, 4, run),
        ranking_words.encoding(1, 4, run, stopped=True),
    ):
        assert f"still the ranking for “{SAMPLES[0]}”" in said
    assert "still the ranking" not in ranking_words.encoding(1, 4, None)


def test_a_long_query_is_cut_where_it_is_repeated_and_whole_in_its_title() -> None:
    long = "<b>" * 100
    cut = shortened(long)
    assert cut.startswith('<span title="') and cut.count("&lt;b&gt;") == 100 + 40 and "…" in cut
    assert shortened("short & sweet") == "short &amp; sweet"


def test_the_list_marks_moves_with_arrows_and_words(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    list(bench.dense(session, run, "dense-reuse"))
    html = ranking.hits(bench, session)
    moved = [h for h in run.mini if run.dense_ranks[h.page.page_id] != h.rank]
    assert html.count("▲") + html.count("▼") == len(moved)
    assert len(re.findall(r"mini \d+ (?:higher|lower)", html)) == len(moved)
    only = ranking.hits(bench, session, only_changes=True)
    assert only.count("data-item") == len(moved)


def test_a_plan_counts_what_is_missing_and_encoding_brings_it_in(bench: Workbench) -> None:
    session = Session()
    same = bench.plan(session, Settings(bench.base.config))
    assert same.n_missing == 0 and same.n_pages == N_PAGES
    wanted = Settings(replace(bench.base.config, keep_ratio=0.35))
    assert bench.plan(session, wanted).n_missing == N_PAGES
    session.settings = wanted
    session.settings = replace(wanted, top_k=2)
    candidates = bench.missing(session, SAMPLES[0])
    assert len(candidates) == 2, "a query needs its candidates only"
    assert list(bench.encode(session, candidates)) == [(0, 2), (1, 2), (2, 2)]
    assert bench.missing(session, SAMPLES[0]) == []
    session.settings = wanted
    missing = bench.missing(session)
    assert list(bench.encode(session, missing))[-1] == (N_PAGES - 2, N_PAGES - 2)
    assert bench.plan(session, wanted).n_missing == 0
    run = bench.rank(session, SAMPLES[0])
    assert run.mini.usage.missed_pages == 0
    assert "35%" in run.described


def test_settings_that_cannot_be_are_refused_in_words(bench: Workbench) -> None:
    base = bench.base.config
    good = (2, 1, 2, 0.5, "embedder", "int8", 10, "Find it.", True, "", "")
    config = settings.read(base, False, *good).config
    assert config.band == (1, 3) and config.exit_layer == 3, "people count both ends in"
    wrong = ((2, 5, "from layer 1 to 5"), (1, 3, "from layer 3 to 2"), (7, "  ", "instruction"),
             (3, None, "number is missing"), (0, 2.5, "Exit after layer is 2.5; it"),
             (6, 3.5, "Candidates is 3.5"))  # fmt: skip
    for position, value, words in wrong:
        bad = [*good[:position], value, *good[position + 1 :]]
        with pytest.raises(InputRejected, match=words):
            settings.read(base, False, *bad)


def test_page_facts_are_those_of_the_settings_in_use(bench: Workbench) -> None:
    session, pages = Session(), bench.pages(Session())
    half = {one.n_kept_tokens for one in known_pages(bench, session, pages).values()}
    whole = Session(settings=Settings(replace(bench.base.config, keep_ratio=1.0)))
    assert known_pages(bench, whole, pages) == {}, "nothing is stored under these settings yet"
    list(bench.encode(whole, bench.missing(whole)))
    kept = known_pages(bench, whole, pages)
    assert len(kept) == N_PAGES
    assert all(one.n_kept_tokens == one.grid[0] * one.grid[1] for one in kept.values())
    assert {one.n_kept_tokens for one in known_pages(bench, session, pages).values()} == half


def test_presets_are_the_three_promised(bench: Workbench) -> None:
    base, n_layers = bench.base.config, bench.base.loaded.n_layers
    paper = settings.preset_values("Paper default", base, n_layers)
    start, end = base.band
    assert paper == (base.exit_layer - 1, start, end - 1, base.keep_ratio, base.pruner)
    dense = settings.preset_values("Dense", base, n_layers)
    assert dense == (n_layers - 1, 0, n_layers - 1, 1.0, "none")
    read = settings.read(base, False, *dense, "int8", 10, "Find it.", True, "", "").config
    assert (read.band, read.exit_layer) == ((0, n_layers), n_layers)
    assert settings.preset_values("Fastest", base, n_layers)[3] < base.keep_ratio


def test_layers_are_said_the_same_way_everywhere(bench: Workbench) -> None:
    session = Session(settings=Settings(replace(bench.base.config, band=(1, 3))))
    run = bench.rank(session, SAMPLES[0])
    explaining.lenses(bench, session)
    explaining.trace(bench, session)
    head = start.header(bench.engine(session.settings), N_PAGES)
    assert "in layers <b>1–2<" in head and "exit <b>after layer 2 of 0–5<" in head
    assert "exit after layer 2 of 0–5, band 1–2," in run.described
    saved = report(bench, session, run, explaining.known(session)).text
    for text in (head, saved):
        assert "Layers are counted from 0, and a range includes both its ends." in text
    assert ">band 1–2</text>" in saved


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


def test_pages_stand_where_their_file_stood(bench: Workbench) -> None:
    session = bench.session()
    files = [("a.pdf", pdf(61, 62)), ("b.png", png(63)), ("c.png", png(64))]
    steps = [[line.label for line in work.lines] for work in upload(bench, session, files, None)]
    assert steps[0] == ["a.pdf, 1 of 2", "a.pdf, 2 of 2", "b.png", "c.png"]
    assert ["a.pdf p. 1", "a.pdf, 2 of 2", "b.png", "c.png"] in steps
    assert steps[-1] == ["a.pdf p. 1", "a.pdf p. 2", "b.png", "c.png"]
    assert {len(labels) for labels in steps} == {4}, "the bar never goes back"
    assert all(labels[-1] == "c.png" for labels in steps)
    bench.remove_own(session)


def test_one_bad_file_stops_no_other(bench: Workbench) -> None:
    session = Session()
    files = [("x.png", b"junk"), ("y.png", png(70)), ("x.png", b"junk")]
    *_, done = upload(bench, session, files, None)
    assert [line.state for line in done.lines] == ["failed", "cached", "failed"]
    assert all(line.reason for line in done.lines if line.state == "failed")
    bench.remove_own(session)


def test_only_what_is_cached_now_counts_in_the_pace_of_an_upload(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, now_s = bench.session(), [0.0]
    monkeypatch.setattr("ui.caching.time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    files = [("known.png", png(73)), ("bad.png", b"junk"), ("new.png", png(74))]
    list(upload(bench, session, files[:1], None))
    for work in upload(bench, session, files, None):
        if work.lines[-1].state == "queued":
            now_s[0] += 60  # with the page that was known, and the file that was refused
        elif work.lines[-1].state == "encoding":
            now_s[0] += 3
    assert [line.state for line in work.lines] == ["hit", "failed", "cached"]
    assert "3.0 s for a page cached now, with decoding and waiting<" in progress(work)
    *_, again = upload(bench, session, files, None)
    assert again.n_done == 2 and "cached now" not in progress(again)
    bench.remove_own(session)


def test_the_time_left_is_that_of_pages_to_cache_and_a_bound_where_some_were_cached() -> None:
    lines = [Line("a", "cached"), Line("b", "queued"), Line("c", "queued")]
    work = Upload(lines, n_done=1, n_cached=1, cached_s=3.0)
    assert "; about 6.0 s left" in progress(work)
    work.lines.insert(0, Line("z", "hit"))
    assert "; at most 6.0 s left" in progress(work)
    assert "left" not in progress(Upload([lines[1], Line("z", "hit")], n_done=1))
    work.cancelled = True
    assert "left" not in progress(work)


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
    full = explaining.complete_lenses(bench, session, progress=lambda *at: seen.append(at))
    assert all(len(lens.dense) == bench.base.loaded.n_layers for lens in full.values())
    assert seen == [(n, N_PAGES) for n in range(1, N_PAGES + 1)]
    assert explaining.known_lenses(session) is full


def test_full_passes_that_are_stopped_are_kept_and_gone_on_with(bench: Workbench) -> None:
    session = Session()
    bench.rank(session, SAMPLES[0])
    seen: list[tuple[int, int]] = []

    def note(*at: int) -> None:
        seen.append(at)

    explaining.complete_lenses(bench, session, progress=note, stop=lambda: len(seen) == 2)
    known = explaining.known_lenses(session)
    assert len(known) == N_PAGES and sum(lens.dense is not None for lens in known.values()) == 2
    assert "was run for 2 of them" in settled_sentence(known)
    explaining.complete_lenses(bench, session, progress=note)
    assert seen == [(n, N_PAGES) for n in range(1, N_PAGES + 1)], "no page was run twice"
    assert all(lens.dense is not None for lens in explaining.known_lenses(session).values())


def test_full_passes_of_a_ranking_that_gave_way_to_another_are_dropped(bench: Workbench) -> None:
    session = Session()
    bench.rank(session, SAMPLES[0])

    def rank_again(*_: int) -> None:
        if session.run.query == SAMPLES[0]:
            bench.rank(session, SAMPLES[1])
            explaining.lenses(bench, session)

    explaining.complete_lenses(bench, session, progress=rank_again)
    assert all(lens.dense is None for lens in explaining.known_lenses(session).values())


def test_an_occlusion_that_was_stopped_is_kept_until_it_is_measured_anew(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr.explain.occlusion.MAX_BATCH_COLUMNS", 1)
    session = Session()
    bench.rank(session, SAMPLES[0])
    seen: list[tuple[int, int]] = []
    explaining.trace(
        bench,
        session,
        occlusion=True,
        progress=lambda *at: seen.append(at),
        stop=lambda: len(seen) == 26,
    )
    part = explaining.known(session).occlusion
    assert not part.measured.all() and len(part.random_deltas) == 20
    assert explaining.trace(bench, session).occlusion is part
    assert explaining.trace(bench, session, occlusion=True).occlusion.measured.all()
    assert explaining.known(session).occlusion.measured.all()


def test_labels_of_the_examples_and_ticks_make_metrics(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    (relevant,) = bench.relevant(session, SAMPLES[0])
    row, first_stage = labels.rows(bench, session)
    assert (row["system"], first_stage["system"]) == ("mini", "first stage")
    rank = next(hit.rank for hit in run.mini if hit.page.page_id == relevant)
    assert row["mrr"] == pytest.approx(1 / rank, abs=1e-4)
    list(bench.dense(session, run, "original"))
    assert [r["system"] for r in labels.rows(bench, session)] == [
        "mini",
        "original",
        "first stage",
    ]


def test_labels_of_examples_that_are_still_being_cached_come_when_they_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, known = Session(), dict(bench.examples.page_ids)
    monkeypatch.setattr(bench.examples, "page_ids", {})
    bench.rank(session, SAMPLES[0])
    assert labels.rows(bench, session) == []
    monkeypatch.setattr(bench.examples, "page_ids", known)
    assert len(labels.rows(bench, session)) == 2


def test_labels_and_rankings_are_files_that_trec_tools_read(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    (relevant,) = bench.relevant(session, SAMPLES[0])
    judged = list(ir_measures.read_trec_qrels(labels.qrels(bench, session)))
    assert [(each.doc_id, each.relevance) for each in judged] == [(relevant, 1)]
    ranked = list(ir_measures.read_trec_run(labels.trec_runs(session)))
    assert len(ranked) == 2 * N_PAGES, "mini and the first stage"
    assert {each.query_id for each in ranked} == {judged[0].query_id}
    assert [each.doc_id for each in ranked[:N_PAGES]] == [hit.page.page_id for hit in run.mini]


def test_the_record_says_what_was_asked_and_under_which_settings(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, SAMPLES[0])
    record = run_record(run)
    assert record["query"] == SAMPLES[0] and len(record["candidates"]) == N_PAGES
    assert "tiny-reranker, exit after layer 2 of 0–5" in record["settings"]
    assert "/" not in record["settings"], "a path of the server"
    assert ranking_rows(run)[0]["dense_rank"] is None
    (row,) = history.rows(session)
    assert row["first_page"] == run.mini[0].page.label


def test_the_report_stands_alone(bench: Workbench) -> None:
    session = Session()
    run = bench.rank(session, "<script>alert(1)</script>")
    explanation = explaining.trace(bench, session, occlusion=True)
    explaining.complete_lenses(bench, session, progress=lambda *_: None)
    session.lens_mode = "probability"
    text = report(bench, session, run, explanation).text
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http:" not in text and "https:" not in text and "//" not in text.split("<body>")[0]
    assert text.count("<polyline") == 2 * N_PAGES, "solid to the exit, dashed after it"
    assert "probability of yes" in text and "never run by mini" in text
    assert "random cells" in text, "no map without its control"
    assert "default-src 'none'" in text
    assert text.count("<figure>") == 2 and "less what neutral queries pay" in text


def test_a_ranking_without_a_likely_page_says_so_and_another_does_not(bench: Workbench) -> None:
    run = bench.rank(Session(), SAMPLES[0])

    def summary(score: float) -> str:
        hits = (replace(run.mini.hits[0], score=score), *run.mini.hits[1:])
        return ranking_words.summary(replace(run, mini=replace(run.mini, hits=hits)))

    assert "No page looks relevant: the best has 0.128" in summary(0.128)
    assert "No page looks relevant" not in summary(0.5)
    no_pages = replace(run, mini=replace(run.mini, hits=()))
    assert "No page looks relevant" not in ranking_words.summary(no_pages)


def test_the_numbers_of_a_ranking_say_what_they_are(bench: Workbench) -> None:
    session = Session()
    bench.rank(session, SAMPLES[0])
    for view in ("List", "Side by side", "Table"):
        shown = ranking.hits(bench, session, view)
        assert "probability of yes" in shown, view
        assert f'title="{esc(TERMS["score"])}"' in shown, view
        assert f'title="{esc(TERMS["logit"])}"' in shown, view
        for term in ("token", "first stage", "band", "head"):
            assert f"<dt>{term}</dt>" in shown, view


def test_the_reasons_are_headed_by_rank_name_and_score_of_their_page(bench: Workbench) -> None:
    run = bench.rank(Session(), SAMPLES[0])
    second = run.mini.hits[1]
    said = re.sub("<[^>]+>", "", inspector.heading(run, second.page.page_id))
    assert said == f"2 · {second.page.label} · {second.score:.3f}"
    run.forget({run.mini.hits[0].page.page_id})
    assert ">1 · " in inspector.heading(run, second.page.page_id)
    assert inspector.heading(run, "gone") == ""


def test_every_page_of_ones_own_can_be_removed_however_many_there_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    files = [("long.pdf", pdf(310, 311, 312)), ("one.png", png(313))]
    *_, work = upload(bench, session, files, None)
    assert work.n_done == 4
    own = [page for page in bench.pages(session) if bench.removable(page)]
    monkeypatch.setattr("ui.views.upload.MOST_SHOWN", 2)
    shown = stored_pages(bench, session)
    for page in own:
        assert f'data-event="remove" data-page="{page.page_id}"' in shown
    pictures = shown.split("Examples")[0].count("<img")
    assert pictures == 2 and "2 more pages, by name" in shown
    monkeypatch.setattr("ui.views.start.MOST_SHOWN", 4)
    gallery = start.gallery(bench, session)
    assert gallery.index("one.png") < gallery.index("Document 0"), "one's own come first"
    assert f"{N_PAGES} more pages, by name" in gallery
    bench.remove_own(session)


def test_while_examples_come_in_nothing_is_called_one_or_ready(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    list(upload(bench, session, [("one.png", png(314))], None))
    assert f"<h2>Examples, {N_PAGES} pages" in stored_pages(bench, session)
    assert "pages ready to be asked" in start.gallery(bench, session)
    with monkeypatch.context() as patch:
        patch.setattr(bench.examples, "finished", False)
        patch.setattr(type(bench.examples), "stored", lambda *_: [])
        assert f"<h2>Stored so far, {N_PAGES} pages" in stored_pages(bench, session)
        assert "pages so far" in start.gallery(bench, session)
    bench.remove_own(session)


def test_a_document_is_removed_whole_and_nothing_else(bench: Workbench) -> None:
    session = Session()
    *_, work = upload(bench, session, [("long.pdf", pdf(320, 321)), ("one.png", png(322))], None)
    assert work.n_done == 3
    shown = stored_pages(bench, session)
    assert shown.count('data-event="remove_document"') == 1  # one page needs no button for two
    first = re.search('"remove_document" data-page="([0-9a-f]+)"', shown)
    assert first is not None
    bench.remove_document(session, first[1])
    left = [page.label for page in bench.pages(session) if bench.removable(page)]
    assert left == ["one.png"]
    example = next(page for page in bench.pages(session) if not bench.removable(page))
    with pytest.raises(InputRejected, match="example pages stay"):
        bench.remove_document(session, example.page_id)
    bench.remove_own(session)


def test_of_two_documents_of_one_name_one_is_removed(bench: Workbench) -> None:
    session = Session()
    files = [("same.pdf", pdf(323, 324)), ("same.pdf", pdf(325, 326))]
    *_, work = upload(bench, session, files, None)
    assert work.n_done == 4
    listed = progress(work)
    assert "as same (2).pdf p. 1" in listed and "as same.pdf" not in listed
    shown = stored_pages(bench, session)
    heads = re.findall('<h3>(.*?)</h3>.*?"remove_document" data-page="([0-9a-f]+)"', shown)
    assert [name for name, _ in heads] == ["same.pdf, 2 pages", "same (2).pdf, 2 pages"]
    bench.remove_document(session, heads[0][1])
    left = [page.label for page in bench.pages(session) if bench.removable(page)]
    assert left == ["same (2).pdf p. 1", "same (2).pdf p. 2"]
    bench.remove_own(session)


def test_a_page_that_is_added_again_still_tells_what_encoding_it_took(bench: Workbench) -> None:
    session = bench.session()
    for name in ("first.png", "again.png"):
        *_, done = upload(bench, session, [(name, png(98))], None)
    (line,) = done.lines
    assert line.state == "hit" and line.added is not None
    assert session.added[line.added.page.page_id].outcome == "encoded"
    assert "encoded in" in stored_pages(bench, session)
    bench.remove_own(session)


def test_what_a_dense_page_costs_is_measured_after_a_pass_that_warms_up(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, took = type(bench.base), iter([8000.0, 1000.0, 9000.0, 2000.0])

    def rank(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(usage=Usage(1, 0, 0, {"layers": next(took)}))

    monkeypatch.setattr(engine, "rank", rank)
    monkeypatch.setattr(bench, "pace", Pace())
    cache_examples(bench)
    assert bench.pace.ms(bench.base, "original") == 1000.0
    assert bench.pace.ms(bench.base, "dense-reuse") == 2000.0


def test_a_page_that_was_found_tells_no_time_of_encoding(bench: Workbench) -> None:
    session = Session()
    assert list(upload(bench, session, [("one.png", png(330))], None))
    assert "encoded in" in stored_pages(bench, session).split("Examples")[0]
    again = Session(scope=session.scope)  # as after a restart: only the store knows of it
    shown = stored_pages(bench, again).split("Examples")[0]
    assert "one.png" in shown and "encoded in" not in shown and "found in" not in shown
    bench.remove_own(session)
