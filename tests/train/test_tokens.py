from collections import Counter

import pytest

from mrr.model.prompt import QWEN_RERANKER, PromptEncoder
from mrr.train.match_data import SuffixEncoder
from mrr.train.stages import Workshop
from mrr.train.text import _vocabulary, is_prose
from mrr.train.tokens import WORD_START, WordPieces, spelling_embeddings


def test_answers_are_one_piece_each(shop: Workshop) -> None:
    encoder = PromptEncoder(shop.tokenizer, QWEN_RERANKER)
    assert encoder.positive_id != encoder.negative_id


@pytest.mark.parametrize("text", ["Čeština, déjà vu", "中文 한국어", "🦜 ​ zero", "a\x00b"])
def test_any_text_survives_the_tokenizer_in_lower_case(shop: Workshop, text: str) -> None:
    tokenizer = shop.tokenizer
    ids = tokenizer(text).input_ids
    kept = tokenizer.decode(ids).replace(" ", "")
    assert kept == text.lower().replace(" ", "")


def test_the_first_word_of_a_query_has_the_pieces_it_has_on_a_page(shop: Workshop) -> None:
    pieces, suffix = WordPieces(shop.tokenizer), SuffixEncoder(shop.tokenizer)
    ids, owner = suffix(("parser", "errors"))
    mine = [i for i, word in zip(ids, owner, strict=True) if word == 0]
    assert mine == [piece for piece, _, _ in pieces("parser")]
    assert [w for w in owner if w >= 0] == sorted(w for w in owner if w >= 0)


def test_the_suffix_is_the_one_that_the_engine_builds(shop: Workshop) -> None:
    encoder = PromptEncoder(shop.tokenizer, QWEN_RERANKER)
    prompt = encoder.pair(
        "document-first", instruction="any", query="e-mail parser", document=None, n_visual_tokens=2
    )
    assert SuffixEncoder(shop.tokenizer)(("e-mail", "parser"))[0] == prompt.suffix


def test_words_spelled_alike_are_near_each_other(shop: Workshop) -> None:
    tokenizer = shop.tokenizer
    table = spelling_embeddings(tokenizer, 64)
    vocabulary = tokenizer.get_vocab()
    twins = [p for p in vocabulary if len(p) > 2 and p.isalpha() and WORD_START + p in vocabulary]
    with_space = table[[vocabulary[WORD_START + p] for p in twins]]
    without = table[[vocabulary[p] for p in twins]]
    alike = (with_space * without).sum(1)
    strangers = (with_space * without.roll(1, 0)).sum(1)
    assert len(twins) > 3
    assert alike.mean() > 0.6 > 0.3 > strangers.mean()
    assert (table.norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The parser reads a message from a file and returns the root of its tree.", True),
        ("x = foo(bar) ; y += 1 ; return {k: v for k, v in z.items()} # done at last", False),
        ("Too short to be a paragraph.", False),
        ("Этот абзац написан по-русски и потому не подходит для нашей модели вовсе.", False),
    ],
)
def test_only_plain_latin_prose_is_collected(text: str, expected: bool) -> None:
    assert is_prose(text) is expected


def test_rare_words_are_kept_only_if_a_dictionary_has_them() -> None:
    counts = Counter({"the": 50, "xkbmap": 3, "heron": 2, "argv": 12})
    assert _vocabulary(counts, {"heron", "quay's", "lagoon"}, {"lagune"}) == {
        "the": 50,
        "argv": 12,
        "heron": 2,
        "lagoon": 1,
    }
    assert "xkbmap" in _vocabulary(counts, set(), set())  # nothing to tell debris by
