"use strict";
// One page for a run and for a sweep. Everything shown comes from the JSON block #data and is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const {jobs, rows, images} = data;
const COUNT = images.job.length;
const FIELDS = ["seed", "sampler", "num_inference_steps", "guidance_scale"];  // what a run without a sweep sorts by, too

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Dimensions: each swept field, then prompt and copy. An image has one value index in each.
const swept = data.axes.length;
const dims = data.axes.map((axis) => ({...axis, text: false}));
dims.push({key: "prompt", values: rows.map((row) => row.prompt), text: true});
const copies = [...new Set(images.copy)].sort((a, b) => a - b);
const copyIndex = new Map(copies.map((copy, index) => [copy, index]));
dims.push({key: "copy", values: copies.map(String), text: false});
const PROMPT = swept, COPY = swept + 1;
const at = (image, dim) => dim < swept ? jobs[images.job[image]].at[dim]
  : dim === PROMPT ? images.row[image] : copyIndex.get(images.copy[image]);
const place = (indices) => indices.join(",");
const found = new Map();
for (let image = 0; image < COUNT; image++) found.set(place(dims.map((_, dim) => at(image, dim))), image);
const offered = dims.map((_, dim) => dim).filter((dim) => dims[dim].values.length > 1);

const job = (image) => jobs[images.job[image]];
const row = (image) => rows[images.row[image]];
const digits = (number, width) => String(number).padStart(width, "0");
const stem = (image) => `${digits(row(image).index, 5)}-${digits(images.copy[image], 3)}`;
const file = (image) => encodeURI(`${job(image).directory}images/${stem(image)}${job(image).suffix}`);
const thumbnail = (image) => job(image).thumbnails ? encodeURI(`${job(image).directory}.thumbs/${stem(image)}.webp`) : file(image);
const value = (image, field) => row(image)[field] ?? job(image).settings[field];
const command = (image) => [job(image).command, row(image).command, images.copy[image] ? `first_copy=${images.copy[image]}` : ""]
  .filter(Boolean).join(" ");

// What is shown, kept in the address so that it survives a reload and can be passed on.
const state = {view: data.kind === "sweep" ? "grid" : "wall", x: COPY, y: PROMPT, fixed: dims.map(() => 0),
  sort: "order", descending: false, filter: "", size: 0};

function startingAxes() {
  const long = offered.filter((dim) => dim < swept).sort((a, b) => dims[b].values.length - dims[a].values.length);
  const [first, second] = [...long, ...offered.filter((dim) => dim >= swept)];
  state.y = second ?? (first === PROMPT ? COPY : PROMPT);
  state.x = first ?? COPY;
  if (state.x === PROMPT || state.y === COPY) [state.x, state.y] = [state.y, state.x];
}

// As large as lets every column be seen, within reason; a phone shows two images of a wall side by side.
function startingSize() {
  const narrow = matchMedia("(max-width: 760px)").matches;
  if (state.view === "wall") return narrow ? 160 : 176;
  const room = innerWidth - (narrow ? 24 : 168 + 50);
  const [across, down] = [dims[state.x].values.length, dims[state.y].values.length];
  const high = narrow ? Infinity : Math.max(160, ((innerHeight - 190) / down - 8) * (COUNT ? ratio(0) : 1));
  return Math.round(Math.min(280, high, Math.max(narrow ? 96 : 128, (room + 8) / across - 8)));
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const dim = (name) => dims.findIndex((one) => one.key === given.get(name));
  if (["grid", "wall"].includes(given.get("view"))) state.view = given.get("view");
  if (dim("x") >= 0) state.x = dim("x");
  if (dim("y") >= 0 && dim("y") !== state.x) state.y = dim("y");
  else if (state.x === state.y) state.y = offered.find((one) => one !== state.x) ?? (state.x === COPY ? PROMPT : COPY);
  dims.forEach((one, index) => {
    const number = parseInt(given.get(`at.${one.key}`), 10);
    if (number >= 0 && number < one.values.length) state.fixed[index] = number;
  });
}

function writeAddress() {
  const now = new URLSearchParams({view: state.view, x: dims[state.x].key, y: dims[state.y].key});
  state.fixed.forEach((number, dim) => { if (number && dim !== state.x && dim !== state.y) now.set(`at.${dims[dim].key}`, number); });
  try { history.replaceState(null, "", `#${now}`); } catch { /* a viewer that forbids it still shows the page */ }
}

// The board: lines of tiles, filled when they come near the window, so that 10,000 images open at once.
let shown = [];  // images in reading order
let lines = [];  // of the board: {label, cells: [image or null]}
let columns = [];
const board = $("board");
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    near.unobserve(entry.target);
    fill(entry.target);
  }
}, {root: board, rootMargin: "600px"});

function matching() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.map((one) => {
    const text = `${one.prompt}\n${one.negative_prompt ?? ""}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function drawBoard() {
  near.disconnect();
  board.replaceChildren();
  board.className = state.view;
  document.documentElement.style.setProperty("--tile", `${state.size}px`);
  const kept = matching();
  state.view === "grid" ? gridLines(kept) : wallLines(kept);
  shown = lines.flatMap((line) => line.cells.filter((image) => image !== null));
  const parts = document.createDocumentFragment();
  if (state.view === "grid" && lines.length) {
    const corner = element("div", {class: "corner"}, element("div", {}, `${dims[state.x].key} \u2192`), element("div", {}, `${dims[state.y].key} \u2193`));
    parts.append(element("div", {class: "columns"}, corner,
      element("div", {class: "cells"}, ...columns.map((index) => label(state.x, index, "column-label")))));
  }
  lines.forEach((line, number) => {
    const made = element("div", {class: "line"});
    made.dataset.line = number;
    near.observe(made);
    parts.append(made);
  });
  if (!lines.length) parts.append(element("p", {class: "empty"}, state.filter ? "No prompt holds these words." : "No images here."));
  board.append(parts);
  board.scrollTo(0, 0);
  $("shown").textContent = shown.length === COUNT ? `${COUNT} images` : `${shown.length} of ${COUNT} images`;
}

function gridLines(kept) {
  const {x, y} = state;
  const indices = dims.map((_, dim) => state.fixed[dim]);
  const lookup = (i, j) => {
    indices[x] = i;
    indices[y] = j;
    return kept[indices[PROMPT]] ? found.get(place(indices)) ?? null : null;
  };
  const all = dims[y].values.map((_, j) => ({label: j, cells: dims[x].values.map((_, i) => lookup(i, j))}));
  columns = dims[x].values.map((_, i) => i).filter((i) => all.some((line) => line.cells[i] !== null));
  lines = all.filter((line) => line.cells.some((image) => image !== null))
    .map((line) => ({label: line.label, cells: columns.map((i) => line.cells[i])}));
}

function wallLines(kept) {
  const chosen = [];
  for (let image = 0; image < COUNT; image++) if (kept[images.row[image]]) chosen.push(image);
  const by = {order: null, prompt: (image) => row(image).prompt};
  const key = state.sort in by ? by[state.sort] : (image) => {
    const dim = dims.findIndex((one) => one.key === state.sort);
    return dim >= 0 ? at(image, dim) : value(image, state.sort);
  };
  if (key) {
    const keys = chosen.map(key), order = chosen.map((_, index) => index);
    order.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
    chosen.splice(0, chosen.length, ...order.map((index) => chosen[index]));
  }
  if (state.descending) chosen.reverse();
  const room = board.clientWidth - (matchMedia("(max-width: 760px)").matches ? 24 : 40);
  const per = Math.max(1, Math.floor((room + 8) / (state.size + 8)));
  const fitted = Math.min((room + 8) / per - 8, 2 * state.size);  // tiles grow a little, to fill the line
  document.documentElement.style.setProperty("--tile", `${Math.floor(fitted)}px`);
  lines = [];
  for (let i = 0; i < chosen.length; i += per) lines.push({label: null, cells: chosen.slice(i, i + per)});
}

function label(dim, index, kind) {
  const text = dims[dim].values[index];
  return element("div", {class: `${kind} ${dims[dim].text ? "text" : "value"}`, title: text, dir: "auto"}, element("bdi", {}, text));
}

function fill(target) {
  const line = lines[target.dataset.line];
  if (line.label !== null) target.append(label(state.y, line.label, "row-label"));
  target.append(element("div", {class: "cells"},
    ...line.cells.map((image) => image === null ? element("div", {class: "missing"}, "not made") : tile(image))));
}

function tile(image) {
  const words = row(image).prompt;
  const picture = element("img", {src: thumbnail(image), loading: "lazy", decoding: "async", alt: words.slice(0, 200)});
  const made = element("button", {type: "button", class: "tile", title: state.view === "grid" ? words : ""},
    element("span", {class: "picture"}, picture));
  made.dataset.image = image;
  if (state.view === "wall") {
    const meta = [...data.axes.map((axis, dim) => `${axis.key.split(".").pop()} ${axis.values[job(image).at[dim]]}`),
      copies.length > 1 ? `copy ${images.copy[image]}` : `seed ${value(image, "seed")}`].join(" \u00b7 ");
    made.append(element("span", {class: "caption"}, element("span", {class: "words", dir: "auto"}, element("bdi", {}, words)),
      element("span", {class: "meta"}, meta)));
  }
  return made;
}

// The toolbar.
function drawToolbar() {
  for (const input of document.getElementsByName("view")) input.checked = input.value === state.view;
  const grid = state.view === "grid";
  const choices = offered.length > 1 ? offered : [...new Set([state.x, state.y])];
  const axis = (name, text) => field(text, element("select", {id: `axis-${name}`},
    ...choices.map((dim) => element("option", {value: String(dim), selected: dim === state[name]}, dims[dim].key))));
  $("axes").replaceChildren(...(grid ? [axis("x", "Across"), axis("y", "Down")] : []));
  $("fixed").replaceChildren(...(grid ? offered.filter((dim) => dim !== state.x && dim !== state.y).map((dim) => {
    const select = element("select", {}, ...dims[dim].values.map((text, index) =>
      element("option", {value: String(index), selected: index === state.fixed[dim]}, text.slice(0, 90))));
    select.dataset.dim = dim;
    return field(dims[dim].key, select);
  }) : []));
  $("sort-label").hidden = $("descending-label").hidden = grid;
  $("size").value = state.size;
}

function field(text, control) {
  control.setAttribute("aria-label", text);
  return element("label", {class: "field"}, element("span", {}, text), control);
}

function redraw() {
  drawToolbar();
  drawBoard();
  writeAddress();
}

$("toolbar").addEventListener("submit", (event) => event.preventDefault());
$("toolbar").addEventListener("change", (event) => {
  const {target} = event;
  if (target.name === "view") state.view = target.value;
  else if (target.id === "axis-x" || target.id === "axis-y") {
    const [mine, other] = target.id === "axis-x" ? ["x", "y"] : ["y", "x"];
    if (state[other] === Number(target.value)) state[other] = state[mine];
    state[mine] = Number(target.value);
  } else if (target.dataset.dim !== undefined) state.fixed[target.dataset.dim] = Number(target.value);
  else if (target.id === "sort") state.sort = target.value;
  else if (target.id === "descending") state.descending = target.checked;
  else return;
  const id = target.id;
  redraw();
  if (id) $(id).focus();
});
let waiting;
$("filter").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { state.filter = $("filter").value; drawBoard(); }, 80);
});
$("size").addEventListener("input", () => {
  state.size = Number($("size").value);
  if (state.view === "wall") drawBoard();
  else document.documentElement.style.setProperty("--tile", `${state.size}px`);
});
let width = innerWidth;
addEventListener("resize", () => {
  if (state.view === "wall" && innerWidth !== width) drawBoard();
  width = innerWidth;
});
board.addEventListener("click", (event) => {
  const target = event.target.closest(".tile");
  if (target) open(Number(target.dataset.image));
});
board.addEventListener("keydown", (event) => {
  const target = event.target.closest(".tile");
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!target || !step) return;
  event.preventDefault();
  const image = neighbour(Number(target.dataset.image), ...step);
  const line = lines.findIndex((one) => one.cells.includes(image));
  const holder = board.querySelector(`.line[data-line="${line}"]`);
  if (holder && !holder.childElementCount) { near.unobserve(holder); fill(holder); }
  holder?.querySelector(`[data-image="${image}"]`)?.focus();
});

function neighbour(image, right, down) {
  const line = lines.findIndex((one) => one.cells.includes(image));
  if (line < 0) return image;
  const column = lines[line].cells.indexOf(image);
  if (right) {
    const next = lines[line].cells.slice(right > 0 ? column + 1 : 0, right > 0 ? undefined : column).filter((one) => one !== null);
    if (next.length) return right > 0 ? next[0] : next[next.length - 1];
    if (state.view === "grid") return image;
    return shown[shown.indexOf(image) + right] ?? image;
  }
  for (let i = line + down; i >= 0 && i < lines.length; i += down) {
    const there = lines[i].cells[Math.min(column, lines[i].cells.length - 1)];
    if (there !== null) return there;
  }
  return image;
}

// The viewer: one image (b), or two to compare: a, which stays, over b, which moves.
const viewer = $("viewer");
let current = null, pinned = null, mode = "slider", blinking;

function open(image) {
  current = image;
  drawViewer();
  if (!viewer.open) viewer.showModal();
}

function drawViewer() {
  const image = current;
  $("frame").style.setProperty("--ratio", ratio(image));
  picture("image-b", image);
  $("name").textContent = `${shown.includes(image) ? `${shown.indexOf(image) + 1} / ${shown.length}` : stem(image)}`;
  $("prompt").textContent = row(image).prompt;
  $("command").textContent = command(image);
  $("copy").textContent = "Copy command";
  $("file").href = file(image);
  $("run-link").hidden = data.kind !== "sweep";
  $("run-link").href = encodeURI(`${job(image).directory}index.html`);
  drawSteppers();
  $("recipe").replaceChildren(...recipe(image).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {dir: "auto"}, text)]));
  drawComparison();
}

function picture(id, image) {
  const img = $(id);
  img.src = file(image);
  img.alt = row(image).prompt.slice(0, 300);
}

const ratio = (image) => value(image, "width") / value(image, "height");

function recipe(image) {
  const {settings} = job(image);
  const lines = [["negative prompt", row(image).negative_prompt ?? settings.negative_prompt ?? "(none)"], ["seed", value(image, "seed")],
    ["row, copy", `${row(image).index}, ${images.copy[image]}`], ["sampler", settings.sampler_text], ["steps", settings.num_inference_steps],
    ["guidance scale", value(image, "guidance_scale")], ["size", `${settings.width} \u00d7 ${settings.height}`], ["model", settings.model],
    ["precision", settings.precision], ["tokens", `${images.tokens[image]}${images.truncated[image] ? ", truncated" : ""}`],
    ["file", decodeURI(file(image))], ["sha256", images.sha256[image]]];
  for (const [name, text] of Object.entries(row(image).extra ?? {})) lines.push([name, typeof text === "string" ? text : JSON.stringify(text)]);
  return lines.map(([name, text]) => [name, String(text)]);
}

function drawSteppers() {
  const parts = [];
  for (const dim of offered) {
    const index = at(current, dim);
    const button = (step, sign, word) => {
      const target = stepped(dim, step);
      const made = element("button", {type: "button", disabled: target === null, "aria-label": `${word} ${dims[dim].key}`}, sign);
      made.addEventListener("click", () => open(stepped(dim, step)));
      return made;
    };
    const text = dims[dim].values[index];
    parts.push(element("span", {class: "dim"}, dims[dim].key), button(-1, "\u2039", "Previous"),
      element("span", {class: "value", title: text, dir: "auto"}, element("bdi", {}, text)), button(1, "\u203a", "Next"));
  }
  $("steppers").replaceChildren(...parts);
}

function stepped(dim, step) {
  const indices = dims.map((_, one) => at(current, one));
  for (indices[dim] += step; indices[dim] >= 0 && indices[dim] < dims[dim].values.length; indices[dim] += step) {
    const image = found.get(place(indices));
    if (image !== undefined) return image;
  }
  return null;
}

function move(right, down) {
  open(neighbour(current, right, down));
}

function drawComparison() {
  const on = pinned !== null;
  clearInterval(blinking);
  $("compare").textContent = on ? "Stop" : "Compare";
  for (const id of ["modes", "swap", "tag-a", "tag-b", "image-a"]) $(id).hidden = !on;
  $("handle").hidden = !on || mode !== "slider";
  $("frame").className = on ? `compared ${mode} ${mode === "side" ? "" : "layered"}` : "";
  const a = $("image-a");
  a.style.clipPath = "";
  a.style.visibility = "";
  if (!on) return;
  picture("image-a", pinned);
  const [left, right] = differences(pinned, current);
  $("tag-a").textContent = left;
  $("tag-b").textContent = right;
  for (const input of document.getElementsByName("mode")) input.checked = input.value === mode;
  if (mode === "slider") slide(.5);
  if (mode === "blink") blinking = setInterval(blink, 600);
}

function blink() {
  const a = $("image-a");
  a.style.visibility = a.style.visibility === "hidden" ? "" : "hidden";
}

function slide(share) {
  const percent = Math.min(100, Math.max(0, share * 100));
  $("image-a").style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
  $("handle").style.left = `${percent}%`;
}

function differences(a, b) {
  const apart = dims.map((_, dim) => dim).filter((dim) => at(a, dim) !== at(b, dim));
  const text = (image) => apart.length ? apart.map((dim) => `${dims[dim].key.split(".").pop()} ${dims[dim].values[at(image, dim)]}`).join(" \u00b7 ") : "the same image";
  return [text(a), text(b)];
}

function compare() {
  if (pinned !== null) pinned = null;
  else {
    pinned = current;
    for (const [right, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      current = neighbour(pinned, right, down);
      if (current !== pinned) break;
    }
  }
  drawViewer();
}

function swap() {
  if (pinned === null) return;
  [pinned, current] = [current, pinned];
  drawViewer();
}

function setMode(name) {
  if (pinned === null) compare();
  mode = name;
  drawComparison();
}

async function copyCommand() {
  const text = command(current);
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not offered to pages opened from a file by every browser
    const area = element("textarea", {value: text, readOnly: true});
    viewer.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy command"; }, 1500);
}

$("close").addEventListener("click", () => viewer.close());
$("previous").addEventListener("click", () => move(-1, 0));
$("next").addEventListener("click", () => move(1, 0));
$("compare").addEventListener("click", compare);
$("swap").addEventListener("click", swap);
$("copy").addEventListener("click", copyCommand);
$("modes").addEventListener("change", (event) => setMode(event.target.value));
viewer.addEventListener("close", () => {
  clearInterval(blinking);
  pinned = null;
  const last = board.querySelector(`[data-image="${current}"]`);
  last?.focus();
  last?.scrollIntoView({block: "nearest", inline: "nearest"});
});
viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const action = {ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
    c: compare, s: () => setMode("slider"), b: () => setMode("blink"), d: () => setMode("side"), x: swap}[event.key];
  if (!action || event.target.matches("input[type=search]")) return;
  event.preventDefault();
  action();
});
let dragging = false;
const frame = $("frame");
const slideTo = (event) => {
  const box = frame.getBoundingClientRect();
  slide((event.clientX - box.left) / box.width);
};
frame.addEventListener("pointerdown", (event) => {
  if (pinned === null || mode !== "slider") return;
  dragging = true;
  frame.setPointerCapture(event.pointerId);
  slideTo(event);
});
frame.addEventListener("pointermove", (event) => { if (dragging) slideTo(event); });
frame.addEventListener("pointerup", () => { dragging = false; });
frame.addEventListener("dragstart", (event) => event.preventDefault());
let touch = null;
$("stage").addEventListener("touchstart", (event) => { touch = event.touches.length === 1 && !dragging ? event.touches[0] : null; }, {passive: true});
$("stage").addEventListener("touchend", (event) => {
  if (!touch || dragging || (pinned !== null && mode === "slider")) return;
  const {clientX, clientY} = event.changedTouches[0];
  const right = clientX - touch.clientX;
  if (Math.abs(right) > 50 && Math.abs(right) > 2 * Math.abs(clientY - touch.clientY)) move(right < 0 ? 1 : -1, 0);
});

// Details: what the images were made on and with.
function drawFacts() {
  const parts = [];
  if (data.kind === "sweep") {
    const head = ["run", ...data.axes.map((axis) => axis.key), "images", "images/s", "state"];
    const body = jobs.concat(data.failed).map((one) => element("tr", {class: one.error ? "failed" : ""}, element("td", {}, one.name),
      ...data.axes.map((axis, dim) => element("td", {}, axis.values[one.at[dim]])), element("td", {}, String(one.num_images ?? 0)),
      element("td", {}, one.rate ? one.rate.toFixed(2) : ""), element("td", {}, one.error ?? one.state)));
    parts.push(element("h3", {}, "Runs"), element("div", {class: "scroll"}, element("table", {},
      element("thead", {}, element("tr", {}, ...head.map((name) => element("th", {}, name)))), element("tbody", {}, ...body))));
  }
  for (const [title, facts] of data.facts) {
    parts.push(element("h3", {}, title), element("dl", {}, ...facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, String(text))])));
  }
  $("facts").replaceChildren(...parts);
}
$("about-open").addEventListener("click", () => { drawFacts(); $("about").showModal(); });
$("about-close").addEventListener("click", () => $("about").close());
$("about").addEventListener("click", (event) => { if (event.target === $("about")) $("about").close(); });
addEventListener("keydown", (event) => {
  if (event.key === "/" && !viewer.open && !$("about").open && !event.target.matches("input")) {
    event.preventDefault();
    $("filter").focus();
  }
});

document.documentElement.style.setProperty("--ratio", COUNT ? ratio(0) : 1);
$("title").textContent = data.title;
$("summary").textContent = data.summary;
const sorts = [["order", "as made"], ["prompt", "prompt"], ...[...new Set([...data.axes.map((axis) => axis.key), ...FIELDS])]
  .map((key) => [key, key.split(".").pop()])];
$("sort").append(...sorts.map(([key, text]) => element("option", {value: key}, text)));
startingAxes();
readAddress();
state.size = startingSize();
redraw();
