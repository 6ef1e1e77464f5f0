() => {
  const side = document.querySelector(".sidebar");
  addEventListener("scroll", () => side?.classList.toggle("mrr-scrolled", scrollY > 60), { passive: true });
  document.addEventListener("click", (click) => {
    if (!click.target.closest(".mrr-up")) return;
    const chosen = document.querySelector("#hits .is-selected") ?? document.getElementById("hits");
    chosen?.scrollIntoView({ behavior: "smooth", block: "center" });
    chosen?.querySelector(".cover")?.focus({ preventScroll: true });
  });
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
