() => {
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
