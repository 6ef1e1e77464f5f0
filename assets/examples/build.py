"""Render the example corpus and derive its labels: `python assets/examples/build.py`.

Each `source/*.html` is one document and each `<section class="page" data-title="...">` one page,
photographed by headless Chromium at 1.5 pixels a CSS pixel, which is A4 at 139 dpi. A page's text
is what Chromium shows of it, and the relevance labels follow from that text, so that pages, text
and labels cannot drift apart.
"""

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, sync_playwright

HERE = Path(__file__).parent
SOURCE = HERE / "source"
PAGES = HERE / "pages"

# In the order in which the demo shows them.
DOCUMENTS = (
    "annual-report", "night-buses", "invoice-2041", "invoice-2047", "allotment-form",
    "lantern-poster", "barley-soup", "leaf-protocol", "pump-datasheet", "rail-timetable",
    "garden-minutes", "moss-paper", "observatory-letter", "river-levels", "heating-survey",
    "museum-map", "bicycle-faq", "remote-work-2023", "remote-work-2024", "coffee-manual",
    "school-news",
)  # fmt: skip

CHROMIUM_FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Grey antialiasing: colour fringes would depend on the machine.
    "--disable-lcd-text",
)

CUT_OFF_TEXT = """page => {
    const frame = page.getBoundingClientRect();
    const hasText = node => [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim());
    const isOutside = node => {
        const box = node.getBoundingClientRect();
        return box.left < frame.left || box.top < frame.top
            || box.right > frame.right + 0.5 || box.bottom > frame.bottom + 0.5;
    };
    return [...page.querySelectorAll("*")].filter(node => hasText(node) && isOutside(node))
        .map(node => node.textContent.trim().slice(0, 40));
}"""


@dataclass(frozen=True, slots=True)
class Page:
    """One rendered page and the text that is visible on it."""

    page_id: str
    title: str
    text: str
    png: bytes

    @property
    def file(self) -> str:
        """Path of the image relative to the corpus folder."""
        return f"pages/{self.page_id.replace('#', '-')}.png"


@dataclass(frozen=True, slots=True)
class Query:
    """One entry of `source/queries.json`; a page that says one of `answers` answers a question."""

    query_id: str
    query: str
    kind: str
    answers: tuple[str, ...] = ()


def render_page(section: Locator, page_id: str) -> Page:
    """Photograph one `<section>` and read its text. Raises ValueError if text is cut off."""
    cut_off = section.evaluate(CUT_OFF_TEXT)
    if cut_off:
        raise ValueError(f"{page_id}: text reaches outside the page: {cut_off}")
    title = section.get_attribute("data-title")
    if not title:
        raise ValueError(f"{page_id}: the section has no data-title")
    return Page(page_id, title, " ".join(section.inner_text().split()), section.screenshot())


def render_document(browser: Browser, name: str) -> list[Page]:
    """Render every page of `source/<name>.html`."""
    tab = browser.new_page(viewport={"width": 1088, "height": 1088}, device_scale_factor=1.5)
    tab.goto((SOURCE / f"{name}.html").as_uri())
    sections = tab.locator("section.page").all()
    pages = [render_page(s, f"{name}#{number}") for number, s in enumerate(sections, start=1)]
    tab.close()
    return pages


def render(names: Iterable[str]) -> list[Page]:
    """Render the named documents with the system's Chromium, else with Playwright's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=list(CHROMIUM_FLAGS),
            chromium_sandbox=False,
        )
        pages = [page for name in names for page in render_document(browser, name)]
        browser.close()
    return pages


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits."""
    return re.findall(r"[^\W_]+", text.lower())


def contains(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand side by side in `text`."""
    return f" {' '.join(words(phrase))} " in f" {' '.join(words(text))} "


def grade(query: Query, page: Page) -> int:
    """Relevance of a page, decided from its own text: 0 no, 1 yes, 2 the page a title names."""
    if query.kind == "keyword":
        return int(set(words(query.query)) <= set(words(page.text)))
    if query.kind == "question":
        return int(any(contains(page.text, answer) for answer in query.answers))
    shown = contains(page.text, query.query)
    named = query.kind == "title" and contains(page.title, query.query)
    return int(shown) + int(shown and named)


def qrels_lines(queries: list[Query], pages: list[Page]) -> list[str]:
    """TREC qrels of all relevant pages. Raises ValueError for a query that no page answers."""
    lines = []
    for query in queries:
        grades = {page.page_id: grade(query, page) for page in pages}
        if not any(grades.values()):
            raise ValueError(f"{query.query_id}: no page is relevant to {query.query!r}")
        lines += [f"{query.query_id}\t0\t{page}\t{g}\n" for page, g in grades.items() if g]
    return lines


def write_json_lines(name: str, records: list[dict[str, str | int]]) -> None:
    """Write one JSON object per line."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (HERE / name).write_text("".join(lines), encoding="utf-8")


def write_images(pages: list[Page]) -> None:
    """Write the images without loss, each as small as PNG allows."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir()
    for page in pages:
        Image.open(BytesIO(page.png)).convert("RGB").save(HERE / page.file, optimize=True)


def main() -> None:
    """Rebuild every file that the README lists as generated."""
    pages = render(DOCUMENTS)
    entries = json.loads((SOURCE / "queries.json").read_text(encoding="utf-8"))
    queries = [Query(**entry) for entry in entries]
    write_images(pages)
    write_json_lines(
        "corpus.jsonl",
        # page_num counts inside the file, and a PNG holds one page.
        [{"page_id": p.page_id, "file": p.file, "page_num": 1, "title": p.title} for p in pages],
    )
    write_json_lines("text.jsonl", [{"page_id": p.page_id, "text": p.text} for p in pages])
    write_json_lines(
        "queries.jsonl",
        [{"query_id": q.query_id, "query": q.query, "kind": q.kind} for q in queries],
    )
    (HERE / "qrels.tsv").write_text("".join(qrels_lines(queries, pages)), encoding="utf-8")


if __name__ == "__main__":
    main()
