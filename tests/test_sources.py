"""Two files of one name, added one after the other: each is a document of its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from mrr import MiniReranker
from mrr.sources import is_numbered
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
    reranker: MiniReranker,
) -> None:
    """They go with it."""
    old, new = (make_pdf([fill(0.1, 0.1, 0.5), fill(n / 10, 0.9, 0.5)]) for n in (1, 2))
    reranker.add([("report.pdf", old)])
    added = reranker.add([("report.pdf", new)])
    assert [page.page.label for page in added] == ["report.pdf p. 1", "report (2).pdf p. 2"]
    assert [page.added_as for page in added] == ["report.pdf p. 1", None]
    (note,) = added.notes
    assert note.startswith("report.pdf p. 1 of another file shows the same as report.pdf p. 1")


def test_what_is_remembered_of_files_is_bounded(
    reranker: MiniReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr.sources._MAX_FILES", 3)
    for n in range(6):
        reranker.add([("report.pdf", pdf(n_pages=1, seed=n))])
    assert len(reranker.sources._names) == len(reranker.sources._files) == 3
    assert _labels(reranker)[-1] == "report (6).pdf p. 1"


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
