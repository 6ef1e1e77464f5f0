// The heads of one layer as small pictures on one colour scale; a click puts one on the page.

// The head to show once the layer changes: the same one, where that layer's was sent.
const headIn = ({ layers, heads }, layer, head) => (heads.shown[layers.indexOf(layer)]?.includes(head) ? head : null);

const headTile = (page, state, head) => {
  const map = currentMap(page, { ...state, head, token: WHOLE_MEAN, stretch: false });
  const colours = lookupTable(paletteOf(state, map), map.scale.flip);
  const tile = paintMap(page, map, { ...state, share: 1 }, colours);
  tile.style.aspectRatio = page.width + "/" + page.height;
  const share = percent(map.mass);
  const say = map.scale.signed ? signedNumber : number;
  return {
    value: head,
    text: make("span", { class: "pi-head-tile" }, tile, make("span", {}, head + " · " + share)),
    title: "Head " + head + ": " + share + " of its attention is on the page, cells from " + say(map.own[0]) + " to " + say(map.own[1]),
  };
};

const headGallery = (page, state, set) => {
  const { layers, heads } = page.attention;
  const row = layers.indexOf(state.layer);
  if (row < 0) return group("Heads", make("p", { class: "pi-small-print" }, "Choose one layer of the band to see its " + heads.n_heads + " heads."));
  const choose = (head) => {
    if (head === null) return set({ head });
    set({ head, token: WHOLE_MEAN });
    selection.set({ token: WHOLE_MEAN }, element);
  };
  const tiles = [{ value: null, text: "mean of all heads" }, ...heads.shown[row].map((head) => headTile(page, state, head))];
  const { scale } = currentMap(page, { ...state, head: heads.shown[row][0], token: WHOLE_MEAN, stretch: false });
  const say = scale.signed ? signedNumber : number;
  const left = heads.n_heads - heads.shown[row].length;
  return explained("Heads of layer " + state.layer + " · share on the page", "The attentions that a layer has side by side, each with a map of its own",
    segmented("Head", tiles, state.head, choose, "pi-heads"),
    make("p", { class: "pi-small-print" }, "One scale for the heads of this layer: " + say(scale.low) + " to " + say(scale.high) +
      ". Heads show the whole query; single words are means over the heads." +
      (left ? " The " + left + " heads that give the page least are left out." : "")));
};
