"""Who is computing what a page lacks, so that others need not compute the same meanwhile.

A claim is a pin of the page, told from other pins by what its name begins with. So it goes with
its session as they do, and to a store of an earlier version, where it keeps nobody from anything,
it is one of them.
"""

from __future__ import annotations

from cache_db.database import Database
from cache_db.evict import now_ns
from cache_db.schema import typed
from cache_db.session import Session

# A claim that is older counts no more: a full disk may keep it from being dropped, a process may
# hang, and no page is to be hidden for as long as that lasts.
LIMIT_S = 600
_SELECT = "SELECT key, session FROM pins WHERE pin BETWEEN ? AND ? AND session != ?"


def mark(at_ns: int | None = None) -> str:
    """What the name of a claim's pin begins with; later ones come after earlier ones."""
    return f"computing {now_ns() if at_ns is None else at_ns:020d} "


def of_others(database: Database, session: Session) -> set[str]:
    """Ids of the pages that living sessions other than this one have claimed."""
    now = now_ns()
    with database.read() as db:
        found = db.execute(_SELECT, (mark(now - LIMIT_S * 10**9), mark(now + 1), session.name))
        claims = [typed(row, str, str) for row in found]
    alive = {name for name in {owner for _, owner in claims} if session.alive(name)}
    return {page_id for page_id, owner in claims if owner in alive}
