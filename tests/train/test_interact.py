"""Training must compute what the engine and the stock forward pass compute."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrr import MiniReranker
from mrr.config import DEFAULT_INSTRUCTION, RerankConfig
from mrr.model.prompt import QWEN_RERANKER, PromptEncoder
from mrr.train import export, eyes, match_train
from mrr.train.data import PageSource
from mrr.train.embed_train import fresh_embedder
from mrr.train.match_data import MatchBatch, SuffixEncoder, assemble, make_page
from mrr.train.matching import Depths, Matcher
from mrr.train.pair import build
from mrr.train.stages import Workshop
from mrr.train.tokens import WordPieces
from tests.model.helpers import embed
from tests.train.conftest import SIZES

QUERIES = [("parser", "error"), ("message",)]
TRAINING = {
    "runs": [{"stages": {}, "seed": 0, "commit": "unknown"}],
    "parameters": {"tiny-reranker": 1, "tiny-embedder": 1},
    "reading": {},
    "rendered": {},
}


def _batch(source: PageSource, shop: Workshop) -> MatchBatch:
    pieces = WordPieces(shop.tokenizer)
    pages = [make_page(source, pieces, f"page {i}", 0, pixels=True) for i in range(2)]
    return assemble(pages, QUERIES, SuffixEncoder(shop.tokenizer), lambda word: 0.5)


def _matcher(shop: Workshop) -> tuple[object, Matcher]:
    torch.manual_seed(0)
    model = build(shop.tokenizer, SIZES)
    lm = model.model.language_model
    with torch.no_grad():  # so that nothing is small by accident of initialisation
        for name, p in lm.named_parameters():
            if "layers" in name and p.ndim == 2:
                p.normal_(0, 0.2)
    depths = Depths(SIZES.reranker_layers, SIZES.band)
    return model, match_train.new_matcher(shop.tokenizer, lm, model.config.image_token_id, depths)


@pytest.fixture(autouse=True)
def pages_as_small_as_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen as they are drawn: an exported pair would enlarge pages of so few windows."""
    monkeypatch.setattr(export, "MIN_PIXELS", 4 * 32 * 32)


def _page(batch: MatchBatch, index: int) -> Image.Image:
    assert batch.windows is not None
    rows, cols = batch.grid[0] // 8, batch.grid[1] // 8
    tiles = batch.windows[index].view(rows, cols, 256, 256).transpose(1, 2)
    return Image.fromarray(tiles.reshape(rows * 256, cols * 256).numpy()).convert("RGB")


def test_the_dense_pass_equals_the_stock_forward(shop: Workshop, source: PageSource) -> None:
    model, matcher = _matcher(shop)
    batch = _batch(source, shop)
    encoder = PromptEncoder(shop.tokenizer, QWEN_RERANKER)
    processor = export.image_processor()
    with torch.no_grad():
        visual = eyes.see(model.model.visual, batch.windows, batch.grid)
        ours, _ = matcher(visual, batch, dense=True)
        for b in range(2):
            inputs = processor(images=[_page(batch, b)], return_tensors="pt")
            for q, query in enumerate(QUERIES):
                prompt = encoder.pair(
                    "document-first",
                    instruction=DEFAULT_INSTRUCTION,
                    query=" ".join(query),
                    document=None,
                    n_visual_tokens=visual.shape[1],
                )
                ids = torch.tensor([prompt.ids])
                types = (ids == encoder.image_id).int()
                out = model(input_ids=ids, mm_token_type_ids=types, **inputs).logits[0, -1]
                stock = out[encoder.positive_id] - out[encoder.negative_id]
                assert ours[b, q].item() == pytest.approx(stock.item(), abs=2e-3)


def test_the_mini_pass_equals_the_engine_on_the_exported_pair(
    shop: Workshop, source: PageSource, tmp_path: Path
) -> None:
    model, matcher = _matcher(shop)
    batch = _batch(source, shop)
    with torch.no_grad():
        visual = eyes.see(model.model.visual, batch.windows, batch.grid)
        ours, _ = matcher(visual, batch, dense=False)
    section = export.trained_section(SIZES, keep_ratio=1.0)
    export.export(model, shop.tokenizer, tmp_path / "tiny-reranker", TRAINING, section)
    reranker = MiniReranker.from_pretrained(tmp_path / "tiny-reranker", store=tmp_path / "store")
    assert (reranker.config.band, reranker.config.exit_layer) == (SIZES.band, SIZES.band[1])
    reranker = reranker.with_config(
        RerankConfig(
            band=SIZES.band,
            exit_layer=SIZES.band[1],
            keep_ratio=1.0,
            pruner="none",
            kv_dtype="fp32",
        )
    )
    files = [tmp_path / f"p{b}.png" for b in range(2)]
    for b, file in enumerate(files):
        _page(batch, b).save(file)
    reranker.add(files)
    for q, query in enumerate(QUERIES):
        hits = {hit.page.source: hit.logit for hit in reranker.rank(" ".join(query))}
        theirs = np.array([hits["p0.png"], hits["p1.png"]])
        # The checkpoint is stored in float16: weights are rounded once.
        assert np.abs(theirs - ours[:, q].numpy()).max() < 0.05, (theirs, ours[:, q])


def test_the_embedder_equals_the_engine_on_the_exported_pair(
    shop: Workshop, source: PageSource, tmp_path: Path
) -> None:
    from mrr.model.embedder import Embedder
    from mrr.model.load import load_model

    embedder = fresh_embedder(shop.tokenizer, SIZES)
    batch = _batch(source, shop)
    model = build(shop.tokenizer, SIZES, embedder=True)
    export.join(model, model.model.visual, embedder.lm)
    with torch.no_grad():
        visual = eyes.see(model.model.visual, batch.windows, batch.grid)
        vectors, importance = embedder.pages(visual, batch.grid)
        asked = embedder.queries([" ".join(query) for query in QUERIES])
    export.export(model, shop.tokenizer, tmp_path / "tiny-embedder", TRAINING, {})
    engine = Embedder(load_model(tmp_path / "tiny-embedder"))
    for b in range(2):
        vector, attention = embed(engine, _page(batch, b))
        assert vector == pytest.approx(vectors[b].numpy(), abs=5e-3)
        assert attention.reshape(-1) == pytest.approx(importance[b].numpy(), rel=0.02, abs=1e-5)
    for q, query in enumerate(QUERIES):
        assert engine.embed_query(" ".join(query)) == pytest.approx(asked[q].numpy(), abs=5e-3)


def test_pruned_cells_cannot_change_a_score(shop: Workshop, source: PageSource) -> None:
    _, matcher = _matcher(shop)
    batch = _batch(source, shop)
    visual = torch.randn(2, batch.grid[0] * batch.grid[1], SIZES.dim)
    kept = torch.arange(visual.shape[1]).expand(2, -1) % 2 == 0
    changed = torch.where(kept[..., None], visual, torch.randn_like(visual))
    with torch.no_grad():
        first, _ = matcher(visual, batch, dense=False, kept=kept)
        second, _ = matcher(changed, batch, dense=False, kept=kept)
        everything, _ = matcher(changed, batch, dense=False)
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(first, everything, atol=1e-3)


def test_dropping_pruned_tokens_is_the_same_as_masking_them(
    shop: Workshop, source: PageSource
) -> None:
    _, matcher = _matcher(shop)
    batch = _batch(source, shop)
    visual = torch.randn(2, batch.grid[0] * batch.grid[1], SIZES.dim)
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(visual.shape[:2], generator=generator).argsort(1) < visual.shape[1] // 2
    with torch.no_grad():
        score, seen = matcher(visual, batch, dense=False, kept=kept)
    before = len(matcher.prefix_ids)
    layer = SIZES.band[0]
    masked = _masked_scores(matcher, visual, batch, kept)
    assert torch.allclose(score, masked, atol=1e-3), (score, masked)
    matcher.train()
    _, seen = matcher(visual, batch, dense=False, kept=kept)
    on_cells = seen.page_attention[layer][..., before : before + visual.shape[1]]
    assert on_cells[0][..., ~kept[0]].max() == 0 < on_cells[0][..., kept[0]].min()


def _masked_scores(
    matcher: Matcher, visual: torch.Tensor, batch: MatchBatch, kept: torch.Tensor
) -> torch.Tensor:
    """Scores by transformers' own layers on whole pages, the pruned columns hidden by masks."""
    lm, band = matcher.lm, SIZES.band
    columns = torch.nn.functional.pad(kept, (len(matcher.prefix_ids), 1), value=True)
    whole = matcher.prefixes(visual, batch.grid)
    n_page = whole.n_whole
    out = torch.zeros(len(visual), len(batch.ids))
    for b in range(len(visual)):
        for q, (ids, length) in enumerate(zip(batch.ids, batch.length, strict=True)):
            hidden = torch.cat([whole.hidden[b], lm.embed_tokens(ids[:length])])[None]
            start = int(whole.positions.max()) + 1
            text = (start + torch.arange(int(length))).expand(3, -1)
            positions = torch.cat([whole.positions[:, b], text], 1)[:, None]
            n = hidden.shape[1]
            joint = torch.full((n, n), -1e9).triu(1)
            joint[:, :n_page][:, ~columns[b]] = -1e9
            alone = joint.clone()
            alone[n_page:, :n_page] = -1e9
            rope = lm.rotary_emb(hidden, positions)
            with torch.no_grad():
                for i in range(band[1]):
                    mask = (joint if band[0] <= i < band[1] else alone)[None, None]
                    layer = lm.layers[i]
                    hidden = layer(hidden, position_embeddings=rope, attention_mask=mask)
                last = lm.norm(hidden[0, -1])
            yes, no = matcher.yes_no
            out[b, q] = last @ (lm.embed_tokens.weight[yes] - lm.embed_tokens.weight[no])
    return out
