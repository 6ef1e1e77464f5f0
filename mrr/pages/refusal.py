"""Every reason to refuse a file, as a code that crosses the process border and a sentence.

Only the code and numbers cross it, so no text of a library, no path and no address can reach
the user, whatever a file makes the decoder do.
"""

from __future__ import annotations

_AGAIN = "and add it again."

SENTENCES = {
    "empty-file": f"{{subject}} is empty (0 bytes). Export it {_AGAIN}",
    "file-size": (
        "{subject} is {megabytes:.4g} MB; the limit is {limit:.4g} MB. "
        f"Compress or split it {_AGAIN}"
    ),
    "unreadable": f"{{subject}} could not be opened. Check that it is a readable file {_AGAIN}",
    "folder": f"{{subject}} is a folder; one file is wanted here. Take one out of it {_AGAIN}",
    "format": (
        "{subject} is not a PNG, JPEG, WebP, GIF, TIFF or PDF file. "
        f"Convert it to one of these {_AGAIN}"
    ),
    "damaged": f"{{subject}} is damaged or incomplete. Export it anew {_AGAIN}",
    "pixels": (
        "{subject} is {width}×{height} ({megapixels:.4g} MP); the limit is {limit:.4g} MP. "
        f"Resize it {_AGAIN}"
    ),
    "aspect": (
        "{subject} is {width}×{height}; the longer side may be at most {limit} times the "
        f"shorter one. Crop it {_AGAIN}"
    ),
    "not-numbers": (
        f"{{subject}} holds pixels that are not finite numbers. Save it with 8 bits {_AGAIN}"
    ),
    "locked": f"{{subject}} is locked with a password. Remove the password {_AGAIN}",
    "no-pages": f"{{subject}} has no pages. Export it anew {_AGAIN}",
    "memory": (
        f"{{subject}} needs more than {{limit}} MB of memory to decode. Save it smaller {_AGAIN}"
    ),
    "timeout": (
        "{subject} took longer than {limit:g} s to decode and was stopped. "
        f"Simplify it, or save it as an image, {_AGAIN}"
    ),
    "crashed": (
        "{subject} stopped the decoder: it is damaged, or needs more than {limit} MB of memory. "
        f"Export it anew, smaller, {_AGAIN}"
    ),
}


class Refused(Exception):
    """A file or page was refused; code is a key of SENTENCES, numbers fill its sentence."""

    def __init__(self, code: str, **numbers: float) -> None:
        super().__init__(code)
        self.code = code
        self.numbers = numbers

    def sentence(self, subject: str) -> str:
        """Say it about a file name, or about "Page 7 of" one."""
        return SENTENCES[self.code].format(subject=subject, **self.numbers)
