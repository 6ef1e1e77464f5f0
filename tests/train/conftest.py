"""One tiny run of the whole pipeline, shared: a small corpus, small models, two steps a stage."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from mrr.train.data import PageSource
from mrr.train.fonts import find
from mrr.train.layout import Style
from mrr.train.match_data import MatchBatch, MatchBatches
from mrr.train.match_train import MatchPlan, fresh_matcher
from mrr.train.matching import Matcher
from mrr.train.pair import Sizes
from mrr.train.stages import Scale, Workshop
from mrr.train.text import load

SIZES = Sizes(
    vision_layers=2,
    vision_dim=32,
    vision_heads=2,
    vision_mlp=48,
    dim=32,
    heads=2,
    mlp=48,
    reranker_layers=5,
    embedder_layers=2,
    embedder_mlp=40,
)
SCALE = Scale(
    read_steps=2,
    read_pages=1,
    match_steps=2,
    join_steps=2,
    embed_steps=2,
    see_steps=2,
    prune_steps=2,
    match_pages=2,
    embed_pages=2,
    workers=0,
    unit=1,
    vocab_size=700,
    check_pages=2,
    check_draws=2,
    sizes=SIZES,
)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A workshop with a corpus of a few standard library packages."""
    library = Path(sysconfig.get_path("stdlib"))
    made = Workshop(tmp_path_factory.mktemp("run"), SCALE)
    made.make_corpus([library / name for name in ("asyncio", "email", "unittest", "xml", "json")])
    return made


@pytest.fixture(scope="session")
def source(shop: Workshop) -> PageSource:
    """Pages of 512 x 256 px in the common faces."""
    style = Style(tuple(find()), body_px=(13.0, 15.0))
    return PageSource(load(shop.corpus_dir, "train"), shop.tokenizer, ((0, style),), (512, 256))


@pytest.fixture
def batch(source: PageSource) -> MatchBatch:
    """Four laid-out pages and their queries."""
    return next(iter(MatchBatches(((0, source),), 4, 3, 2, "s", pixels=False)))


@pytest.fixture
def matcher(shop: Workshop) -> Matcher:
    """A matcher as training begins."""
    plan = MatchPlan(shop.root / "fresh", shop.corpus_dir, shop.tokenizer, model=SIZES)
    return fresh_matcher(plan)
