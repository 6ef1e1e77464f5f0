"""The embedder's importance equals eager attention maps, and its vectors the stock forward."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from mrr.model.embedder import DEFAULT_INSTRUCTION, Embedder
from mrr.model.load import LoadedModel
from tests.model.helpers import embed
from tests.tiny import picture


def stock(loaded: LoadedModel, embedder: Embedder, image, text=None):
    """Last hidden state and all attention maps of a plain eager model."""
    model = type(loaded.model).from_pretrained(loaded.name, attn_implementation="eager")
    model = model.eval().to(loaded.device)
    inputs = {}
    n = 0
    if image is not None:
        from mrr.model.vision import preprocess

        pixels = preprocess(loaded, image, loaded.min_pixels, loaded.max_pixels)
        n = pixels.n_tokens
        inputs = {
            "pixel_values": pixels.values.to(loaded.device),
            "image_grid_thw": pixels.grid_thw.to(loaded.device),
        }
    ids = embedder.encoder.embed(DEFAULT_INSTRUCTION, text, n)
    ids = torch.tensor([ids], device=loaded.device)
    with torch.inference_mode():
        out = model.model(
            input_ids=ids,
            mm_token_type_ids=(ids == embedder.encoder.image_id).int(),
            output_attentions=True,
            **inputs,
        )
    return ids[0], out


def test_importance_equals_the_mean_of_eager_attention_maps(loaded: LoadedModel) -> None:
    embedder = Embedder(loaded)
    image = picture(5, (256, 128))
    vector, importance = embed(embedder, image)
    ids, out = stock(loaded, embedder, image)
    rows = torch.stack([layer[0, :, -1] for layer in out.attentions]).mean((0, 1))
    expected = rows[ids == embedder.encoder.image_id].cpu().numpy()
    assert np.abs(importance.reshape(-1) - expected).max() < 1e-6
    assert importance.shape[0] * importance.shape[1] == len(expected)
    last = torch.nn.functional.normalize(out.last_hidden_state[0, -1], dim=0)
    assert np.abs(vector - last.cpu().numpy()).max() < 1e-5


def test_query_vector_equals_the_stock_forward(loaded: LoadedModel) -> None:
    embedder = Embedder(loaded)
    _, out = stock(loaded, embedder, None, "red fox")
    last = torch.nn.functional.normalize(out.last_hidden_state[0, -1], dim=0)
    assert np.abs(embedder.embed_query("red fox") - last.cpu().numpy()).max() < 1e-5


def test_vectors_have_unit_length_and_tell_pages_apart(qwen3: LoadedModel) -> None:
    embedder = Embedder(qwen3)
    one, two = (embed(embedder, picture(i))[0] for i in (0, 1))
    assert np.linalg.norm(one) == np.float32(1.0) or abs(np.linalg.norm(one) - 1) < 1e-6
    assert np.abs(one - two).max() > 1e-3


def test_vectors_of_another_precision_are_others(qwen3: LoadedModel) -> None:
    halved = replace(qwen3, model=copy.deepcopy(qwen3.model).to(torch.bfloat16))
    one, other = (Embedder(loaded).fingerprint(4, 1024) for loaded in (qwen3, halved))
    assert one != other and one == Embedder(qwen3).fingerprint(4, 1024)
