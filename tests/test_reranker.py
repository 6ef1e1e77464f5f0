"""The main path: add pages once, rank them, and nothing but the four parts differs from dense."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_db.files import DiskFiles
from cache_db.store import PageStore
from mrr import MiniReranker, errors, systems
from mrr.config import Limits, RerankConfig
from mrr.errors import Closed, InputRejected, InvalidConfig, NotFinite, ParityError
from mrr.model.fused import FusedAttention
from mrr.model.scorer import Scorer
from mrr.systems import Scored
from mrr.timing import Stages
from mrr.types import SYSTEMS, AddedPage, Page, PageImage
from tests.pages.files import make_tiff
from tests.test_turn import waiting
from tests.tiny import DEVICE, picture

N_PAGES = 5
SIZES = ((192, 128), (128, 256), (96, 96), (256, 192), (160, 160))


def pictures():
    return [picture(i, SIZES[i % len(SIZES)]) for i in range(N_PAGES)]


def logits(ranked) -> dict[str, float]:
    return {hit.page.page_id: hit.logit for hit in ranked}


def reopen(pair, tmp_path: Path, **options) -> MiniReranker:
    defaults = {
        "embedder": pair[1],
        "store": tmp_path / "store",
        "device": DEVICE,
        "dtype": torch.float32,
    }
    return MiniReranker.from_pretrained(pair[0], self_check=False, **{**defaults, **options})


def test_pages_are_encoded_once_and_hits_afterwards(reranker: MiniReranker) -> None:
    first = reranker.add(pictures())
    assert [p.outcome for p in first.pages] == ["encoded"] * N_PAGES and not first.failed
    again = reranker.add(pictures())
    assert [p.outcome for p in again.pages] == ["hit"] * N_PAGES
    assert [p.page for p in again.pages] == [p.page for p in first.pages]
    for page in first.pages:
        assert page.n_kept_tokens == round(page.grid[0] * page.grid[1] / 2)
        assert page.nbytes > 0


def test_the_same_page_under_another_name_keeps_its_first(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    for name in ("first.png", "second.png"):
        picture(0).save(tmp_path / name)
        (added,) = reranker.add(tmp_path / name).pages
        assert added.page.label == "first.png"
    assert [hit.page.label for hit in reranker.rank("blue page")] == ["first.png"]


def is_told_not_stored(added: AddedPage | None) -> bool:
    return added is not None and added.nbytes == 0 and "not stored" in (added.note or "")


@pytest.mark.parametrize("memory_bytes", [0, 2**30], ids=["no memory tier", "memory tier"])
def test_a_page_whose_kv_has_no_room_says_so_and_is_ranked_all_the_same(
    pair, tmp_path, memory_bytes
) -> None:
    in_memory = memory_bytes > 0
    with PageStore(tmp_path / "store", budget_bytes=9000, memory_bytes=memory_bytes) as small:
        engine = reopen(pair, tmp_path, store=small)
        for outcome in ("encoded", "hit" if in_memory else "encoded"):
            (added,) = engine.add(picture(0, (256, 256))).pages
            assert added.outcome == outcome and is_told_not_stored(added)
        told = engine.cache.stored(added.page)
        assert is_told_not_stored(told) if in_memory else told is None
        ranked = engine.rank("blue page")
        assert len(ranked) == 1 and ranked.usage.missed_pages == (not in_memory)
        engine.close()
    again = reopen(pair, tmp_path)
    assert again.rank("blue page").usage.missed_pages == 1
    again.close()


def test_kv_that_only_memory_holds_is_stored_when_its_page_is_added_with_room(
    pair, tmp_path
) -> None:
    with PageStore(tmp_path / "store", budget_bytes=9000) as store:
        engine = reopen(pair, tmp_path, store=store)
        assert is_told_not_stored(engine.add(picture(0, (256, 256))).pages[0])
        store._space.budget_bytes = 2**20
        (added,) = engine.add(picture(0, (256, 256))).pages
        assert (added.outcome, added.note) == ("hit", None) and added.nbytes > 0
        before = logits(engine.rank("blue page"))
        engine.close()
    again = reopen(pair, tmp_path)
    ranked = again.rank("blue page")
    assert ranked.usage.missed_pages == 0 and logits(ranked) == before
    again.close()


def test_a_disk_that_fills_between_picture_and_kv_is_told(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = DiskFiles.write

    def fill(self: DiskFiles, name: str, data: np.ndarray) -> None:
        if name.endswith(".kv"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(DiskFiles, "write", fill)
    assert is_told_not_stored(reranker.add(picture(0)).pages[0])
    assert is_told_not_stored(reranker.add(picture(0)).pages[0])
    monkeypatch.undo()
    assert reranker.add(picture(0)).pages[0].note is None


def test_a_page_that_another_process_removes_meanwhile_is_told_from_one_without_room(
    reranker: MiniReranker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = reranker.cache.scorer.encode

    def removed_meanwhile(*arguments):
        with PageStore(tmp_path / "store") as other:
            other.clear()
        return encode(*arguments)

    monkeypatch.setattr(reranker.cache.scorer, "encode", removed_meanwhile)
    (added,) = reranker.add(picture(0)).pages
    assert added.nbytes == 0 and "removed from the store" in (added.note or "")
    assert "room" not in (added.note or "")


def test_a_store_in_memory_stores_kv_like_any_other(pair, tmp_path) -> None:
    with PageStore(None) as store:
        engine = reopen(pair, tmp_path, store=store)
        for outcome in ("encoded", "hit"):
            (added,) = engine.add(picture(0)).pages
            assert (added.outcome, added.note) == (outcome, None) and added.nbytes > 0
        told = engine.cache.stored(added.page)
        assert told is not None and (told.nbytes, told.note) == (added.nbytes, None)
        engine.close()
    with PageStore(None, memory_bytes=9000) as small:
        engine = reopen(pair, tmp_path, store=small)
        assert is_told_not_stored(engine.add(picture(0, (256, 256))).pages[0])
        engine.close()


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


def test_closing_while_pages_are_added_ends_the_adding_and_leaves_no_child(
    pair, tmp_path: Path
) -> None:
    engine = reopen(pair, tmp_path)
    adding = engine.add_iter([png(picture(0)), png(picture(1))])
    next(adding)
    engine.close()
    with pytest.raises(Closed, match="from_pretrained"):
        next(adding)
    assert engine.decoder._child is None


def test_a_ranking_is_complete_sorted_and_numbered(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    ranked = reranker.rank("blue page")
    assert [hit.rank for hit in ranked] == list(range(1, N_PAGES + 1))
    values = [hit.logit for hit in ranked]
    assert values == sorted(values, reverse=True)
    for hit in ranked:
        assert hit.score == pytest.approx(1 / (1 + np.exp(-hit.logit)))
        assert -1.001 <= hit.retrieval_score <= 1.001
    assert ranked.usage.cached_pages == N_PAGES and ranked.usage.missed_pages == 0
    assert list(ranked.usage.ms) == ["retrieve", "query", "load", "band", "head"]


def test_however_many_pages_tie_they_keep_their_order(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 128  # a sort that is not stable shows beyond 16
    pages = [Page(f"{i:064x}", f"page {i}", "", 1, 8, 8, "public") for i in range(n)]
    levels = [float(i % 2) for i in range(n)]
    best_first = [f"page {i}" for i in (*range(1, n, 2), *range(0, n, 2))]
    monkeypatch.setattr(reranker.store, "pages", lambda scopes: pages)
    monkeypatch.setattr(reranker.cache, "vectors", lambda *_: None)
    monkeypatch.setattr(reranker.embedder, "similarity", lambda *_: np.array(levels))
    assert [page.label for page, _ in reranker.retrieve("blue page")] == best_first

    scored = Scored(levels, [1] * n, [1] * n)
    monkeypatch.setattr(reranker.embedder, "similarity", lambda *_: np.zeros(n))
    monkeypatch.setattr("mrr.systems.cached", lambda *_: scored)
    assert [hit.page.label for hit in reranker.rank("blue page")] == best_first


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


def test_dense_reuse_equals_original_and_mini_without_its_parts_equals_both(
    reranker: MiniReranker,
) -> None:
    reranker.add(pictures())
    original = logits(reranker.rank("blue page", system="original"))
    dense = logits(reranker.rank("blue page", system="dense-reuse"))
    parts_off = RerankConfig(exit_layer=6, band=(0, 6), pruner="none", kv_dtype="fp32")
    mini = logits(reranker.with_config(parts_off).rank("blue page"))
    for page_id, logit in original.items():
        assert dense[page_id] == pytest.approx(logit, abs=1e-4)
        assert mini[page_id] == pytest.approx(logit, abs=1e-4)


def test_monoqwens_own_prompt_runs_image_first_on_qwen2_vl(checkpoints, tmp_path: Path) -> None:
    engine = MiniReranker.from_pretrained(
        checkpoints["qwen2_vl"], store=tmp_path / "store", template="monoqwen", device=DEVICE,
        dtype=torch.float32,
    )  # fmt: skip
    engine.add(pictures()[:3])
    original = logits(engine.rank("blue page", system="original"))
    dense = logits(engine.rank("blue page", system="dense-reuse"))
    assert dense == pytest.approx(original, abs=1e-4)
    assert len(engine.rank("blue page")) == 3
    engine.close()


def test_an_instruction_that_the_template_has_no_place_for_costs_nothing_and_is_told(
    checkpoints, tmp_path: Path, caplog
) -> None:
    engine = MiniReranker.from_pretrained(
        checkpoints["qwen2_vl"], store=tmp_path / "store", template="monoqwen", device=DEVICE,
        self_check=False,
    )  # fmt: skip
    engine.add(pictures()[:2])
    plain = engine.rank("blue page")
    assert not any("instruction" in note for note in plain.notes)
    twin = engine.with_config(replace(engine.config, instruction="Find the map."))
    told = twin.rank("blue page")
    assert told.usage.missed_pages == 0 and logits(told) == logits(plain)
    assert any("monoqwen has no place for an instruction" in note for note in told.notes)
    caplog.clear()
    engine.rerank("blue page", pictures()[:1], instruction="Find the chart.")
    assert "no place for an instruction" in caplog.text
    engine.close()


def test_a_restart_finds_every_page_and_gives_the_very_same_logits(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    reranker.add(pictures())
    before = reranker.rank("blue page")
    reranker.close()
    again = reopen(pair, tmp_path)
    after = again.rank("blue page")
    assert after.usage.missed_pages == 0 and after.usage.bytes_read > 0
    assert logits(after) == logits(before)
    assert again.rank("blue page").usage.bytes_read == 0  # the memory tier
    again.close()


def test_cached_equals_uncached(reranker: MiniReranker, pair, tmp_path: Path) -> None:
    reranker.add(pictures())
    warm = logits(reranker.rank("blue page"))
    fresh = reopen(pair, tmp_path, store=tmp_path / "other")
    fresh.add(pictures())
    assert logits(fresh.rank("blue page")) == warm
    fresh.close()


def test_a_damaged_entry_costs_time_and_nothing_else(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    reranker.add(pictures())
    before = reranker.rank("blue page")
    reranker.close()
    damaged = 0
    for file in (tmp_path / "store" / "files").iterdir():
        data = bytearray(file.read_bytes())
        if not data.startswith(b"\x89PNG"):
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
            damaged += 1
    assert damaged == N_PAGES
    again = reopen(pair, tmp_path)
    ranked = again.rank("blue page")
    assert ranked.usage.missed_pages == N_PAGES
    assert logits(ranked) == logits(before)
    again.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_layer": 5, "band": (2, 5)},
        {"band": (1, 4)},
        {"keep_ratio": 0.25},
        {"pruner": "uniform"},
        {"pruner": "random"},
        {"kv_dtype": "fp32"},
        {"instruction": "Find the picture."},
        {"max_pixels": 16 * 1024},
    ],
)
def test_changing_anything_that_changes_page_kv_never_reuses_an_entry(
    reranker: MiniReranker, changes
) -> None:
    reranker.add(pictures()[:2])
    twin = reranker.with_config(replace(reranker.config, **changes))
    assert twin.rank("blue page").usage.missed_pages == 2
    assert twin.rank("blue page").usage.missed_pages == 0


@pytest.mark.parametrize("changes", [{"order": "document-first"}, {"seed": 5}, {"exit_layer": 5}])
def test_changing_what_does_not_touch_page_kv_keeps_every_entry(
    reranker: MiniReranker, changes
) -> None:
    reranker.add(pictures()[:2])
    twin = reranker.with_config(replace(reranker.config, **changes))
    assert twin.rank("blue page").usage.missed_pages == 0


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
        ("config.json", {"mini_reranker": {"band": [2, 4], "exit_layer": 4, "keep_ratio": 0.25}}),
    ],
)
def test_a_checkpoint_changed_outside_its_weights_never_reuses_an_entry(
    reranker: MiniReranker, pair, tmp_path: Path, file: str, change
) -> None:
    reranker.add(pictures()[:2])
    reranker.close()
    shutil.copytree(pair[0], tmp_path / "changed")
    described = json.loads((tmp_path / "changed" / file).read_text())
    (tmp_path / "changed" / file).write_text(json.dumps(described | change))
    engine = MiniReranker.from_pretrained(
        tmp_path / "changed", embedder=pair[1], store=tmp_path / "store", device=DEVICE,
        self_check=False,
    )  # fmt: skip
    assert engine.rank("blue page").usage.missed_pages == 2
    engine.close()


def test_a_lost_picture_takes_one_page_out_of_the_ranking_and_says_so(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add(pictures())
    victim = reranker.store.pages(["public"])[1]
    picture_of = reranker.store.image
    monkeypatch.setattr(
        reranker.store, "image", lambda i: None if i == victim.page_id else picture_of(i)
    )
    for system in ("original", "dense-reuse"):
        ranked = reranker.rank("blue page", system=system)
        assert victim.page_id not in logits(ranked) and len(ranked) == N_PAGES - 1
        assert any(victim.label in note for note in ranked.notes)


def test_the_usage_counts_what_was_done_before_a_page_turned_out_to_be_lost(
    reranker: MiniReranker, pair, tmp_path: Path, monkeypatch
) -> None:
    added = [done.page for done in reranker.add(pictures()).pages]
    reranker.close()
    with PageStore(tmp_path / "store") as store:
        engine = reopen(pair, tmp_path, store=store)
        for row in store._entries.rows([engine.cache.key(page) for page in added[1:]]):
            store._entries.drop([row])
        picture_of, victim = store.image, added[3].page_id
        monkeypatch.setattr(store, "image", lambda i: None if i == victim else picture_of(i))
        usage = engine.rank("blue page").usage
        engine.close()
    assert (usage.cached_pages, usage.missed_pages) == (1, 3)
    assert usage.bytes_read > 0 and usage.ms["encode"] > 0


def test_pages_are_ranked_in_bounded_chunks_with_the_same_result(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add(pictures())
    together = logits(reranker.rank("blue page"))
    monkeypatch.setattr("mrr.systems.PAGES_AT_ONCE", 2)
    apart = logits(reranker.rank("blue page"))
    assert apart == pytest.approx(together, abs=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_a_page_whose_k_or_v_is_not_finite_is_refused_and_not_stored(
    reranker: MiniReranker, monkeypatch, which: int
) -> None:
    project = FusedAttention.project_kv

    def broken(*args):
        kv = list(project(*args))
        kv[which] = kv[which] * float("nan")
        return tuple(kv)

    monkeypatch.setattr(FusedAttention, "project_kv", broken)
    report = reranker.add(pictures()[:1])
    (failed,) = report.failed
    assert not report.pages and failed.reason.startswith(f"{failed.file}: ")
    assert "not finite" in failed.reason
    assert reranker.store.pages(["public"]) == [], (
        "a page that cannot be scored is not one of the store's"
    )


def test_kv_that_fits_the_model_but_not_its_storage_is_refused_and_not_stored(
    reranker: MiniReranker, monkeypatch
) -> None:
    project = FusedAttention.project_kv

    def outlying(*args):
        k, v = project(*args)
        k[..., -1, 0] = 70_000.0  # the largest of fp16 is 65,504
        return k, v

    monkeypatch.setattr(FusedAttention, "project_kv", outlying)
    halves = reranker.with_config(replace(reranker.config, kv_dtype="fp16"))
    (failed,) = halves.add(pictures()[:1]).failed
    assert "not finite" in failed.reason and "kv_dtype" in failed.reason
    assert reranker.store.pages(["public"]) == []
    for wide in ("bf16", "int8"):
        other = reranker.with_config(replace(reranker.config, kv_dtype=wide))
        assert not other.add(pictures()[:1]).failed


def test_a_page_that_gives_no_finite_numbers_is_left_out_and_the_others_are_ranked(
    reranker: MiniReranker, monkeypatch
) -> None:
    report = reranker.add(pictures())
    other = reranker.with_config(replace(reranker.config, keep_ratio=0.75))
    victim, encode = report.pages[0].page, other.cache.scorer.encode

    def broken(sight, kept, stages):
        if broken.first:
            broken.first = False
            raise NotFinite("not finite")
        return encode(sight, kept, stages)

    broken.first = True
    monkeypatch.setattr(other.cache.scorer, "encode", broken)
    ranked = other.rank("blue page", pages={page.page.page_id for page in report.pages})
    assert len(ranked) == N_PAGES - 1
    assert any("not finite" in note and "without it" in note for note in ranked.notes)
    assert victim.page_id in {page.page_id for page in reranker.store.pages(["public"])}


def test_a_page_that_is_known_stays_where_another_configuration_cannot_encode_it(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add(pictures()[:1])
    other = reranker.with_config(replace(reranker.config, keep_ratio=0.75))

    def broken(*given):
        raise NotFinite("not finite")

    monkeypatch.setattr(other.cache.scorer, "encode", broken)
    assert other.add(pictures()[:1]).failed
    assert len(reranker.store.pages(["public"])) == 1 and len(reranker.rank("x")) == 1


def test_random_pruning_keeps_other_tokens_of_another_page(reranker: MiniReranker) -> None:
    drawn = reranker.with_config(replace(reranker.config, pruner="random"))
    one, two = drawn.add([picture(1, (192, 128)), picture(2, (192, 128))]).pages
    kept = [drawn.explain("x", page).keep.kept for page in (one, two)]
    assert kept[0].shape == kept[1].shape and (kept[0] != kept[1]).any()


def test_random_pruning_keeps_the_same_tokens_of_a_page_wherever_it_is_encoded(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    fresh = reopen(pair, tmp_path, store=tmp_path / "other")
    kept = []
    for engine, before in ((reranker, []), (fresh, pictures()[2:4])):
        drawn = engine.with_config(replace(engine.config, pruner="random"))
        drawn.add(before)
        pages = [done.page for done in drawn.add(pictures()[:2]).pages]
        kept.append([kv.kept.tolist() for kv in drawn.cache.load(pages, Stages(drawn.device))])
    assert kept[0] == kept[1]
    fresh.close()


def test_an_embedder_that_gives_no_finite_vector_stores_nothing(
    reranker: MiniReranker, monkeypatch
) -> None:
    embed = reranker.embedder.embed_page

    def broken(*args):
        vector, importance = embed(*args)
        return vector * float("nan"), importance

    monkeypatch.setattr(reranker.embedder, "embed_page", broken)
    report = reranker.add(pictures()[:1])
    assert "embedder" in report.failed[0].reason
    assert reranker.store.pages(["public"]) == []


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "0; at least one must be asked for"),
        (-1, "-1; at least one must be asked for"),
        (1.5, "1.5; it must be a whole number, or None for all"),
        ("3", "'3'; it must be a whole number"),
        (True, "True; it must be a whole number"),
        (False, "False; it must be a whole number"),
    ],
)
def test_what_is_no_number_of_results_is_refused_before_anything_is_read(
    reranker: MiniReranker, count, message: str
) -> None:
    for ask in (reranker.rank, reranker.retrieve):
        with pytest.raises(InputRejected, match=f"^top_k is {message}"):
            ask("x", top_k=count)
    for ask in (reranker.rerank, reranker.rank_texts):
        with pytest.raises(InputRejected, match=f"^top_n is {message}"):
            ask("x", ["not even read"], top_n=count)


def test_a_number_of_results_may_come_from_numpy(reranker: MiniReranker) -> None:
    page, _, third = reranker.add(pictures()[:3])
    two = np.int64(2)
    assert len(reranker.rank("x", top_k=two)) == len(reranker.retrieve("x", top_k=two)) == 2
    assert len(reranker.rerank("x", [page, third, page], top_n=two)) == 2
    assert len(reranker.rank_texts(page, ["a", "b", "c"], top_n=two)) == 2


def test_another_checkpoint_never_reuses_an_entry(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    from tests.tiny import save_checkpoint

    reranker.add(pictures()[:2])
    reranker.close()
    trained = {"band": [2, 4], "exit_layer": 4, "keep_ratio": 0.5}
    other = save_checkpoint(tmp_path / "other", seed=9, **trained)
    engine = MiniReranker.from_pretrained(
        other,
        embedder=pair[1],
        store=tmp_path / "store",
        device=DEVICE,
        dtype=torch.float32,
        self_check=False,
    )
    assert engine.rank("blue page").usage.missed_pages == 2
    engine.close()


def test_embedding_pages_that_another_model_added_is_a_stage_of_its_own(
    reranker: MiniReranker, pair, tmp_path: Path
) -> None:
    from tests.tiny import save_checkpoint

    reranker.add(pictures()[:2])
    reranker.close()
    other = save_checkpoint(tmp_path / "other", seed=9)
    engine = reopen(pair, tmp_path, embedder=other)
    assert list(engine.rank("blue page").usage.ms)[:2] == ["retrieve", "embed"]
    assert "embed" not in engine.rank("blue page").usage.ms
    engine.close()


def test_the_first_stage_passes_on_its_top_k(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    everything = reranker.rank("blue page")
    by_retrieval = sorted(everything, key=lambda hit: -hit.retrieval_score)
    some = reranker.rank("blue page", top_k=2)
    assert {h.page.page_id for h in some} == {h.page.page_id for h in by_retrieval[:2]}
    found = reranker.retrieve("blue page", top_k=2)
    assert found == [(hit.page, hit.retrieval_score) for hit in by_retrieval[:2]]


def test_without_an_embedder_every_page_is_a_candidate_and_it_says_so(pair, tmp_path: Path) -> None:
    engine = reopen(pair, tmp_path, embedder=None)
    report = engine.add(pictures())
    assert engine.config.pruner == "uniform" and "embedder" in report.notes[0]
    ranked = engine.rank("blue page", top_k=2)
    assert len(ranked) == N_PAGES and ranked[0].retrieval_score is None
    assert any("embedder" in note for note in ranked.notes)
    whole = engine.with_config(replace(engine.config, keep_ratio=1.0))
    assert "top_k" in whole.notes[0] and "evenly" not in whole.notes[0]
    assert "evenly" in engine.with_config(replace(engine.config, instruction="x")).notes[0]
    engine.close()


def test_one_scope_or_one_page_may_be_named_by_itself(reranker: MiniReranker) -> None:
    first, *_ = reranker.add(pictures()).pages
    assert len(reranker.rank("x", scopes="public")) == N_PAGES
    (hit,) = reranker.rank("x", pages=first.page.page_id)
    assert hit.page == first.page


def test_a_folder_is_added_as_the_files_in_it_and_a_picture_may_bring_its_name(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in (1, 0):
        picture(i).save(folder / f"{i}.png")
    report = reranker.add([folder, ("cat.jpg", picture(2)), tmp_path / "gone.png"])
    assert [p.page.label for p in report.pages] == ["0.png", "1.png", "cat.jpg"]
    assert [(f.file, f.reason) for f in report.failed] == [
        ("gone.png", "gone.png does not exist. Check its name.")
    ]
    (again,) = reranker.add(("cat.jpg", picture(2))).pages
    assert again.outcome == "hit"


def test_scopes_are_kept_apart(reranker: MiniReranker) -> None:
    reranker.add(pictures()[:2])
    mine = reranker.add(pictures()[2:4], scope="session-a")
    assert {h.page.page_id for h in reranker.rank("x", scopes=["session-a"])} == {
        p.page.page_id for p in mine.pages
    }
    assert len(reranker.rank("x")) == 2
    theirs = reranker.add(pictures()[2:3], scope="session-b")
    assert theirs.pages[0].outcome == "encoded"  # no scope can learn what another has cached
    assert theirs.pages[0].page.page_id != mine.pages[0].page.page_id


def test_pictures_that_callers_passed_to_rerank_are_shown_to_nobody(
    reranker: MiniReranker,
) -> None:
    reranker.rerank("blue page", pictures()[:2])
    (page, _) = reranker.store.pages(["documents"])
    for scopes in (["documents"], "documents", ("public", "documents")):
        for ask in (
            lambda scopes: reranker.rank("x", scopes=scopes),
            lambda scopes: reranker.retrieve("x", scopes=scopes),
            lambda scopes: reranker.explain("x", page, scopes=scopes),
            lambda scopes: reranker.lenses("x", page, scopes=scopes),
            lambda scopes: reranker.rerank("x", [page], scopes=scopes),
        ):
            with pytest.raises(InputRejected, match="Pages in the scope 'documents' are those"):
                ask(scopes)


@pytest.mark.parametrize("scopes", [None, 5, [b"x"], [None]])
def test_scopes_that_are_no_names_are_refused(reranker: MiniReranker, scopes: object) -> None:
    page = reranker.add(picture(0)).pages[0].page
    for ask in (
        lambda: reranker.rank("x", scopes=scopes),
        lambda: reranker.retrieve("x", scopes=scopes),
        lambda: reranker.explain("x", page, scopes=scopes),
        lambda: reranker.lenses("x", page, scopes=scopes),
    ):
        with pytest.raises(
            InputRejected, match=r"^scopes is .*; it must be names, as \['public'\]"
        ):
            ask()


def test_query_first_is_served_without_reuse(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    twin = reranker.with_config(replace(reranker.config, order="query-first"))
    ranked = twin.rank("blue page")
    assert ranked.usage.missed_pages == N_PAGES and "layers" in ranked.usage.ms
    with pytest.raises(InputRejected, match="vision-first"):
        twin.rank("blue page", system="dense-reuse")


def test_query_first_adds_pages_without_kv(reranker: MiniReranker) -> None:
    twin = reranker.with_config(replace(reranker.config, order="query-first"))
    report = twin.add(pictures()[:2])
    assert [(p.outcome, p.nbytes) for p in report.pages] == [("encoded", 0)] * 2
    assert [p.outcome for p in twin.add(pictures()[:2]).pages] == ["hit"] * 2
    assert len(twin.rank("blue page")) == 2


def test_the_stages_of_original_come_in_the_order_they_run(reranker: MiniReranker) -> None:
    reranker.add(pictures())
    stages = list(reranker.rank("blue page", system="original").usage.ms)
    assert stages == ["retrieve", "decode", "preprocess", "vision", "layers", "head"]


def test_original_says_that_it_reads_every_token_whatever_the_keep_ratio(
    reranker: MiniReranker,
) -> None:
    added = {p.page.page_id: p for p in reranker.add(pictures()).pages}
    for system, share in (("mini", 0.5), ("original", 1.0), ("dense-reuse", 1.0)):
        for hit in reranker.rank("blue page", system=system):
            rows, columns = added[hit.page.page_id].grid
            assert hit.n_visual_tokens == rows * columns
            assert hit.n_kept_tokens == round(share * rows * columns)


def test_a_bad_file_among_good_ones_loses_nothing(reranker: MiniReranker, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png(picture(0)))
    (tmp_path / "bad.png").write_bytes(b"this is no picture")
    report = reranker.add([tmp_path / "bad.png", tmp_path / "good.png", ("more.png", b"")])
    assert [p.page.label for p in report.pages] == ["good.png"]
    assert [f.file for f in report.failed] == ["bad.png", "more.png"]
    assert all(str(tmp_path) not in f.reason for f in report.failed)


@pytest.mark.parametrize("query", ["", "   ", "\u200b\n"])
def test_an_empty_query_is_refused(reranker: MiniReranker, query: str) -> None:
    with pytest.raises(InputRejected):
        reranker.rank(query)


def test_a_long_query_is_cut_and_says_so(pair, tmp_path: Path) -> None:
    engine = reopen(pair, tmp_path, limits=Limits(max_query_tokens=8))
    engine.add(pictures()[:1])
    ranked = engine.rank("word " * 50)
    assert any("8 tokens" in note for note in ranked.notes)
    engine.close()


@pytest.mark.parametrize("system", SYSTEMS)
def test_ranking_an_empty_store_is_an_empty_list(reranker: MiniReranker, system) -> None:
    assert len(reranker.rank("anything", system=system)) == 0


def test_an_unknown_system_is_refused_by_name(reranker: MiniReranker) -> None:
    with pytest.raises(InputRejected, match="fastest"):
        reranker.rank("x", system="fastest")


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


def test_two_queries_at_once_take_turns_at_the_models(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.add(pictures()[:2])
    engines = (reranker, reranker.with_config(replace(reranker.config, exit_layer=5)))
    for engine in engines:
        engine.rank("blue page")
    running, start = threading.Lock(), threading.Barrier(2)
    alone: list[bool] = []

    def watched(run):
        def watch(*given):
            alone.append(running.acquire(blocking=False))
            time.sleep(0.05)
            try:
                return run(*given)
            finally:
                if alone[-1]:
                    running.release()

        return watch

    def ask(engine: MiniReranker) -> None:
        start.wait()
        engine.rank("blue page")

    for owner, name in (
        (reranker.embedder, "similarity"),
        *((engine.cache.scorer, name) for engine in engines for name in ("read", "score_read")),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    threads = [threading.Thread(target=ask, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [True] * 6


def test_several_threads_get_the_same_answers(reranker: MiniReranker) -> None:
    from concurrent.futures import ThreadPoolExecutor

    reranker.add(pictures())
    queries = ["blue page", "red", "a longer query of words", "x"]
    alone = {q: logits(reranker.rank(q)) for q in queries}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(reranker.rank, queries * 3))
    for ranked in together:
        assert logits(ranked) == alone[ranked.query]


def png(image) -> bytes:
    import io

    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_page_that_two_documents_share_is_told_when_the_second_comes(
    reranker: MiniReranker,
) -> None:
    cover, inside = pictures()[:2]
    first = reranker.add([("report-2023.png", cover)])
    second = reranker.add([("report-2024.png", cover), ("inside.png", inside)])
    assert first.notes == () and first.pages[0].added_as is None
    assert [page.added_as for page in second] == ["report-2024.png", None]
    (note,) = second.notes
    assert "report-2024.png shows the same as report-2023.png" in note and "together" in note


def test_a_data_url_is_added_as_the_picture_in_it_and_never_printed(reranker: MiniReranker) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(picture(0))).decode()}"
    (added,) = reranker.add(url).pages
    assert added.page.page_id == reranker.add(picture(0)).pages[0].page.page_id
    (failed,) = reranker.add(f"{url}?").failed
    assert failed.file == "file" and "is a data URL that is not base64" in failed.reason
    assert url[30:40] not in repr(failed)
    (named,) = reranker.add([("cat.png", f"{url}?")]).failed
    assert named.file == "cat.png" and named.reason.startswith("cat.png is a data URL")


def test_two_data_urls_are_two_pictures_and_no_name_with_one(reranker: MiniReranker) -> None:
    one, other = (
        f"data:image/png;base64,{base64.b64encode(png(picture(n))).decode()}" for n in (0, 1)
    )
    assert len(reranker.add((one, other))) == 2
    assert {page.label for page in reranker.store.pages(["public"])} == {"file", "file (2)"}


def test_a_page_that_was_added_as_the_first_of_its_file_is_known(reranker: MiniReranker) -> None:
    """As it was when no other page of a TIFF was read."""
    first, second = (image.convert("L") for image in pictures()[:2])
    tiff = make_tiff([first, second])
    item = next(iter(reranker.decode([("scan.tif", tiff)])))
    alone = reranker.add_page(replace(item, label="scan.tif (first page)", file_digest=""))
    again = reranker.add([("scan.tif", tiff)])
    assert [page.outcome for page in again] == ["hit", "encoded"]
    assert [page.page.label for page in again] == [alone.page.label, "scan.tif p. 2"]
    assert [page.added_as for page in again] == [None, None] and again.notes == ()


def test_a_refusal_names_its_error_so_that_a_service_can_tell_whose_fault_it_was(
    pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone.png"
    with PageStore(tmp_path / "store", budget_bytes=100) as full:
        engine = reopen(pair, tmp_path, store=full)
        failed = engine.add([gone, None, ("bad.png", b"x"), ("big.png", picture(0))]).failed
        engine.close()
    assert [(f.file, f.error) for f in failed] == [
        ("gone.png", "InputRejected"),
        ("file", "InputRejected"),
        ("bad.png", "InputRejected"),
        ("big.png", "BudgetExceeded"),
    ]
    assert {f.error for f in failed} <= set(vars(errors))


def test_limits_that_are_none_are_refused(pair, tmp_path: Path) -> None:
    for wrong in (5, 0, {"max_files": 3}):
        with pytest.raises(InvalidConfig, match=r"^limits is of .*; it must be a Limits"):
            reopen(pair, tmp_path, limits=wrong)
    assert not any((tmp_path / "store" / "sessions").glob("[0-9a-f]" * 16)), "it is left open"


def test_a_model_that_a_configuration_does_not_fit_leaves_no_store_open(pair, tmp_path) -> None:
    with pytest.raises(InvalidConfig, match="exit_layer is 99"):
        reopen(pair, tmp_path, config=RerankConfig(exit_layer=99))
    assert not any((tmp_path / "store" / "sessions").glob("[0-9a-f]" * 16))


def test_a_query_waits_for_the_page_that_is_encoded_and_not_for_all_of_them(
    reranker: MiniReranker, monkeypatch
) -> None:
    reranker.add([pictures()[0]])
    add, happened, others = reranker.cache.add, list[str](), list[threading.Thread]()

    def watched(item, scope):
        if not others:
            ask = waiting(reranker.lock, lambda: (reranker.rank("x"), happened.append("query")))
            others.append(ask)
        added = add(item, scope)
        happened.append("page")
        return added

    monkeypatch.setattr(reranker.cache, "add", watched)
    reranker.add([picture(20 + i, (96, 96)) for i in range(2)])
    others[0].join(60)
    assert happened == ["page", "query", "page"]


@pytest.mark.parametrize(
    ("system", "order", "scored"),
    [
        ("original", "vision-first", "score_original"),
        ("mini", "query-first", "score_joint"),
        ("dense-reuse", "vision-first", "encode"),
    ],
)
def test_others_go_in_between_passes_that_take_long(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch, system, order, scored
) -> None:
    reranker.add(pictures()[:3])
    engine = reranker.with_config(replace(reranker.config, order=order))
    happened: list[str] = []
    others: list[threading.Thread] = []
    long = getattr(Scorer, scored)

    def watched(*given):
        happened.append("pass")
        others.append(waiting(engine.lock, lambda: happened.append("another")))
        return long(*given)

    monkeypatch.setattr(Scorer, scored, watched)
    engine.rank("blue page", system=system)
    for other in others:
        other.join(60)
    assert happened == ["pass", "another"] * 3


def test_a_query_is_read_again_where_others_may_have_run_meanwhile(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU its states lie where the next query's will."""
    reranker.add(pictures()[:2])
    read, texts = Scorer.read, []
    monkeypatch.setattr(Scorer, "read", lambda *given: (texts.append(given[1]), read(*given))[1])
    for _ in range(2):
        reranker.rank("blue page", system="dense-reuse")
    assert texts == [["blue page"]] * 3, "twice while pages were encoded, once with all at hand"


def test_it_is_read_again_too_where_an_earlier_round_had_encoded_the_page(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = reranker.add(pictures()[:1]).pages[0].page
    read, texts, stages = Scorer.read, [], Stages(reranker.device)
    monkeypatch.setattr(Scorer, "read", lambda *given: (texts.append(given[1]), read(*given))[1])
    stages.missed.add(added.page_id)
    with reranker.lock:
        systems.cached(reranker.dense_cache, "blue page", [added], stages, 20, reranker.lock.rest)
    assert len(texts) == 2
