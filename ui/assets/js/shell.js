() => {
  const side = document.querySelector(".sidebar");
  // Gradio names its button by what it is, not by what it opens, and does not say whether it is open.
  const toggle = side?.querySelector(".toggle-button");
  const tellOpen = () => toggle?.setAttribute("aria-expanded", String(side.classList.contains("open")));
  toggle?.setAttribute("aria-label", "Settings");
  if (side) new MutationObserver(tellOpen).observe(side, { attributes: true, attributeFilter: ["class"] });
  tellOpen();
  addEventListener("scroll", () => side?.classList.toggle("mrr-scrolled", scrollY > 60), { passive: true });
  document.addEventListener("click", (click) => {
    if (!click.target.closest(".mrr-up")) return;
    const chosen = document.querySelector("#hits .is-selected") ?? document.getElementById("hits");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    chosen?.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "center" });
    chosen?.querySelector(".cover")?.focus({ preventScroll: true });
  });
  // Only a live region that was there before its words is read out, so the summary has none of its own.
  const spoken = document.createElement("div");
  spoken.className = "pi-live";
  spoken.setAttribute("role", "status");
  document.body.prepend(spoken);
  const speak = () => {
    const said = [...document.querySelectorAll("#summary p")].map((line) => line.textContent).join(" ");
    // While pages are counted, a higher number alone is no news.
    const counted = document.querySelector("#summary [role=progressbar]") ? /\d+/g : "";
    if (said.replace(counted, "") !== spoken.textContent.replace(counted, "")) spoken.textContent = said;
  };
  const main = document.getElementById("main");
  if (main) new MutationObserver(speak).observe(main, { childList: true, characterData: true, subtree: true });
  // Gradio hides the name of a chart from everybody.
  const nameCharts = () => {
    for (const chart of document.querySelectorAll(".mrr-figure:not([role])")) {
      chart.setAttribute("role", "figure");
      chart.setAttribute("aria-label", chart.querySelector("label")?.textContent.trim() ?? "");
    }
  };
  if (main) new MutationObserver(nameCharts).observe(main, { childList: true, subtree: true });
  // Where what the keyboard was on goes, it goes on with what is left around that, not at the page's top.
  let keys = false, around = [], looking = null;
  addEventListener("pointerdown", () => { keys = false; }, true);
  addEventListener("keydown", () => { keys = true; }, true);
  addEventListener("focusin", ({ target }) => {
    around = [];
    for (let each = target; each && each !== document.body; each = each.parentElement) around.push(each);
  });
  const keepPlace = () => {
    looking = null;
    if (!keys || document.activeElement !== document.body || !around.length || around[0].checkVisibility()) return;
    const left = around.find((each) => each.checkVisibility());
    const next = [...(left?.querySelectorAll("button:enabled") ?? [])].find((each) => each.checkVisibility()) ?? left;
    if (!next) return;
    if (next === left) {  // nothing to press there: a place to go on from, without a ring
      next.tabIndex = -1;
      next.style.outline = "none";
    }
    next.focus({ preventScroll: true });
  };
  // A little later: what takes its place, as Stop does, may come after it has gone.
  const lookSoon = () => { looking ??= setTimeout(keepPlace, 50); };
  if (main) new MutationObserver(lookSoon).observe(main, { childList: true, subtree: true });
  // What is said twice stands there once; when the first one leaves, the other takes its place.
  const once = () => {
    const seen = new Set();
    for (const item of document.querySelectorAll(".toast-message-item")) {
      item.hidden = seen.has(item.textContent);
      seen.add(item.textContent);
    }
  };
  const messages = document.querySelector(".toast-wrap");
  if (messages) new MutationObserver(once).observe(messages, { childList: true, subtree: true });
  // A link, a reload and the way back ask what the address says; see `_TO_RESULTS` of ui/layout.py.
  const ask = () => {
    const asked = new URLSearchParams(location.hash.slice(1)).get("q");
    const box = document.querySelector("#query textarea");
    if (!asked || !box || box.value === asked) return;
    history.replaceState({ asks: true }, "");  // what is asked may be written otherwise there
    box.value = asked;
    box.dispatchEvent(new Event("input", { bubbles: true }));
    // Gradio hears of the words a moment later than the page.
    setTimeout(() => document.getElementById("rank")?.click(), 100);
  };
  addEventListener("popstate", ask);
  ask();
  // Plotly measures its room when the window changes, not when the side bar opens beside it.
  const page = document.querySelector(".gradio-container .tabs");
  let width = page?.offsetWidth, waiting = null;
  if (!page) return;
  new ResizeObserver(() => {
    if (page.offsetWidth === width) return;
    width = page.offsetWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => window.dispatchEvent(new Event("resize")), 150);
  }).observe(page);
}
