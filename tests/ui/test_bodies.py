"""What a caller names itself is kept, so no call may be long."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.ui.conftest import PATIENCE_S, Running
from ui.bodies import MOST_BYTES, MOST_CHARS


def called(name: str) -> bytes:
    """The body of a call by a session of that name."""
    return b'{"data": ["blue harbour", 1, "mini", null], "session_hash": "%s"}' % name.encode()


@pytest.mark.parametrize("length", [MOST_CHARS + 1, MOST_BYTES - 1000, 3 * MOST_BYTES])
@pytest.mark.parametrize("told", [True, False], ids=["length told", "in chunks"])
def test_the_name_of_a_session_cannot_fill_the_memory(
    running: Running, told: bool, length: int
) -> None:
    body = called("x" * length)

    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 10_000] for start in range(0, len(body), 10_000))

    for route in ("call/rank", "queue/join", "component_server"):
        answer = httpx.post(
            f"{running.url}/gradio_api/{route}",
            content=body if told else chunks(),
            headers={"content-type": "application/json"},
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 413 and "the limit" in answer.text
    queue = running.demo._queue
    names = [event["session_hash"] for event in queue.event_analytics.values()]
    kept = (running.demo.state_holder.session_data, queue.pending_messages_per_session, names)
    assert max(len(str(name)) for names in kept for name in [*names, ""]) <= MOST_CHARS


def test_a_name_in_other_letters_is_as_long(running: Running) -> None:
    body = called("x" * 200).replace(b"session_hash", b"session\\u005fhash")
    answer = httpx.post(
        f"{running.url}/gradio_api/call/rank",
        content=body,
        headers={"content-type": "application/json"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"x" * 200, b"[" * 100_000, b'["session_hash"]' + b" " * 200])
def test_what_is_no_call_is_left_to_gradio(running: Running, body: bytes) -> None:
    answer = httpx.post(
        f"{running.url}/gradio_api/call/rank",
        content=body,
        headers={"content-type": "application/json"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code in (400, 422)


def test_a_heartbeat_with_a_long_body_is_refused_before_it_begins(running: Running) -> None:
    url = f"{running.url}/gradio_api/heartbeat/long"
    answer = httpx.request("GET", url, content=b"x" * 3 * MOST_BYTES, timeout=PATIENCE_S)
    assert answer.status_code == 413 and "long" not in running.bench.visits._beats


def test_a_call_of_usual_length_is_taken(running: Running) -> None:
    url = f"{running.url}/gradio_api/call/rank"
    event = httpx.post(
        url,
        content=called("x" * MOST_CHARS),
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


def test_gradio_keeps_the_names_of_few_events_and_counts_none(running: Running) -> None:
    assert running.demo._queue.ANALYTICS_MAX_EVENTS == 100
    assert running.demo._queue.ANAYLTICS_CACHE_FREQUENCY >= 10**9  # the spelling is Gradio's
