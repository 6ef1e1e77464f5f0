"""Any sequence of operations, damage and restarts: a key gives what was put last, or nothing."""

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_samples import files_of, is_right, make_key, make_page, make_picture, make_tensors

from cache_db import PageStore

KEYS = st.integers(0, 5)
PAGES = st.integers(0, 2)


class StoreMachine(RuleBasedStateMachine):
    """Compares a store with two dictionaries."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.entries: dict[int, tuple[int, int]] = {}  # key -> (page, content)
        self.pages: set[int] = set()
        self.open()

    def open(self):
        self.store = PageStore(self.root, budget_bytes=16_000, memory_bytes=8_000)

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.root)

    @rule(page=PAGES)
    def add_page(self, page):
        self.store.add_page(make_page(page), make_picture(page))
        self.pages.add(page)

    @rule(page=PAGES)
    def remove_page(self, page):
        assert self.store.remove_pages([make_page(page).page_id]) == (page in self.pages)
        self.pages.discard(page)
        self.entries = {k: v for k, v in self.entries.items() if v[0] != page}

    @rule(key=KEYS, page=PAGES, content=st.integers(0, 100))
    def put(self, key, page, content):
        page_id = make_page(page).page_id
        nbytes = self.store.put(make_key(key), page_id, make_tensors(content), {"n": content})
        assert (nbytes > 0) == (page in self.pages)
        if nbytes:
            self.entries[key] = page, content

    @rule(keys=st.lists(KEYS, max_size=4))
    def get(self, keys):
        found = self.store.get_many([make_key(key) for key in keys])
        for key in keys:
            if entry := found.get(make_key(key)):
                assert is_right(entry, self.entries[key][1])

    @rule(page=PAGES)
    def look(self, page):
        image = self.store.image(make_page(page).page_id)
        assert image is None or page in self.pages
        assert image is None or image.tobytes() == make_picture(page).tobytes()

    @precondition(lambda self: files_of(self.root))
    @rule(which=st.integers(0, 99), where=st.integers(0, 99_999))
    def damage(self, which, where):
        # Names and their order are random: what is drawn may not depend on them.
        files = sorted(files_of(self.root), key=lambda path: path.stat().st_size)
        path = files[which % len(files)]
        content = bytearray(path.read_bytes())
        content[where % len(content)] ^= 1
        path.write_bytes(content)

    @rule()
    def restart(self):
        self.store.close()
        self.open()

    @rule()
    def verify(self):
        self.store.verify()
        report = self.store.verify()
        ids = [make_page(page).page_id for page in self.pages]
        gone = {page_id for page_id in ids if self.store.image(page_id) is None}
        assert report.database_ok and not report.n_orphans and set(report.bad) == gone

    @rule()
    def clear(self):
        self.store.clear()
        self.entries, self.pages = {}, set()

    @invariant()
    def files_are_within_the_budget_and_each_has_a_row(self):
        stats = self.store.stats()
        assert stats.kv_bytes + stats.picture_bytes <= stats.budget_bytes
        sizes = [path.stat().st_size for path in files_of(self.root)]
        assert sum(sizes) == stats.kv_bytes + stats.picture_bytes


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
