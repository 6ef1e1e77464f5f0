"""What the band computes, and how often."""

from __future__ import annotations

from dataclasses import replace

from mrr.model.band import run_band, run_before_band
from mrr.model.load import LoadedModel
from tests.model.helpers import DENSE, QUERY, case, scorer
from tests.tiny import picture


def test_a_layer_projects_no_more_rows_than_differ_or_are_asked_for(loaded: LoadedModel) -> None:
    s = scorer(loaded, replace(DENSE, band=(2, 5), exit_layer=5))
    pages = [case(s, picture(i)).page for i in range(3)]
    ids, instruction = s.prompt(QUERY, 1).suffix, s.instruction()
    seen: dict[tuple[int, str], tuple[int, ...]] = {}
    handles = [
        getattr(layer.self_attn, name).register_forward_hook(
            lambda module, args, out, at=(i, name): seen.update({at: tuple(args[0].shape[:2])})
        )
        for i, layer in enumerate(loaded.lm.layers)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    try:
        suffix = run_before_band(loaded, s.config, [ids])
        run_band(loaded, s.config, suffix, instruction, pages)
    finally:
        for handle in handles:
            handle.remove()
    n = len(ids)
    once, each, last = (1, n), (3, n), (3, 1)
    rows = {i: [seen[i, f"{name}_proj"] for name in "qkvo"] for i in (1, 2, 3, 4)}
    assert rows[1] == [once] * 4, "before the band the query runs alone"
    assert rows[2] == [once, once, once, each], "it enters the band the same for every page"
    assert rows[3] == [each] * 4
    assert rows[4] == [last, each, each, last], "only the last token is read at the exit"
    assert (5, "q_proj") not in seen
