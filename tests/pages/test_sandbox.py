"""F10, F11, U9: one child, one call at a time, killed on overrun, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import pytest
from PIL import Image

import mrr
from mrr.config import Limits
from mrr.errors import InputRejected, MRRError
from mrr.pages import child as child_module
from mrr.pages.sandbox import Decoder
from tests.pages.files import encoded, fill, make_pdf, photo, slow_content

REPOSITORY = Path(mrr.__file__).resolve().parents[1]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def run_script(tmp_path: Path, body: str) -> str:
    """Run a script as a user would, from a folder of its own; return what it printed."""
    script = tmp_path / "script.py"
    script.write_text(body)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pid(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child._process.pid


def colour(image: Image.Image) -> object:
    return image.getpixel((image.width // 2, image.height // 2))


@pytest.mark.fault
def test_a_page_that_hangs_is_stopped_in_time_and_the_next_file_works() -> None:
    data = make_pdf([fill(1, 0, 0), slow_content(), fill(0, 0, 1)], box="0 0 612 792")
    with Decoder() as decoder:
        pages = decoder.pages("x.pdf", data)
        next(pages)
        assert decoder._child is not None
        # For this page alone: a busy machine may take as long for the good ones.
        decoder._child._limits = Limits(page_timeout_s=0.5)
        with pytest.raises(InputRejected) as caught:
            next(pages)
        assert str(caught.value) == (
            "Page 2 of x.pdf took longer than 0.5 s to decode and was stopped. Simplify it, or "
            "save it as an image, and add it again. Before it, 1 page was read. Add those after it "
            "with the page range 3."
        )
        (page,) = decoder.pages("a.png", encoded(photo(), "PNG"))
        assert page.image.tobytes() == photo().tobytes()


@pytest.mark.fault
def test_a_child_killed_between_two_pages_is_not_noticed() -> None:
    data = make_pdf([fill(1, 0, 0), fill(0, 0, 1)])
    with Decoder() as decoder:
        pages = decoder.pages("x.pdf", data)
        assert colour(next(pages).image) == RED
        os.kill(pid(decoder), signal.SIGKILL)
        assert decoder._child is not None
        decoder._child._process.wait()
        assert colour(next(pages).image) == BLUE


@pytest.mark.fault
def test_a_child_that_dies_at_work_is_blamed_on_the_page_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_pdf([fill(1, 0, 0)] + [b""] * 5)
    send = child_module.send
    with Decoder() as decoder:
        assert decoder.count_pages("x.pdf", data, "1") == 1
        first = pid(decoder)

        def send_and_kill(pipe: IO[bytes], request: child_module.Reply, *payload: Any) -> None:
            dies = request["op"] == "page" and pid(decoder) == first
            if dies:
                os.kill(first, signal.SIGSTOP)  # it cannot have answered before it dies
            send(pipe, request, *payload)
            if dies:
                os.kill(first, signal.SIGKILL)

        monkeypatch.setattr(child_module, "send", send_and_kill)
        with pytest.raises(InputRejected) as caught:
            next(decoder.pages("x.pdf", data, "1,3-4,6"))
        assert str(caught.value).startswith("Page 1 of x.pdf stopped the decoder: it is")
        assert str(caught.value).endswith("Add those after it with the page range 3-4,6.")
        assert decoder.count_pages("x.pdf", data, "1") == 1
        assert pid(decoder) != first


@pytest.mark.fault
def test_an_interrupt_halfway_through_an_answer_does_not_mix_up_the_next() -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(reply: child_module.Reply) -> None:
        raise Interrupted

    data = make_pdf([fill(1, 0, 0)])
    with Decoder() as decoder:
        decoder.count_pages("x.pdf", data)
        assert decoder._child is not None
        with pytest.raises(Interrupted):  # the pixels of page 1 are left in the pipe
            decoder._child.ask({"op": "page", "index": 0}, b"", interrupt)
        (page,) = decoder.pages("a.png", encoded(photo(), "PNG"))
        assert page.image.tobytes() == photo().tobytes()


def test_pages_of_two_documents_in_turn_are_never_mixed(decoder: Decoder) -> None:
    reds = decoder.pages("red.pdf", make_pdf([fill(1, 0, 0)] * 3))
    blues = decoder.pages("blue.pdf", make_pdf([fill(0, 0, 1)] * 3))
    for red, blue in zip(reds, blues, strict=True):
        assert (colour(red.image), colour(blue.image)) == (RED, BLUE)
        assert (red.source, blue.source) == ("red.pdf", "blue.pdf")


def test_two_threads_share_one_child_and_get_their_own_pages(decoder: Decoder) -> None:
    wrong: list[object] = []

    def work(name: str, content: bytes, expected: tuple[int, int, int]) -> None:
        for page in decoder.pages(name, make_pdf([content] * 50)):
            if colour(page.image) != expected or page.source != name:
                wrong.append((name, colour(page.image), page.source))
        finished.append(name)

    finished: list[str] = []
    threads = [
        threading.Thread(target=work, args=("red.pdf", fill(1, 0, 0), RED)),
        threading.Thread(target=work, args=("blue.pdf", fill(0, 0, 1), BLUE)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(finished) == ["blue.pdf", "red.pdf"]
    assert wrong == []


def test_pages_are_decoded_when_asked_for_and_a_dropped_stream_blocks_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_pdf([fill(1, 0, 0), fill(0, 0, 1)])
    asked: list[str] = []
    ask = child_module.Child.ask

    def noting(self: child_module.Child, request: child_module.Reply, *rest: Any) -> Any:
        asked.append(" ".join(str(request[name]) for name in ("op", "index") if name in request))
        return ask(self, request, *rest)

    monkeypatch.setattr(child_module.Child, "ask", noting)
    with Decoder() as decoder:
        pages = decoder.pages("x.pdf", data)
        next(pages)
        assert decoder.count_pages("x.pdf", data) == 2
        assert asked == ["open", "page 0", "open"]


def test_a_closed_decoder_has_no_child_and_starts_another_when_needed() -> None:
    decoder = Decoder()
    data = encoded(photo(), "PNG")
    assert decoder.count_pages("a.png", data) == 1
    process = pid(decoder)
    decoder.close()
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert decoder.count_pages("a.png", data) == 1
    decoder.close()


def test_a_child_that_cannot_start_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module.sys, "executable", "/bin/false")
    with Decoder() as decoder, pytest.raises(MRRError) as caught:
        decoder.count_pages("a.png", encoded(photo(), "PNG"))
    assert not isinstance(caught.value, InputRejected)
    assert "The page decoder did not start" in str(caught.value)


def test_the_memory_limit_holds_in_the_child() -> None:
    with Decoder(Limits(decoder_memory_bytes=300 * 2**20)) as decoder:
        decoder.count_pages("a.png", encoded(photo(), "PNG"))
        limits = Path(f"/proc/{pid(decoder)}/limits")
        if not limits.exists():
            pytest.skip("needs /proc")
        rows = {line[:25].strip(): line[25:].split()[0] for line in limits.read_text().splitlines()}
        assert rows["Max address space"] == str(300 * 2**20)
        assert rows["Max file size"] == "0"
        assert rows["Max core file size"] == "0"


def test_the_child_gets_no_secrets_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Decoder() as decoder:
        decoder.count_pages("a.png", encoded(photo(), "PNG"))
        environment = Path(f"/proc/{pid(decoder)}/environ")
        if not environment.exists():
            pytest.skip("needs /proc")
        assert b"PATH=" in environment.read_bytes()
        assert b"hf_secret" not in environment.read_bytes()


def test_the_child_imports_neither_torch_nor_numpy_and_the_parent_no_pdfium(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(make_pdf([fill(1, 0, 0)]))
    heavy = "{'torch', 'numpy', 'transformers'} & set(sys.modules)"
    assert run_script(tmp_path, f"import sys, mrr.pages.decode; print({heavy})") == "set()\n"
    body = (
        "import sys\nfrom pathlib import Path\nfrom mrr.pages.sandbox import Decoder\n"
        "with Decoder() as decoder:\n"
        "    print(len(list(decoder.pages('x.pdf', Path('x.pdf').read_bytes()))))\n"
        "print({'torch', 'pypdfium2'} & set(sys.modules))\n"
    )
    assert run_script(tmp_path, body) == "1\nset()\n"


def test_a_script_without_a_main_guard_runs_once_and_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "PIL.py").write_text("raise RuntimeError('the child must not import this')")
    (tmp_path / "x.pdf").write_bytes(make_pdf([fill(1, 0, 0)]))
    body = (
        "import sys\nsys.path.pop(0)\n"  # the script itself must find the real Pillow
        "print('main runs')\n"
        "from mrr.pages.sandbox import Decoder\n"
        "decoder = Decoder()\n"
        "print(decoder.count_pages('x.pdf', open('x.pdf', 'rb').read()))\n"
    )
    assert run_script(tmp_path, body) == "main runs\n1\n"


@pytest.mark.fault
def test_after_a_fork_each_process_has_its_own_child(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(make_pdf([fill(1, 0, 0)] * 30))
    body = (
        "import os\nfrom mrr.pages.sandbox import Decoder\n"
        "data = open('x.pdf', 'rb').read()\n"
        "decoder = Decoder()\n"
        "pages = decoder.pages('x.pdf', data)\nnext(pages)\n"
        "forked = os.fork()\n"
        "seen = 1 + sum(p.image.getpixel((9, 9)) == (255, 0, 0) for p in pages)\n"
        "assert seen == 30, seen\n"
        "if forked:\n"
        "    assert os.waitpid(forked, 0)[1] == 0\n"
        "    print(decoder.count_pages('x.pdf', data))\n"
    )
    assert run_script(tmp_path, body) == "30\n"


@pytest.mark.fault
def test_the_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").write_bytes(make_pdf([fill(1, 0, 0)]))
    body = (
        "import os, signal\nfrom mrr.pages.sandbox import Decoder\n"
        "decoder = Decoder()\n"
        "decoder.count_pages('x.pdf', open('x.pdf', 'rb').read())\n"
        "print(decoder._child._process.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    process = int(run_script(tmp_path, body))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        stat = Path(f"/proc/{process}/stat")
        if stat.exists() and stat.read_text().split()[2] == "Z":
            return  # ended; it only waits for whoever adopted it
        time.sleep(0.05)
    pytest.fail("the child outlived its parent by a minute")
