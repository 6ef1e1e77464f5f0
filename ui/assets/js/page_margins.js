// Means per row and per column along the edges: a map that only favours a place shows it here.

const MARGIN = 26;

// The part of a panel in which the page stands, in its own proportions: what the bars leave of it.
const frameOf = (state, width, height) => {
  const share = state.margins ? Math.max(0, 1 - MARGIN / Math.min(width, height)) : 1;
  return { width: share * width, height: share * height };
};

// Mean over the shown cells of each row and column; where nothing is coloured, the share kept.
const margins = (page, panel, isColoured) => {
  const rows = new Float64Array(page.rows), columns = new Float64Array(page.cols);
  const inRow = new Uint16Array(page.rows), inColumn = new Uint16Array(page.cols);
  for (let i = 0; i < page.n; i++) {
    if (isColoured && panel.map.hidden[i]) continue;
    const row = Math.floor(i / page.cols), column = i % page.cols;
    const value = isColoured ? panel.map.values[i] : panel.mask[i];
    rows[row] += value;
    columns[column] += value;
    inRow[row]++;
    inColumn[column]++;
  }
  return { rows: rows.map((sum, i) => sum / (inRow[i] || 1)), columns: columns.map((sum, i) => sum / (inColumn[i] || 1)) };
};

// Each bar beside the row or the column that it is about, as far as that is in the frame.
const drawMargins = (context, page, panel, rect, frame) => {
  const isColoured = Boolean(panel.painted);
  const { rows, columns } = margins(page, panel, isColoured);
  const most = isColoured ? Math.max(...[...rows, ...columns].map(Math.abs)) || 1 : 1;
  const colour = (value) => (value < 0 ? "#2166ac" : panel.map.scale.signed && isColoured ? "#d94801" : "#3e4653");
  const size = (value) => (Math.abs(value) / most) * (MARGIN - 4);
  const thick = (length) => Math.max(1, length - 1);
  context.save();
  clipTo(context, { width: frame.width + MARGIN, height: frame.height });
  rows.forEach((value, row) => {
    context.fillStyle = colour(panel.map.scale.flip ? -value : value);
    context.fillRect(frame.width + 2, rect.y + (row / page.rows) * rect.h, size(value), thick(rect.h / page.rows));
  });
  context.restore();
  context.save();
  clipTo(context, { width: frame.width, height: frame.height + MARGIN });
  columns.forEach((value, column) => {
    context.fillStyle = colour(panel.map.scale.flip ? -value : value);
    context.fillRect(rect.x + (column / page.cols) * rect.w, frame.height + 2, thick(rect.w / page.cols), size(value));
  });
  context.restore();
};
