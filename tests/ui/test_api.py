"""The named endpoints, used as a program uses them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from tests.ui.conftest import N_PAGES, PATIENCE_S, SAMPLES, Running, pdf


def connect(running: Running) -> Client:
    """A program's own session; patient, because the machine may be busy with other things."""
    return Client(running.url, verbose=False, httpx_kwargs={"timeout": PATIENCE_S})


@pytest.fixture
def client(running: Running) -> Client:
    return connect(running)


def test_only_the_three_endpoints_are_published(client: Client) -> None:
    listed = client.view_api(return_format="dict", print_info=False)
    assert set(listed["named_endpoints"]) == {"/rank", "/add", "/explain"}
    assert not listed["unnamed_endpoints"]


def test_add_rank_and_explain_from_a_program(
    client: Client, running: Running, tmp_path: Path
) -> None:
    (tmp_path / "mine.pdf").write_bytes(pdf(50, 51))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    files = [handle_file(tmp_path / name) for name in ("mine.pdf", "bad.png")]
    added = client.predict(files, "2", api_name="/add")
    assert [page["outcome"] for page in added["pages"]] == ["encoded"]
    assert [page["page_num"] for page in added["pages"]] == [2]
    assert [file["file"] for file in added["failed"]] == ["bad.png"]

    ranked = client.predict(SAMPLES[0], 20, api_name="/rank")
    assert [hit["rank"] for hit in ranked["results"]] == list(range(1, N_PAGES + 2))
    page_id = added["pages"][0]["page_id"]
    assert (page_id, 2) in {(hit["page_id"], hit["page_num"]) for hit in ranked["results"]}

    why = client.predict(SAMPLES[0], page_id, api_name="/explain")
    (logit,) = (hit["logit"] for hit in ranked["results"] if hit["page_id"] == page_id)
    assert why["logit"] == pytest.approx(logit, abs=1e-4)
    assert sum(map(sum, why["kept"])) == added["pages"][0]["n_kept_tokens"]
    assert len(why["lens"]) == why["exit_layer"]
    band = running.bench.base.config.band
    assert why["band_layers"] == list(range(*band))

    stranger = connect(running)
    with pytest.raises(AppError, match="not here"):
        stranger.predict(SAMPLES[0], page_id, api_name="/explain")


def test_many_programs_at_once_are_all_answered(running: Running) -> None:
    def ask(n: int) -> list[int]:
        one = connect(running)
        return [len(one.predict(f"query {n}", 4, api_name="/rank")["results"]) for _ in range(3)]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == [[4, 4, 4]] * 12


@pytest.mark.parametrize(
    ("query", "top_k", "system", "sentence"),
    [
        ("  ", 3, "mini", "Type a query"),
        (None, 3, "mini", "query is None"),
        ("x", 0, "mini", "top_k is 0"),
        ("x", 1.5, "mini", "top_k is 1.5"),
        ("x", None, "mini", "top_k is None"),
        ("x", 3, "best", "No system"),
    ],
)
def test_a_refusal_is_a_sentence(
    client: Client, query: str, top_k: int, system: str, sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence):
        client.predict(query, top_k, system, api_name="/rank")
