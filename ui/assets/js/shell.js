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
    chosen?.scrollIntoView({ behavior: "smooth", block: "center" });
    chosen?.querySelector(".cover")?.focus({ preventScroll: true });
  });
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
