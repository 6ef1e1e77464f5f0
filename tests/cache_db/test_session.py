import os
import threading

import pytest
from store_samples import descriptors, make_key

from cache_db import PageStore
from cache_db import session as sessions
from cache_db.session import Session


def test_a_session_that_is_just_being_opened_is_not_buried(tmp_path, monkeypatch):
    lock, other = sessions._try_lock, Session(tmp_path)
    waiting_or_over = threading.Event()

    def bury():
        other.bury()
        waiting_or_over.set()

    burial = threading.Thread(target=bury)

    def lock_late(fd, *kind):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name not in ("gate", other.name) and not burial.ident:
            burial.start()
            assert waiting_or_over.wait(60)
        locked = lock(fd, *kind)
        if not locked and threading.current_thread() is burial:
            waiting_or_over.set()
        return locked

    monkeypatch.setattr(sessions, "_try_lock", lock_late)
    opened = Session(tmp_path)
    burial.join()
    assert {"gate", opened.name, other.name} == set(os.listdir(tmp_path))
    assert other.alive(opened.name)
    opened.close()
    other.close()
    assert os.listdir(tmp_path) == ["gate"]


def test_two_who_ask_at_the_same_moment_both_find_a_session_dead(tmp_path, monkeypatch):
    lock, dead, answers = sessions._try_lock, "0" * 16, []
    (tmp_path / dead).touch()
    one, other = Session(tmp_path), Session(tmp_path)

    def ask_in_between(fd, *kind):
        locked = lock(fd, *kind)
        monkeypatch.setattr(sessions, "_try_lock", lock)
        answers.append(other.alive(dead))
        return locked

    monkeypatch.setattr(sessions, "_try_lock", ask_in_between)
    assert [one.alive(dead), *answers] == [False, False]
    one.close()
    other.close()


def test_a_closed_session_holds_no_descriptor(tmp_path):
    session = Session(tmp_path)
    assert descriptors(tmp_path) == [str(tmp_path.resolve() / session.name)]
    session.close()
    assert descriptors(tmp_path) == []


@pytest.mark.parametrize("table", ["pins", "reservations"])
def test_a_closed_store_leaves_no_lock_file_and_holds_nothing(tmp_path, table):
    with PageStore(tmp_path) as other:
        store = PageStore(tmp_path)
        owner = store.owner
        store._space.pin([make_key(1)])
        with store._database.write() as db:
            db.execute("INSERT INTO reservations VALUES ('a file', ?, 1)", (owner,))
        assert set(os.listdir(tmp_path / "sessions")) == {"gate", other.owner, owner}
        assert other.alive(owner)
        store.close()
        assert set(os.listdir(tmp_path / "sessions")) == {"gate", other.owner}
        assert not other.alive(owner)
        with other._database.read() as db:
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
