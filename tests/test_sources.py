"""Two files of one name, added one after the other: each is a document of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_db.store import PageStore
from mrr import MiniReranker
from mrr.page_cache import page_of
from mrr.sources import is_numbered, keep
from mrr.types import PageImage
from tests.pages.files import encoded, fill, make_pdf
from tests.tiny import picture


def _labels(engine: MiniReranker) -> list[str]:
    return [page.label for page in engine.store.pages(["public"])]


def _png(folder: Path, name: str, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    picture(seed).save(folder / name)
    return folder / name


def pdf(n_pages: int, seed: int) -> bytes:
    """Pages of one colour each, which no other seed's have."""
    return make_pdf([fill(seed / 10, n / 10, 0.5) for n in range(n_pages)])


def test_another_file_of_the_same_name_is_another_document(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    reranker.add([_png(tmp_path / "a", "report.png", 1)])
    added = reranker.add([_png(tmp_path / "b", "report.png", 2)])
    assert _labels(reranker) == ["report.png", "report (2).png"]
    assert added.pages[0].added_as is None and added.notes == ()
    assert [p.source for p in reranker.store.pages(["public"])] == _labels(reranker)


def test_the_same_file_again_is_the_same_document_also_after_a_restart(
    reranker: MiniReranker, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    files = [_png(tmp_path / "a", "report.png", 1), _png(tmp_path / "b", "report.png", 2)]
    reranker.add(files)
    again = reranker.add(files)
    reranker.close()
    with MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path / "store", self_check=False
    ) as later:
        after = later.add(files)
        assert _labels(later) == ["report.png", "report (2).png"]
    for report in (again, after):
        assert {page.outcome for page in report} == {"hit"} and report.notes == ()
        assert [page.page.label for page in report] == ["report.png", "report (2).png"]
        assert [page.added_as for page in report] == [None, None]


def test_all_pages_of_a_file_are_of_one_document(reranker: MiniReranker) -> None:
    """Also those whose numbers the other file does not have."""
    reranker.add([("report.pdf", pdf(n_pages=2, seed=1)), ("report.pdf", pdf(n_pages=4, seed=2))])
    assert _labels(reranker) == [
        "report.pdf p. 1",
        "report.pdf p. 2",
        *(f"report (2).pdf p. {n}" for n in (1, 2, 3, 4)),
    ]


def test_more_pages_of_a_file_join_those_that_are_there(
    reranker: MiniReranker, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    one, other = pdf(n_pages=4, seed=1), pdf(n_pages=4, seed=2)
    reranker.add([("report.pdf", one)], page_range="1-2")
    reranker.add([("report.pdf", other)], page_range="3-4")
    reranker.add([("report.pdf", one)], page_range="3")
    reranker.close()
    with MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path / "store", self_check=False
    ) as later:
        later.add([("report.pdf", one)], page_range="1-4")
        assert sorted(_labels(later)) == [
            "report (2).pdf p. 3",
            "report (2).pdf p. 4",
            *(f"report.pdf p. {n}" for n in (1, 2, 3, 4)),
        ]


def test_a_page_stored_without_its_file_s_digest_gets_it_when_the_file_comes_again(
    reranker: MiniReranker,
) -> None:
    """As in a store of an earlier version: pages that follow join it then."""
    file = pdf(n_pages=3, seed=1)
    first = next(iter(reranker.decode([("report.pdf", file)])))
    assert isinstance(first, PageImage)
    reranker.add_page(replace(first, file_digest=""))
    added = reranker.add([("report.pdf", file)])
    assert _labels(reranker) == [f"report.pdf p. {n}" for n in (1, 2, 3)]
    (digest,) = {page.file_digest for page in reranker.store.pages(["public"])}
    assert digest == first.file_digest and {a.page.file_digest for a in added} == {digest}
    assert added.notes == ()


def test_all_pages_of_a_file_stay_together_in_a_store_of_an_earlier_version(
    reranker: MiniReranker,
) -> None:
    """Of which some are there, and some not, between and after them."""
    file = pdf(n_pages=4, seed=1)
    for item in reranker.decode([("report.pdf", file)], "1,3"):
        assert isinstance(item, PageImage)
        reranker.add_page(replace(item, file_digest=""))
    reranker.add([("report.pdf", file)])
    assert sorted(_labels(reranker)) == [f"report.pdf p. {n}" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("source", ["a/b.png", "a\0b.png"])
def test_a_free_name_is_found_whatever_the_store_says_of_those_that_are_taken(
    tmp_path: Path, source: str
) -> None:
    """Also where it finds no name that begins so, or cannot be read for a moment."""
    with PageStore(tmp_path / "store") as store:
        for n in (1, 2):
            item = PageImage(picture(n), source, source, 1, file_digest=f"{n}")
            kept = keep(page_of(item, "public"), item.image, store)
        assert kept.source.endswith("b (2).png")


def test_pictures_in_memory_are_no_files_and_keep_their_names(reranker: MiniReranker) -> None:
    reranker.add([picture(1), ("chart", picture(2)), ("chart", picture(3))])
    assert _labels(reranker) == ["image", "chart", "chart"]


def test_a_label_given_by_hand_stays(reranker: MiniReranker) -> None:
    for n in (1, 2):
        (item,) = reranker.decode([("scan", encoded(picture(n), "PNG"))])
        for _ in range(2):
            added = reranker.add_page(replace(item, label="scanner manual"))
            assert added.added_as is None
    assert _labels(reranker) == ["scanner manual", "scanner manual"]


def test_a_file_goes_by_the_name_that_it_comes_with(reranker: MiniReranker) -> None:
    """Whatever it was called before, here or where it was removed."""
    one, other = pdf(n_pages=2, seed=1), pdf(n_pages=2, seed=2)
    reranker.remove_pages(reranker.add([("draft.pdf", one)]))
    reranker.add([("draft.pdf", other)])
    reranker.add([("final.pdf", one)], page_range="1")
    reranker.add([("last.pdf", one)], page_range="2")
    assert _labels(reranker) == [
        "draft.pdf p. 1", "draft.pdf p. 2", "final.pdf p. 1", "last.pdf p. 2",
    ]  # fmt: skip


def test_a_name_is_free_again_when_both_its_files_are_gone(reranker: MiniReranker) -> None:
    files = [("report.pdf", pdf(n_pages=1, seed=n)) for n in (1, 2)]
    reranker.remove_pages(reranker.add(files))
    reranker.add(files[1:])
    assert _labels(reranker) == ["report.pdf p. 1"]


def test_a_blank_page_that_two_files_share_joins_them_nowhere(
    reranker: MiniReranker, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def scan(seed: int, blank: int, n_pages: int) -> bytes:
        white = fill(1, 1, 1)
        own = [fill(seed / 10, n / 10, 0.5) for n in range(n_pages)]
        return make_pdf([*own[: blank - 1], white, *own[blank:]])

    reranker.add([("scan.pdf", scan(1, 2, 3))])
    reranker.close()
    with MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path / "store", self_check=False
    ) as later:
        added = later.add([("scan.pdf", scan(2, 4, 6))])
        assert _labels(later)[3:] == [f"scan (2).pdf p. {n}" for n in (1, 2, 3, 5, 6)]
        assert added.pages[3].added_as == "scan.pdf p. 4"


def test_pages_that_another_version_of_a_file_has_already_are_told(
    reranker: MiniReranker, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """They go with it. It is known after a restart too, from the first of them on."""
    old, new = (make_pdf([fill(0.1, 0.1, 0.5), fill(n / 10, 0.9, 0.5)]) for n in (1, 2))
    reranker.add([("report.pdf", old)])
    reranker.close()
    with MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path / "store", self_check=False
    ) as later:
        added = later.add([("report.pdf", new)])
    assert [page.page.label for page in added] == ["report.pdf p. 1", "report (2).pdf p. 2"]
    assert [page.added_as for page in added] == ["report.pdf p. 1", None]
    (note,) = added.notes
    assert note.startswith("report.pdf p. 1 of another file shows the same as report.pdf p. 1")


def test_files_that_have_no_page_number_in_common_are_two_documents(
    reranker: MiniReranker, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """Also where another engine has added the first of them."""
    one, other = pdf(n_pages=4, seed=1), pdf(n_pages=4, seed=2)
    reranker.add([("report.pdf", one)], page_range="1-2")
    with MiniReranker.from_pretrained(
        pair[0], embedder=pair[1], store=tmp_path / "store", self_check=False
    ) as second:
        second.add([("report.pdf", other)], page_range="3-4")
        reranker.add([("report.pdf", one)], page_range="3-4")
    assert _labels(reranker) == [
        "report.pdf p. 1", "report.pdf p. 2",
        "report (2).pdf p. 3", "report (2).pdf p. 4",
        "report.pdf p. 3", "report.pdf p. 4",
    ]  # fmt: skip


def test_files_that_two_engines_add_at_the_same_moment_are_two_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has looked for a free name before the first takes it."""
    pages = {n: replace(page_of(_item(n), "public"), file_digest=f"{n}") for n in (1, 2)}
    with PageStore(tmp_path / "store") as one, PageStore(tmp_path / "store") as other:
        look = PageStore.sources

        def slow(store: PageStore, scope: str, beginning: str) -> dict[str, set[str]]:
            found = look(store, scope, beginning)
            if store is other and not one.pages([scope]):
                assert keep(pages[1], _item(1).image, one) == pages[1]
            return found

        monkeypatch.setattr(PageStore, "sources", slow)
        kept = keep(pages[2], _item(2).image, other)
        assert kept.label == kept.source == "report (2).png"
        assert [page.source for page in one.pages(["public"])] == ["report.png", "report (2).png"]


def _item(n: int) -> PageImage:
    return PageImage(picture(n), "report.png", "report.png", 1)


def test_a_name_that_nobody_has_any_more_is_free(reranker: MiniReranker) -> None:
    first, second = pdf(n_pages=2, seed=1), pdf(n_pages=2, seed=2)
    reranker.remove_pages(reranker.add([("report.pdf", first)]))
    reranker.add([("report.pdf", second)])
    assert _labels(reranker) == ["report.pdf p. 1", "report.pdf p. 2"]
    reranker.add([("report.pdf", first)])
    assert _labels(reranker)[2:] == ["report (2).pdf p. 1", "report (2).pdf p. 2"]


def test_names_are_told_apart_within_a_scope(reranker: MiniReranker) -> None:
    """What another visitor's file is called is nobody's business."""
    reranker.add([("report.png", picture(1))], scope="one")
    added = reranker.add([("report.png", picture(2))], scope="another")
    assert added.pages[0].page.label == "report.png"


def test_documents_of_rerank_are_listed_nowhere_and_keep_their_names(
    reranker: MiniReranker,
) -> None:
    reranker.rerank("query", [picture(1), picture(2)])
    (scope,) = reranker.store.scopes()
    assert not any("(2)" in page.label for page in reranker.store.pages([scope]))


@pytest.mark.parametrize(
    ("name", "of", "same"),
    [
        ("report.pdf", "report.pdf", True),
        ("report (2).pdf", "report.pdf", True),
        ("report (12).pdf", "report.pdf", True),
        ("report (2).png", "report.pdf", False),
        ("report ().pdf", "report.pdf", False),
        ("report (x).pdf", "report.pdf", False),
        ("reporting (2).pdf", "report.pdf", False),
        ("image (2)", "image", True),
        ("2024 › a (2).tar.gz", "2024 › a.tar.gz", False),
    ],
)
def test_a_numbered_name_is_known_as_one(name: str, of: str, same: bool) -> None:
    assert is_numbered(name, of) is same
