"""The tokenizer of the bundled pair, and embeddings that spell.

Each word piece starts as a sum of random vectors for its letters, their places and their pairs
(the idea of PHOC in word spotting). Reading a piece that was rarely seen is then a matter of
reading its letters, and words that share letters are near each other. The table is frozen, so the
tower and the language model can be trained apart and joined.
"""

from __future__ import annotations

import functools
import json
import random
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mrr.train.text import TextSampler, load

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WORD_START = "Ġ"  # how byte-level BPE writes a leading space


def lines_for_pieces(corpus_dir: Path, seed: int) -> list[str]:
    """What the tokenizer learns from: words at a flattened frequency, figures, some prose.

    Plain prose of documentation would spend the pieces on its jargon.
    """
    corpus = load(corpus_dir, "train")
    rng = random.Random(seed)
    sampler = TextSampler(corpus, rng)
    counts = json.loads((corpus_dir / "words.json").read_text(encoding="utf-8"))
    lines = [" " + " ".join([word] * max(1, int(n**0.4))) for word, n in counts.items()]
    lines += [" " + " ".join(sampler.number() for _ in range(10)) for _ in range(1500)]
    return lines + rng.sample(corpus.paragraphs, min(3000, len(corpus.paragraphs)))


def train_tokenizer(
    lines: Iterable[str], template: str, vocab_size: int = 8192
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on lower-cased lines. The prompt's own words are made frequent.

    Bytes are the fallback, so any query in any script survives; "yes" and "no" are one piece each.
    """
    tokenizer = Tokenizer(BPE())
    # A word begins alike after a space and after these marks: "<Query>:report" holds the piece
    # that a page's " report" holds. Quotation marks are left out, for the prompt's "yes" and "no".
    spaced = [normalizers.Replace(mark, mark + " ") for mark in ":/(-[–—“"]
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            *spaced,
            normalizers.Replace(Regex(" +"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def text() -> Iterable[str]:
        for _ in range(1000):
            yield template + ' "yes" "no"'
        yield from lines

    tokenizer.train_from_iterator(text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS[1:]),
        clean_up_tokenization_spaces=False,
    )


def spelling_embeddings(tokenizer: PreTrainedTokenizerFast, dim: int, seed: int = 0) -> Tensor:
    """(vocabulary, dim) float32 rows of norm 1, close for pieces that are spelled alike."""
    vocabulary = tokenizer.get_vocab()

    @functools.cache
    def feature(*key: object) -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(repr(key).encode())])
        return (rng.standard_normal(dim) / dim**0.5).astype(np.float32)

    table = np.zeros((len(vocabulary), dim), np.float32)
    for piece, index in vocabulary.items():
        letters = piece.removeprefix(WORD_START)
        if piece in SPECIALS or not letters:
            table[index] = 3.0 * feature("piece", piece)
            continue
        n = len(letters)
        total = 0.5 * n**0.5 * feature("piece", piece)
        total = total + 0.3 * n**0.5 * feature("start", piece != letters)
        for i, letter in enumerate(letters):
            total = total + feature("head", i, letter) + 0.7 * feature("tail", n - i, letter)
            total = total + 0.5 * feature("any", letter)
            if i:
                total = total + 0.7 * feature("pair", letters[i - 1 : i + 1])
        table[index] = total / np.linalg.norm(total)
    # What all pieces share says nothing about any of them.
    table -= table.mean(0)
    return torch.from_numpy(table / np.linalg.norm(table, axis=1, keepdims=True))


class WordPieces:
    """Words to pieces with the characters that each piece covers, remembered per word."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._fast = tokenizer.backend_tokenizer
        self._known: dict[str, tuple[tuple[int, int, int], ...]] = {}

    def __call__(self, word: str) -> tuple[tuple[int, int, int], ...]:
        """((piece id, first character, end character), ...) of a word as it follows a space."""
        pieces = self._known.get(word)
        if pieces is None:
            coded = self._fast.encode(" " + word)
            pieces = tuple(
                (i, max(0, a - 1), max(1, b - 1))
                for i, (a, b) in zip(coded.ids, coded.offsets, strict=True)
            )
            if len(self._known) < 500_000:
                self._known[word] = pieces
        return pieces
