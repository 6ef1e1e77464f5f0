"""The side bar: presets and switches, and what a change will encode again before it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from mrr.config import KVDtype, Pruner, RerankConfig, paper_band
from mrr.errors import InputRejected
from ui.components import heading, text
from ui.describe import LAYERS_ARE
from ui.markup import bar, count, duration, esc, note
from ui.session import DEFAULT_TOP_K, Settings
from ui.workbench import Plan

if TYPE_CHECKING:
    from mrr.reranker import MiniReranker

PRESETS = ("Paper default", "Dense", "Fastest")
_FASTEST_KEEP = 0.25
_MOST_CANDIDATES = 100
# Sliders that wait for the model: Gradio's own reset would go to what stood there before it came.
_LATER: dict[str, Any] = {"interactive": False, "buttons": []}


@dataclass(frozen=True, slots=True)
class SettingsView:
    """The switches. model and embedder are hidden where visitors may not load models."""

    preset: gr.Radio
    exit_layer: gr.Slider
    band_start: gr.Slider
    band_end: gr.Slider
    keep_ratio: gr.Slider
    pruner: gr.Dropdown
    kv_dtype: gr.Dropdown
    top_k: gr.Slider
    instruction: gr.Textbox
    auto_trace: gr.Checkbox
    model: gr.Textbox
    embedder: gr.Textbox
    plan: gr.HTML
    apply: gr.Button
    stop: gr.Button

    @property
    def values(self) -> list[gr.components.Component]:
        """What `read` takes, in its order."""
        return [
            self.exit_layer, self.band_start, self.band_end, self.keep_ratio, self.pruner,
            self.kv_dtype, self.top_k, self.instruction, self.auto_trace, self.model, self.embedder,
        ]  # fmt: skip

    @property
    def of_model(self) -> list[gr.components.Component]:
        """What the model brings with it: see `switches`."""
        return [
            self.exit_layer, self.band_start, self.band_end, self.keep_ratio, self.pruner,
            self.kv_dtype, self.instruction, self.preset, self.plan, self.apply,
        ]  # fmt: skip


def build(models_allowed: bool) -> SettingsView:
    """Every switch of the engine. Those that depend on it are off until `switches` sets them."""
    usual = RerankConfig()
    heading("Settings")
    preset = gr.Radio(
        list(PRESETS),
        value=PRESETS[0],
        label="Preset, by arXiv 2606.10759",
        interactive=False,
        elem_id="preset",
        elem_classes="mrr-seg",
        show_label=False,
        container=False,
    )
    keep_ratio = gr.Slider(
        0.05, 1.0, usual.keep_ratio, step=0.05, label="Keep ratio", elem_id="keep-ratio", **_LATER,
        info="Share of a page's visual tokens that is kept.",
    )  # fmt: skip
    pruner = gr.Dropdown(
        ["embedder", "uniform", "random", "none"], value=usual.pruner, label="Chosen by",
        elem_id="pruner", interactive=False,
        info="embedder: its attention; uniform, random: controls; none: keep all.",
    )  # fmt: skip
    exit_layer = gr.Slider(
        0, 1, 0, step=1, label="Exit after layer", elem_id="exit-layer", **_LATER,
        info=f"The layers after it never run. {LAYERS_ARE}",
    )  # fmt: skip
    band_start = gr.Slider(
        0, 1, 0, step=1, label="Band from layer", elem_id="band-start", **_LATER,
        info="First layer in which the query sees the page.",
    )  # fmt: skip
    band_end = gr.Slider(
        0, 1, 0, step=1, label="Band to layer", elem_id="band-end", **_LATER,
        info="Last layer in which it does; not after the exit.",
    )  # fmt: skip
    kv_dtype = gr.Dropdown(
        ["int8", "bf16", "fp16", "fp32"], value=usual.kv_dtype, label="Precision of stored K/V",
        elem_id="kv-dtype", interactive=False,
    )  # fmt: skip
    top_k = gr.Slider(
        1, _MOST_CANDIDATES, DEFAULT_TOP_K, step=1, label="Candidates", elem_id="top-k",
        info="Pages that the first stage passes on.",
    )  # fmt: skip
    instruction = gr.Textbox(
        usual.instruction, label="Instruction", lines=2, max_length=400, elem_id="instruction",
        interactive=False,
    )  # fmt: skip
    auto_trace = gr.Checkbox(
        True, label="Trace the selected page by itself", elem_id="auto-trace",
        info="A separate pass, never timed, for the maps.",
    )  # fmt: skip
    with gr.Accordion("Model", open=False, visible=models_allowed):
        model = gr.Textbox(
            "",
            label="Reranker",
            placeholder="bundled; or a folder, or hub id@commit",
            elem_id="model",
        )
        embedder = gr.Textbox(
            "",
            label="Embedder",
            placeholder="none; or a folder, or hub id@commit",
            elem_id="embedder",
        )
    with gr.Column(elem_id="apply-bar"):  # in sight wherever the switches are scrolled to
        plan = text("plan", note("One moment: these come with the model."))
        apply = gr.Button("Apply", variant="primary", interactive=False, elem_id="apply")
        stop = gr.Button("Stop encoding", visible=False, elem_id="stop-encoding")
    return SettingsView(
        preset, exit_layer, band_start, band_end, keep_ratio, pruner, kv_dtype, top_k, instruction,
        auto_trace, model, embedder, plan, apply, stop,
    )  # fmt: skip


def read(
    base: RerankConfig,
    another: bool,
    exit_layer: float,
    band_start: float,
    band_end: float,
    keep_ratio: float,
    pruner: Pruner,
    kv_dtype: KVDtype,
    top_k: float,
    instruction: str,
    auto_trace: bool,
    model: str,
    embedder: str,
) -> Settings:
    """Settings from the switches; InputRejected in words for what cannot be.

    base: of the model in use. another: whether model and embedder name one that is not in use yet:
    its depth is unknown, so it begins with its own band and exit. exit_layer, band_start and
    band_end are layers as people count them: from 0, ends included.
    """
    numbers = (exit_layer, band_start, band_end, keep_ratio, top_k)
    if any(number is None for number in numbers):  # a number's box was emptied
        raise InputRejected("A number is missing in the settings. Type it, or move its slider.")
    whole = {
        "Exit after layer": exit_layer,
        "Band from layer": band_start,
        "Band to layer": band_end,
        "Candidates": top_k,
    }
    for name, number in whole.items():  # the box of a slider takes what lies between its steps
        if number != int(number):
            raise InputRejected(f"{name} is {number:g}; it must be a whole number.")
    if not 1 <= top_k <= _MOST_CANDIDATES:
        raise InputRejected(f"Candidates is {top_k:g}; it must be from 1 to {_MOST_CANDIDATES}.")
    if not instruction.strip():
        raise InputRejected("The instruction is empty. Say what counts as relevant.")
    first, last, end = int(band_start), int(band_end), int(exit_layer)
    if not another and not first <= last <= end:
        raise InputRejected(
            f"The band is set from layer {first} to {last}; it must lie within the layers that "
            f"run, 0 to {end}."
        )
    try:
        config = replace(
            base,
            # Another model has another depth: its own band and exit.
            exit_layer=None if another else end + 1,
            band=None if another else (first, last + 1),
            keep_ratio=float(keep_ratio),
            pruner=pruner,
            kv_dtype=kv_dtype,
            instruction=instruction.strip(),
        )
    except ValueError as error:
        raise InputRejected(str(error)) from error
    return Settings(config, int(top_k), model.strip(), embedder.strip(), bool(auto_trace))


def preset_values(name: str, base: RerankConfig, n_layers: int) -> tuple[int, int, int, float, str]:
    """(exit, band from, band to, keep ratio, pruner) of a preset, as the switches show them.

    base: what the model brings.
    """
    if name == "Dense":
        return n_layers - 1, 0, n_layers - 1, 1.0, "none"
    start, end = base.band or paper_band(n_layers)
    keep, pruner = base.keep_ratio, base.pruner
    if name == "Fastest":
        keep, pruner = _FASTEST_KEEP, "embedder" if base.pruner == "none" else base.pruner
    return (base.exit_layer or end) - 1, start, end - 1, keep, pruner


def preset_of(values: Sequence[Any], base: RerankConfig, n_layers: int) -> str | None:
    """The preset that switches, as `read` takes them, stand for, if any."""
    shown = tuple(values[:5])
    return next((name for name in PRESETS if preset_values(name, base, n_layers) == shown), None)


def switches(view: SettingsView, engine: MiniReranker) -> dict[gr.components.Component, object]:
    """Every switch as an engine has it, and on."""
    config = engine.config
    values = {
        view.keep_ratio: config.keep_ratio,
        view.pruner: config.pruner,
        view.kv_dtype: config.kv_dtype,
        view.instruction: config.instruction,
    }
    return {
        **{switch: gr.update(value=value, interactive=True) for switch, value in values.items()},
        **depth(view, engine),
        view.preset: gr.update(interactive=True),
        view.plan: "",
        view.apply: gr.update(interactive=True),
    }


def depth(view: SettingsView, engine: MiniReranker) -> dict[gr.components.Component, object]:
    """The switches of depth as an engine has them, and on."""
    last, sliders = engine.loaded.n_layers - 1, (view.exit_layer, view.band_start, view.band_end)
    return {
        slider: gr.update(maximum=last, value=value, interactive=True)
        for slider, value in zip(sliders, depth_values(engine), strict=True)
    }


def depth_values(engine: MiniReranker) -> tuple[int, int, int]:
    """(exit, band from, band to) of an engine, as `read` takes them."""
    config = engine.config
    assert config.band is not None and config.exit_layer is not None
    return config.exit_layer - 1, config.band[0], config.band[1] - 1


def values_of(taken: Settings, engine: MiniReranker) -> tuple[object, ...]:
    """Every switch of settings and their engine, as `read` takes them."""
    config = engine.config
    return (
        *depth_values(engine), config.keep_ratio, config.pruner, config.kv_dtype, taken.top_k,
        config.instruction, taken.auto_trace, taken.model, taken.embedder,
    )  # fmt: skip


def plan(change: Plan) -> str:
    """What Apply will do, in a sentence."""
    if not change.n_missing:
        return note("Nothing has to be encoded again: every page is cached for these settings.")
    cost = "" if change.seconds is None else f", about {duration(change.seconds * 1e3)}"
    return note(
        f"Apply will encode {change.n_missing} of {count(change.n_pages, 'page')} again{cost}. "
        "What is cached for other settings stays."
    )


def refused(sentence: str) -> str:
    """Why Apply has changed nothing."""
    return f'<p class="mrr mrr-note" role="alert"><b>Not applied.</b> {esc(sentence)}</p>'


def encoding(done: int, total: int) -> str:
    """Progress of that."""
    if total == 0:
        return note("Applied. Every page was cached already.")
    if done == total:
        return note(f"Applied. {count(total, 'page')} encoded.")
    return note(f"Encoding page {done + 1} of {total}") + bar(done / total, "Pages")
