"""What all plotly figures share: no background of their own, quiet grids, fixed heights.

Gradio 6.31 draws them with plotly.js 3.3; nothing newer than that is used.
"""

from __future__ import annotations

import html

import gradio as gr
import plotly.graph_objects as go

from ui.colour import GRID, TEXT

_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def plain(text: object) -> str:
    """Text for a figure's labels, which plotly would otherwise read for tags."""
    return html.escape(str(text), quote=False)


def warm() -> gr.Plot:
    """An empty chart out of sight, to be made visible once there is nothing more urgent.

    Gradio fetches and runs plotly with the first chart of a page, which takes up to seconds: with
    this one, so that the first that somebody wants to see is there at once.
    """
    nothing = go.Figure(layout={"template": "none", "width": 10, "height": 10})
    return gr.Plot(nothing, visible=False, elem_id="warm", show_label=False)


def chart(name: str) -> gr.Plot:
    """Room for a figure. name: what it shows, for who does not see it (ui/assets/js/shell.js)."""
    return gr.Plot(label=name, show_label=False, visible=False, elem_classes="mrr-figure")


def finish(figure: go.Figure, height: int) -> go.Figure:
    """The common look. height: pixels, fixed, so that the page does not jump when it arrives."""
    figure.update_layout(
        height=height,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": _FONT, "size": 12, "color": TEXT},
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        hoverlabel={"bgcolor": "#14181f", "bordercolor": "#14181f", "font": {"color": "#f4f6f9"}},
        legend={"orientation": "h", "x": 0, "y": -0.18, "yanchor": "top", "font": {"size": 12}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GRID, "activecolor": TEXT},
        dragmode=False,
    )
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "title": {"standoff": 8},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
