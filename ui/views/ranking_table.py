"""The ranking as a table of numbers, and the words for how two rankings differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrr.explain.verdict import signed
from mrr.types import SYSTEM_NAMES, Hit
from ui.markup import esc
from ui.run import Run
from ui.terms import title

_WORDS = ("page", "change")  # columns of words; the others hold numbers, set to the right
_RIGHT = ' class="num"'
_MEANS = {
    "score": f" {title('score')}",
    "logit": f" {title('logit')}",
    "kept": f" {title('token')}",
}


def retrieval_ranks(run: Run) -> dict[str, int]:
    """page id -> rank among the candidates by the first stage's own score."""
    hits = sorted(run.mini.hits, key=lambda hit: -(hit.retrieval_score or 0.0))
    return {hit.page.page_id: rank for rank, hit in enumerate(hits, start=1)}


def moved(by: int, short: bool = False) -> str:
    """How many ranks mini puts a page above another system, in words with an arrow."""
    if by == 0:
        return "same"
    arrow, word = ("▲", "higher") if by > 0 else ("▼", "lower")
    if short:
        return f'<b title="mini {abs(by)} {word}">{arrow} {abs(by)}</b>'
    return f'<b><span aria-hidden="true">{arrow}</span>mini {abs(by)} {word}</b>'


def table(run: Run, shown: Sequence[Hit], ranks: Mapping[str, int], selected: str | None) -> str:
    """One row a candidate; a dense system's columns only once it has scored something.

    ranks: page id -> rank by the dense system, empty until it has scored every page.
    """
    groups: dict[str, tuple[str, ...]] = {}
    groups["mini"] = ("rank", "page", "score", "logit", "kept", "ms")
    if run.dense:
        groups[SYSTEM_NAMES[run.dense_system]] = ("change", "rank", "logit", "ms")
    if shown[0].retrieval_score is not None:
        groups["first stage"] = ("rank", "score")
    above = "".join(
        f'<th scope="colgroup" colspan="{len(columns)}">{name}</th>'
        for name, columns in groups.items()
    )
    head = "".join(
        f'<th scope="col"{"" if column in _WORDS else _RIGHT}{_MEANS.get(column, "")}>{column}</th>'
        for columns in groups.values()
        for column in columns
    )
    before = retrieval_ranks(run)
    rows = "".join(_row(run, hit, ranks, before, selected) for hit in shown)
    return (
        '<p class="mrr mrr-note">Scores of two systems are not on one scale: compare ranks. '
        "mini takes all pages through the band together: its ms are an even share.</p>"
        '<div class="mrr mrr-scroll"><table class="mrr-table mrr-ranking">'
        f"<thead><tr>{above}</tr><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(
    run: Run, hit: Hit, ranks: Mapping[str, int], before: Mapping[str, int], selected: str | None
) -> str:
    page, dense = hit.page, run.dense.get(hit.page.page_id)
    chosen, took = page.page_id == selected, run.dense_took_ms.get(page.page_id)
    button = (
        f'<button type="button" class="mrr-link" data-event="pick" data-page="{page.page_id}" '
        f'aria-pressed="{str(chosen).lower()}">{esc(page.label)}</button>'
    )
    cells = [_number(str(hit.rank)), f"<td>{button}</td>", _number(f"{hit.score:.4f}")]
    cells.append(_number(signed(hit.logit)))
    cells.append(_number(f"{hit.n_kept_tokens / hit.n_visual_tokens:.0%}"))
    cells.append(_number(f"{run.mini_page_ms:.1f}"))
    if run.dense:
        rank = ranks.get(page.page_id)
        cells += [
            "<td>" + ("" if rank is None else moved(rank - hit.rank, short=True)) + "</td>",
            _number("" if rank is None else str(rank)),
            _number("" if dense is None else signed(dense.logit)),
            _number("" if took is None else f"{took:.1f}"),
        ]
    if hit.retrieval_score is not None:
        cells += [_number(str(before[page.page_id])), _number(f"{hit.retrieval_score:.4f}")]
    return (
        f'<tr class="{"is-selected" if chosen else ""}" data-item="{page.page_id}">'
        f"{''.join(cells)}</tr>"
    )


def _number(said: str) -> str:
    return f'<td class="num">{said}</td>'
