"""The persistent store: pages, first-stage vectors and K/V. The data lives elsewhere.

    with PageStore(folder) as store:
        store.add_page(page, image)
        store.put(key, page.page_id, {"k": k, "v": v}, meta)
        with store.pinned(keys):
            entries = store.get_many(keys)      # what is missing or damaged is not in it

Order of writes: reserve room, file (temporary, fsync, rename, fsync of the folder), row. The row
is the commit. Order of removal: row, file; a reservation takes the row's place until the file is
gone. Whatever a killed process leaves is a file without a row, and is swept at the next start.
What others keep in the same folder is left alone.

A damaged database is rebuilt: rows that can be read are copied, and pages come back from their
pictures, which say what they show. What goes for want of a row is K/V, which is computed anew.
"""

from cache_db.directory import default_store
from cache_db.records import Embedding, Entry, StoreStats, VerifyReport
from cache_db.store import PageStore

__all__ = ["Embedding", "Entry", "PageStore", "StoreStats", "VerifyReport", "default_store"]
