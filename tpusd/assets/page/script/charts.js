// Charts of a score: a heat map of two dimensions, and the score of each setting against its seconds per image.
function drawChart(passes) {
  shown = [];
  for (let image = 0; image < COUNT; image++) if (passes(image)) shown.push(image);
  lines = [];
  columns = [];
  board.append(element("div", {class: "chart"}, ...(state.view === "heat" ? heatMap() : plot())));
}

// What the spread is over: the seeds where they are no axis, else the copies, else the images.
function spreadDim(axes) {
  if (seedDim() !== null && !axes.includes(seedDim())) return seedDim();
  return offered.includes(COPY) && !axes.includes(COPY) ? COPY : null;
}
const spreadText = (dim) => `\u00b1: standard deviation over ${dim === null ? "the images" : dim === COPY ? "the copies" : dims[dim].key}`;

// A heat map has its spread over the seeds, so these leave an axis where another swept field can take it.
function leaveSeedAxis() {
  for (const name of ["x", "y"]) {
    const other = offered.find((dim) => dim < swept && dim !== state.x && dim !== state.y);
    if (state[name] === seedDim() && other !== undefined) state[name] = other;
  }
}

function heatMap() {
  const {x, y, score} = state, dim = spreadDim([x, y]);
  const cells = new Map();
  for (const image of shown) {
    const key = place([at(image, x), at(image, y)]);
    cells.set(key, [...(cells.get(key) ?? []), image]);
  }
  const found = new Map([...cells].map(([key, chosen]) => [key, statistics(chosen, score, dim)]));
  const means = [...found.values()].filter((one) => one !== null).map((one) => one.mean);
  if (!means.length) return [element("p", {class: "empty"}, `No image here has a score of ${score}.`)];
  const low = Math.min(...means), span = Math.max(...means) - low;
  const across = visibleValues(x).filter((i) => visibleValues(y).some((j) => found.get(place([i, j]))));
  const down = visibleValues(y).filter((j) => across.some((i) => found.get(place([i, j]))));
  const head = element("tr", {}, element("th", {scope: "col", class: "axis"}, `${dims[x].key} \u2192 ${dims[y].key} \u2193`),
    ...across.map((i) => element("th", {scope: "col"}, element("bdi", {}, dims[x].values[i].slice(0, 90)))));
  const body = down.map((j) => element("tr", {}, element("th", {scope: "row"}, element("bdi", {}, dims[y].values[j].slice(0, 90))),
    ...across.map((i) => heatCell(found.get(place([i, j])) ?? null, low, span))));
  const note = `Mean of ${score} over all images with these values. ${spreadText(dim)}.`;
  return [element("p", {class: "note"}, note), element("table", {class: "heat"}, element("thead", {}, head), element("tbody", {}, ...body))];
}

function heatCell(one, low, span) {
  if (one === null) return element("td", {class: "nothing"}, "\u2013");
  const made = element("td", {title: `${one.count} image${one.count === 1 ? "" : "s"}`}, meanText(one));
  made.style.setProperty("--share", span ? (one.mean - low) / span : .5);
  return made;
}

// A setting: the runs that differ in their seed alone. seconds: per image, the mean of its runs.
function settings() {
  const byName = new Map();
  for (const image of shown) {
    const values = dims.slice(0, swept).map((dim, number) => number === seedDim() || dim.values.length < 2 ? null : `${shortKey(number)} ${dim.values[job(image).at[number]]}`);
    const name = values.filter((one) => one !== null).join(", ") || "all runs";
    byName.set(name, [...(byName.get(name) ?? []), image]);
  }
  const made = [];
  for (const [name, chosen] of byName) {
    const found = statistics(chosen, state.score, spreadDim([]));
    const rates = [...new Set(chosen.map((image) => images.job[image]))].map((number) => jobs[number].rate).filter((rate) => rate > 1e-9);
    if (found !== null) made.push({name, ...found, seconds: rates.length ? mean(rates.map((rate) => 1 / rate)) : null});
  }
  return withFront(made.sort((a, b) => b.mean - a.mean || (a.seconds ?? Infinity) - (b.seconds ?? Infinity)));
}

// Marks the settings that no other one beats in both: a higher score in at most the time.
function withFront(made) {
  let fastest = Infinity;
  for (const [number, one] of made.entries()) {
    one.number = number + 1;
    one.best = one.seconds !== null && one.seconds < fastest;
    if (one.best) fastest = one.seconds;
  }
  return made;
}

function plot() {
  const found = settings(), timed = found.filter((one) => one.seconds !== null);
  if (!timed.length) return [element("p", {class: "empty"}, `No run here has both a score of ${state.score} and a rate.`)];
  const rows = found.map((one) => element("tr", {class: one.best ? "best" : ""}, element("td", {}, one.best ? "\u25cf" : "\u25cb"), element("td", {}, String(one.number)), element("td", {}, element("bdi", {}, one.name)),
    element("td", {}, meanText(one)), element("td", {}, one.seconds === null ? "" : numberText(one.seconds)), element("td", {}, String(one.count))));
  const head = ["", "", "setting", state.score, "seconds per image", "images"].map((text) => element("th", {scope: "col"}, text));
  return [element("p", {class: "note"}, `Filled: no other setting has a higher ${state.score} in at most the time. ${spreadText(spreadDim([]))}.`),
    scatter(timed), element("table", {class: "settings"}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))];
}

const WIDTH = 860, HEIGHT = 420, LEFT = 74, RIGHT = 20, TOP = 16, BOTTOM = 48;  // of the plot, in its own units
const NUM_NAMED = 40;  // settings with their numbers in the plot; of more, the best ones alone

function svg(name, attributes, ...children) {
  const made = document.createElementNS($("drawing").namespaceURI, name);
  for (const [key, text] of Object.entries(attributes)) made.setAttribute(key, text);
  made.append(...children);
  return made;
}

function scatter(found) {
  const spread = (one) => one.spread ?? 0;
  const xs = scale([0, ...found.map((one) => one.seconds)], LEFT, WIDTH - RIGHT);
  const ys = scale(found.flatMap((one) => [one.mean - spread(one), one.mean + spread(one)]), HEIGHT - BOTTOM, TOP);
  const parts = [];
  for (const tick of xs.ticks) parts.push(svg("line", {class: "rule", x1: xs(tick), x2: xs(tick), y1: TOP, y2: HEIGHT - BOTTOM}),
    svg("text", {x: xs(tick), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle"}, numberText(tick)));
  for (const tick of ys.ticks) parts.push(svg("line", {class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: ys(tick), y2: ys(tick)}),
    svg("text", {x: LEFT - 8, y: ys(tick) + 4, "text-anchor": "end"}, numberText(tick)));
  parts.push(svg("text", {x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle"}, "seconds per image"),
    svg("text", {transform: `translate(16 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle"}, state.score));
  const front = found.filter((one) => one.best).sort((a, b) => a.seconds - b.seconds);
  parts.push(svg("polyline", {class: "front", points: front.map((one) => `${xs(one.seconds)},${ys(one.mean)}`).join(" ")}));
  for (const one of [...found].sort((a, b) => a.best - b.best)) {  // the best ones on top
    const [x, y] = [xs(one.seconds), ys(one.mean)];
    parts.push(svg("g", {class: one.best ? "point best" : "point"}, svg("title", {}, `${one.name}: ${meanText(one)}, ${numberText(one.seconds)} s`),
      svg("line", {x1: x, x2: x, y1: ys(one.mean - spread(one)), y2: ys(one.mean + spread(one))}), svg("circle", {cx: x, cy: y, r: 5})));
  }
  for (const one of (found.length > NUM_NAMED ? front : found).slice(0, NUM_NAMED))
    parts.push(svg("text", {class: "name", x: xs(one.seconds) + 8, y: ys(one.mean) - 6}, String(one.number)));
  return svg("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${state.score} against seconds per image; the table below has the numbers`}, ...parts);
}

// A function from a value to a position, with the round values between its ends as `ticks`.
function scale(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high), 1e-9)) {
    const margin = Math.max(Math.abs(low), 1e-3) * .1;
    [low, high] = [low - margin, high + margin];
  }
  const pad = (high - low) * .06, start = low === 0 ? 0 : low - pad, end = high + pad;
  const power = 10 ** Math.floor(Math.log10((end - start) / 5)), step = [1, 2, 5, 10].map((one) => one * power).find((one) => (end - start) / one <= 6);
  const position = (one) => from + (one - start) / (end - start) * (to - from);
  position.ticks = [];
  for (let tick = Math.ceil(start / step); tick * step <= end; tick++) position.ticks.push(Number((tick * step).toPrecision(12)));
  return position;
}
