// Zoom, pan, pointer and keyboard of the inspector; what they change lives in inspector.js.

const clampView = () => {
  const most = 1 - 1 / view.zoom;
  view.x = Math.min(most, Math.max(0, view.x));
  view.y = Math.min(most, Math.max(0, view.y));
};

const zoomAt = (factor, { x, y } = { x: 0.5, y: 0.5 }) => {
  const u = view.x + x / view.zoom, v = view.y + y / view.zoom;
  const zoom = Math.min(12, Math.max(1, view.zoom * factor));
  view = { zoom, x: u - x / zoom, y: v - y / zoom };
  clampView();
  updateFacts();
  redraw();
};

const fit = () => { view = { zoom: 1, x: 0, y: 0 }; updateFacts(); redraw(); };

const pointers = new Map();
let travelled = 0;

const press = (event, canvas) => {
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  if (pointers.size === 1) travelled = 0;
  canvas.setPointerCapture(event.pointerId);
};

const move = (event, canvas) => {
  const before = pointers.get(event.pointerId);
  const at = fraction(event, canvas);
  if (!before) return point(cellAt(at), canvas);
  const dx = event.clientX - before.x, dy = event.clientY - before.y;
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const spread = (p) => Math.hypot(p.x - other.x, p.y - other.y);
    zoomAt(spread({ x: event.clientX, y: event.clientY }) / (spread(before) || 1), at);
  } else {
    view.x -= dx / at.frame.width / view.zoom;
    view.y -= dy / at.frame.height / view.zoom;
    clampView();
    redraw();
  }
  travelled += Math.abs(dx) + Math.abs(dy);
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
};

const release = (event, canvas) => {
  const single = pointers.size === 1;
  pointers.delete(event.pointerId);
  const cell = cellAt(fraction(event, canvas));
  if (single && travelled < 5 && cell != null) lock(cell, canvas);
};

const key = (event) => {
  const steps = { ArrowUp: -page.cols, ArrowDown: page.cols, ArrowLeft: -1, ArrowRight: 1 };
  const cell = state.cursor ?? state.locked ?? 0;
  const actions = {
    Enter: () => lock(cell, event.target), " ": () => lock(cell, event.target),
    Escape: () => { state.locked = null; point(null); },
    "+": () => zoomAt(1.5), "=": () => zoomAt(1.5), "-": () => zoomAt(1 / 1.5), 0: fit,
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in steps) {
    const column = (cell % page.cols) + (Math.abs(steps[event.key]) === 1 ? steps[event.key] : 0);
    const next = state.cursor == null && state.locked == null ? 0 : cell + steps[event.key];
    if (next >= 0 && next < page.n && column >= 0 && column < page.cols) {
      state.locked = null;
      point(next, event.target, true);
    }
  } else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
};
