"""The engine equals transformers' own forward pass, except where a named part says otherwise.

Every claim here is checked on four families of random checkpoints in float32. The tolerance of
1e-4 stands against logits of a scale of 1 to 5, and against differences of 0.1 to 5 when a part
is really switched on, which the last tests of the file establish.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrr.model.band import run_band, run_before_band
from mrr.model.joint import run_joint
from mrr.model.load import LoadedModel, load_model
from mrr.model.prompt import QWEN_RERANKER, PromptEncoder
from mrr.model.scorer import Scorer
from tests.model.helpers import (
    DENSE,
    PRUNED,
    QUERY,
    SIZES,
    SPARSE,
    STAGES,
    case,
    cases,
    scorer,
    stock_logit,
    visual,
)
from tests.tiny import DEVICE, picture

TOLERANCE = 1e-4


def assert_close(actual, expected) -> None:
    actual, expected = (
        np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x, float) for x in (actual, expected)
    )
    difference = np.abs(actual - expected)
    assert difference.max() <= TOLERANCE, f"max {difference.max():.2e} mean {difference.mean():.2e}"


def between_segments(c, s) -> torch.Tensor:
    """(1, 1, n, n): causal, and the second segment does not see the first."""
    n = len(c.prompt.ids)
    mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
    mask[..., c.prompt.cut :, : c.prompt.cut] = float("-inf")
    return mask


def without_pruned(c, s) -> torch.Tensor:
    """(1, 1, n, n): causal, and nothing but a pruned token itself sees a pruned token."""
    n = len(c.prompt.ids)
    mask = torch.full((1, 1, n, n), float("-inf")).triu(1)
    image_rows = np.flatnonzero(np.asarray(c.prompt.ids) == s.encoder.image_id)
    dropped = np.delete(image_rows, c.kept)
    mask[..., dropped] = float("-inf")
    mask[..., dropped, dropped] = 0.0
    return mask


def test_cached_path_with_everything_on_equals_the_stock_forward(loaded: LoadedModel) -> None:
    s = scorer(loaded, DENSE)
    for c in cases(s):
        assert_close(s.score([QUERY], [c.page], STAGES)[0], stock_logit(loaded, s, c, {}))


def test_the_loaded_model_equals_a_plain_eager_one(loaded: LoadedModel, checkpoints) -> None:
    """Nothing done at loading (attention function, dtype, device) changes the stock forward."""
    stock = type(loaded.model).from_pretrained(loaded.name, attn_implementation="eager")
    stock = stock.eval().to(loaded.device)
    s = scorer(loaded, DENSE)
    for c in cases(s):
        ids = torch.tensor([c.prompt.ids], device=loaded.device)
        with torch.inference_mode():
            logits = stock(
                input_ids=ids,
                pixel_values=c.pixels.values.to(loaded.device),
                image_grid_thw=c.pixels.grid_thw.to(loaded.device),
                mm_token_type_ids=(ids == s.encoder.image_id).int(),
            ).logits[0, -1]
        expected = logits[s.encoder.positive_id] - logits[s.encoder.negative_id]
        assert_close(s.score_original([QUERY], [c.pixels], STAGES)[0], expected)


def test_original_system_equals_the_stock_logits(loaded: LoadedModel) -> None:
    s = scorer(loaded, DENSE)
    for c in cases(s):
        got = s.score_original([QUERY], [c.pixels], STAGES)[0]
        assert_close(got, stock_logit(loaded, s, c, {}))


def test_original_system_gives_the_same_logits_in_a_batch(loaded: LoadedModel) -> None:
    s = scorer(loaded, DENSE)
    every = cases(s)
    batch = s.score_original([QUERY] * len(every), [c.pixels for c in every], STAGES)
    alone = [s.score_original([QUERY], [c.pixels], STAGES)[0] for c in every]
    assert_close(batch, alone)


def test_band_and_exit_equal_the_stock_forward_under_a_mask_per_layer(loaded: LoadedModel) -> None:
    s = scorer(loaded, SPARSE)
    for c in cases(s):
        masks = {i: between_segments(c, s) for i in (0, 1, 4, 5)}
        assert_close(s.score([QUERY], [c.page], STAGES)[0], stock_logit(loaded, s, c, masks))


def test_band_that_ends_at_the_exit_equals_the_stock_forward(loaded: LoadedModel) -> None:
    s = scorer(loaded, replace(DENSE, band=(2, 5), exit_layer=5))
    for c in cases(s):
        masks = {i: between_segments(c, s) for i in (0, 1)}
        assert_close(s.score([QUERY], [c.page], STAGES)[0], stock_logit(loaded, s, c, masks))


def test_pages_of_different_sizes_score_in_a_batch_as_they_do_alone(loaded: LoadedModel) -> None:
    for config in (DENSE, SPARSE):
        s = scorer(loaded, config)
        pages = [c.page for c in cases(s)]
        alone = [s.score([QUERY], [page], STAGES)[0] for page in pages]
        assert_close(s.score([QUERY], pages, STAGES), alone)


def test_pruned_tokens_equal_a_masked_dense_pass_at_the_original_positions(
    loaded: LoadedModel,
) -> None:
    s = scorer(loaded, PRUNED)
    for c in cases(s):
        masks = {i: without_pruned(c, s) for i in range(loaded.n_layers)}
        assert_close(s.score([QUERY], [c.page], STAGES)[0], stock_logit(loaded, s, c, masks))


def test_all_parts_together_equal_the_joint_reference(loaded: LoadedModel) -> None:
    s = scorer(loaded, replace(SPARSE, pruner="random", keep_ratio=0.4))
    for c in cases(s):
        hidden = run_joint(
            loaded, s.encoder, s.config, c.prompt, c.pixels, visual(loaded, c), c.kept
        )
        assert_close(s.score([QUERY], [c.page], STAGES)[0], s.head.logits(hidden)[0])


def test_query_first_with_a_band_equals_the_stock_forward_under_a_mask(loaded: LoadedModel) -> None:
    s = scorer(loaded, replace(SPARSE, order="query-first"))
    assert not s.image_first
    for c in cases(s):
        masks = {i: between_segments(c, s) for i in (0, 1, 4, 5)}
        got = s.score_joint(QUERY, c.sight, c.kept, STAGES)
        assert_close(got, stock_logit(loaded, s, c, masks))


def test_many_texts_for_one_picture_score_as_each_does_alone(loaded: LoadedModel) -> None:
    texts = ["a", "a much longer candidate text than the first", "blue page"]
    for config in (DENSE, SPARSE):
        encoder = PromptEncoder(loaded.tokenizer, QWEN_RERANKER)
        s = Scorer(loaded, encoder, config, image_is="query")
        c = case(s, picture(3), texts[0])
        batch = s.score(texts, [c.page], STAGES)
        assert_close(batch, [s.score([t], [c.page], STAGES)[0] for t in texts])
        stock = [stock_logit(loaded, s, case(s, picture(3), t), {}) for t in texts]
        if config is DENSE:
            assert_close(batch, stock)


def test_many_texts_in_several_batches_score_as_each_does_alone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a", "a much longer candidate text than the first", "blue page", "x", "a red page"]
    for config in (DENSE, SPARSE):
        encoder = PromptEncoder(loaded.tokenizer, QWEN_RERANKER)
        s = Scorer(loaded, encoder, config, image_is="query")
        page = case(s, picture(3)).page
        alone = [s.score([text], [page], STAGES)[0] for text in texts]
        sizes: list[int] = []

        def counted(*given, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(len(given[-1]))
            return run_band(*given)

        with monkeypatch.context() as patched:
            patched.setattr("mrr.model.scorer.run_band", counted)
            patched.setattr("mrr.model.scorer._MAX_BATCH_COLUMNS", 384)
            batched = s.score(texts, [page], STAGES)
        assert len(sizes) > 1 and max(sizes) > 1 and sum(sizes) == len(texts)
        assert_close(batched, alone)
        assert np.ptp(alone) > 100 * TOLERANCE


def test_the_traced_pass_gives_the_logits_of_the_fast_pass(loaded: LoadedModel) -> None:
    for config in (DENSE, SPARSE):
        s = scorer(loaded, config)
        pages = [c.page for c in cases(s)]
        layers: list[int] = []

        def note(layer: int, hidden: torch.Tensor, layers: list[int] = layers) -> None:
            layers.append(layer)

        suffix = run_before_band(loaded, s.config, [s.prompt(QUERY, 1).suffix], observe=note)
        hidden = run_band(
            loaded,
            s.config,
            suffix,
            s.instruction(),
            pages,
            observe=note,
        )
        assert layers == list(range(s.config.exit_layer))
        assert_close(s.head.logits(hidden), s.score([QUERY], pages, STAGES))


def test_a_page_encoded_in_between_changes_nothing(loaded: LoadedModel) -> None:
    """The stock model remembers the last page's position offset; the engine must not."""
    s = scorer(loaded, DENSE)
    c = case(s, picture(0, SIZES[0]))
    before = s.score([QUERY], [c.page], STAGES)[0]
    other = case(s, picture(1, SIZES[3]))
    s.score_original([QUERY], [other.pixels], STAGES)
    assert s.score([QUERY], [c.page], STAGES)[0] == before
    assert s.score_original([QUERY], [c.pixels], STAGES)[0] == pytest.approx(before, abs=TOLERANCE)


def test_two_pictures_never_share_page_kv(loaded: LoadedModel) -> None:
    s = scorer(loaded, SPARSE)
    one, two = (case(s, picture(i, SIZES[0])).page for i in (0, 1))
    assert not torch.equal(one.k.values, two.k.values)
    pair = s.score([QUERY], [one, two], STAGES)
    swapped = s.score([QUERY], [two, one], STAGES)
    assert_close(pair, swapped[::-1])
    assert abs(pair[0] - pair[1]) > 10 * TOLERANCE


def test_int8_drift_stays_small_against_the_scale_of_the_logits(loaded: LoadedModel) -> None:
    exact = scorer(loaded, SPARSE)
    stored = scorer(loaded, replace(SPARSE, kv_dtype="int8"))
    drift = [
        abs(
            exact.score([QUERY], [case(exact, picture(i)).page], STAGES)[0]
            - stored.score([QUERY], [case(stored, picture(i)).page], STAGES)[0]
        )
        for i in range(4)
    ]
    print(f"int8 drift on the logit: max {max(drift):.4f}")
    assert 0 < max(drift) < 0.1


def test_each_part_really_changes_the_logit(loaded: LoadedModel) -> None:
    """What keeps the tests above from being vacuous."""
    dense = scorer(loaded, DENSE)
    reference = [dense.score([QUERY], [c.page], STAGES)[0] for c in cases(dense)]
    for config in (
        replace(DENSE, band=(2, 6)),
        replace(DENSE, exit_layer=5, band=(0, 5)),
        PRUNED,
    ):
        s = scorer(loaded, config)
        changed = [s.score([QUERY], [c.page], STAGES)[0] for c in cases(s)]
        assert np.abs(np.subtract(changed, reference)).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "tolerance"),
    [(torch.bfloat16, "bf16", 0.1), (torch.float16, "fp16", 0.02)],
)
def test_half_precision_agrees_with_itself_between_cached_and_stock(
    checkpoints, dtype: torch.dtype, kv_dtype: str, tolerance: float
) -> None:
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=dtype)
    s = scorer(loaded, replace(DENSE, kv_dtype=kv_dtype))
    for c in cases(s):
        cached = s.score([QUERY], [c.page], STAGES)[0]
        stock = s.score_original([QUERY], [c.pixels], STAGES)[0]
        assert abs(cached - stock) < tolerance * max(1.0, abs(stock))


def test_yes_and_no_are_subtracted_without_rounding_in_half_precision(checkpoints) -> None:
    loaded = load_model(checkpoints["qwen3_vl"], device=DEVICE, dtype=torch.bfloat16)
    s, rows = scorer(loaded, DENSE), loaded.model.lm_head.weight
    yes, no = rows[s.encoder.positive_id], rows[s.encoder.negative_id]
    units = torch.eye(len(yes), dtype=torch.bfloat16, device=loaded.device)
    direction = s.head.normed_logits(units)
    assert direction.dtype == torch.float32
    assert torch.equal(direction, yes.float() - no.float())
    assert not torch.equal(direction, (yes - no).float())
