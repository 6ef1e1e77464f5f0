// Colour maps: viridis and cividis for amounts, blue to orange through white for signed values.
// All three stay readable with every common colour-vision deficiency.
const STOPS = {
  viridis: ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
  cividis: ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"],
  diverging: ["#053061", "#2166ac", "#6baed6", "#c6dbef", "#ffffff", "#fdd0a2", "#fd8d3c", "#d94801", "#7f2704"],
};

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// 256 colours as a flat array of red, green, blue.
const lookupTable = (name, flip = false) => {
  const stops = STOPS[name].map(channels);
  const table = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = ((flip ? 255 - i : i) / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]));
    }
  }
  return table;
};

// Attention and importance have long tails, logit changes have not.
const USUAL_GAMMA = { pruned: 2, attention: 2, occlusion: 1 };
const gammaOf = (state) => state.gamma ?? USUAL_GAMMA[state.mode];

// How solid a colour lies over the page, 0 to 1: small amounts leave the print readable. A signed
// scale is multiplied instead, with white at its centre.
const solidity = (at, scale, opaque) => (opaque || scale.signed ? 1 : 0.2 + 0.8 * at);

// Where a value lies on its scale, 0 to 1. Gamma above 1 makes small values easier to see; on a
// signed scale it does so on both sides of the centre.
const position = (value, scale, gamma) => {
  if (scale.signed) {
    const share = Math.min(1, Math.abs(value) / (scale.high || 1));
    return 0.5 + 0.5 * Math.sign(value) * share ** (1 / gamma);
  }
  const span = scale.high - scale.low;
  return span > 0 ? Math.min(1, Math.max(0, (value - scale.low) / span)) ** (1 / gamma) : 0;
};
