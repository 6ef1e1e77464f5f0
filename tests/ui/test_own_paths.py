"""Equal files of several visitors are several files, and each visitor gets the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ui.conftest import PATIENCE_S, Running, pdf, png
from ui.caching import read_uploads, upload
from ui.own_paths import moved
from ui.session import Session
from ui.workbench import Workbench


def send(running: Running, *files: tuple[str, bytes]) -> list[str]:
    """Upload files as a browser does when they are dropped; returns where they are."""
    answer = httpx.post(
        f"{running.url}/gradio_api/upload",
        files=[("files", file) for file in files],
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200, answer.text
    return list(answer.json())


def add(running: Running, visitor: str, paths: list[str]) -> dict[str, Any]:
    """The answer of the endpoint `add` to one visitor."""
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
    called = httpx.post(
        f"{running.url}/gradio_api/call/add",
        json={"data": [files, ""], "session_hash": visitor},
        timeout=PATIENCE_S,
    )
    event = called.json()["event_id"]
    answer = httpx.get(f"{running.url}/gradio_api/call/add/{event}", timeout=PATIENCE_S).text
    assert "event: complete" in answer, answer
    return dict(json.loads(answer.partition("data: ")[2])[0])


def test_all_of_three_visitors_with_the_same_file_get_its_pages(running: Running) -> None:
    visitors = ["same-a", "same-b", "same-c"]
    sent = {visitor: send(running, ("same.pdf", pdf(60, 61))) for visitor in visitors}
    assert len({path for (path,) in sent.values()}) == 3
    for visitor, paths in sent.items():
        answer = add(running, visitor, paths)
        assert [page["page"] for page in answer["pages"]] == ["same.pdf p. 1", "same.pdf p. 2"]
        assert not answer["failed"]
    left = [path for paths in sent.values() for path in paths if Path(path).exists()]
    assert not left, "what was read is still there"


def test_an_uploads_path_cannot_be_told_from_its_content(running: Running) -> None:
    first, second = (send(running, ("mine.png", png(62)))[0] for _ in range(2))
    assert first != second
    for path in map(Path, (first, second)):
        assert path.name == "mine.png" and path.read_bytes() == png(62)
        assert len(path.parent.name) == 32
        served = httpx.get(f"{running.url}/gradio_api/file={path}", timeout=PATIENCE_S)
        assert served.content == png(62), "Gradio shows what was dropped"
        path.unlink()


def test_a_drop_may_hold_a_file_twice_and_under_two_names(running: Running) -> None:
    files = [("a.png", png(63)), ("a.png", png(63)), ("b.png", png(63))]
    paths = send(running, *files)
    assert paths[0] == paths[1] != paths[2]
    assert [Path(path).name for path in paths] == ["a.png", "a.png", "b.png"]
    answer = add(running, "twice", paths)
    assert len(answer["pages"]) == 3 and not answer["failed"]


def test_no_folder_named_by_the_content_stays(tmp_path: Path) -> None:
    by_content = tmp_path / ("0" * 64)
    by_content.mkdir()
    for name in ("a.png", "b.png"):
        (by_content / name).write_bytes(b"page")
    own = json.loads(moved(json.dumps([str(by_content / n) for n in ("a.png", "b.png")]).encode()))
    assert not by_content.exists()
    assert {Path(path).read_bytes() for path in own} == {b"page"}


def test_what_the_route_refuses_is_answered_as_it_was(running: Running) -> None:
    answer = httpx.post(f"{running.url}/gradio_api/upload", timeout=PATIENCE_S)
    assert answer.status_code == 400 and answer.json() == {"detail": "Invalid content type."}


@pytest.fixture
def bench(running: Running) -> Workbench:
    return running.bench


def test_a_file_that_did_not_come_is_named_and_the_others_go_on(
    bench: Workbench, tmp_path: Path
) -> None:
    (tmp_path / "here.png").write_bytes(png(64))
    paths = [str(tmp_path / "lost.png"), str(tmp_path / "here.png")]
    session = bench.session()
    *_, done = upload(bench, session, read_uploads(bench, session, paths), None)
    assert [line.state for line in done.lines] == ["failed", "cached"]
    assert done.lines[0].label == "lost.png"
    assert done.lines[0].reason == "lost.png was not received; drop it again."
    bench.remove_own(session)


def test_a_file_that_goes_while_it_is_read_is_named_too(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swept.png"
    path.write_bytes(png(65))
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (path.unlink(), read(path))[1])
    (failed,) = read_uploads(bench, Session(), [str(path)])
    assert "was not received" in failed.reason  # type: ignore[union-attr]


def test_files_of_an_earlier_drop_that_come_again_are_passed_over(
    bench: Workbench, tmp_path: Path
) -> None:
    session = Session()
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    first.write_bytes(b"1")
    assert read_uploads(bench, session, [str(first)]) == [("first.png", b"1")]
    second.write_bytes(b"2")
    assert read_uploads(bench, session, [str(first), str(second)]) == [("second.png", b"2")]
