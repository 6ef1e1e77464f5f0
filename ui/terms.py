"""What the words beside the numbers mean, for somebody who sees them for the first time."""

from __future__ import annotations

from ui.markup import esc

TERMS = {
    "score": "The probability of yes, as the model sees it, that the page answers the query: 0 to "
    "1, and 0.5 is even. Compare it within one ranking of one system only.",
    "logit": "The score before it becomes a probability: the model’s yes minus its no. 0 is a "
    "score of 0.5, above it is yes.",
    "token": "A small square of the page, the least that the model reads. Those that were not "
    "kept were left out before any query, and are never read.",
    "first stage": "A quick search that picks the candidates among all pages, by how similar page "
    "and query are. Its score is on a scale of its own.",
    "band": "The layers in which the query reads the page. Before them each is read by itself, "
    "which is why a page can be read once and asked often.",
    "head": "One of the attentions that a layer has side by side, each with a map of its own. "
    "Among the times: the last step, which turns what was read into yes or no.",
}


def title(term: str) -> str:
    """The attribute that explains a word to a pointer that rests on it."""
    return f'title="{esc(TERMS[term])}"'


def glossary(what: str = "Bar and number") -> str:
    """What stands beside a page, at a glance; all words, for finger and keyboard too, when opened.

    what: what shows the score here.
    """
    rows = "".join(f"<dt>{term}</dt><dd>{esc(meaning)}</dd>" for term, meaning in TERMS.items())
    return (
        '<details class="mrr mrr-note mrr-terms" data-key="terms">'
        f"<summary>{what}: the probability of yes. <u>What the words mean</u></summary>"
        f"<dl>{rows}</dl></details>"
    )
