"""The components of the app, by the part of the page where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.views import (
    bands,
    history,
    inspector,
    labels,
    latency,
    layers,
    ranking,
    settings,
    upload,
)

Values = dict[Any, Any]  # component -> value or update, of those that change


@dataclass(frozen=True, slots=True)
class RankTab:
    """Every component of the first tab, and those elsewhere that follow a ranking."""

    tabs: gr.Tabs
    header: gr.HTML
    query: gr.Textbox
    button: gr.Button
    meanwhile: gr.HTML
    samples: gr.HTML
    gallery: gr.HTML
    results: gr.Row
    ranking: ranking.RankingView
    chosen: gr.HTML
    why: gr.Tabs
    inspector: inspector.InspectorView
    layers: layers.LayersView
    bands: bands.BandsView
    warm: gr.Plot
    labels: labels.LabelsView
    history: history.HistoryView
    download: gr.HTML

    @property
    def detail(self) -> list[gr.components.Component]:
        """The name of the selected page and its three views."""
        views = (*self.inspector.outputs, *self.layers.outputs, *self.bands.outputs)
        traces = (self.inspector.trace, self.layers.trace, self.bands.trace)
        return [self.chosen, *views, *traces]

    @property
    def ranked(self) -> list[Any]:
        """What a new ranking changes."""
        view = self.ranking
        return [
            self.tabs, self.query, self.samples, self.gallery, self.results, view.summary,
            view.halt, view.hits, view.estimate, view.compare, view.stop, view.only_changes,
            view.system, self.inspector.keep_ratio, self.inspector.pruner, self.labels.scores,
            self.history.runs, *self.detail,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class OtherTabs:
    """Components of the other tabs and the side bar."""

    upload: upload.UploadView
    latency: latency.LatencyView
    settings: settings.SettingsView
