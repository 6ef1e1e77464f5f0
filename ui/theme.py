"""One designed theme: Gradio's variables pointed at ours, and every style sheet of ui/assets."""

from __future__ import annotations

import inspect
from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).parent / "assets"

# Name of a Gradio variable -> our custom property, which knows light from dark by itself.
_VARIABLES = {
    "body_background_fill": "--mrr-page",
    "body_text_color": "--mrr-ink",
    "body_text_color_subdued": "--mrr-muted",
    "background_fill_primary": "--mrr-surface",
    "background_fill_secondary": "--mrr-page",
    "block_background_fill": "--mrr-surface",
    "block_border_color": "--mrr-line",
    "block_label_background_fill": "--mrr-surface",
    "block_label_text_color": "--mrr-muted",
    "block_title_text_color": "--mrr-ink",
    "block_info_text_color": "--mrr-muted",
    "border_color_primary": "--mrr-line",
    "border_color_accent": "--mrr-mini",
    "border_color_accent_subdued": "--mrr-line",
    "color_accent_soft": "--mrr-mini-soft",
    "color_accent": "--mrr-mini",
    "link_text_color": "--mrr-mini-ink",
    "input_background_fill": "--mrr-surface",
    "input_background_fill_focus": "--mrr-surface",
    "input_border_color": "--mrr-line",
    "input_border_color_focus": "--mrr-mini",
    "input_placeholder_color": "--mrr-muted",
    "panel_background_fill": "--mrr-page",
    "slider_color": "--mrr-mini",
    "checkbox_background_color_selected": "--mrr-mini",
    "checkbox_border_color": "--mrr-dense",
    "checkbox_border_color_selected": "--mrr-mini",
    "checkbox_label_background_fill": "--mrr-surface",
    "checkbox_label_background_fill_hover": "--mrr-sunken",
    "checkbox_label_background_fill_selected": "--mrr-mini-soft",
    "checkbox_label_border_color": "--mrr-line",
    "checkbox_label_border_color_selected": "--mrr-mini",
    "checkbox_label_text_color": "--mrr-ink",
    "checkbox_label_text_color_selected": "--mrr-ink",
    "button_primary_background_fill": "--mrr-mini",
    "button_primary_background_fill_hover": "--mrr-mini-ink",
    "button_primary_border_color": "--mrr-mini",
    "button_primary_text_color": "--mrr-on-mini",
    "button_secondary_background_fill": "--mrr-surface",
    "button_secondary_background_fill_hover": "--mrr-sunken",
    "button_secondary_border_color": "--mrr-line",
    "button_secondary_text_color": "--mrr-ink",
    "table_border_color": "--mrr-line",
    "table_even_background_fill": "--mrr-surface",
    "table_odd_background_fill": "--mrr-surface",
}
_PLAIN = {
    "block_border_width": "1px",
    "block_shadow": "none",
    "block_radius": "10px",
    "block_label_border_width": "0px",
    "button_border_width": "1px",
    "button_large_radius": "8px",
    "button_medium_radius": "8px",
    "button_small_radius": "8px",
    "input_border_width": "1px",
    "input_radius": "8px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "checkbox_label_shadow": "none",
    "section_header_text_weight": "500",
}


def theme() -> gr.themes.Base:
    """Gradio's plain base with our colours, no shadows and the system's own fonts."""
    ours = {name: f"var({prop})" for name, prop in _VARIABLES.items()}
    settable = inspect.signature(gr.themes.Base.set).parameters
    dark = {f"{name}_dark": v for name, v in ours.items() if f"{name}_dark" in settable}
    base = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="gray",
        text_size="md",
        # Fonts by name only: nothing is fetched from anywhere.
        font=("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "SF Mono", "Menlo", "monospace"),
    )
    return base.set(**ours, **dark, **_PLAIN)


def css() -> str:
    """Every style sheet of ui/assets, the shell's first."""
    sheets = sorted(ASSETS.glob("*.css"), key=lambda path: (path.stem != "shell", path.stem))
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)


def javascript() -> str:
    """What runs once in the browser, when the page has loaded."""
    return (ASSETS / "js" / "shell.js").read_text(encoding="utf-8")
