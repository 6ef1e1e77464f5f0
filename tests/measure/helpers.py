"""A small labelled folder, and a latency report made of round numbers."""

from __future__ import annotations

import json
from pathlib import Path

from mrr.measure.latency import (
    CachingLatency,
    LatencyReport,
    StageCost,
    SystemLatency,
)
from mrr.measure.machine import Machine
from mrr.measure.spread import spread
from mrr.types import System
from tests.tiny import picture

N_PAGES = 8
CORPUS = [
    *({"page_id": f"p{i}", "file": f"pages/p{i}.png", "page_num": 1} for i in range(5)),
    *({"page_id": f"d#{i}", "pdf": "d.pdf", "page_num": i} for i in (1, 3, 4)),
]
QUERIES = [
    {"query_id": "q1", "query": "first thing", "kind": "keyword"},
    {"query_id": "q2", "query": "second thing", "kind": "keyword"},
    {"query_id": "q3", "query": "which is third?", "kind": "question"},
]
QRELS = "q1\t0\tp1\t1\nq2\t0\td#3\t1\nq2\t0\tp4\t2\nq3\t0\tp0\t1\nq3\t0\tp2\t0\n"


def write_small_dataset(root: Path) -> Path:
    """Three of the pictures and one query, for what encodes every page many times."""
    write_dataset(root)
    write_lines(root / "corpus.jsonl", CORPUS[:3])
    write_lines(root / "queries.jsonl", QUERIES[:1])
    (root / "qrels.tsv").write_text("q1\t0\tp1\t1\n", encoding="utf-8")
    return root


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_dataset(root: Path) -> Path:
    """Five pictures and three pages of a PDF of four; three queries of two kinds."""
    (root / "pages").mkdir(parents=True)
    (root / "pdf").mkdir()
    for i in range(5):
        picture(i, (128, 96)).save(root / "pages" / f"p{i}.png")
    first, *rest = (picture(10 + i, (96, 128)) for i in range(4))
    first.save(root / "pdf" / "d.pdf", save_all=True, append_images=rest)
    write_lines(root / "corpus.jsonl", CORPUS)
    write_lines(root / "queries.jsonl", QUERIES)
    (root / "qrels.tsv").write_text(QRELS, encoding="utf-8")
    return root


MACHINE = Machine("cpu", "a processor", "float32", 1, 2, "Linux x86_64", "3.11", "2.13", "5.23")


def system(name: System, n_measured: int, **stage_ms: float) -> SystemLatency:
    """Ten candidates; two equal calls. stage_ms: of one query over all ten."""
    return SystemLatency(
        system=name,
        n_measured=n_measured,
        scaled=n_measured < 10,
        stages=tuple(StageCost(s, spread([ms, ms]), ms / 10) for s, ms in stage_ms.items()),
        total=spread([sum(stage_ms.values())] * 2),
        first_call=stage_ms,
        calls=(stage_ms, stage_ms),
        bytes_read=0,
    )


def caching(name: System, ms: float) -> CachingLatency:
    return CachingLatency(
        name, 1, (StageCost("prefix", spread([ms]), ms),), spread([ms]), 1000, ({"prefix": ms},)
    )


def latency_report() -> LatencyReport:
    """Per query over ten pages: mini 3 + 10 ms, dense + reuse 3 + 40, original 500."""
    return LatencyReport(
        query="q",
        n_candidates=10,
        repeats=2,
        warmup=1,
        state="warm",
        machine=MACHINE,
        systems=(
            system("mini", 10, retrieve=1.0, query=2.0, load=1.0, band=9.0),
            system("dense-reuse", 10, retrieve=1.0, query=2.0, load=20.0, band=20.0),
            system("original", 2, layers=500.0),
        ),
        caching=(caching("mini", 200.0), caching("dense-reuse", 100.0)),
        times_mini={},
        notes=(),
    )
