"""A saved explanation has every number, and says what it is of."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from mrr import MiniReranker
from mrr.config import RerankConfig
from mrr.explain.saving import save
from tests.tiny import picture


def test_a_saved_explanation_has_every_array_and_what_it_is_of(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    page = reranker.add(picture(0), scope="a secret").pages[0].page
    why = reranker.explain("blue page", page, scopes=["a secret"], occlusion=True, n_random=2)
    save(why, tmp_path / "why.npz")
    with np.load(tmp_path / "why.npz") as file:
        kept, about = dict(file), json.loads(str(file["about"]))
    trace, measured = why.attention, why.occlusion
    assert measured is not None
    assert kept.keys() - {"about"} == {
        "keep.kept", "keep.importance", "lens.mini", "lens.dense", "attention.mass",
        "attention.sinks", "occlusion.delta", "occlusion.measured", "occlusion.random_deltas",
        *(
            f"attention.{maps}.{layer}"
            for maps in ("page_maps", "head_maps", "neutral_maps", "neutral_head_maps")
            for layer in range(*why.lens.band)
        ),
    }  # fmt: skip
    layer = why.lens.band[0]
    for name, array in (
        ("keep.kept", why.keep.kept),
        ("lens.dense", why.lens.dense),
        ("attention.mass", trace.mass),
        (f"attention.head_maps.{layer}", trace.head_maps[layer]),
        ("occlusion.random_deltas", measured.random_deltas),
    ):
        assert array is not None and kept[name].dtype == array.dtype
        np.testing.assert_array_equal(kept[name], array)
    assert about["query"] == "blue page" and about["logit"] == why.logit
    assert about["attention.tokens"] == list(trace.tokens)
    assert about["occlusion.top_deltas.attention"] == measured.top_deltas["attention"]
    assert about["page.page_id"] == page.page_id and "a secret" not in json.dumps(about)
    config = {name.removeprefix("config."): about[name] for name in about if "config." in name}
    assert RerankConfig(**{**config, "band": tuple(config["band"])}) == reranker.config


def test_two_saved_explanations_differ_in_what_differed(
    reranker: MiniReranker, tmp_path: Path
) -> None:
    page = reranker.add(picture(0)).pages[0]
    other = reranker.with_config(replace(reranker.config, kv_dtype="fp32"))
    about = []
    for name, engine in (("a", reranker), ("b", other)):
        save(engine.explain("blue page", page, dense=False), tmp_path / name)
        with np.load(tmp_path / f"{name}.npz") as file:
            about.append(json.loads(str(file["about"])))
            assert "lens.dense" not in file and "occlusion.delta" not in file
    ours, theirs = about
    assert {key for key in ours if ours[key] != theirs[key]} <= {"config.kv_dtype", "logit"}
    assert (ours["config.kv_dtype"], theirs["config.kv_dtype"]) == ("int8", "fp32")
    assert ours["model"] == reranker.loaded.name and ours["model"] != ours["embedder"]
    assert asdict(reranker.config).keys() == {
        key.removeprefix("config.") for key in ours if key.startswith("config.")
    }
