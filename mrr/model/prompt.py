"""Prompts: one template per family, in each order, as token ids cut where a cache can be cut.

Words of the template and the user's words are one plain string between control tokens, encoded
by a tokenizer that knows no control tokens. So nothing a user types can become one, and ordinary
text gets the very ids that the official scripts get.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mrr.errors import InputRejected, UnsupportedModel

IMAGE = "<|image_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
_PIECES = re.compile(r"(<\|\w+\|>|\{\w+\})")
_BYTES_PER_CHARACTER = 4  # in UTF-8, at most

Order = Literal["query-first", "document-first"]
_Part = list[int] | tuple[str, str, str] | None


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The exact words that a family of checkpoints was trained with, for each order.

    Fields in braces are instruction, query and document; either of the last two may be an image.
    native: the order that its checkpoints were trained in.
    positive, negative: the words whose logits are compared.
    """

    name: str
    native: Order
    query_first: str
    document_first: str
    positive: str
    negative: str


_QWEN_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}"
)
_QWEN_TAIL = "<|im_end|>\n<|im_start|>assistant\n"

# query_first is the official prompt of Qwen3-VL-Reranker; document_first has the same words with
# the document moved in front (miniReranker section 3.1).
QWEN_RERANKER = PromptTemplate(
    name="qwen-reranker",
    native="query-first",
    query_first=_QWEN_HEAD + "<Query>:{query}\n<Document>:{document}" + _QWEN_TAIL,
    document_first=_QWEN_HEAD + "\n<Document>:{document}\n<Query>:{query}" + _QWEN_TAIL,
    positive="yes",
    negative="no",
)

_MONO = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{first}"
    "Assert the relevance of the previous image document to the following query, answer True or "
    "False. The query is: {second}<|im_end|>\n<|im_start|>assistant\n"
)

# MonoQwen2-VL was trained image-first only; query_first merely swaps the two.
MONOQWEN = PromptTemplate(
    name="monoqwen",
    native="document-first",
    query_first=_MONO.format(first="{query}", second="{document}"),
    document_first=_MONO.format(first="{document}", second="{query}"),
    positive="True",
    negative="False",
)

TEMPLATES = {t.name: t for t in (QWEN_RERANKER, MONOQWEN)}

EMBEDDER_PROMPT = (
    "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def template_for(checkpoint: str, requested: str | None) -> PromptTemplate:
    """The requested template, or the one that the checkpoint's name implies."""
    if requested is None:
        named = "monoqwen" in checkpoint.lower()  # a hub snapshot keeps the name in its path
        return MONOQWEN if named else QWEN_RERANKER
    if requested not in TEMPLATES:
        raise InputRejected(f"No template {requested!r}; choose one of {', '.join(TEMPLATES)}.")
    return TEMPLATES[requested]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and where the first segment ends: always at a control token beside the image.

    n_instruction: leading ids that are the same for every image (0 where the image is second).
    """

    ids: list[int]
    cut: int
    n_instruction: int

    @property
    def prefix(self) -> list[int]:
        return self.ids[: self.cut]

    @property
    def suffix(self) -> list[int]:
        return self.ids[self.cut :]


class PromptEncoder:
    """Turns templates and text into ids with one checkpoint's tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> None:
        self.template = template
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        self.control = {t["content"]: int(t["id"]) for t in backend["added_tokens"]}
        backend["added_tokens"] = []
        self._plain = Tokenizer.from_str(json.dumps(backend))
        self._plain.no_truncation()
        for token in (IMAGE, VISION_START, VISION_END, "<|im_start|>", "<|im_end|>"):
            if token not in self.control:
                raise UnsupportedModel(f"The tokenizer has no {token}: not a Qwen-VL checkpoint.")
        self._layouts = lru_cache(64)(self._layout)
        self.image_id = self.control[IMAGE]
        self.vision_start_id = self.control[VISION_START]
        self.vision_end_id = self.control[VISION_END]
        self.positive_id = self._answer_id(template.positive)
        self.negative_id = self._answer_id(template.negative)

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text; control tokens written in it stay text."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not set(ids).isdisjoint(self.control.values()):
            raise InputRejected(
                "The text contains a piece that this tokenizer cannot keep apart from a control "
                "token; remove words in angle brackets."
            )
        return ids

    def truncate(self, text: str, max_tokens: int) -> str:
        """The text up to the end of its max_tokens-th token; the text itself if it is shorter."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= max_tokens:
            return text
        return text[: encoding.offsets[max_tokens - 1][1]]

    def words(self, order: Order) -> str:
        """The template's text for an order."""
        return self.template.query_first if order == "query-first" else self.template.document_first

    def pair(
        self,
        order: Order,
        *,
        instruction: str,
        query: str | None,
        document: str | None,
        n_visual_tokens: int,
    ) -> Prompt:
        """The prompt of one pair; the side that is None is the image, n_visual_tokens long."""
        fields = {"instruction": instruction, "query": query, "document": document}
        ids = self._encode(self.words(order), fields, n_visual_tokens)
        image_first = (document is None) == (order == "document-first")
        if image_first:
            return Prompt(ids, ids.index(self.vision_end_id) + 1, ids.index(self.image_id))
        return Prompt(ids, ids.index(self.vision_start_id), 0)

    def embed(self, instruction: str, text: str | None, n_visual_tokens: int = 0) -> list[int]:
        """The embedder's prompt for a text, or for an image where text is None."""
        fields = {"instruction": instruction, "content": text}
        return self._encode(EMBEDDER_PROMPT, fields, n_visual_tokens)

    def pieces(self, ids: list[int]) -> list[str]:
        """Each id as readable text, for display only; together they are the whole text.

        A character that several ids make up belongs to the first of them, and the others are "".
        """
        names = {i: t for t, i in self.control.items()}
        pieces: list[str] = []
        while len(pieces) < len(ids):
            rest = ids[len(pieces) :]
            if rest[0] in names:
                pieces.append(names[rest[0]])
                continue
            n = 1
            text = self._plain.decode(rest[:1])
            while text.endswith("\ufffd") and n < min(_BYTES_PER_CHARACTER, len(rest)):
                n += 1
                text = self._plain.decode(rest[:n])
            pieces += [text, *[""] * (n - 1)]
        return pieces

    def _encode(self, template: str, fields: dict[str, str | None], n_visual: int) -> list[int]:
        images = tuple(name for name, value in fields.items() if value is None)
        ids: list[int] = []
        for part in self._layouts(template, fields["instruction"], images):
            if part is None:
                ids += [self.vision_start_id, *[self.image_id] * n_visual, self.vision_end_id]
            elif isinstance(part, list):
                ids += part
            else:
                before, name, after = part
                ids += self.text_ids(f"{before}{fields[name]}{after}")
        return ids

    def _layout(self, template: str, instruction: str, images: tuple[str, ...]) -> list[_Part]:
        """A template in parts: ids that no text changes, text around a field, None for an image."""
        parts: list[_Part] = []
        fixed: list[int] = []
        words, field = [""], ""
        for piece in [*_PIECES.split(template), None]:
            name = piece[1:-1] if piece is not None and piece.startswith("{") else None
            if name == "instruction":
                words[-1] += instruction
            elif name is not None and name not in images:
                assert len(words) == 1, "two texts between the same control tokens"
                field = name
                words.append("")
            elif piece is not None and name is None and piece not in self.control:
                words[-1] += piece
            else:  # whatever is not text ends it
                if len(words) == 1:
                    fixed += self.text_ids(words[0])
                else:
                    parts += [fixed, (words[0], field, words[1])]
                    fixed = []
                words = [""]
                if name is not None:
                    parts += [fixed, None]
                    fixed = []
                elif piece is not None:
                    fixed.append(self.control[piece])
        return [*parts, fixed]

    def _answer_id(self, word: str) -> int:
        ids = self.text_ids(word)
        if len(ids) != 1:
            raise UnsupportedModel(
                f"The tokenizer splits the answer {word!r} into {len(ids)} pieces; the score needs "
                "a single one. Choose another template."
            )
        return ids[0]
