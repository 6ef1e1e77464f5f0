"""One decoder for the module that asks: starting a child for every test would only cost time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mrr.pages.sandbox import Decoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder
