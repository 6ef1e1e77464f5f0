"""Page pictures for the browser, as data URIs: nothing is written where Gradio could serve it."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Iterable

from PIL import Image


def data_uri(image: Image.Image, max_side: int, quality: int) -> str:
    """The picture, shrunk to max_side at most, as a WebP data URI."""
    small = image.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Pictures:
    """Pictures of pages as data URIs, made once. A page id is a digest over pixels and scope.

    max_side: in pixels. quality: of the WebP file, to 100. kept: pages, those used last.
    """

    def __init__(self, max_side: int, quality: int, kept: int) -> None:
        self._max_side, self._quality, self._kept = max_side, quality, kept
        self._made: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, page_id: str, image: Image.Image) -> str:
        """Make and keep a page's picture."""
        uri = data_uri(image, self._max_side, self._quality)
        with self._lock:
            self._made[page_id] = uri
            while len(self._made) > self._kept:
                self._made.popitem(last=False)
        return uri

    def drop(self, page_ids: Iterable[str]) -> None:
        """Forget pages that were removed."""
        with self._lock:
            for page_id in page_ids:
                self._made.pop(page_id, None)

    def get(self, page_id: str) -> str | None:
        """The picture, or None where it must be made."""
        with self._lock:
            if page_id in self._made:
                self._made.move_to_end(page_id)
            return self._made.get(page_id)
