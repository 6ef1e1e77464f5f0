// Means per row and per column along the edges: a map that only favours a place shows it here.

const MARGIN = 26;

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

const drawMargins = (context, page, panel, rect, width, height) => {
  const isColoured = Boolean(panel.painted);
  const { rows, columns } = margins(page, panel, isColoured);
  const most = isColoured ? Math.max(...[...rows, ...columns].map(Math.abs)) || 1 : 1;
  context.fillStyle = "rgba(255,255,255,0.86)";
  context.fillRect(width - MARGIN, 0, MARGIN, height);
  context.fillRect(0, height - MARGIN, width - MARGIN, MARGIN);
  const colour = (value) => (value < 0 ? "#2166ac" : panel.map.scale.signed && isColoured ? "#d94801" : "#3e4653");
  const size = (value) => (Math.abs(value) / most) * (MARGIN - 4);
  rows.forEach((value, row) => {
    context.fillStyle = colour(panel.map.scale.flip ? -value : value);
    context.fillRect(width - MARGIN + 2, rect.y + (row / page.rows) * rect.h, size(value), Math.max(1, rect.h / page.rows - 1));
  });
  context.clearRect(width - MARGIN, height - MARGIN, MARGIN, MARGIN);
  columns.forEach((value, column) => {
    const x = rect.x + (column / page.cols) * rect.w;
    if (x > width - MARGIN) return;
    context.fillStyle = colour(panel.map.scale.flip ? -value : value);
    context.fillRect(x, height - 2 - size(value), Math.max(1, rect.w / page.cols - 1), size(value));
  });
};
