// The board: lines of tiles, filled when they come near the window, so that 10,000 images open at once.
const FILTERED = -1;  // a cell whose image is there and not shown; null: there is no image
const SIZES = [64, 512];  // pixels of a tile
const board = $("board");
const sorts = [["order", "as made"], ["prompt", "prompt"],
  ...[...new Set([...data.axes.map((axis) => axis.key), "copy", ...FIELDS])].map((key) => [key, key.split(".").pop()]),
  ...scoreNames.map((name) => [`${SCORE}${name}`, name])];
const isImage = (cell) => cell !== null && cell !== FILTERED;
const setStyle = (name, text) => document.documentElement.style.setProperty(name, text);
let shown = [];  // images in reading order
let lines = [];  // {label, cells: [image, FILTERED or null]}
let columns = [];  // value indices of the grid's columns
let captions = null;
let drawnAddress = "";  // of what the board shows

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    fill(entry.target);
  }
}, {root: board, rootMargin: "600px"});

const sizeInRange = (size) => Number.isNaN(size) ? null : Math.min(SIZES[1], Math.max(SIZES[0], size));
const tileSize = () => state.size ?? startingSize();

// As large as lets every column be seen, within reason; a phone shows two images of a wall side by side.
function startingSize() {
  if (state.view === "wall") return NARROW.matches ? 160 : 176;
  const room = innerWidth - (NARROW.matches ? 24 : 168 + 50);
  const [across, down] = [visibleValues(state.x).length, visibleValues(state.y).length];
  const high = NARROW.matches ? Infinity : Math.max(160, ((innerHeight - 190) / down - 8) * (COUNT ? ratio(0) : 1));
  return Math.round(Math.min(280, high, Math.max(NARROW.matches ? 96 : 128, (room + 8) / across - 8)));
}

// Image -> whether it passes the filter, the hidden values and the favourites.
function filters() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const named = rows.map((one) => {
    const text = `${one.prompt}\n${one.negative_prompt ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const hiding = offered.filter((dim) => state.hidden[dim].size);
  const {score, least, most} = state;
  const inRange = (number) => number !== null && (least === null || number >= least) && (most === null || number <= most);
  const isLimited = least !== null || most !== null;
  return (image) => named[images.row[image]] && (!isLimited || inRange(scoreOf(image, score))) && hiding.every((dim) => !state.hidden[dim].has(at(image, dim)))
    && (!state.favourites || isFavourite(image));
}

function drawBoard() {
  near.disconnect();
  drawnAddress = String(boardAddress());
  board.replaceChildren();
  board.className = state.view;
  setStyle("--tile", `${tileSize()}px`);
  const passes = filters();
  if (isChart()) {
    drawChart(passes);
    drawNumShown();
    return;
  }
  state.view === "grid" ? gridLines(passes) : wallLines(passes);
  shown = lines.flatMap((line) => line.cells.filter(isImage));
  const parts = document.createDocumentFragment();
  if (state.view === "grid" && lines.length) parts.append(columnLabels());
  lines.forEach((line, number) => {
    const made = element("div", {class: "line"});
    made.dataset.line = number;
    near.observe(made);
    parts.append(made);
  });
  if (!lines.length) parts.append(element("p", {class: "empty"}, emptyText()));
  board.append(parts);
  board.scrollTo(0, 0);
  drawNumShown();
}

function drawNumShown() {
  $("shown").textContent = shown.length === COUNT ? `${COUNT} ${COUNT === 1 ? "image" : "images"}` : `${shown.length} of ${COUNT} images`;
}

function emptyText() {
  if (!COUNT) return "No images here.";
  if (state.favourites && !numFavourites()) return "There are no favourites yet. Press F on an image, or its star.";
  if (state.filter) return "No prompt holds these words.";
  if (state.least !== null || state.most !== null) return `No image has such a ${state.score}.`;
  return "No image has these values.";
}

function columnLabels() {
  const corner = element("div", {class: "corner"}, element("div", {}, `${dims[state.x].key} \u2192`), element("div", {}, `${dims[state.y].key} \u2193`));
  return element("div", {class: "columns"}, corner,
    element("div", {class: "cells"}, ...columns.map((index) => label(state.x, index, "column-label"))));
}

function gridLines(passes) {
  const {x, y} = state;
  const indices = [...state.fixed];
  const lookup = (i, j) => {
    indices[x] = i;
    indices[y] = j;
    const image = found.get(place(indices));
    return image === undefined ? null : passes(image) ? image : FILTERED;
  };
  const [across, down] = [visibleValues(x), visibleValues(y)];
  const all = down.map((j) => ({label: j, cells: across.map((i) => lookup(i, j))}));
  const used = across.map((_, number) => number).filter((number) => all.some((line) => isImage(line.cells[number])));
  columns = used.map((number) => across[number]);
  lines = all.filter((line) => line.cells.some(isImage)).map((line) => ({label: line.label, cells: used.map((number) => line.cells[number])}));
}

function wallLines(passes) {
  const chosen = [];
  for (let image = 0; image < COUNT; image++) if (passes(image)) chosen.push(image);
  const unscored = [];
  if (state.sort.startsWith(SCORE)) {  // what has no score comes last in both directions
    const name = state.sort.slice(SCORE.length), scored = chosen.filter((image) => scoreOf(image, name) !== null);
    unscored.push(...chosen.filter((image) => scoreOf(image, name) === null));
    chosen.splice(0, chosen.length, ...scored.sort((a, b) => scoreOf(a, name) - scoreOf(b, name) || a - b));
  } else if (state.sort !== "order") {
    const dim = state.sort === "prompt" ? -1 : dimNamed(state.sort);
    const key = state.sort === "prompt" ? (image) => row(image).prompt : dim >= 0 ? (image) => at(image, dim) : (image) => value(image, state.sort) ?? "";
    const keys = chosen.map(key), order = chosen.map((_, index) => index);
    order.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    chosen.splice(0, chosen.length, ...order.map((index) => chosen[index]));
  }
  if (state.descending) chosen.reverse();
  chosen.push(...unscored);
  captions = captionsOf(chosen);
  const room = board.clientWidth - (NARROW.matches ? 24 : 40), size = tileSize();
  const per = Math.max(1, Math.floor((room + 8) / (size + 8)));
  const fitted = Math.floor(Math.min((room + 8) / per - 8, 2 * size));  // tiles grow a little, to fill the line
  setStyle("--tile", `${fitted}px`);
  setStyle("--caption", `${captionHeight(chosen, fitted)}px`);
  lines = [];
  for (let i = 0; i < chosen.length; i += per) lines.push({label: null, cells: chosen.slice(i, i + per)});
}

// Two lines of the prompt, and as many of the fields as the longest needs, up to six.
function captionHeight(chosen, width) {
  const metaLines = Math.min(6, chosen.reduce((most, image) => Math.max(most, numLines(captions.meta(image), width / 7)), 0));
  setStyle("--meta-lines", metaLines);
  return 6 + 16.2 * (metaLines + (captions.words ? 2 : 0));
}

// A field stays in one line if it fits there. length: characters of a line.
function numLines(fields, length) {
  let number = fields.length ? 1 : 0, used = 0;
  for (const text of fields.map((one) => `${one} \u00b7`)) {
    if (used && used + 1 + text.length > length) {
      number++;
      used = 0;
    }
    number += Math.ceil(text.length / length) - 1;
    used += text.length + 1;
  }
  return number;
}

function label(dim, index, kind) {
  const {key, values, isText} = dims[dim];
  const made = element("div", {class: `${kind} ${isText ? "text" : "value"}`, title: values[index]},
    element("span", {class: "clamp", dir: "auto"}, element("bdi", {}, values[index])));
  if (visibleValues(dim).length > 1) {
    const button = element("button", {type: "button", class: "hide", tabIndex: -1, title: "Hide", "aria-label": `Hide ${key} ${values[index].slice(0, 90)}`}, "\u00d7");
    button.addEventListener("click", () => { hide(dim, index); redraw(); });
    made.append(button);
  }
  return made;
}

function fill(target) {
  const line = lines[target.dataset.line];
  if (line.label !== null) target.append(label(state.y, line.label, "row-label"));
  target.append(element("div", {class: "cells"},
    ...line.cells.map((cell) => isImage(cell) ? tile(cell) : element("div", {class: cell === null ? "missing" : "filtered"}, cell === null ? "not made" : ""))));
}

function tile(image) {
  const picture = element("img", {src: thumbnail(image), loading: "lazy", decoding: "async", alt: ""});
  const words = described(image);
  const made = element("button", {type: "button", class: "tile", "aria-label": words, title: state.view === "grid" ? row(image).prompt : words},
    element("span", {class: "picture"}, picture));
  made.dataset.image = image;
  if (state.view === "wall") made.append(caption(image));
  return element("div", {class: "cell"}, made, star(image));
}

function caption(image) {
  const made = element("span", {class: "caption"});
  if (captions.words) made.append(element("span", {class: "words", dir: "auto"}, element("bdi", {}, captions.words(image))));
  const meta = captions.meta(image).join(" \u00b7 ");
  if (meta) made.append(element("span", {class: "meta"}, meta));
  return made;
}

// The image beside this one on the board.
function neighbour(image, right, down) {
  const line = lines.findIndex((one) => one.cells.includes(image));
  if (line < 0) return shown[0] ?? image;
  const column = lines[line].cells.indexOf(image);
  if (right) {
    const next = lines[line].cells.slice(right > 0 ? column + 1 : 0, right > 0 ? undefined : column).filter(isImage);
    if (next.length) return right > 0 ? next[0] : next[next.length - 1];
    if (state.view === "grid") return image;
    return shown[shown.indexOf(image) + right] ?? image;
  }
  for (let i = line + down; i >= 0 && i < lines.length; i += down) {
    const there = lines[i].cells[Math.min(column, lines[i].cells.length - 1)];
    if (isImage(there)) return there;
  }
  return image;
}

function focusTile(image) {
  const line = lines.findIndex((one) => one.cells.includes(image));
  const holder = board.querySelector(`.line[data-line="${line}"]`);
  if (holder && !holder.childElementCount) {
    near.unobserve(holder);
    fill(holder);
  }
  const target = holder?.querySelector(`.tile[data-image="${image}"]`);
  target?.focus();
  target?.scrollIntoView({block: "nearest", inline: "nearest"});
}

board.addEventListener("click", (event) => {
  const target = event.target.closest(".tile");
  if (target) openImage(Number(target.dataset.image));
});
board.addEventListener("keydown", (event) => {
  const target = event.target.closest(".tile");
  if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
  const image = Number(target.dataset.image);
  if (event.key === "f") toggleFavourite(image);
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!step) return;
  event.preventDefault();
  focusTile(neighbour(image, ...step));
});
