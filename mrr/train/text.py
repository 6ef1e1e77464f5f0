"""Text for training pages, from what any Debian or Python machine already holds.

Prose comes from docstrings of the standard library, documentation under /usr/share, manual pages
and package metadata. One paragraph a line; documents are split between training and validation by
a hash of their path, so no paragraph of a validation document is ever trained on.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import json
import logging
import random
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mrr.errors import InputRejected

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.05
_MAX_FILE_BYTES = 2_000_000
_PLAIN = {".txt", ".md", ".rst", ".html", ".pod", ".gz", ".py", ""}
_SKIP = re.compile(
    r"changelog|\.(json|xml|svg|png|gif|so|css|js|c|h|svgz|csv)(\.gz)?$", re.IGNORECASE
)
# Latin letters with accents, figures, the punctuation of prose; no markup, no other scripts.
_LATIN = re.compile(r"[ -_a-{}~£§©°´·ß-öø-ÿĀ-ſ€–—‘’“”„•…]*")
_MARKUP = re.compile(r"``|::|\\|%\(|\$\{|<[a-z/]|[=_]{3}|--\w")
_PLAIN_WORD = re.compile(r"[a-z]{4,14}")
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Paragraphs of prose, and how often each word occurs in them."""

    paragraphs: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.paragraphs or not self.words:
            raise ValueError("The corpus is empty; build it again from folders that hold text.")


def default_roots() -> list[Path]:
    """Folders with documentation on this machine."""
    roots = [
        Path(sysconfig.get_path("stdlib")),
        Path(sysconfig.get_path("purelib")),
        Path("/usr/share/doc"),
        Path("/usr/share/man"),
        Path("/usr/share/perl"),
        Path("/usr/share/common-licenses"),
    ]
    return [root for root in roots if root.is_dir()]


def build(
    out_dir: Path, roots: Iterable[Path] | None = None, max_paragraphs: int = 400_000
) -> None:
    """Write train.txt, validation.txt and words.json (lower-case counts) to out_dir."""
    out_dir.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    counts: Counter[str] = Counter()
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    for path in _files(default_roots() if roots is None else roots):
        part = parts[_part_of(path)]
        for paragraph in _paragraphs(path):
            mark = zlib.crc32(paragraph[:60].lower().encode())
            if mark in seen:
                continue
            seen.add(mark)
            part.append(paragraph)
            counts.update(word.lower() for word in _WORD.findall(paragraph))
        if len(seen) >= max_paragraphs:
            break
    for name, paragraphs in parts.items():
        (out_dir / f"{name}.txt").write_text("\n".join(paragraphs), encoding="utf-8")
    words = _vocabulary(counts, _dictionary("*-english"), _dictionary("french"))
    (out_dir / "words.json").write_text(json.dumps(words), encoding="utf-8")
    logger.info("corpus: %s paragraphs, %s words", len(seen), len(words))


def _dictionary(pattern: str) -> set[str]:
    """Lower-case words of this machine's spelling dictionaries of that name, if it has any."""
    found = (path.read_text(encoding="utf-8") for path in Path("/usr/share/dict").glob(pattern))
    return {word.lower() for text in found for word in text.split()}


def _vocabulary(counts: Counter[str], english: set[str], other: set[str]) -> dict[str, int]:
    """Words by frequency. Rare ones only if a dictionary has them: the rest is jargon and debris.

    Plain English words that the corpus lacks are added, so that they are read and searched too.
    """
    known = english | other
    kept = {
        word: n
        for word, n in counts.most_common()
        if len(word) <= 18 and (n >= 10 or (n >= 2 and (word in known or not known)))
    }
    absent = sorted(word for word in english if _PLAIN_WORD.fullmatch(word) and word not in kept)
    return {**kept, **dict.fromkeys(absent, 1)}


def load(corpus_dir: Path, part: str) -> Corpus:
    """Read one part ("train" or "validation"). Raises InputRejected where no corpus was built."""
    words_file = corpus_dir / "words.json"  # which is written last
    if not words_file.exists():
        raise InputRejected(f"{corpus_dir.parent} holds no text yet; run the stage corpus first.")
    words = json.loads(words_file.read_text(encoding="utf-8"))
    lines = (corpus_dir / f"{part}.txt").read_text(encoding="utf-8").split("\n")
    return Corpus(tuple(lines), tuple(words))


def _part_of(path: Path) -> str:
    digest = hashlib.sha256(str(path).encode()).digest()
    return "validation" if digest[0] / 256 < VALIDATION_SHARE else "train"


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    """Text files under the roots in a fixed shuffled order, so that a cap samples all of them."""
    paths = [
        path
        for root in roots
        for path in root.rglob("*")
        if path.suffix in _PLAIN and not _SKIP.search(path.name) and path.is_file()
    ]
    paths.sort()
    random.Random(0).shuffle(paths)
    return iter(paths)


def _paragraphs(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return []
        data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError):
        return []  # unreadable or not text: nothing to learn from
    if path.suffix == ".py":
        text = "\n\n".join(_docstrings(text))
    elif "/man" in str(path):
        text = _without_roff(text)
    elif path.suffix == ".html":
        text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    blocks = re.split(r"\n\s*\n", text)
    return [clean for block in blocks if (clean := " ".join(block.split())) and is_prose(clean)]


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        doc
        for node in ast.walk(tree)
        if isinstance(node, kinds)
        if (doc := ast.get_docstring(node))
    ]


def _without_roff(text: str) -> str:
    """Manual page source to plain text: macros to paragraph breaks, escapes to nothing."""
    text = re.sub(r"^[.'].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\\f.|\\[&/|,]|\\s[+-]?\d", "", text)
    return text.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "")


def is_prose(text: str) -> bool:
    """Whether a paragraph reads like sentences rather than code, tables or addresses."""
    if not 40 <= len(text) <= 4000:
        return False
    if not _LATIN.fullmatch(text) or _MARKUP.search(text):
        return False
    words = text.split()
    plain = sum(
        bool(re.fullmatch(r"[(\"'“]?[^\W\d_]+(?:['’-][^\W\d_]+)*[.,;:!?)\"'”]*", w)) for w in words
    )
    longest = max(map(len, words))
    return len(words) >= 7 and plain / len(words) > 0.8 and longest <= 24


class TextSampler:
    """Draws the strings that a page is made of. Deterministic for a given random.Random."""

    def __init__(self, corpus: Corpus, rng: random.Random, rare_share: float = 0.35) -> None:
        self.corpus, self.rng, self.rare_share = corpus, rng, rare_share

    def prose(self, n_words: int) -> list[str]:
        """About n_words running words: consecutive text, or a bag that shows rare words too."""
        if self.rng.random() < self.rare_share:
            return self.word_salad(n_words)
        out: list[str] = []
        while len(out) < n_words:
            words = self.rng.choice(self.corpus.paragraphs).split()
            start = self.rng.randrange(max(1, len(words) - 30))
            out += words[start:]
        return out[:n_words]

    def word_salad(self, n_words: int) -> list[str]:
        """Dictionary words drawn evenly over ranks, with sentence case, commas and stops."""
        out, capital = [], True
        for _ in range(n_words):
            word = self.word() if self.rng.random() > 0.06 else self.number()
            if capital or self.rng.random() < 0.08:
                word = word[:1].upper() + word[1:]
            capital = False
            roll = self.rng.random()
            if roll < 0.07:
                word, capital = word + self.rng.choice("...:?!"), True
            elif roll < 0.15:
                word += self.rng.choice(",,,;")
            out.append(word)
        return out

    def word(self) -> str:
        """One word; log-uniform over frequency ranks, so common words do not crowd out others."""
        n = len(self.corpus.words)
        if self.rng.random() < 0.5:
            return self.corpus.words[self.rng.randrange(n)]
        return self.corpus.words[int(n ** self.rng.random()) - 1]

    def title(self, n_words: int) -> list[str]:
        """A heading in title, sentence or upper case."""
        words = [self.word() for _ in range(n_words)]
        style = self.rng.random()
        if style < 0.45:
            return [word[:1].upper() + word[1:] for word in words]
        if style < 0.85:
            return [words[0][:1].upper() + words[0][1:], *words[1:]]
        return [word.upper() for word in words]

    def number(self) -> str:
        """A figure, year, percentage, amount, date or code."""
        rng = self.rng
        kind = rng.randrange(7)
        if kind == 0:
            return str(rng.randrange(10))
        if kind == 1:
            return str(rng.randrange(1900, 2060))
        if kind == 2:
            return f"{rng.random() * 100:.{rng.randrange(3)}f}%"
        if kind == 3:
            return f"{rng.choice('$€£')}{int(10 ** rng.uniform(1, 6)):,}"
        if kind == 4:
            return (
                f"{rng.randrange(1, 29):02d}/{rng.randrange(1, 13):02d}/{rng.randrange(1990, 2030)}"
            )
        if kind == 5:
            return f"{int(10 ** rng.uniform(0, 6)):,}"
        return f"{rng.choice('ABCDEFGHKLMNPRSTVX')}{rng.randrange(10, 10000)}"
