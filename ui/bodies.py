"""No call is longer than it need be, nor the name of its session: Gradio keeps that."""

from __future__ import annotations

import json

from gradio.route_utils import API_PREFIX
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.own_paths import route

MOST_BYTES = 1024 * 1024  # a drop of a thousand files is named in fewer
MOST_CHARS = 100  # of a session's name; browsers take 11, gradio_client 36


class ShortBodies:
    """Middleware that refuses longer requests, but for uploads, which go to the disk."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read what is asked, before anything is answered, and pass it on."""
        if scope["type"] != "http" or route(scope) == f"{API_PREFIX}/upload":
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BYTES:
                return await _refused(
                    f"The call has more than {MOST_BYTES:,} bytes, the limit. Send files by "
                    "/upload, and fewer at once."
                )(scope, receive, send)
        if len(_session_name(body)) > MOST_CHARS:
            return await _refused(
                f"The session_hash has more than {MOST_CHARS} characters, the limit. Use a "
                "shorter one."
            )(scope, receive, send)
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return asked.pop() if asked else await receive()

        await self.app(scope, again, send)


def _session_name(body: bytes) -> str:
    """What a call calls its session, as Gradio will read it; "" where it names none."""
    if len(body) <= MOST_CHARS:
        return ""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):  # no JSON, which is no call either
        return ""
    name = call.get("session_hash") if isinstance(call, dict) else None
    return name if isinstance(name, str) else ""


def _refused(sentence: str) -> PlainTextResponse:
    return PlainTextResponse(sentence, status_code=413)
