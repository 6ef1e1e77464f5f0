"""Evaluation from end to end on a random model: what is ranked, counted, compared and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.errors import InputRejected
from mrr.measure.corpus import add_corpus, run_tasks
from mrr.measure.dataset import Dataset, read_dataset
from mrr.measure.evaluate import evaluate
from mrr.measure.metrics import MEASURES, per_query
from mrr.measure.table import columns, eval_table
from mrr.measure.tasks import QUERY_FIRST, make_tasks
from mrr.types import SYSTEMS, RankedList
from tests.measure.helpers import CORPUS, N_PAGES, QUERIES, write_dataset, write_lines
from tests.pages.files import make_pdf
from tests.tiny import DEVICE


@pytest.fixture(scope="module")
def engine(
    pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MiniReranker]:
    """One store for tests that do not mind what is cached already."""
    built = MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path_factory.mktemp("store"), device=DEVICE,
        self_check=False,
    )  # fmt: skip
    yield built
    built.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return read_dataset(folder)


def test_the_named_pages_are_cached_out_of_sight_and_decoded_once(
    reranker: MiniReranker, dataset: Dataset
) -> None:
    seen: list[tuple[str, int, int]] = []
    corpus = add_corpus(reranker, dataset, lambda *step: seen.append(step))
    assert [page.page_num for page in corpus.pages.values()] == [1, 1, 1, 1, 1, 1, 3, 4]
    assert corpus.pages["d#3"].source == "d.pdf"
    assert not reranker.store.pages(["public"])
    assert len(reranker.store.pages([corpus.scope])) == N_PAGES
    assert seen == [("cache", i, N_PAGES) for i in range(1, N_PAGES + 1)]
    assert corpus.cost.n_encoded == N_PAGES and corpus.cost.page_ms.n == N_PAGES
    again = add_corpus(reranker, dataset).cost
    assert (again.n_encoded, again.page_ms) == (0, None)
    assert again.nbytes_per_page == corpus.cost.nbytes_per_page > 0


def test_a_run_is_the_engines_own_order(engine: MiniReranker, dataset: Dataset) -> None:
    corpus = add_corpus(engine, dataset)
    tasks = make_tasks(dataset)
    names = {page.page_id: name for name, page in corpus.pages.items()}
    run = run_tasks(engine, corpus, tasks, "mini", "mini").run
    for task in tasks:
        ranked = engine.rank(task.query.text, scopes=[corpus.scope])
        assert run[task.query.query_id] == tuple(names[hit.page.page_id] for hit in ranked)


def test_every_system_ranks_the_same_candidates(engine: MiniReranker, dataset: Dataset) -> None:
    corpus = add_corpus(engine, dataset)
    tasks = make_tasks(dataset, "candidates", n_negatives=3)
    runs = [run_tasks(engine, corpus, tasks, system, system).run for system in SYSTEMS]
    for task in tasks:
        for run in runs:
            assert sorted(run[task.query.query_id]) == sorted(task.candidates)


def test_equal_pictures_are_all_ranked(engine: MiniReranker, folder: Path) -> None:
    twin = folder / "pages" / "twin.png"
    twin.write_bytes((folder / "pages" / "p1.png").read_bytes())
    write_lines(folder / "corpus.jsonl", [*CORPUS, {"page_id": "twin", "file": "pages/twin.png"}])
    dataset = read_dataset(folder)
    corpus = add_corpus(engine, dataset)
    run = run_tasks(engine, corpus, make_tasks(dataset), "mini", "mini").run
    for ranking in run.values():
        assert len(ranking) == N_PAGES + 1
        assert ranking.index("twin") == ranking.index("p1") + 1


def test_equal_pages_of_several_files_keep_their_own_numbers(
    engine: MiniReranker, tmp_path: Path
) -> None:
    """The same two pages, once in this order and once in the other, and a repeated page."""
    one, two = b"1 0 0 rg 0 0 99 99 re f", b"0 0 1 rg 9 9 50 50 re f"
    (tmp_path / "a.pdf").write_bytes(make_pdf([one, two]))
    (tmp_path / "b.pdf").write_bytes(make_pdf([two, one, two]))
    pages = [
        {"page_id": f"{file}{n}", "file": f"{file}.pdf", "page_num": n}
        for file, n in (("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3))
    ]
    write_lines(tmp_path / "corpus.jsonl", pages)
    write_lines(tmp_path / "queries.jsonl", QUERIES[:1])
    (tmp_path / "qrels.tsv").write_text("q1\t0\ta1\t1\n", encoding="utf-8")
    corpus = add_corpus(engine, read_dataset(tmp_path)).pages
    assert corpus["a1"] == corpus["b2"] != corpus["a2"]
    assert corpus["a2"] == corpus["b1"] == corpus["b3"]


def test_the_report_is_complete_and_goes_into_json(engine: MiniReranker, dataset: Dataset) -> None:
    report = evaluate(engine, dataset, systems=SYSTEMS, mode="candidates", n_negatives=4)
    assert [each.name for each in report.systems] == list(SYSTEMS)
    assert (report.n_pages, report.n_queries, report.n_candidates) == (N_PAGES, 3, 5)
    assert "set: 3 queries, 5 candidates each" in eval_table(report)
    for each in (*report.systems, *report.anchors):
        assert list(each.metrics) == list(MEASURES)
        assert set(each.first_relevant) == {"q1", "q2", "q3"}
        assert {kind: e["mrr"].n for kind, e in each.by_kind.items()} == {
            "keyword": 2,
            "question": 1,
        }
        mean = sum(1 / rank for rank in each.first_relevant.values()) / 3
        assert each.metrics["mrr"].value == pytest.approx(mean)
        assert each.metrics["recall@5"].value == 1  # five candidates
        tasks = make_tasks(dataset, "candidates", n_negatives=4)
        again = per_query(each.ranking, {task.query.query_id: task.grades for task in tasks})
        for measure, values in again.items():
            assert each.metrics[measure].value == pytest.approx(sum(values.values()) / 3)
    assert report.first_stage_recall_at_20.value == 1  # eight pages
    assert report.config["band"] == (2, 4)
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["seed"] == 0
    table = eval_table(report)
    assert "mini against original" in table and "median query ms" in table
    assert table.count("95%, from a bootstrap over queries") == 1 and "linear gains" in table
    nbytes = report.caching.nbytes_per_page
    assert f"{nbytes / 1000:,.0f} KB a page" in table


def test_dense_with_reuse_agrees_with_the_stock_model(
    engine: MiniReranker, dataset: Dataset
) -> None:
    twin = engine.with_config(engine.config.dense(engine.loaded.n_layers))
    report = evaluate(twin, dataset, systems=("mini", "original"))
    (comparison,) = report.comparisons
    assert (comparison.system, comparison.reference) == ("mini", "original")
    assert comparison.agreement.kendall_tau.value == pytest.approx(1)
    assert comparison.ndcg_kept.value == pytest.approx(1)


def test_original_can_be_asked_by_the_prompt_that_was_published(
    engine: MiniReranker, dataset: Dataset
) -> None:
    """With the query first, as the three systems never have it."""
    names = ("mini", "original", QUERY_FIRST)
    report = evaluate(engine, dataset, systems=names, mode="candidates", n_negatives=4)
    assert [each.name for each in report.systems] == list(names)
    assert [each.reference for each in report.comparisons] == ["original", QUERY_FIRST]
    corpus = add_corpus(engine, dataset)
    pages = {page.page_id: name for name, page in corpus.pages.items()}
    published = engine.with_config(RerankConfig(order="query-first"))
    for task in make_tasks(dataset, "candidates", n_negatives=4):
        wanted = [corpus.pages[name].page_id for name in task.candidates]
        ranked = published.rank(
            task.query.text, system="original", pages=wanted, scopes=[corpus.scope]
        )
        names = [pages[hit.page.page_id] for hit in ranked]
        first = next(i for i, name in enumerate(names, 1) if task.grades.get(name, 0) > 0)
        assert report.systems[2].first_relevant[task.query.query_id] == first


def test_caching_is_no_part_of_a_querys_time(
    engine: MiniReranker, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = add_corpus(engine, dataset)
    rank = engine.rank

    def timed(query: str, **how) -> RankedList:
        ranked = rank(query, **how)
        return replace(ranked, usage=replace(ranked.usage, ms={"encode": 900.0, "band": 5.0}))

    monkeypatch.setattr(engine, "rank", timed)
    run = run_tasks(engine, corpus, make_tasks(dataset), "mini", "mini")
    assert (run.query_ms.median, run.query_ms.n) == (5.0, 3)


def test_without_an_embedder_there_is_no_first_stage_to_report(
    pair: tuple[Path, Path], dataset: Dataset, tmp_path: Path
) -> None:
    bare = MiniReranker.from_pretrained(
        pair[0], store=tmp_path / "bare", device=DEVICE, dtype=torch.float32, self_check=False
    )
    report = evaluate(bare, dataset)
    bare.close()
    assert report.first_stage_recall_at_20 is None and report.anchors == ()
    assert any("No embedder" in note for note in report.notes)
    assert any("No BM25 anchor: not every page" in note for note in report.notes)


def test_texts_of_the_folder_bring_bm25(engine: MiniReranker, folder: Path) -> None:
    pytest.importorskip("bm25s")
    texts = {row["page_id"]: "nothing" for row in CORPUS}
    texts |= {"p1": "first thing", "p4": "second thing", "p0": "third"}
    write_lines(folder / "text.jsonl", [{"page_id": p, "text": t} for p, t in texts.items()])
    report = evaluate(engine, read_dataset(folder))
    anchor = next(each for each in report.anchors if each.name.startswith("bm25"))
    assert anchor.first_relevant == {"q1": 1, "q2": 1, "q3": 1}


def test_a_page_that_cannot_be_read_ends_the_evaluation(engine: MiniReranker, folder: Path) -> None:
    (folder / "pages" / "p3.png").write_bytes(b"no picture")
    with pytest.raises(InputRejected, match=r"p3\.png cannot be evaluated"):
        evaluate(engine, read_dataset(folder))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (CORPUS[-1] | {"page_num": 9}, r"Page d#4 cannot be evaluated: d\.pdf has 4 pages; page 9"),
        (CORPUS[-1] | {"page_num": 5}, r"Page d#4 cannot be evaluated: d\.pdf has 4 pages; page 5"),
        (CORPUS[0] | {"page_num": 2}, r"Page p0 cannot be evaluated: p0\.png has 1 page; page 2"),
    ],
)
def test_a_page_number_that_the_file_lacks_is_found_before_any_page_is_cached(
    reranker: MiniReranker, folder: Path, row: dict, sentence: str
) -> None:
    others = [page for page in CORPUS if page["page_id"] != row["page_id"]]
    write_lines(folder / "corpus.jsonl", [*others, row])
    with pytest.raises(InputRejected, match=sentence):
        evaluate(reranker, read_dataset(folder))
    assert not reranker.store.pages(["eval:set"])


def test_columns_are_aligned_to_their_widest_cell() -> None:
    assert columns([["name", "n"], ["a", "100"]]) == "name    n\na     100"
