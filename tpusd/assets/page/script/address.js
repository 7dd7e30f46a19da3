// What is shown, kept in the address by value: a link opens the same view after the run has grown.
//   view=grid|wall|heat|plot  x=FIELD  y=FIELD  at.FIELD=VALUE  hide.FIELD=VALUE  sort=FIELD  reverse=1  filter=WORDS  size=PIXELS
//   score=NAME  least=NUMBER  most=NUMBER  favourites=1  image=NAME  with=NAME  input=NUMBER  mode=slider|blink|side|overlay|difference
const state = {};
const MODES = ["slider", "blink", "side", "overlay", "difference"];

function startingState() {
  const long = offered.filter((dim) => dim < swept).sort((a, b) => dims[b].values.length - dims[a].values.length);
  const [first, second] = [...long, ...offered.filter((dim) => dim >= swept)];
  let y = second ?? (first === PROMPT ? COPY : PROMPT), x = first ?? COPY;
  if (x === PROMPT || y === COPY) [x, y] = [y, x];
  return {view: data.kind === "sweep" ? "grid" : "wall", x, y, fixed: dims.map(() => 0), hidden: dims.map(() => new Set()),
    sort: "order", descending: false, filter: "", score: scoreNames[0] ?? null, least: null, most: null, size: null, favourites: false, image: null, pinned: null,
    input: null, mode: "slider"};
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, startingState());
  if (VIEWS.includes(given.get("view"))) state.view = given.get("view");
  const [x, y] = [dimNamed(given.get("x")), dimNamed(given.get("y"))];
  if (x >= 0) state.x = x;
  if (y >= 0 && y !== state.x) state.y = y;
  else if (state.x === state.y) state.y = offered.find((dim) => dim !== state.x) ?? (state.x === COPY ? PROMPT : COPY);
  for (const dim of offered) {
    const {key, keys} = dims[dim];
    for (const text of given.getAll(`hide.${key}`)) if (keys.includes(text)) hide(dim, keys.indexOf(text));
    const index = keys.indexOf(given.get(`at.${key}`));
    if (index >= 0) state.fixed[dim] = index;
    leaveHidden(dim);
  }
  if (sorts.some(([key]) => key === given.get("sort"))) state.sort = given.get("sort");
  state.descending = given.has("reverse");
  state.filter = given.get("filter") ?? "";
  if (scoreNames.includes(given.get("score"))) state.score = given.get("score");
  [state.least, state.most] = ["least", "most"].map((name) => numberOf(given.get(name)));
  state.size = sizeInRange(parseInt(given.get("size"), 10));
  state.favourites = given.has("favourites");
  state.image = imageNamed(given.get("image"));
  state.pinned = state.image === null ? null : imageNamed(given.get("with"));
  const input = parseInt(given.get("input"), 10);
  state.input = state.image !== null && state.pinned === null && input in inputs(state.image) ? input : null;
  if (MODES.includes(given.get("mode"))) state.mode = given.get("mode");
}

// A number that was typed; null where there is none.
function numberOf(text) {
  const number = parseFloat(text ?? "");
  return scoreNames.length && Number.isFinite(number) ? number : null;
}

function boardAddress() {
  const now = new URLSearchParams({view: state.view, x: dims[state.x].key, y: dims[state.y].key});
  for (const dim of offered) {
    const {key, keys} = dims[dim];
    if (dim !== state.x && dim !== state.y) now.set(`at.${key}`, keys[state.fixed[dim]]);
    for (const index of state.hidden[dim]) now.append(`hide.${key}`, keys[index]);
  }
  if (state.sort !== "order") now.set("sort", state.sort);
  if (state.descending) now.set("reverse", "1");
  if (state.filter) now.set("filter", state.filter);
  if (state.score !== null && state.score !== scoreNames[0]) now.set("score", state.score);
  if (state.least !== null) now.set("least", state.least);
  if (state.most !== null) now.set("most", state.most);
  if (state.size !== null) now.set("size", state.size);
  if (state.favourites) now.set("favourites", "1");
  return now;
}

// Browsers refuse more than 100 addresses in 30 seconds: of a held key or a moved slider then only the last one is written.
let addressTimer, written = [];  // milliseconds
function writeAddressSoon() {
  clearTimeout(addressTimer);
  written = written.filter((time) => performance.now() - time < 30000);
  if (written.length < 80) writeAddress();
  else addressTimer = setTimeout(() => writeAddress(), 400);
}

// isNew: whether the browser's Back button returns to the address before.
function writeAddress(isNew = false) {
  clearTimeout(addressTimer);
  const now = boardAddress();
  if (state.image !== null) {
    now.set("image", imageName(state.image));
    if (state.pinned !== null) now.set("with", imageName(state.pinned));
    if (state.input !== null) now.set("input", state.input);
    if (isCompared()) now.set("mode", state.mode);
  }
  written.push(performance.now());
  try {
    if (isNew) history.replaceState(history.state, "", `#${boardAddress()}`);
    history[isNew ? "pushState" : "replaceState"](isNew ? {opened: true} : history.state, "", `#${now}`);
  } catch { /* a viewer that forbids it still shows the page */ }
}

// Hidden values. One value of a dimension is always left, and no selector names a hidden one.
const visibleValues = (dim) => dims[dim].values.map((_, index) => index).filter((index) => !state.hidden[dim].has(index));

function hide(dim, index) {
  if (visibleValues(dim).length > 1) state.hidden[dim].add(index);
  leaveHidden(dim);
}

function leaveHidden(dim) {
  if (state.hidden[dim].has(state.fixed[dim])) state.fixed[dim] = visibleValues(dim)[0];
}
