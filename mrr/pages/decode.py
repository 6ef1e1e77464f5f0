"""The decoding child: `python -m mrr.pages.decode`, the only place where files are parsed.

It reads requests from stdin and answers on stdout (mrr.pages.wire), one document open at a time:
    {"op": "open", "nbytes": n} + file -> {"n_pages": n, "has_pages": b, "still": "first frame"}
    {"op": "page", "index": i}         -> {"width": w, "height": h, "own_label": s} + RGB pixels
    what cannot be done                -> {"refused": code, "numbers": {...}}
No torch and no numpy in here: both would fill the address space that the limit is for.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from typing import IO, Any

from PIL import Image

from mrr.pages.canonical import strips
from mrr.pages.documents import Document, open_document
from mrr.pages.refusal import Refused
from mrr.pages.wire import read_exactly, receive, send


def main() -> None:
    """Serve until the parent closes the pipe."""
    settings = json.loads(sys.argv[1])
    outbox = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not break a frame
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends a process that is deep in C, too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _confine(settings["memory_bytes"])
    send(outbox, {"ready": True})
    try:
        _serve(sys.stdin.buffer, outbox, settings)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone, and nothing here needs an orderly end


def _serve(inbox: IO[bytes], outbox: IO[bytes], settings: dict[str, Any]) -> None:
    document: Document | None = None
    while True:
        request = receive(inbox)
        # The parent kills an overrun itself; this alarm is for a parent that was killed first.
        signal.alarm(2 * int(settings["timeout_s"]) + 2)
        answer: dict[str, Any]
        pixels: Iterable[bytes] = ()
        try:
            if request["op"] == "open":
                data = read_exactly(inbox, request["nbytes"])
                if document is not None:
                    document.close()
                    document = None
                document = open_document(data, settings["max_pixels"])
                answer = {
                    "n_pages": document.n_pages,
                    "has_pages": document.has_pages,
                    "still": document.still,
                }
            else:
                assert document is not None
                image, own_label = document.page(request["index"])
                answer = {"width": image.width, "height": image.height, "own_label": own_label}
                pixels = strips(image)
        except Refused as refused:
            answer = {"refused": refused.code, "numbers": refused.numbers}
        except MemoryError:
            limit = settings["memory_bytes"] // 2**20
            answer = {"refused": "memory", "numbers": {"limit": limit}}
        except EOFError:
            raise
        except Exception:  # parsers raise almost anything on a damaged file
            answer = {"refused": "damaged", "numbers": {}}
        send(outbox, answer, pixels)
        signal.alarm(0)


def _confine(memory_bytes: int) -> None:
    """Limit this process; a system that lacks a limit still has the others and the timer."""
    Image.MAX_IMAGE_PIXELS = None  # documents.py refuses by its own limit, from the header
    for kind, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # decoding writes no files
    ):
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            continue


if __name__ == "__main__":
    main()
