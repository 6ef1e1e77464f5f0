// A map as a picture for a slide or a paper: with its query, its title and its scale, so that the file
// explains itself, and of one size whatever the screen.

const SHEET = { ratio: 2, width: 800, pad: 16, line: 19, bar: 14, font: "13px system-ui, sans-serif", ink: "#1f2430", quiet: "#5c6370" };

// Words of a text in lines that are no wider than the sheet; a word that is wider keeps its line.
const wrapped = (context, text) => text.split(" ").reduce((lines, word) => {
  const longer = lines.length ? lines[lines.length - 1] + " " + word : word;
  if (lines.length && context.measureText(longer).width <= SHEET.width) lines[lines.length - 1] = longer;
  else lines.push(word);
  return lines;
}, []);

// picture: a canvas of SHEET.ratio. scale: {bar, left, right}, or null; words: the lines under it, of
// which the first is the title.
const pictureOf = (picture, scale, words) => {
  const { ratio, width, pad, line } = SHEET;
  const sheet = make("canvas", { width: ratio * (width + 2 * pad), height: 1 });
  const context = sheet.getContext("2d");
  context.font = SHEET.font;
  const lines = words.flatMap((text, i) => wrapped(context, text).map((text) => ({ text, title: i === 0 })));
  const height = picture.height / ratio;
  const below = (scale ? SHEET.bar + 2 * line : 0) + lines.length * line;
  sheet.height = ratio * (height + below + 3 * pad);  // which also forgets the font
  context.scale(ratio, ratio);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width + 2 * pad, height + below + 3 * pad);
  context.drawImage(picture, pad, pad, width, height);
  context.strokeStyle = "#d5d5d0";
  context.strokeRect(pad, pad, width, height);
  context.font = SHEET.font;
  let y = height + 2 * pad;
  if (scale) {
    context.drawImage(scale.bar, pad, y, width, SHEET.bar);
    context.fillStyle = SHEET.ink;
    context.fillText(scale.left, pad, y + SHEET.bar + line - 3);
    context.textAlign = "right";
    context.fillText(scale.right, pad + width, y + SHEET.bar + line - 3);
    context.textAlign = "left";
    y += SHEET.bar + 2 * line;
  }
  lines.forEach(({ text, title }, i) => {
    context.font = (title ? "600 " : "") + SHEET.font;
    context.fillStyle = title ? SHEET.ink : SHEET.quiet;
    context.fillText(text, pad, y + (i + 0.6) * line);
  });
  return new Promise((resolve) => sheet.toBlob(resolve, "image/png"));
};
