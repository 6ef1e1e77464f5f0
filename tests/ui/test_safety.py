"""What strangers may not do: see others' pages, read files, forge events, get past the queue."""

from __future__ import annotations

import ast
import copy
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import gradio as gr
import httpx
import pytest
import torch
from PIL import Image

import app as the_app
from cache_db import PageStore
from mrr import MiniReranker
from mrr.config import Limits
from mrr.errors import InputRejected
from tests.ui.conftest import N_PAGES, PATIENCE_S, SAMPLES, Running, pdf, png, uploaded
from ui import caching
from ui import told as telling
from ui.caching import read_uploads, upload
from ui.components import field, number
from ui.exports import as_csv
from ui.handlers import Handlers
from ui.opening import Opening
from ui.session import Session, Settings
from ui.views import upload as upload_view
from ui.visits import Visits
from ui.warming import tell_of_public_pages
from ui.workbench import Workbench


def event(**data: object) -> Any:
    return SimpleNamespace(_data=data)


@pytest.fixture
def bench(running: Running) -> Workbench:
    return running.bench


@pytest.fixture
def owner(bench: Workbench) -> Session:
    """A session with one page of its own."""
    session = Session()
    *_, done = upload(bench, session, [("secret.png", png(77))], None)
    assert done.lines[0].state == "cached"
    yield session
    bench.remove_own(session)


def test_every_session_has_a_long_secret_of_its_own(bench: Workbench) -> None:
    scopes = [bench.session().scope.split("-") for _ in range(50)]
    assert {(kind, owner) for kind, owner, _ in scopes} == {("session", bench.base.store.owner)}
    assert len({secret for *_, secret in scopes if len(secret) == 64}) == 50


def test_each_tab_gets_a_fresh_state_and_not_a_copy_of_one(bench: Workbench) -> None:
    state = gr.State(lambda: bench.session())
    assert copy.deepcopy(state.value()).scope != copy.deepcopy(state.value()).scope


def test_a_page_of_another_session_does_not_exist_whatever_is_asked(
    bench: Workbench, owner: Session
) -> None:
    (page_id,) = owner.added
    stranger = Session()
    views: Any = SimpleNamespace()
    handlers = Handlers(bench, views)
    assert page_id not in {page.page_id for page in bench.pages(stranger)}
    run = bench.rank(stranger, SAMPLES[0])
    assert page_id not in {hit.page.page_id for hit in run.mini}
    with pytest.raises(InputRejected, match="not here"):
        bench.page(stranger, page_id)
    with pytest.raises(InputRejected, match="not here"):
        bench.remove(stranger, page_id)
    with pytest.raises(InputRejected, match="not here"):
        handlers.detail.pick(stranger, event(page=page_id))
    with pytest.raises(InputRejected, match="not here"):
        handlers.tick("List", False, stranger, event(page=page_id))
    assert bench.page(owner, page_id).label == "secret.png"


def test_the_same_picture_is_no_hit_for_another_session(bench: Workbench, owner: Session) -> None:
    stranger = Session()
    *_, done = upload(bench, stranger, [("guess.png", png(77))], None)
    assert [line.state for line in done.lines] == ["cached"]
    *_, again = upload(bench, stranger, [("guess.png", png(77))], None)
    assert [line.state for line in again.lines] == ["hit"]
    bench.remove_own(stranger)


def test_of_pages_that_were_removed_no_picture_stays_in_memory(bench: Workbench) -> None:
    session = Session()
    list(upload(bench, session, [("gone.png", png(78))], None))
    (page_id,) = session.added
    page = bench.page(session, page_id)
    assert bench.picture(page) and bench.thumbnail(page)
    bench.remove_scope(session.scope)
    assert bench.pictures.get(page_id) is None and bench.thumbnails.get(page_id) is None


def test_example_pages_cannot_be_removed(bench: Workbench) -> None:
    session = Session()
    example = bench.pages(session)[0]
    with pytest.raises(InputRejected, match="example pages stay"):
        bench.remove(session, example.page_id)
    assert bench.remove_own(session) == 0
    assert len(bench.pages(session)) == N_PAGES


@pytest.mark.parametrize("data", [{}, {"page": 3}, {"page": "x" * 201}, {"page": None}, []])
def test_a_forged_event_is_refused(data: Any) -> None:
    with pytest.raises(InputRejected, match="unexpected"):
        field(SimpleNamespace(_data=data), "page")


@pytest.mark.parametrize("n", ["-1", "3", "²", "1e0", "", "9" * 100])
def test_a_forged_number_is_refused(n: str) -> None:
    assert number(event(n="2"), "n", 3) == 2
    with pytest.raises(InputRejected, match="unexpected"):
        number(event(n=n), "n", 3)


def received(folder: Path, *sizes: int) -> list[str]:
    """Files as Gradio hands them over, of so many bytes each."""
    paths = [uploaded(folder, f"page-{n}.png") for n in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    return list(map(str, paths))


@pytest.fixture
def hosted(bench: Workbench) -> Iterator[Workbench]:
    bench.hosted = True
    yield bench
    bench.hosted = False


def test_uploads_are_read_as_bytes_and_their_copies_are_deleted(
    bench: Workbench, uploads: Path
) -> None:
    session = Session()
    assert read_uploads(bench, session, received(uploads, 3)) == [("page-0.png", bytes(3))]
    assert not list(uploads.iterdir())
    assert read_uploads(bench, session, None) == []
    assert session.uploaded_bytes == 3


def test_an_upload_over_a_limit_is_refused_whole_with_the_numbers(
    bench: Workbench, uploads: Path
) -> None:
    session = Session()
    with pytest.raises(InputRejected, match="101 files at once; the limit is 100"):
        read_uploads(bench, session, received(uploads, *[1] * 101))
    assert not list(uploads.iterdir()), "what is refused is not kept either"
    assert session.uploaded_bytes == 0
    assert len(read_uploads(bench, session, received(uploads, *[1] * 100))) == 100


def test_a_file_that_is_too_large_is_refused_alone_unread_uncounted_and_not_kept(
    hosted: Workbench, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, read = hosted.session(), Path.read_bytes
    paths = received(uploads, 99 * 2**20, 1, 30 * 2**20)
    Path(paths[1]).write_bytes(png(91))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: read({Path(paths[1]): path}[path]))
        files = read_uploads(hosted, session, paths)
    assert not list(uploads.iterdir())
    assert session.uploaded_bytes == len(png(91))
    *_, done = upload(hosted, session, files, None)
    assert [line.state for line in done.lines] == ["failed", "cached", "failed"]
    assert done.lines[2].label == "page-2.png"
    assert "page-2.png is 30 MB; the limit is 20 MB." in done.lines[2].reason
    hosted.remove_own(session)


def test_public_pages_that_are_no_examples_are_told_to_who_hosts_the_app(
    hosted: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    session = hosted.session()
    tell_of_public_pages(hosted)
    assert not caplog.messages and "<h2>Examples, " in upload_view.pages(hosted, session)
    added = hosted.base.add(Image.new("RGB", (64, 96), "teal"))
    tell_of_public_pages(hosted)
    assert "sees 1 pages that are no examples" in caplog.text
    assert "<h2>Examples and other pages of this app, " in upload_view.pages(hosted, session)
    hosted.base.remove_pages(added)


@pytest.mark.parametrize("hosted", [True, False])
def test_what_a_session_may_hold_is_said_before_it_is_full(hosted: bool) -> None:
    with gr.Blocks() as demo:
        upload_view.build(Limits(), kept=False, hosted=hosted)
    said = next(block.value for block in demo.blocks.values() if isinstance(block, gr.HTML))
    assert ("hold 200 pages and upload 100 MB in all" in said) == hosted
    assert "removed when it is closed or reloaded" in said


def test_a_limit_of_files_below_a_megabyte_is_not_said_to_be_none() -> None:
    with gr.Blocks() as demo:
        upload_view.build(Limits(max_file_bytes=2**18), kept=False, hosted=False)
    said = next(block.value for block in demo.blocks.values() if isinstance(block, gr.HTML))
    assert ", 0.25 MB and 200 pages a file" in said


def test_a_session_of_a_hosted_app_has_a_budget_of_bytes(
    hosted: Workbench, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    sizes = [20 * 2**20] * 5
    assert sum(len(data) for _, data in read_uploads(hosted, session, received(uploads, *sizes)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read all the same"))
        with pytest.raises(InputRejected, match=r"120 MB uploaded .* limit here is 100 MB"):
            read_uploads(hosted, session, received(uploads, 20 * 2**20))
    hosted.remove_own(session)
    assert read_uploads(hosted, session, received(uploads, 1)), "its pages are gone: begin anew"
    hosted.hosted = False
    assert read_uploads(hosted, session, received(uploads, 1))


def test_pages_over_the_sessions_quota_are_named_and_other_files_go_on(
    hosted: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "MAX_SESSION_PAGES", 3)
    session = hosted.session()
    *_, done = upload(
        hosted, session, [("known.png", png(80)), ("long.pdf", pdf(81, 82, 83, 84))], None
    )
    assert [line.state for line in done.lines] == ["cached", "cached", "cached", "failed"]
    assert done.lines[-1].label == "long.pdf p. 3"
    assert "200 pages" in done.lines[-1].reason and "Remove some" in done.lines[-1].reason
    files = [("more.png", png(85)), ("again.png", png(80)), ("bad.png", b"junk")]
    *_, done = upload(hosted, session, files, None)
    assert [line.state for line in done.lines] == ["failed", "hit", "failed"]
    assert len(hosted.base.store.pages([session.scope])) == 3
    hosted.remove(session, next(iter(session.added)))
    *_, done = upload(hosted, session, [("more.png", png(85))], None)
    assert [line.state for line in done.lines] == ["cached"]
    hosted.remove_own(session)


def test_encoding_the_examples_again_uses_up_no_quota(
    hosted: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "MAX_SESSION_PAGES", 1)
    session = hosted.session()
    session.settings = Settings(replace(hosted.base.config, keep_ratio=0.3))
    assert list(hosted.encode(session, hosted.missing(session)))[-1][1] == N_PAGES
    *_, done = upload(hosted, session, [("mine.png", png(86))], None)
    assert [line.state for line in done.lines] == ["cached"]
    hosted.remove_own(session)


def test_two_uploads_of_one_session_do_not_mix(bench: Workbench) -> None:
    session = bench.session()
    first = upload(bench, session, [("a.png", png(87)), ("b.png", png(88))], None)
    next(first)
    with pytest.raises(InputRejected, match="being encoded here already"):
        next(upload(bench, session, [("c.png", png(89))], None))
    *_, done = first
    assert [line.state for line in done.lines] == ["cached", "cached"] and not done.cancelled
    assert not session.busy
    bench.remove_own(session)


def test_files_that_come_while_others_are_encoded_are_not_counted_and_not_kept(
    bench: Workbench, uploads: Path
) -> None:
    session = bench.session()
    session.busy = True
    late = uploaded(uploads, "late.png", png(90))
    with pytest.raises(InputRejected, match=r"late\.png was not taken"):
        read_uploads(bench, session, [str(late)])
    assert session.uploaded_bytes == 0 and not late.exists()


def test_models_cannot_be_loaded_by_name_where_strangers_come() -> None:
    nothing: Any = SimpleNamespace()
    guarded = Workbench(Opening(lambda: nothing), nothing, nothing, run=nothing)
    with pytest.raises(InputRejected, match="cannot be changed here"):
        guarded.engine(Settings(model="/etc"))


def test_a_spreadsheet_runs_nothing_of_an_export() -> None:
    text = as_csv("x", [{"page": "=HYPERLINK(1)", "logit": -1.5}, {"page": "+1", "logit": 2}]).text
    assert text.splitlines() == ["page,logit", "'=HYPERLINK(1),-1.5", "'+1,2"]


def test_a_sentence_is_told_and_a_surprise_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(telling.gr, "Warning", lambda text, **how: shown.append((text, how)))

    def refuse() -> None:
        raise InputRejected("Too <b>large</b>.")

    def surprise() -> Any:
        yield 1
        raise RuntimeError("/home/secret/path 0x7fff")

    def no_quota() -> None:
        raise gr.Error("The quota is used up.", print_exception=False)

    assert telling.told(refuse)() == gr.skip()
    assert list(telling.told(surprise)()) == [1, gr.skip()]
    assert telling.told(no_quota)() == gr.skip()
    assert [text for text, _ in shown] == [
        "Too &lt;b&gt;large&lt;/b&gt;.",
        telling.UNEXPECTED,
        "The quota is used up.",
    ]
    assert all(how["duration"] >= 10 for _, how in shown), "nobody reads faster"
    assert shown[1][1]["duration"] > shown[0][1]["duration"], "it has more words"


def test_a_handler_that_changes_nothing_blanks_nothing() -> None:
    assert telling.told(dict)() == gr.skip()
    assert list(telling.told(lambda: (yield {}))()) == [gr.skip()]
    assert telling.told(lambda: None)() is None


def test_every_launch_flag_is_set_on_purpose() -> None:
    flags = the_app.launch_flags(MagicMock(limits=Limits()))
    assert flags["max_file_size"] == 3 * Limits().max_file_bytes == 60 * 2**20
    assert flags["server_name"] == "127.0.0.1"
    assert flags["allowed_paths"] == []
    assert flags["state_session_capacity"] == 10_000
    assert str(the_app.default_store()) in flags["blocked_paths"]
    assert str(the_app.ROOT) in flags["blocked_paths"]
    off = ("share", "show_error", "enable_monitoring", "run_history", "ssr_mode", "mcp_server")
    assert not any(flags[name] for name in off)
    assert flags["strict_cors"] is True
    assert tuple(map(int, gr.__version__.split(".")[:2])) >= (6, 31)


@pytest.mark.parametrize(
    ("name", "value", "hosted", "host"),
    [
        ("SPACE_ID", "someone/space", True, "0.0.0.0"),
        ("GRADIO_SERVER_NAME", "0.0.0.0", True, "0.0.0.0"),
        ("GRADIO_SERVER_NAME", "127.0.0.1", False, "127.0.0.1"),
        ("MRR_HOSTED", "1", True, "127.0.0.1"),  # behind a proxy on the same machine
    ],
)
def test_where_strangers_come_the_app_knows_it(
    name: str, value: str, hosted: bool, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    read = runpy.run_path(str(the_app.ROOT / "app.py"))
    assert (read["HOSTED"], read["HOST"]) == (hosted, host)


def test_a_hosted_app_tells_no_totals_over_all_sessions(bench: Workbench, owner: Session) -> None:
    def shown(hosted: bool) -> str:
        bench.hosted = hosted
        return upload_view.store(bench, Session())

    try:
        assert f"{bench.base.store.stats().n_pages} pages" in shown(False)
        assert "pages" not in shown(True).replace("Your pages", "")
    finally:
        bench.hosted = False


def test_no_file_of_this_machine_is_served(running: Running) -> None:
    wanted = [
        the_app.ROOT / "app.py",
        the_app.ROOT / ".gitignore",
        the_app.ROOT / "assets/examples/pages/annual-report-1.png",
        running.store / "store.db",
        next((running.store / "files").rglob("*.*")),
        Path("/etc/passwd"),
        running.uploads / "../store/store.db",
        Path("file:///etc/passwd"),
        Path("..%2f..%2fetc%2fpasswd"),
    ]
    for path in wanted:
        answer = httpx.get(f"{running.url}/gradio_api/file={path}", timeout=PATIENCE_S)
        assert answer.status_code in (400, 403, 404), (path, answer.status_code)


def test_the_queue_cannot_be_passed_by(running: Running) -> None:
    body = {"data": [SAMPLES[0], 3, "mini"], "session_hash": "x"}
    for name in ("rank", "trace"):
        answer = httpx.post(f"{running.url}/gradio_api/run/{name}", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 404, answer.text


def test_the_page_itself_comes_without_anything_of_others(running: Running) -> None:
    config = httpx.get(f"{running.url}/config", timeout=PATIENCE_S).text
    assert "session-" not in config and str(running.store) not in config


def test_the_engine_and_the_store_import_nothing_of_the_app() -> None:
    files = [file for name in ("mrr", "cache_db") for file in (the_app.ROOT / name).rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"gradio", "ui"}, file
    assert len(files) > 100


def test_public_pages_of_others_are_never_the_visitors_to_remove(bench: Workbench) -> None:
    session = bench.session()
    (added,) = bench.base.add([("by-the-owner.png", png(90))]).pages
    try:
        bench.hosted = True
        with pytest.raises(InputRejected, match="stay"):
            bench.remove(session, added.page.page_id)
        bench.hosted, bench.examples.finished = False, False
        assert not bench.removable(added.page), "it may be an example on its way in"
        assert "Added by you" not in upload_view.pages(bench, session)
        bench.examples.finished = True
        assert bench.removable(added.page)
    finally:
        bench.hosted, bench.examples.finished = False, True
        bench.base.remove_pages([added.page.page_id])


def test_serving_the_page_copies_no_model_and_no_store(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    for kind in (torch.nn.Parameter, PageStore, MiniReranker, Workbench, Visits):
        monkeypatch.setattr(
            kind,
            "__deepcopy__",
            lambda self, memo: copied.append(type(self).__name__) or self,
            raising=False,
        )
    assert httpx.get(running.url, timeout=PATIENCE_S).status_code == 200
    assert not copied
