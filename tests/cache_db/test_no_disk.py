"""Where the folder cannot be used, the same store works in memory and says why, once."""

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from store_samples import finish, is_right, make_key, make_page, make_picture, put, start

from cache_db import PageStore, directory
from cache_db.directory import default_store, network_filesystem
from mrr.errors import BudgetExceeded, InvalidConfig


def assert_works_in_memory(store: PageStore) -> None:
    assert not store.stats().persistent
    assert store.stats().note.endswith(".")
    store.add_page(make_page(1), make_picture(1))
    assert put(store, 1, page_id=make_page(1).page_id) > 0
    with store.pinned([make_key(1)]):
        entry = store.get(make_key(1))
    assert is_right(entry, 1) and entry.source == "memory"
    assert store.image(make_page(1).page_id).tobytes() == make_picture(1).tobytes()
    store.put_embedding(make_page(1).page_id, "f", np.ones(4, np.float32), np.ones((2, 2)))
    assert store.vectors("f", ["public"])[0] == [make_page(1).page_id]
    assert store.verify().ok
    assert store.remove_scope("public") == 1
    assert store.get(make_key(1)) is None


def warnings_of(caplog) -> list[str]:
    ours = [record for record in caplog.records if record.name == "cache_db"]
    return [record.message for record in ours if record.levelno >= logging.WARNING]


def test_without_a_folder_everything_works_and_nobody_is_warned(caplog):
    with PageStore(None) as store:
        assert_works_in_memory(store)
    assert warnings_of(caplog) == []


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    with PageStore(tmp_path / "file" / "store") as store:
        assert_works_in_memory(store)
        assert "Not a directory" in store.stats().note
    assert len(warnings_of(caplog)) == 1


def test_a_missing_folder_is_made_with_its_parents_for_the_owner_only(tmp_path):
    root = tmp_path / "a" / "b"
    with PageStore(root) as store:
        put(store, 1)
        assert store.stats().persistent
    assert root.stat().st_mode & 0o777 == 0o700


def _use_as_nobody(root):
    if os.geteuid() == 0:  # permissions do not bind root
        os.setuid(65534)
    with PageStore(root) as store:
        assert "cannot be written" in store.stats().note or "Permission" in store.stats().note
        assert_works_in_memory(store)


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "with a store"])
def test_a_read_only_folder_is_used_in_memory(filled):
    root = Path(tempfile.mkdtemp())  # not below tmp_path, which only its owner may enter
    try:
        if filled:
            PageStore(root).close()
        for folder in (root, *root.iterdir()):
            if folder.is_dir():
                folder.chmod(0o555)
        finish(start(_use_as_nobody, root))
    finally:
        root.chmod(0o700)
        shutil.rmtree(root)


def test_a_network_folder_is_used_in_memory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(directory, "read_mounts", lambda: f"server:/x {tmp_path} nfs4 rw 0 0\n")
    with PageStore(tmp_path / "store") as store:
        assert_works_in_memory(store)
        assert "network file system (nfs4)" in store.stats().note
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", None),
        ("/net/cache", "nfs"),
        ("/network", None),
        ("/net/local/cache", None),
        ("/with space/cache", "fuse.sshfs"),
        ("/windows", None),
        ("/over", "cifs"),
    ],
)
def test_the_innermost_mount_decides(path, kind):
    mounts = """/dev/sda / ext4 rw 0 0
server:/ /net nfs rw 0 0
/dev/sdb /net/local xfs rw 0 0
me@server: /with\\040space fuse.sshfs rw 0 0
/dev/sdc /windows fuseblk rw 0 0
/dev/sdd /over ext4 rw 0 0
//server/over /over cifs rw 0 0
"""
    assert network_filesystem(Path(path), mounts) == kind


def test_without_write_ahead_logging_a_journal_is_used(tmp_path, monkeypatch):
    class NoWal(sqlite3.Connection):
        def execute(self, sql, *parameters):
            return super().execute(sql.replace("= WAL", "= DELETE"), *parameters)

    real = sqlite3.connect
    monkeypatch.setattr(
        "cache_db.database.sqlite3.connect", lambda *a, **kw: real(*a, **kw, factory=NoWal)
    )
    with PageStore(tmp_path) as store:
        put(store, 1)
        with store._database.read() as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert not (tmp_path / "store.db-wal").exists()
        assert store.stats().persistent
    with PageStore(tmp_path) as store:
        assert is_right(store.get(make_key(1)), 1)


def test_in_memory_the_memory_budget_holds_and_the_least_recently_used_goes(caplog):
    with PageStore(None) as store:
        nbytes = put(store, 1)
    with PageStore(None, memory_bytes=2 * nbytes) as store:
        for n in range(3):
            put(store, n)
        assert store.contains([make_key(n) for n in range(3)]) == {make_key(1), make_key(2)}
        assert store.stats().kv_bytes == 2 * nbytes == store.stats().budget_bytes
    with PageStore(None, memory_bytes=100) as store, pytest.raises(BudgetExceeded):
        store.add_page(make_page(1), make_picture(1))


def test_threads_share_a_store_in_memory():
    failures = []

    def work(store, first):
        for n in range(first, first + 20):
            put(store, n)
            if not is_right(store.get(make_key(n)), n):
                failures.append(n)

    with PageStore(None) as store:
        threads = [threading.Thread(target=work, args=(store, 20 * i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.stats().n_entries == 80


def test_the_store_does_not_need_torch():
    code = "import sys, cache_db; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_home_folder_in_the_environment_is_found_as_a_shell_would(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MRR_CACHE_DIR", "~/pages")
    assert default_store() == tmp_path / "pages"


@pytest.mark.parametrize(("named", "gib"), [(None, 10), ("", 10), ("2.5", 2.5), (" 40 ", 40)])
def test_the_environment_sets_the_budget_that_nobody_passed(monkeypatch, tmp_path, named, gib):
    monkeypatch.delenv("MRR_BUDGET_GIB", raising=False)
    if named is not None:
        monkeypatch.setenv("MRR_BUDGET_GIB", named)
    with PageStore(tmp_path) as store:
        assert store.stats().budget_bytes == gib * 2**30
    with PageStore(tmp_path, budget_bytes=5_000_000) as store:
        assert store.stats().budget_bytes == 5_000_000


@pytest.mark.parametrize("named", ["0", "-1", "20GB", "nan", "inf", "1e308", "1e-12"])
def test_a_budget_that_is_no_size_is_refused_by_name(monkeypatch, tmp_path, named):
    monkeypatch.setenv("MRR_BUDGET_GIB", named)
    with pytest.raises(InvalidConfig, match=f"MRR_BUDGET_GIB is '{named}'"):
        PageStore(tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_budget_below_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="budget_bytes is -5 and memory_bytes"):
        PageStore(tmp_path / "store", budget_bytes=-5)
    assert not (tmp_path / "store").exists()
