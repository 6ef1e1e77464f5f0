// Drawing: the page in grey, the map in blocks of the true token grid, hatching over pruned cells.

const HATCH_GAP = 7;
// On viridis, white would look like the strongest cells: there, what was not read turns grey.
const INK = { dim: "rgba(255,255,255,0.62)", dimOnColour: "rgba(196,201,209,0.78)", hatch: "rgba(60,66,76,0.42)", faintHatch: "rgba(60,66,76,0.2)", cursor: "#e6007e" };

const greyCopy = (image) => {
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const grey = 0.2126 * pixels.data[i] + 0.7152 * pixels.data[i + 1] + 0.0722 * pixels.data[i + 2];
    pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = grey;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
};

// One pixel a cell; drawn enlarged without smoothing, so that blocks are blocks.
const paintMap = (page, map, state, colours, opaque = true) => {
  const canvas = make("canvas", { width: page.cols, height: page.rows });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(page.cols, page.rows);
  const least = cutoff(map, state.share);
  for (let i = 0; i < page.n; i++) {
    const size = map.scale.signed ? Math.abs(map.values[i]) : map.values[i];
    const place = position(map.values[i], map.scale, gammaOf(state));
    const at = Math.round(place * 255) * 3;
    const alpha = map.hidden[i] || size < least ? 0 : Math.round(255 * solidity(place, map.scale, opaque));
    pixels.data.set([colours[at], colours[at + 1], colours[at + 2], alpha], 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
};

const cellsPath = (page, rect, wanted) => {
  const path = new Path2D();
  const width = rect.w / page.cols, height = rect.h / page.rows;
  for (let i = 0; i < page.n; i++) {
    if (wanted(i)) path.rect(rect.x + (i % page.cols) * width, rect.y + Math.floor(i / page.cols) * height, width, height);
  }
  return path;
};

const hatch = (context, path, colour, width, height) => {
  context.save();
  context.clip(path);
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  for (let x = -height; x < width; x += HATCH_GAP) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
};

// Two strokes, dark under light, so that an outline shows on any colour.
const outline = (context, path, colour, dash = []) => {
  context.save();
  context.setLineDash(dash);
  context.lineWidth = 3;
  context.strokeStyle = "rgba(0,0,0,0.75)";
  context.stroke(path);
  context.lineWidth = 1.5;
  context.strokeStyle = colour;
  context.stroke(path);
  context.restore();
};

// frame: see frameOf.
const rectOf = (view, { width, height }) => ({
  x: -view.x * view.zoom * width, y: -view.y * view.zoom * height, w: width * view.zoom, h: height * view.zoom,
});

const clipTo = (context, { width, height }) => {
  context.beginPath();
  context.rect(0, 0, width, height);
  context.clip();
};

// panel: {mask, map, paint}; paint is "overlay", "page" or "map". What lies under the cursor is
// kept apart, so that moving the cursor only copies it.
const drawPanel = (canvas, page, panel, state, view) => {
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height || !page.picture) return;
  canvas.below = paintPanel(page, panel, state, view, width, height, window.devicePixelRatio || 1);
  drawCursor(canvas, page, state, view);
};

// A new canvas of width x height at ratio pixels each, without the cursor.
const paintPanel = (page, panel, state, view, width, height, ratio) => {
  const below = make("canvas", { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const context = below.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  const frame = frameOf(state, width, height);
  const rect = rectOf(view, frame);
  const place = (source) => context.drawImage(source, rect.x, rect.y, rect.w, rect.h);
  context.imageSmoothingQuality = "high";
  context.save();
  clipTo(context, frame);
  if (panel.paint === "page") place(page.picture);
  else drawCells(context, page, panel, state, rect, place, width, height);
  context.restore();
  if (state.margins && panel.paint !== "page") drawMargins(context, page, panel, rect, frame);
  return below;
};

const drawCursor = (canvas, page, state, view) => {
  if (!canvas.below) return;
  const { width, height } = canvas.below;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.drawImage(canvas.below, 0, 0);
  const ratio = width / canvas.clientWidth;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawMarks(context, page, state, view, frameOf(state, canvas.clientWidth, canvas.clientHeight));
};

const drawCells = (context, page, panel, state, rect, place, width, height) => {
  const pruned = cellsPath(page, rect, (i) => !panel.mask[i]);
  if (panel.paint === "overlay") place(page.grey);
  if (panel.painted) {
    context.save();
    context.imageSmoothingEnabled = state.smooth;
    context.globalAlpha = panel.paint === "map" ? 1 : state.opacity;
    // White is the centre of the signed scale: multiplied, it leaves paper and ink as they are.
    if (panel.map.scale.signed) context.globalCompositeOperation = "multiply";
    place(panel.painted);
    context.restore();
  } else if (panel.paint === "overlay") {
    context.save();
    context.clip(cellsPath(page, rect, (i) => panel.mask[i]));
    place(page.picture);
    context.restore();
  }
  context.fillStyle = panel.painted && !panel.map.scale.signed ? INK.dimOnColour : INK.dim;
  if (!panel.painted || state.mode !== "pruned") context.fill(pruned);
  hatch(context, pruned, state.mode === "pruned" ? INK.hatch : INK.faintHatch, width, height);
  if (state.mode === "attention" && page.attention.n_sinks) {
    outline(context, cellsPath(page, rect, (i) => page.attention.sinks[i]), "#ffffff", [4, 3]);
  }
};

const drawMarks = (context, page, state, view, frame) => {
  const rect = rectOf(view, frame);
  const width = rect.w / page.cols, height = rect.h / page.rows;
  const mark = (cell, dash) => {
    if (cell == null) return;
    const path = new Path2D();
    path.rect(rect.x + (cell % page.cols) * width, rect.y + Math.floor(cell / page.cols) * height, width, height);
    outline(context, path, INK.cursor, dash);
  };
  context.save();
  clipTo(context, frame);
  mark(state.locked, []);
  if (state.cursor !== state.locked) mark(state.cursor, [3, 2]);
  context.restore();
};

// The scale as it looks on white paper at the present opacity, linear in the value.
const drawLegend = (canvas, map, state, colours, opaque) => {
  const width = (canvas.width = 256), height = (canvas.height = 12);
  const context = canvas.getContext("2d");
  for (let x = 0; x < width; x++) {
    // A flipped scale runs from high to low: orange stands on the right, and for the page, always.
    const along = (map.scale.flip ? width - 1 - x : x) / (width - 1);
    const value = map.scale.low + along * (map.scale.high - map.scale.low);
    const place = position(value, map.scale, gammaOf(state));
    const at = Math.round(place * 255) * 3;
    const alpha = opaque ? 1 : state.opacity * solidity(place, map.scale, false);
    const mixed = [0, 1, 2].map((c) => Math.round(255 + alpha * (colours[at + c] - 255)));
    context.fillStyle = "rgb(" + mixed.join(",") + ")";
    context.fillRect(x, 0, 1, height);
  }
};
