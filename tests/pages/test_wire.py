"""The pipe: a child that says what it never should is a dead child, not a wrong page."""

from __future__ import annotations

import io
import json
import struct
import sys
from pathlib import Path

import pytest

from mrr.config import Limits
from mrr.pages import child as child_module
from mrr.pages.child import Child
from mrr.pages.refusal import Refused
from mrr.pages.wire import read_exactly, receive, send


def test_a_frame_comes_back_with_its_payload() -> None:
    pipe = io.BytesIO()
    send(pipe, {"op": "open", "nbytes": 5}, (b"ab", b"cde"))
    send(pipe, {"next": "é"})
    pipe.seek(0)
    assert receive(pipe) == {"op": "open", "nbytes": 5}
    assert read_exactly(pipe, 5) == b"abcde"
    assert receive(pipe) == {"next": "é"}


@pytest.mark.parametrize("nbytes", range(12))
def test_a_frame_cut_off_anywhere_is_an_end(nbytes: int) -> None:
    pipe = io.BytesIO()
    send(pipe, {"a": 12})
    with pytest.raises(EOFError):
        receive(io.BytesIO(pipe.getvalue()[:nbytes]))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff{}",
        b"\0\0\0\2[]",
        b"\0\0\0\2{]",
        struct.pack(">I", 60_000) + b"[" * 60_000,
    ],
)
def test_a_frame_that_makes_no_sense_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|Expecting"):
        receive(io.BytesIO(data))


@pytest.mark.parametrize(
    "answer",
    [
        {"width": 100000, "height": 100000},
        {"width": -4, "height": -4},
        {"width": 0, "height": 40},
        {"width": "many", "height": 40},
        {"width": float("inf"), "height": 40},
        {"width": 40},
        {"width": 40, "height": 40},
        {"refused": "<b>click here</b>", "numbers": {}},
        {"refused": "damaged", "numbers": {"subject": "/etc/passwd"}},
        {"refused": "pixels", "numbers": []},
        {"refused": ["damaged"], "numbers": {}},
        {"refused": "pixels", "numbers": {"width": 1}},
        {"refused": "damaged", "numbers": {"subject": 1}},
    ],
)
def test_a_child_that_lies_is_ended_and_its_words_are_not_repeated(
    answer: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [json.dumps(header).encode() for header in ({"ready": True}, answer)]
    said = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    liar = tmp_path / "liar"
    liar.write_text(f"#!{sys.executable}\nimport os\nos.write(1, {said!r})\nos.read(0, 99)\n")
    liar.chmod(0o700)
    monkeypatch.setattr(child_module.sys, "executable", str(liar))
    child = Child(Limits(page_timeout_s=60.0))
    with pytest.raises(Refused) as caught:
        child.ask({"op": "page", "index": 0}, b"", child.read_pixels)
    assert caught.value.code == "crashed"
    assert not child.usable
    assert caught.value.sentence("x.pdf").startswith("x.pdf stopped the decoder")
