"""Every upload gets a path of its own, which nobody can guess.

Gradio names an upload by its content, so equal files of two visitors would be one: the first who
reads and deletes it would take it from the other.
"""

from __future__ import annotations

import json
import re
import secrets
from contextlib import suppress
from pathlib import Path

from gradio.route_utils import API_PREFIX
from gradio.utils import get_upload_folder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN = re.compile("[0-9a-f]{32,64}")  # Gradio's own are digests, of a file or of its address


class OwnPaths:
    """Middleware around Gradio's route for uploads, which answers with a list of paths."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the route receive the files, then move them and answer with where they are now."""
        if scope.get("method") != "POST" or route(scope) != f"{API_PREFIX}/upload":
            return await self.app(scope, receive, send)
        start: Message = {}
        body = b""

        async def answer(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message  # held back, because it tells the body's length
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            said = moved(body) if start["status"] == 200 else body
            headers = [each for each in start["headers"] if each[0] != b"content-length"]
            headers.append((b"content-length", str(len(said)).encode()))
            await send({**start, "headers": headers})
            await send({**message, "body": said})

        return await self.app(scope, receive, answer)


def route(scope: Scope) -> str:
    """Which route of Gradio's a request is for; "" where it is none over HTTP."""
    if scope["type"] != "http":
        return ""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def is_upload(path: Path) -> bool:
    """Whether a path is one that an upload gets: a file in a folder of its own in Gradio's.

    Clients name paths, too, and Gradio would take any within its folder.
    """
    in_folder = path.parent.parent == Path(get_upload_folder()) and path.name not in ("", "..")
    return in_folder and _OWN.fullmatch(path.parent.name) is not None


def moved(body: bytes) -> bytes:
    """The route's answer, after its files were moved."""
    paths = json.loads(body)
    own = {path: _move(Path(path)) for path in set(paths)}  # a file may be in one drop twice
    return json.dumps([own[path] for path in paths]).encode()


def _move(path: Path) -> str:
    if not is_upload(path):
        return str(path)
    own = path.parent.parent / secrets.token_hex(16) / path.name
    own.parent.mkdir()
    path.rename(own)
    # No other upload can be about to use it: they follow each other on the server's one event loop,
    # which between making this folder and here does nothing else.
    with suppress(OSError):  # another file of the same content and drop
        path.parent.rmdir()
    return str(own)
