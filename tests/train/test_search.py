from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mrr.train.match_data import MatchPage, SuffixEncoder, assemble
from mrr.train.match_train import MatchPlan, fresh_matcher
from mrr.train.matching import Matcher
from mrr.train.pair import rotary_sections
from mrr.train.queries import page_text
from mrr.train.search import slow_rows
from mrr.train.stages import Workshop
from mrr.train.tower import rotate
from tests.train.conftest import SIZES

GRID = (40, 32)


@pytest.fixture(scope="module")
def wide(shop: Workshop) -> Matcher:
    """A matcher of the width that ships, as training begins."""
    sizes = replace(SIZES, dim=256)
    return fresh_matcher(MatchPlan(shop.root / "w", shop.corpus_dir, shop.tokenizer, model=sizes))


def _scores(matcher: Matcher, positions: Tensor, at: int) -> Tensor:
    """Attention of token `at` to those up to it, by the last head before the band."""
    attn = matcher.lm.layers[matcher.depths.match_layer - 1].self_attn
    assert not attn.k_proj.weight[-attn.head_dim :].any()  # it looks at places alone
    q, k = attn.q_proj.bias[-attn.head_dim :], attn.k_proj.bias[-attn.head_dim :]
    cos, sin = matcher.lm.rotary_emb(torch.zeros(1, 1, 256), positions[:, None])
    query = rotate(q, cos[0, at], sin[0, at])
    keys = rotate(k.expand(at + 1, -1), cos[0, : at + 1], sin[0, : at + 1])
    weights: Tensor = (keys @ query * attn.scaling).softmax(0)
    return weights


@torch.no_grad()
def test_a_head_before_the_band_looks_at_the_two_cells_to_the_left(wide: Matcher) -> None:
    n, (_, columns) = len(wide.prefix_ids), GRID
    positions = wide.positions(GRID)
    for row, column in ((0, 2), (7, 20), (39, 31)):
        at = n + row * columns + column
        weights = _scores(wide, positions, at)
        assert weights[at - 2 : at].sum() > 0.9
        assert weights[at - 2 : at].min() > 0.4


@torch.no_grad()
def test_in_a_text_the_same_head_looks_at_the_token_before(wide: Matcher) -> None:
    weights = _scores(wide, torch.arange(30).expand(3, -1), 20)
    assert weights.argmax() == 19 and weights[19] > 0.8


def test_a_word_is_found_anywhere_and_neighbouring_columns_differ(wide: Matcher) -> None:
    sections, inv_freq = rotary_sections(64), wide.lm.rotary_emb.inv_freq
    assert sum(sections) == 64
    columns = slice(sum(sections[:2]), sum(sections[:3]))
    assert inv_freq[columns].min() > 0.1  # radians a column
    assert inv_freq[slow_rows(wide.lm, wide.depths.match_layer) % 64].max() * 64 < 0.6


@torch.no_grad()
def test_the_second_search_finds_two_words_in_a_row_and_not_the_other_way_round(
    shop: Workshop, wide: Matcher
) -> None:
    pages = [_page({"annual": 3, "report": 5}), _page({"report": 3, "annual": 5})]
    encoder = SuffixEncoder(shop.tokenizer)
    batch = assemble(pages, [("annual", "report")], encoder, lambda word: 1.0)
    visual = wide.table[wide.image_id].repeat(2, 16, 1)
    ids = {word: encoder((word,))[0][encoder((word,))[1].index(0)] for word in ("annual", "report")}
    for i, (left, right) in enumerate((("annual", "report"), ("report", "annual"))):
        # Printed over two cells each, as words are.
        visual[i, 2:4], visual[i, 4:6] = wide.table[ids[left]], wide.table[ids[right]]
    _, seen = wide.train()(visual, batch, dense=False)
    n = len(wide.prefix_ids)
    token = int((batch.word_of[0] == 1).nonzero()[0])
    mass = seen.page_attention[wide.depths.match_layer][:, :, 0, token, n : n + 16]
    report = torch.stack([mass[0, :, 4:6].sum(-1), mass[1, :, 2:4].sum(-1)])  # (page, head)
    first, second = report[0] / report[1]
    assert second > 4 * first, "the second head cares for order no more than the first"


def _page(words: dict[str, int]) -> MatchPage:
    """A page of 2 x 8 cells with words in the cells that are named."""
    printed = tuple(sorted(words, key=lambda word: words[word]))
    return MatchPage(
        grid=(2, 8),
        pieces=np.zeros((1, 2), np.int64),
        overlaps=np.zeros((1, 2), np.int64),
        word_cells={word: [cell] for word, cell in words.items()},
        text=page_text(printed, ()),
        windows=None,
    )


def test_a_word_counts_as_in_a_row_where_the_one_before_it_stands_just_left_of_it(
    shop: Workshop,
) -> None:
    right = _page({"annual": 3, "report": 5})
    swapped = _page({"report": 3, "annual": 5})
    far = _page({"annual": 0, "report": 5})
    other_row = _page({"annual": 7, "report": 8})
    batch = assemble(
        [right, swapped, far, other_row],
        [("annual", "report")],
        SuffixEncoder(shop.tokenizer),
        lambda word: 1.0,
    )
    tokens = (batch.word_of[0] == 1).nonzero().flatten()
    first = int(tokens[0])
    found = {(page, token) for page, _, token, cell in batch.in_a_row.tolist() if cell == 5}
    assert (0, first) in found
    assert not {page for page, token in found if token == first} - {0}
    assert batch.apart[1:, 0, first].all() and not batch.apart[0, 0, first]
