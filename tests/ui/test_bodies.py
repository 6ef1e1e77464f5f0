"""What a caller names itself is kept, so no call may be long."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.ui.conftest import PATIENCE_S, Running
from ui.bodies import MOST_BYTES


def called(name: str) -> bytes:
    """The body of a call by a session of that name."""
    return b'{"data": ["blue harbour", 1, "mini", null], "session_hash": "%s"}' % name.encode()


@pytest.mark.parametrize("told", [True, False], ids=["length told", "in chunks"])
def test_the_name_of_a_session_cannot_fill_the_memory(running: Running, told: bool) -> None:
    body = called("x" * MOST_BYTES)

    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 10_000] for start in range(0, len(body), 10_000))

    for route in ("call/rank", "queue/join", "component_server"):
        url = f"{running.url}/gradio_api/{route}"
        answer = httpx.post(
            url,
            content=body if told else chunks(),
            headers={"content-type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert answer.status_code in (400, 413), answer.text
    queue = running.demo._queue
    names = [event["session_hash"] for event in queue.event_analytics.values()]
    kept = (running.demo.state_holder.session_data, queue.pending_messages_per_session, names)
    assert max(len(str(name)) for names in kept for name in [*names, ""]) < 1000


def test_a_call_of_usual_length_is_taken(running: Running) -> None:
    url = f"{running.url}/gradio_api/call/rank"
    event = httpx.post(
        url,
        content=called("x" * 1000),
        timeout=PATIENCE_S,
        headers={"content-type": "application/json"},
    ).json()["event_id"]
    assert "complete" in httpx.get(f"{url}/{event}", timeout=PATIENCE_S).text


def test_uploads_may_be_longer(running: Running) -> None:
    answer = httpx.post(
        f"{running.url}/gradio_api/upload",
        files=[("files", ("long.pdf", b"x" * (2 * MOST_BYTES)))],
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200 and len(answer.json()) == 1


def test_gradio_keeps_the_names_of_few_events(running: Running) -> None:
    assert running.demo._queue.ANALYTICS_MAX_EVENTS == 100
