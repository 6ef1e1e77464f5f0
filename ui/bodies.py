"""No call is longer than it need be: Gradio keeps the name that a caller gives its session."""

from __future__ import annotations

from gradio.route_utils import API_PREFIX
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.own_paths import route

MOST_BYTES = 1024 * 1024  # a drop of a thousand files is named in fewer


class ShortBodies:
    """Middleware that refuses longer requests, but for uploads, which go to the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app receive as much as a call may have."""
        if scope["type"] != "http" or route(scope) == f"{API_PREFIX}/upload":
            return await self.app(scope, receive, send)
        left = MOST_BYTES

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"A call has {MOST_BYTES} bytes at most.")
            return message

        return await self.app(scope, counted, send)
