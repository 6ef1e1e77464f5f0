"""Equal files of several visitors are several files, and each visitor gets the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mrr.errors import InputRejected
from tests.ui.conftest import PATIENCE_S, Running, pdf, png, run, uploaded
from ui.caching import read_uploads, upload
from ui.own_paths import OwnPaths, moved
from ui.session import Session
from ui.temporary import MARK
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
        assert [page["label"] for page in answer["pages"]] == ["same.pdf p. 1", "same.pdf p. 2"]
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


def test_no_folder_named_by_the_content_stays(uploads: Path) -> None:
    by_content = uploads / ("0" * 64)
    by_content.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (by_content / name).write_bytes(b"page")
    own = json.loads(moved(json.dumps([str(by_content / n) for n in ("a.png", "b.png")]).encode()))
    assert not by_content.exists()
    assert {Path(path).read_bytes() for path in own} == {b"page"}


def test_what_the_route_refuses_is_answered_as_it_was(running: Running) -> None:
    answer = httpx.post(f"{running.url}/gradio_api/upload", timeout=PATIENCE_S)
    assert answer.status_code == 400 and answer.json() == {"detail": "Invalid content type."}


@pytest.mark.parametrize(
    ("method", "path", "is_own"),
    [
        ("POST", "/gradio_api/upload", True),
        ("GET", "/gradio_api/upload", False),
        # Gradio fetches what is named there: a stranger's answer
        ("GET", "/gradio_api/file=http://elsewhere/gradio_api/upload", False),
        ("POST", "/gradio_api/file=http://elsewhere/gradio_api/upload", False),
    ],
)
def test_only_the_answer_of_gradios_own_route_is_believed(
    uploads: Path, tmp_path: Path, method: str, path: str, is_own: bool
) -> None:
    there, outside = uploaded(uploads, "a.png", b"page"), tmp_path / "precious.txt"
    outside.write_bytes(b"kept")
    body = json.dumps([str(there), str(outside), f"{uploads}/../precious.txt"]).encode()
    sent: list[Any] = []

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path}
    run(OwnPaths(answers)(scope, None, send))  # type: ignore[arg-type]
    assert outside.read_bytes() == b"kept"
    assert there.exists() != is_own and (sent[-1]["body"] != body) == is_own
    assert json.loads(sent[-1]["body"])[1:] == json.loads(body)[1:]


@pytest.fixture
def bench(running: Running) -> Workbench:
    return running.bench


def test_a_file_that_did_not_come_is_named_and_the_others_go_on(
    bench: Workbench, uploads: Path
) -> None:
    paths = [uploaded(uploads, "lost.png"), uploaded(uploads, "here.png", png(64))]
    session = bench.session()
    *_, done = upload(bench, session, read_uploads(bench, session, list(map(str, paths))), None)
    assert [line.state for line in done.lines] == ["failed", "cached"]
    assert done.lines[0].label == "lost.png"
    assert done.lines[0].reason == "lost.png was not received; drop it again."
    bench.remove_own(session)


def test_a_file_that_goes_while_it_is_read_is_named_too(
    bench: Workbench, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = uploaded(uploads, "swept.png", png(65)), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (path.unlink(), read(path))[1])
    (failed,) = read_uploads(bench, Session(), [str(path)])
    assert "was not received" in failed.reason  # type: ignore[union-attr]


def test_files_of_an_earlier_drop_that_come_again_are_passed_over(
    bench: Workbench, uploads: Path
) -> None:
    session = Session()
    first, second = uploaded(uploads, "first.png", b"1"), uploaded(uploads, "second.png", b"2")
    assert read_uploads(bench, session, [str(first)]) == [("first.png", b"1")]
    assert read_uploads(bench, session, [str(first), str(second)]) == [("second.png", b"2")]
    assert session.read == {str(first), str(second)}


@pytest.mark.parametrize("named", [MARK, "", "..", "x" * 5000, "0" * 32, "0" * 32 + "/.."])
def test_a_path_that_no_upload_has_is_refused_and_nothing_there_is_touched(
    bench: Workbench, uploads: Path, named: str
) -> None:
    there = uploaded(uploads, "a.png", b"page")
    (uploads / MARK).touch()
    with pytest.raises(InputRejected, match="not uploaded here"):
        read_uploads(bench, Session(), [f"{uploads}/{named}", str(there)])
    assert (uploads / MARK).exists() and not there.exists()


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0", "folder"])
def test_an_upload_that_cannot_be_read_is_named(bench: Workbench, uploads: Path, name: str) -> None:
    path = uploads / ("0" * 32) / name
    if name == "folder":
        path.mkdir(parents=True)
    for _ in range(2):  # and again, when it is known
        (failed,) = read_uploads(bench, session := Session(), [str(path)])
        assert "was not received" in failed.reason  # type: ignore[union-attr]
        session.read = {str(path)}
