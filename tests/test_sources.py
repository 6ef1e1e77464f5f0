"""Two files of one name, added one after the other: each is a document of its own."""

from pathlib import Path

import pytest

from mrr import MiniReranker
from mrr.sources import is_numbered
from tests.pages.files import fill, make_pdf
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


def test_pictures_in_memory_are_told_apart(reranker: MiniReranker) -> None:
    reranker.add([picture(1), picture(2), picture(1)])
    assert _labels(reranker) == ["image", "image (2)"]


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
