"""Text that came from outside, made safe to show and to tokenise: one line, nothing invisible."""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls, soft hyphen, bidi controls, zero-width space and word joiners, separators
# of interlinear text, lone surrogates, and the tag characters that can hide a second message.
# Whitespace is folded, not removed; U+200C and U+200D stay, for Persian and Indic spelling.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]+"
)


def one_line(text: str) -> str:
    """Remove what cannot be seen or turns text around, and fold whitespace to single spaces."""
    return " ".join(_INVISIBLE.sub("", text).split())


def nfc(text: str, max_chars: int) -> str:
    """Compose (NFC) at most max_chars characters.

    Cut first: composing is quadratic in a run of combining marks, so its input must be bounded.
    Cut after it too: some characters are longer when composed.
    """
    return unicodedata.normalize("NFC", text[:max_chars])[:max_chars].rstrip()
