"""Model cards of the bundled pair, from what training and `mrr eval --json` wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mrr.errors import InputRejected

TRAINING = "training.json"  # beside the weights: runs of training, quality on rendered pages

_HEAD = """---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: {task}
tags: [visual-document-retrieval, qwen2_5_vl, trained-from-scratch, cpu]
---
# {name}

A tiny Qwen2.5-VL ({parameters:.1f}M parameters, float16) trained from nothing by miniReranker; it
{role}. No pretrained weights of any kind went into it. It loads with transformers as it is; its
partner is `{partner}`.

```python
{use}
```

## Limits

It reads printed Latin text, lower-cased, at 11 to 21 px (A4 is 1024 x 1472 px to it, so 10 points
are 17 px). It knows nothing of the world: it finds printed words and words spelled like them, not
meanings. In which order they stand it tells three or four times in five, where two pages differ in
nothing else (chance one in two; below). English above all; no handwriting, photographs or other
scripts. It is a demonstration that the path works on any CPU; for real work take a real checkpoint.

## Data

Documentation, docstrings, licences and manual pages of a Debian machine, and words of its
dictionaries, set in free fonts by `mrr/train/render.py`: one and two columns, headings, lists,
tables, charts, tints, light scans. No page comes twice as it was: those that are used again are
cut elsewhere. Text and faces of the validation pages are held out.

## Recipe

`python -m mrr train all` (docs/TRAINING.md). Vision first learns to read word pieces cell by
cell; the language model learns to match under the band mask, with and without the exit; the
embedder learns page and query vectors; the reranker is tuned on half of the tokens.
"""

_USE = {
    "tiny-reranker": "from mrr import MiniReranker\n\n"
    'reranker = MiniReranker.from_pretrained("tiny")\n'
    'reranker.add(["report.pdf"])\n'
    'print(reranker.rank("revenue by region")[0].page.label)',
    "tiny-embedder": "from transformers import Qwen2_5_VLForConditionalGeneration\n\n"
    'model = Qwen2_5_VLForConditionalGeneration.from_pretrained("assets/models/tiny-embedder")\n'
    "# mrr/model/embedder.py: the last token's hidden state is the vector, its attention the guide",
}
_ROLE = {
    "tiny-reranker": ("text-ranking", "reranks pages of printed text on a CPU", "tiny-embedder"),
    "tiny-embedder": (
        "visual-document-retrieval",
        "finds pages of printed text on a CPU and says which of their tokens to keep",
        "tiny-reranker",
    ),
}


def card(name: str, training: Mapping[str, Any], reports: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card of "tiny-reranker" or "tiny-embedder".

    training: what export wrote to TRAINING. reports: of `mrr eval --json`.
    """
    task, role, partner = _ROLE[name]
    head = _HEAD.format(
        name=name,
        task=task,
        role=role,
        partner=partner,
        use=_USE[name],
        parameters=training["parameters"][name] / 1e6,
    )
    rendered = json.dumps(training["rendered"], indent=2)
    read = ", ".join(
        f"{measured['cell_recall']:.3f} ({faces.replace('_', ' ')})"
        for faces, measured in training["reading"].items()
    )
    return "\n".join(
        [
            head,
            *_runs(training["runs"]),
            "## Measured",
            "",
            *_reports(reports),
            f"Word pieces read on rendered pages of held-out text: {read}.",
            "",
            "On such pages, each a candidate for every query (late: late",
            "interaction off the tower, no language model):",
            "",
            "```json",
            rendered,
            "```",
            "",
        ]
    )


def write_cards(folder: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """Write the README of both models in folder anew, with evaluation reports."""
    cards = {name: card(name, read_training(folder, name), reports) for name in _ROLE}
    for name, text in cards.items():
        (folder / name / "README.md").write_text(text, encoding="utf-8")


def read_training(pair: Path, name: str) -> dict[str, Any]:
    """What export wrote beside a model of a pair. Raises InputRejected where that is not there."""
    file = pair / name / TRAINING
    if not file.is_file():
        raise InputRejected(
            f"{pair} holds no {name}/{TRAINING}; name the folder of an exported pair, such as "
            "assets/models."
        )
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a run and stage; later runs began from the pair of the one before."""
    lines = ["| run | stage | steps | minutes | device |", "|---|---|---|---|---|"]
    for i, run in enumerate(runs, start=1):
        for stage, done in run["stages"].items():
            lines.append(
                f"| {i} | {stage} | {done['steps']:,} | {done['minutes']:g} | {done['device']} |"
            )
    last = runs[-1]
    return [*lines, "", f"Seed {last['seed']}, commit {last['commit']}.", ""]


def _reports(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    if not reports:
        return []
    lines = [
        "With `python -m mrr eval`, 95% bootstrap intervals over queries:",
        "",
        "| set | ranked | system | NDCG@5 | recall@20 |",
        "|---|---|---|---|---|",
    ]
    for report in reports:
        try:
            lines += _rows(report)
        except (KeyError, TypeError, ValueError) as error:
            raise InputRejected(
                f"A report is not what `mrr eval --json` prints ({type(error).__name__}: {error})."
            ) from error
    return [*lines, ""]


def _rows(report: Mapping[str, Any]) -> list[str]:
    """One line a system of a report."""
    ranked = f"{report['n_queries']} queries, {report['n_candidates']} candidates"
    rows = []
    for each in (*report["systems"], *report["anchors"]):
        ndcg, recall = each["metrics"]["ndcg@5"], each["metrics"]["recall@20"]
        rows.append(
            f"| {report['dataset']} | {ranked} | {each['name']} | "
            f"{ndcg['value']:.3f} [{ndcg['low']:.3f}, {ndcg['high']:.3f}] | "
            f"{recall['value']:.3f} |"
        )
    return rows
