"""One decoding child process as its parent sees it: start, ask with a time limit, end.

The child is a fresh interpreter: it cannot re-run the caller's __main__, and gets neither its
threads nor the secrets in its environment. Nothing that it says is trusted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from mrr.config import Limits
from mrr.errors import MRRError
from mrr.pages.canonical import MIN_SIDE, PAGE_MAX_PIXELS, strip_rows
from mrr.pages.refusal import Refused
from mrr.pages.wire import read_exactly, receive, send

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 60.0
# What an interpreter needs to start; the rest of the environment may hold tokens.
_ENVIRONMENT = (
    "PATH HOME TMPDIR LANG LC_ALL LC_CTYPE LD_LIBRARY_PATH DYLD_LIBRARY_PATH "
    "PYTHONHOME PYTHONPATH VIRTUAL_ENV"
).split()

Reply = dict[str, Any]
_T = TypeVar("_T")


class Child:
    """A running decoder. Not thread-safe: the caller holds a lock.

    opened: whose document it has open, for the caller to compare; None at first.
    """

    def __init__(self, limits: Limits) -> None:
        """Start it and wait until it is ready. Raises MRRError where it does not start."""
        self._limits = limits
        self._pid = os.getpid()
        self.opened: object = None
        self._process = subprocess.Popen(  # noqa: S603  our own module, no shell
            [sys.executable, "-m", "mrr.pages.decode", _settings(limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries talk there, in their own words
            cwd=_ROOT,  # puts this package first on its path, and not the caller's folder
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        try:
            with _Deadline(self._process, _START_TIMEOUT_S):
                receive(self._from)
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            raise MRRError(
                "The page decoder did not start. Check that Pillow and pypdfium2 are installed: "
                "python -c 'import mrr.pages.decode'."
            ) from error

    @property
    def usable(self) -> bool:
        """Whether it runs and is ours: after a fork, the pipes belong to the other process."""
        return self._pid == os.getpid() and self._process.poll() is None

    def ask(self, request: Reply, data: bytes, read: Callable[[Reply], _T]) -> _T:
        """Send a request and `read` the answer, within the time limit of one page.

        Raises Refused. Whatever else goes wrong, the process has been ended.
        """
        deadline = _Deadline(self._process, self._limits.page_timeout_s)
        try:
            with deadline:
                send(self._to, request, (data,))
                reply = receive(self._from)
                if "refused" in reply:
                    raise _refusal(reply)
                return read(reply)
        except Refused:
            raise
        except (OSError, EOFError, ValueError, TypeError, KeyError, OverflowError):
            self.stop()
            if deadline.passed:
                raise Refused("timeout", limit=self._limits.page_timeout_s) from None
            limit = self._limits.decoder_memory_bytes // 2**20
            raise Refused("crashed", limit=limit) from None
        except BaseException:  # Ctrl-C in the middle of a frame: the pipe is of no use now
            self.stop()
            raise

    def read_pixels(self, reply: Reply) -> Image.Image:
        """Read the page that a reply announces, strip by strip."""
        width, height = int(reply["width"]), int(reply["height"])
        largest = max(self._limits.max_image_pixels, PAGE_MAX_PIXELS)
        if not (MIN_SIDE <= min(width, height) and width * height <= largest):
            raise ValueError(f"a page of {width}×{height}")
        page = Image.new("RGB", (width, height))
        for top, bottom in strip_rows(width, height):
            pixels = read_exactly(self._from, 3 * width * (bottom - top))
            page.paste(Image.frombytes("RGB", (width, bottom - top), pixels), (0, top))
        return page

    def stop(self) -> None:
        """End it at once. In a forked process, only let go of it."""
        if self._pid == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:  # a request that could not be flushed any more
                continue


class _Deadline:
    """Kills a process that takes too long; whoever waits for its answer then reads an end."""

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        self._process = process
        self._timer = threading.Timer(timeout_s, self._kill)
        self._timer.daemon = True
        self.passed = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _kill(self) -> None:
        self.passed = True
        self._process.kill()


def _settings(limits: Limits) -> str:
    return json.dumps(
        {
            "max_pixels": limits.max_image_pixels,
            "memory_bytes": limits.decoder_memory_bytes,
            "timeout_s": limits.page_timeout_s,
        }
    )


def _refusal(reply: Reply) -> Refused:
    """Rebuild a refusal from its code and numbers; anything else raises what `ask` expects."""
    code, numbers = reply["refused"], reply["numbers"]
    if not all(type(number) in (int, float) for number in dict(numbers).values()):
        raise ValueError("a refusal in words of its own")
    refused = Refused(code, **numbers)
    refused.sentence("")  # a code or number that the sentence lacks is found here
    return refused
