"""One engine: its configurations, its self-check, its store, its end."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.errors import Closed, InvalidConfig, ParityError
from mrr.types import PageImage
from tests.engines import pictures, reopen
from tests.tiny import DEVICE, picture


def test_a_store_that_was_lent_outlives_its_engines(pair, tmp_path) -> None:
    with PageStore(tmp_path / "store") as lent:
        one, other = reopen(pair, tmp_path, store=lent), reopen(pair, tmp_path, store=lent)
        one.add(pictures()[:2])
        one.close()
        one.close()
        assert len(other.rank("blue page")) == 2
        other.with_config(replace(other.config, exit_layer=5, band=(2, 5))).close()
        assert len(lent.pages(["public"])) == 2


def test_a_store_that_an_engine_opened_is_closed_with_it(pair, tmp_path) -> None:
    engine = reopen(pair, tmp_path)
    child = engine.reopened(engine.device)
    for opened in (child, engine):
        opened.with_config(opened.config).close()
        with pytest.raises(Closed, match="closed"):
            opened.store.pages(["public"])


RANKS_IN_A_FORK = """
import os, signal, sys
import torch
from mrr import MiniReranker
from tests.tiny import picture

reranker, embedder, store = sys.argv[1:]
torch.set_num_threads(2)
engine = MiniReranker.from_pretrained(
    reranker, embedder=embedder, store=store, device="cpu", dtype=torch.float32, self_check=False
)
engine.add([picture(n, (512, 512)) for n in range(4)])
here = {hit.page.page_id: hit.logit for hit in engine.rank("blue page")}
if (child := os.fork()) == 0:
    signal.alarm(60)  # ends it, where it waits for threads that are not there
    with engine.reopened("cpu") as forked:
        there = {hit.page.page_id: hit.logit for hit in forked.rank("blue page")}
        forked.add([picture(9, (512, 512))])
    same = there.keys() == here.keys() and all(abs(there[i] - here[i]) < 1e-4 for i in here)
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
engine.reopened("cpu").close()
assert torch.get_num_threads() == 2, "in its own process nothing is to be feared"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_fork_of_a_process_with_several_threads_ranks_and_does_not_hang(pair, tmp_path) -> None:
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", RANKS_IN_A_FORK, *map(str, pair), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent.parent,
        env=unset,
    )
    assert done.returncode == 0, done.stderr


def test_an_engine_that_is_closed_says_so_even_where_its_store_is_open(pair, tmp_path) -> None:
    with PageStore(tmp_path / "store") as lent:
        engine = reopen(pair, tmp_path, store=lent)
        twin = engine.with_config(replace(engine.config, keep_ratio=0.25))
        page = engine.add(picture(0)).pages[0].page
        engine.close()
        for use in (
            lambda: engine.rank("blue page"),
            lambda: twin.rank("blue page"),
            lambda: engine.retrieve("blue page"),
            lambda: engine.add_page(PageImage(picture(1), "a page", "a page", 1)),
            lambda: engine.add(b"a file"),
            lambda: engine.rerank("blue page", [picture(1)]),
            lambda: engine.rank_texts(picture(1), ["blue page"]),
            lambda: engine.explain("blue page", page),
            lambda: engine.lenses("blue page", [page]),
            lambda: engine.remove_pages(page),
            lambda: engine.remove_scope("public"),
        ):
            with pytest.raises(Closed, match="from_pretrained"):
                use()


def test_the_checkpoints_own_band_is_the_default(reranker: MiniReranker) -> None:
    assert (reranker.config.band, reranker.config.exit_layer) == ((2, 4), 4)
    assert reranker.config.keep_ratio == 0.5 and reranker.config.pruner == "embedder"


def test_another_configuration_has_the_checkpoints_own_band_as_well(
    reranker: MiniReranker,
) -> None:
    config = reranker.with_config(RerankConfig(keep_ratio=0.25)).config
    assert (config.band, config.exit_layer, config.keep_ratio) == ((2, 4), 4, 0.25)


def test_of_too_many_configurations_the_one_asked_for_longest_ago_is_dropped(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twin(seed: int) -> MiniReranker:
        return reranker.with_config(replace(reranker.config, seed=seed))

    monkeypatch.setattr("mrr.reranker._MAX_TWINS", 3)
    made = [twin(seed) for seed in (1, 2, 3)]
    assert twin(1) is made[0]
    latest = twin(4)
    assert twin(4) is latest and twin(3) is made[2] and twin(1) is made[0]
    assert twin(2) is not made[1]


def test_two_threads_that_ask_for_one_configuration_share_it(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure, config = MiniReranker._configure, replace(reranker.config, seed=5)

    def slowly(self: MiniReranker, config: RerankConfig) -> None:
        time.sleep(0.2)
        configure(self, config)

    monkeypatch.setattr(MiniReranker, "_configure", slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(reranker.with_config, [config, config])
    assert one is other


def test_the_self_check_runs_at_load_and_is_logged(pair, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="mrr.model.selfcheck"):
        MiniReranker.from_pretrained(pair[0], store=tmp_path / "s", device=DEVICE).close()
    assert "Parity self-check" in caplog.text


def test_the_self_check_refuses_an_engine_that_differs(pair, tmp_path: Path, monkeypatch) -> None:
    from mrr.model import scorer

    run = scorer.run_band
    monkeypatch.setattr(scorer, "run_band", lambda *a, **k: run(*a, **k) + 0.01)
    with pytest.raises(ParityError, match="differs"):
        MiniReranker.from_pretrained(
            pair[0], store=tmp_path / "s", device=DEVICE, dtype=torch.float32
        )


def test_the_self_check_sees_what_only_pages_of_different_sizes_in_one_batch_suffer(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mrr.model.page_stack import page_mask

    def shows_padding(n_head, n_seen, n_columns, n_suffix, *others):
        n_seen = torch.full_like(n_seen, n_seen.max())
        return page_mask(n_head, n_seen, n_columns, n_suffix, *others)

    for module in ("page_attention", "page_stack"):
        monkeypatch.setattr(f"mrr.model.{module}.page_mask", shows_padding)
    with pytest.raises(ParityError, match="differs"):
        MiniReranker.from_pretrained(
            pair[0], store=tmp_path / "s", device=DEVICE, dtype=torch.float32
        )


def test_limits_that_are_none_are_refused(pair, tmp_path: Path) -> None:
    for wrong in (5, 0, {"max_files": 3}):
        with pytest.raises(InvalidConfig, match=r"^limits is of .*; it must be a Limits"):
            reopen(pair, tmp_path, limits=wrong)
    assert not any((tmp_path / "store" / "sessions").glob("[0-9a-f]" * 16)), "it is left open"


def test_a_model_that_a_configuration_does_not_fit_leaves_no_store_open(pair, tmp_path) -> None:
    with pytest.raises(InvalidConfig, match="exit_layer is 99"):
        reopen(pair, tmp_path, config=RerankConfig(exit_layer=99))
    assert not any((tmp_path / "store" / "sessions").glob("[0-9a-f]" * 16))
