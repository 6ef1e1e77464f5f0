"""Attention is the model's own, row by row, and its maps lie on the page's true grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrr.explain.attention import NEUTRAL_QUERIES, query_span, scatter, trace_attention
from mrr.explain.maps import Word, page_map, sink_cells, words
from mrr.model.load import load_model
from mrr.model.prompt import MONOQWEN, QWEN_RERANKER, PromptEncoder
from mrr.model.scorer import Scorer
from tests.model.helpers import DENSE, QUERY, SPARSE, STAGES, case, scorer
from tests.tiny import DEVICE, picture

MINI = replace(SPARSE, pruner="random", keep_ratio=0.5, kv_dtype="int8")
WIDE = picture(1, (256, 128))


@pytest.fixture(scope="module")
def eager(checkpoints):
    """The same checkpoint under transformers' own eager attention, which returns its weights."""
    model = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.float32, fused=False)
    model.model.set_attn_implementation("eager")
    return model


def stock_attention(loaded, s, c) -> torch.Tensor:
    """(L, heads, n, n) of a stock dense pass over the whole prompt."""
    ids = torch.tensor([c.prompt.ids], device=loaded.device)
    with torch.inference_mode():
        out = loaded.model.model(
            input_ids=ids,
            pixel_values=c.pixels.values.to(loaded.device),
            image_grid_thw=c.pixels.grid_thw.to(loaded.device),
            mm_token_type_ids=(ids == s.encoder.image_id).int(),
            output_attentions=True,
        )
    return torch.cat(out.attentions).cpu()


def test_attention_equals_that_of_a_stock_eager_pass(qwen3, eager):
    s = scorer(qwen3, DENSE)
    c = case(s, WIDE)
    _, trace = trace_attention(s, QUERY, c.page)
    rows = stock_attention(eager, s, c)[:, :, c.prompt.cut :]
    head, cut = c.prompt.n_instruction, c.prompt.cut
    mass = [rows[..., a:b].sum(-1) for a, b in ((0, head), (head, cut), (cut, None))]
    np.testing.assert_allclose(trace.mass, torch.stack(mass, -1), atol=1e-5)
    for layer, maps in trace.page_maps.items():
        visual = rows[layer, :, :, head : head + c.pixels.n_tokens].mean(0)
        np.testing.assert_allclose(maps, visual.view(-1, *c.pixels.grid), atol=1e-5)


def test_mass_of_every_row_sums_to_one_and_outside_the_band_stays_in_the_query(loaded):
    s = scorer(loaded, MINI)
    lens, trace = trace_attention(s, QUERY, case(s, WIDE).page)
    n_heads = loaded.lm.config.num_attention_heads
    assert trace.mass.shape == (5, n_heads, len(trace.tokens), 3)
    assert lens.shape == (5,)
    np.testing.assert_allclose(trace.mass.sum(-1), 1.0, atol=1e-5)
    outside = [0, 1, 4]
    assert (trace.mass[outside][..., :2] == 0).all()
    assert (trace.mass[2:4][..., :2] > 0).all()


def test_page_maps_have_the_true_grid_and_nothing_at_pruned_tokens(loaded):
    s = scorer(loaded, MINI)
    c = case(s, WIDE)
    _, trace = trace_attention(s, QUERY, c.page)
    rows, columns = c.pixels.grid
    assert columns > rows > 1
    assert sorted(trace.page_maps) == sorted(trace.neutral_maps) == [2, 3]
    kept = np.zeros(rows * columns, dtype=bool)
    kept[c.kept] = True
    kept = kept.reshape(rows, columns)
    for maps in (*trace.page_maps.values(), *trace.neutral_maps.values()):
        assert maps.shape == (len(trace.tokens), rows, columns)
        assert (maps[:, ~kept] == 0).all() and (maps[:, kept] > 0).all()


def test_a_map_sums_to_the_page_mass_less_the_end_token(qwen3):
    s = scorer(qwen3, MINI)
    _, trace = trace_attention(s, QUERY, case(s, WIDE).page)
    for layer, maps in trace.page_maps.items():
        end = trace.mass[layer, :, :, 1].mean(0) - maps.sum((1, 2))
        assert (end > 1e-4).all() and (end < 0.9).all()


def test_heads_average_to_the_map_of_the_query_and_hold_the_stock_weights(qwen3, eager):
    s = scorer(qwen3, DENSE)
    c = case(s, WIDE)
    _, trace = trace_attention(s, QUERY, c.page)
    first, last = trace.query_span
    rows = stock_attention(eager, s, c)[:, :, c.prompt.cut :]
    begin = c.prompt.n_instruction
    assert sorted(trace.head_maps) == sorted(trace.page_maps)
    for layer, heads in trace.head_maps.items():
        np.testing.assert_allclose(
            heads.mean(axis=0), trace.page_maps[layer][first:last].mean(axis=0), atol=1e-6
        )
        visual = rows[layer, :, first:last, begin : begin + c.pixels.n_tokens].mean(1)
        np.testing.assert_allclose(heads, visual.view(-1, *c.pixels.grid), atol=1e-5)
        assert np.abs(heads[0] - heads[1]).max() > 1e-4


def test_neutral_heads_are_the_mean_of_each_neutral_querys_own(qwen3):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    _, trace = trace_attention(s, QUERY, page)
    alone = [trace_attention(s, query, page)[1] for query in NEUTRAL_QUERIES]
    for layer, heads in trace.neutral_head_maps.items():
        expected = np.mean([t.head_maps[layer] for t in alone], axis=0)
        np.testing.assert_allclose(heads, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("blue page", ["blue", "page"]),
        ("  Größe,  re-work\t2041? ", ["Größe,", "re-work", "2041?"]),
        ("収益の 地域 by", ["収", "益", "の", "地", "域", "by"]),
        ("🔎 ok", ["🔎", "ok"]),
        ("no: <Query>:", ["no:", "<Query>:"]),
    ],
)
@pytest.mark.parametrize("template", [QWEN_RERANKER, MONOQWEN], ids=lambda t: t.name)
def test_words_are_those_that_were_typed_and_share_out_every_piece(
    qwen3, template, query, expected
):
    s = Scorer(qwen3, PromptEncoder(qwen3.tokenizer, template), MINI)
    _, trace = trace_attention(s, query, case(s, WIDE).page)
    found = words(trace, query)
    assert [word.text for word in found] == expected
    assert [i for word in found for i in word.rows] == list(range(*trace.query_span))


def test_a_piece_over_two_words_gives_one_word(qwen3):
    s = scorer(qwen3, MINI)
    _, trace = trace_attention(s, "x", case(s, WIDE).page)
    joined = replace(trace, tokens=("q", " 地域", "", " by", "."), query_span=(1, 4))
    assert words(joined, "地域 by") == [Word("地域", range(1, 3)), Word("by", range(3, 4))]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (
            (" first", " off", "ice", " ref", "in", "ance", " r", "ates"),
            {"ﬁrst": (0, 1), "oﬃce": (1, 3), "reﬁnance": (3, 6), "rates": (6, 8)},
        ),
        (
            (" x", "2", " 1", "⁄", "", "", "2", " cup", " t", "m", " brand"),
            {"x²": (0, 2), "½": (2, 7), "cup": (7, 8), "™": (8, 10), "brand": (10, 11)},
        ),
        (("i", "\u0307", "", "i", "\u0307", "", " a"), {"İİ": (0, 6), "a": (6, 7)}),
    ],
    ids=["ligatures", "signs", "lower case of two letters"],
)
def test_words_get_their_own_pieces_where_the_tokenizer_spells_them_anew(qwen3, pieces, expected):
    s = scorer(qwen3, MINI)
    _, trace = trace_attention(s, "x", case(s, WIDE).page)
    trace = replace(trace, tokens=pieces, query_span=(0, len(pieces)))
    found = [Word(text, range(*rows)) for text, rows in expected.items()]
    assert words(trace, " ".join(expected)) == found


def test_scatter_puts_each_kept_token_at_its_own_row_and_column(qwen3):
    s = scorer(qwen3, MINI)
    c = case(s, WIDE)
    values = np.arange(1, len(c.kept) + 1, dtype=np.float32)
    (placed,) = scatter(values[None], c.page)
    for token, value in zip(c.kept, values, strict=True):
        assert placed[token // c.pixels.grid[1], token % c.pixels.grid[1]] == value


@pytest.mark.parametrize("template", [QWEN_RERANKER, MONOQWEN], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "query",
    ["blue page", "2024", ":: yes", "no:", "<|im_end|>", "가격", "a <Query>:"],
)
def test_query_span_holds_the_users_words_and_no_whole_template_token(qwen3, template, query):
    s = Scorer(qwen3, PromptEncoder(qwen3.tokenizer, template), MINI)
    start, end = query_span(s, query)
    ids = s.prompt(query, 1).suffix
    assert query in qwen3.tokenizer.decode(ids[start:end])
    assert query not in qwen3.tokenizer.decode(ids[start + 1 : end])
    assert query not in qwen3.tokenizer.decode(ids[start : end - 1])


def test_a_query_is_its_own_neutral_when_it_says_what_the_neutrals_say(qwen3, monkeypatch):
    monkeypatch.setattr("mrr.explain.attention.NEUTRAL_QUERIES", ("x", "x"))
    s = scorer(qwen3, MINI)
    _, trace = trace_attention(s, "x", case(s, WIDE).page)
    for layer, maps in trace.page_maps.items():
        np.testing.assert_allclose(trace.neutral_maps[layer], maps, atol=1e-6)
    assert np.abs(page_map(trace, contrast=True)).max() < 1e-6


def test_neutral_rows_are_those_of_each_neutral_query_traced_alone(qwen3):
    s = scorer(qwen3, MINI)
    page = case(s, WIDE).page
    _, trace = trace_attention(s, QUERY, page)
    alone = [trace_attention(s, query, page)[1] for query in NEUTRAL_QUERIES]
    for layer, maps in trace.neutral_maps.items():
        last = np.mean([t.page_maps[layer][-1] for t in alone], axis=0)
        words = [t.page_maps[layer][slice(*t.query_span)].mean(0) for t in alone]
        np.testing.assert_allclose(maps[-1], last, atol=1e-6)
        np.testing.assert_allclose(maps[trace.query_span[0]], np.mean(words, axis=0), atol=1e-6)


def test_sinks_are_judged_by_each_neutral_querys_own_rows(qwen3, monkeypatch):
    s = scorer(qwen3, MINI)
    c = case(s, WIDE)
    alone = [trace_attention(s, query, c.page)[1] for query in NEUTRAL_QUERIES]
    given: list[np.ndarray] = []

    def judge(maps, kept):
        given.extend([maps, kept])
        return kept

    monkeypatch.setattr("mrr.explain.attention.sink_cells", judge)
    _, trace = trace_attention(s, QUERY, c.page)
    expected = [np.mean(list(t.page_maps.values()), axis=(0, 1)) for t in alone]
    np.testing.assert_allclose(given[0], expected, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(given[1]), c.kept)
    assert trace.sinks is given[1]


def test_page_map_averages_the_layers_of_the_band_and_the_words_of_the_query(qwen3):
    s = scorer(qwen3, MINI)
    _, trace = trace_attention(s, QUERY, case(s, WIDE).page)
    start, end = trace.query_span
    expected = (trace.page_maps[2][start:end].mean(0) + trace.page_maps[3][start:end].mean(0)) / 2
    np.testing.assert_allclose(page_map(trace), expected, atol=1e-7)


def test_a_sink_takes_outlying_attention_in_every_map():
    maps = np.full((3, 3, 8), 0.01, dtype=np.float32)
    kept = np.zeros((3, 8), dtype=bool)
    kept[0] = True  # a third: the pruned would set the median if they counted
    maps[:, ~kept] = 0.0
    maps[:, 0, 0] = 0.5  # whatever the query
    maps[0, 0, 1] = 0.5  # one query only
    maps[:, 0, 2] = 0.09  # high, but under ten times the median
    expected = np.zeros((3, 8), dtype=bool)
    expected[0, 0] = True
    np.testing.assert_array_equal(sink_cells(maps, kept), expected)


def test_even_attention_has_no_sink():
    kept = np.ones((3, 3), dtype=bool)
    assert not sink_cells(np.full((2, 3, 3), 1 / 9), kept).any()


def test_tracing_leaves_the_fast_path_bitwise_as_it_was(loaded):
    s = scorer(loaded, MINI)
    page = case(s, WIDE).page
    before = s.score([QUERY], [page], STAGES)
    trace_attention(s, QUERY, page)
    np.testing.assert_array_equal(s.score([QUERY], [page], STAGES), before)
