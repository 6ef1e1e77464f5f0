// Clicks and keys of an Actions component, delegated: the HTML below is replaced at any time.
const events = ["events"];

function fire(target) {
  const { event, ...data } = target.dataset;
  if (!events.includes(event)) return;
  if (event === "pick") mark(target.dataset.page);
  // Each goes to the server by itself, and of two at once the second may be there first.
  window.mrrFired = (window.mrrFired ?? 0) + 1;
  trigger(event, { ...data, nth: String(window.mrrFired) });
}

// The selection is drawn at once; Python confirms it with the next render.
function mark(page) {
  for (const item of element.querySelectorAll("[data-item]")) {
    const chosen = item.dataset.item === page;
    item.classList.toggle("is-selected", chosen);
    const button = item.querySelector('[data-event="pick"]');
    if (button) button.setAttribute("aria-pressed", String(chosen));
  }
}

element.addEventListener("click", (click) => {
  const target = click.target.closest("[data-event]");
  if (!target || !element.contains(target)) return;
  fire(target);
  // On a narrow screen the reasons lie below the whole list.
  const reasons = document.getElementById("reasons");
  if (target.dataset.event === "pick" && reasons && matchMedia("(max-width: 760px)").matches) {
    reasons.scrollIntoView({ block: "start" });
  }
});

// The button over a card hides the titles of what it covers from the pointer: it takes them over.
element.addEventListener("pointermove", ({ target, clientX, clientY }) => {
  if (!target.matches(".cover")) return;
  const covered = document.elementsFromPoint(clientX, clientY).find((each) => each !== target && each.title);
  target.title = covered?.title ?? "";
}, { passive: true });

// What was unfolded stays so when the HTML is replaced, as by removing pages out of a list one by one.
const unfolded = new Set();
element.addEventListener("toggle", ({ target }) => {
  if (target.isConnected && target.dataset.key) unfolded[target.open ? "add" : "delete"](target.dataset.key);
}, true);
new MutationObserver(() => {
  for (const folded of element.querySelectorAll("details[data-key]:not([open])")) {
    if (unfolded.has(folded.dataset.key)) folded.open = true;
  }
}).observe(element, { childList: true, subtree: true });

// j and k, or the arrows on a focused item, walk through a ranking.
if (events.includes("pick")) {
  document.addEventListener("keydown", (key) => {
    const from = key.target;
    const typing = from.closest && from.closest("input, textarea, select, [contenteditable], [role=slider], [role=tab]");
    const arrow = element.contains(from) && { ArrowDown: 1, ArrowUp: -1 }[key.key];
    const step = arrow || { j: 1, k: -1 }[key.key];
    if (!step || typing || key.ctrlKey || key.metaKey || key.altKey) return;
    const buttons = [...element.querySelectorAll('[data-event="pick"]')];
    if (!buttons.length || !element.isConnected || !element.offsetParent) return;
    const current = buttons.findIndex((b) => b.getAttribute("aria-pressed") === "true");
    const next = buttons[Math.min(Math.max(current + step, 0), buttons.length - 1)];
    key.preventDefault();
    next.focus();
    fire(next);
  });
}
