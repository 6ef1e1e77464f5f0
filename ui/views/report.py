"""One result as one HTML file: pictures, curves and numbers inside it, no script, no network."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mrr.explain.verdict import occlusion_verdict, signed
from mrr.types import SYSTEM_NAMES, Explanation, Lens
from ui.components import File
from ui.explaining import known_lenses
from ui.lenses import Mode
from ui.maps import RANKINGS, first_map
from ui.markup import count, duration, esc, note, table
from ui.printed import attended, pruned
from ui.run import Run
from ui.session import Session
from ui.svg import lines_svg
from ui.views import latency, layers
from ui.workbench import Workbench

_STYLE = """
:root { color-scheme: light dark; --ink: #16181d; --muted: #5c6370; --line: #e4e4df; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --muted: #9aa3b2; --line: #31363f; --page: #15181d; }
}
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 960px; margin: 40px auto; padding: 0 20px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 36px 0 8px; }
.mrr-note, svg { color: var(--muted); } .mrr-note { font-size: 13px; }
img { max-width: 100%; border: 1px solid var(--line); }
figure { display: inline-block; width: 48%; min-width: 300px; margin: 0 1% 12px 0;
  vertical-align: top; }
figcaption { color: var(--muted); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; color: var(--muted); font-weight: 500; }
td, th { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
td img { width: 64px; max-width: none; }
.mrr-scroll { overflow-x: auto; }
"""


def report(bench: Workbench, session: Session, run: Run, explanation: Explanation | None) -> File:
    """The current ranking, its settings and cost, and why the selected page scored as it did."""
    usage = run.mini.usage
    stages = ", ".join(f"{name} {duration(ms)}" for name, ms in usage.ms.items())
    parts = [
        f"<h1>“{esc(run.query)}”</h1>",
        f'<p class="mrr-note">{esc(run.started)}. {esc(run.described)}. '
        f"{count(len(run.mini), 'page')} in {duration(usage.total_ms)} ({stages}); single run.</p>",
        f'<p class="mrr-note">Instruction: {esc(run.instruction)} Embedder: {esc(run.embedder)}.'
        "</p>",
        *(f'<p class="mrr-note">{esc(text)}</p>' for text in run.mini.notes),
        "<h2>Ranking</h2>",
        _ranking(bench, run, bench.relevant(session, run.query)),
    ]
    if explanation is not None:
        parts += _why(bench, explanation)
    lenses = known_lenses(session)
    if lenses:
        names = {hit.page.page_id: hit.page.label for hit in run.mini.hits}
        parts += _curves(lenses, names, session.selected, session.lens_mode)
    if session.latency is not None:
        parts += ["<h2>Latency on this machine</h2>"]
        parts += [latency.headline(session.latency, session.latency_of)]
        parts += [latency.numbers(session.latency)]
    body = "\n".join(parts)
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Even what a page's picture or label might smuggle in cannot load or run anything.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>miniReranker: {esc(run.query)}</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
    return File("minireranker-report.html", "text/html", text)


def _ranking(bench: Workbench, run: Run, relevant: Collection[str]) -> str:
    ranks = run.dense_ranks
    name = SYSTEM_NAMES[run.dense_system]
    rows = []
    for hit in run.mini.hits:
        dense = run.dense.get(hit.page.page_id)
        rows.append(
            [
                str(hit.rank),
                f'<img src="{bench.thumbnail(hit.page)}" alt="">',
                esc(hit.page.label),
                f"{hit.score:.4f}",
                signed(hit.logit),
                "yes" if hit.page.page_id in relevant else "",
                f"{hit.n_kept_tokens:,} of {hit.n_visual_tokens:,}",
                str(ranks.get(hit.page.page_id, "not run")),
                signed(dense.logit) if dense else "",
            ]
        )
    header = ["rank", "", "page", "score", "logit", "relevant", "tokens"]
    header += [f"{name} rank", f"{name} logit"]
    return table(header, rows, (3, 4, 6, 7, 8))


def _why(bench: Workbench, explanation: Explanation) -> list[str]:
    """What was read of the page, where attention went, what hiding blocks did if measured."""
    keep, page = explanation.keep, explanation.page
    image = bench.base.cache.picture(page)
    parts = [
        f"<h2>{esc(page.label)}: what was read, and where attention went</h2>",
        note(f"Logit {signed(explanation.logit)}."),
        _figure(
            pruned(image, keep.kept),
            f"{page.label}, pruned tokens pale",
            f"Kept {keep.kept.sum():,} of {keep.kept.size:,} visual tokens "
            f"({keep.kept.mean():.0%}, chosen by {keep.pruner}); the rest is pale.",
        ),
    ]
    found = first_map(explanation.attention, explanation.query, keep.kept)
    if found is not None:
        parts.append(
            _figure(
                attended(image, keep.kept, found),
                f"{page.label}, attention of any word of the query in layer {found.layer}",
                f"Attention of any word of the query (maximum) in layer {found.layer}, less what "
                f"neutral queries pay: orange is more, blue less. Scale of all layers and words, "
                f"±{found.limit:.3g}, without sinks. Weights, not causes.",
            )
        )
    parts += _bands(explanation)
    measured = explanation.occlusion
    if measured is not None:
        control = measured.random_deltas
        rows = [
            [f"the {measured.n_top} cells first by {RANKINGS[name]}", f"{signed(delta)}"]
            for name, delta in measured.top_deltas.items()
        ]
        if len(control):
            rows.append(
                [
                    f"as many random cells (mean ± standard deviation, n = {len(control)})",
                    f"{signed(control.mean())} ± {control.std():.2f}",
                ]
            )
        parts += ["<h2>Change of the logit when cells are hidden</h2>"]
        parts += [table(["hidden", "change"], rows, (1,)), note(occlusion_verdict(measured))]
    return parts


def _figure(picture: str, alt: str, caption: str) -> str:
    return (
        f'<figure><img src="{picture}" alt="{esc(alt)}"><figcaption>{esc(caption)}</figcaption>'
        "</figure>"
    )


def _bands(explanation: Explanation) -> list[str]:
    """Where the query's attention went in each layer: the mean over its tokens and heads."""
    attention = explanation.attention
    start, end = explanation.lens.band
    rows = [
        [str(layer), *(f"{share:.0%}" for share in shares), "yes" if start <= layer < end else ""]
        for layer, shares in enumerate(attention.mass.mean(axis=(1, 2)))
    ]
    header = ["layer", "instruction", "page", "query", "band"]
    return ["<h2>Attention of the query, layer by layer</h2>", table(header, rows, (0, 1, 2, 3))]


def _curves(
    lenses: Mapping[str, Lens], labels: Mapping[str, str], selected: str | None, mode: Mode
) -> list[str]:
    """The Layers view's chart, sentence and numbers, as the session shows them."""
    chart = layers.figure(lenses, labels, selected, mode=mode)
    return [
        "<h2>Relevance layer by layer</h2>",
        lines_svg(chart, f"Relevance of {count(len(lenses), 'page')} after each layer, by {mode}"),
        *layers.words(lenses),
        layers.numbers(lenses, labels, mode=mode),
    ]
