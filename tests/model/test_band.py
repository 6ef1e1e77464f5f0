"""What the band computes, and how often."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mrr.model.band import run_band, run_before_band
from mrr.model.fused import FusedAttention
from mrr.model.load import LoadedModel
from tests.model.helpers import DENSE, QUERY, case, scorer
from tests.tiny import picture


def test_a_layer_projects_no_more_rows_than_differ_or_are_asked_for(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scorer(loaded, replace(DENSE, band=(2, 5), exit_layer=5))
    pages = [case(s, picture(i)).page for i in range(3)]
    ids, instruction = s.prompt(QUERY, 1).suffix, s.instruction()
    seen: dict[tuple[int, str], tuple[int, ...]] = {}

    def watch(name: str) -> None:
        projected = getattr(FusedAttention, name)

        def project(own: FusedAttention, normed, cos_sin, **layout):
            seen[own.layer_idx, name] = tuple(normed.shape[:2])
            return projected(own, normed, cos_sin, **layout)

        monkeypatch.setattr(FusedAttention, name, project)

    for name in ("project", "project_q", "project_kv"):
        watch(name)
    handles = [
        layer.self_attn.o_proj.register_forward_hook(
            lambda module, args, out, at=(i, "o"): seen.update({at: tuple(args[0].shape[:2])})
        )
        for i, layer in enumerate(loaded.lm.layers)
    ]
    try:
        suffix = run_before_band(loaded, s.config, [ids])
        run_band(loaded, s.config, suffix, instruction, pages)
    finally:
        for handle in handles:
            handle.remove()
    n = len(ids)
    once, each, last = (1, n), (3, n), (3, 1)
    assert (seen[1, "project"], seen[1, "o"]) == (once, once), "before the band it runs alone"
    assert (seen[2, "project"], seen[2, "o"]) == (once, each), "it enters the same for every page"
    assert (seen[3, "project"], seen[3, "o"]) == (each, each)
    assert (seen[4, "project_q"], seen[4, "o"]) == (last, last), "the exit reads the last token"
    assert seen[4, "project_kv"] == each
    assert (4, "project") not in seen and (5, "project") not in seen
