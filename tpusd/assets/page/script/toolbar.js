// The toolbar, and the dialog that hides values.
function drawToolbar() {
  for (const input of document.getElementsByName("view")) input.checked = input.value === state.view;
  const grid = state.view === "grid", hasAxes = grid || state.view === "heat";
  const choices = offered.length > 1 ? offered : [...new Set([state.x, state.y])];
  const axis = (name, text) => field(text, element("select", {id: `axis-${name}`},
    ...choices.map((dim) => element("option", {value: String(dim), selected: dim === state[name]}, dims[dim].key))));
  $("axes").replaceChildren(...(hasAxes ? [axis("x", "Across"), axis("y", "Down")] : []));
  $("fixed").replaceChildren(...(grid ? offered.filter((dim) => dim !== state.x && dim !== state.y).map((dim) => {
    const select = element("select", {id: `fixed-${dim}`}, ...visibleValues(dim).map((index) =>
      element("option", {value: String(index), selected: index === state.fixed[dim]}, dims[dim].values[index].slice(0, 90))));
    select.dataset.dim = dim;
    return field(dims[dim].key, select);
  }) : []));
  drawScoreControls();
  $("sort-label").hidden = $("descending-label").hidden = state.view !== "wall";
  $("size-label").hidden = isChart();
  $("sort").value = state.sort;
  $("descending").checked = state.descending;
  if ($("filter").value !== state.filter) $("filter").value = state.filter;
  $("size").value = tileSize();
  const numHidden = state.hidden.reduce((sum, one) => sum + one.size, 0);
  $("values-open").hidden = !offered.length;
  $("values-open").textContent = numHidden ? `Values (${numHidden} hidden)` : "Values";
  drawNumFavourites();
}

function drawScoreControls() {
  for (const one of document.querySelectorAll("#views input")) one.parentElement.hidden = !VIEWS.includes(one.value);
  if (!scoreNames.length) return;
  const limit = (name, text) => field(text, element("input", {type: "number", step: "any", id: name, value: state[name] ?? ""}));
  const select = element("select", {id: "score"}, ...scoreNames.map((name) => element("option", {value: name, selected: name === state.score}, name)));
  $("scores").replaceChildren(field("Score", select), limit("least", "from"), limit("most", "to"));
}

function field(text, control) {
  control.setAttribute("aria-label", text);
  return element("label", {class: "field"}, element("span", {}, text), control);
}

function redraw() {
  drawToolbar();
  drawBoard();
  writeAddressSoon();
}

$("toolbar").addEventListener("submit", (event) => event.preventDefault());
$("toolbar").addEventListener("change", (event) => {
  const {target} = event;
  if (target.name === "view") {
    state.view = target.value;
    if (state.view === "heat") leaveSeedAxis();
  } else if (target.id === "axis-x" || target.id === "axis-y") {
    const [mine, other] = target.id === "axis-x" ? ["x", "y"] : ["y", "x"];
    if (state[other] === Number(target.value)) state[other] = state[mine];
    state[mine] = Number(target.value);
  } else if (target.dataset.dim !== undefined) state.fixed[target.dataset.dim] = Number(target.value);
  else if (target.id === "score") [state.score, state.least, state.most] = [target.value, null, null];
  else if (target.id === "least" || target.id === "most") state[target.id] = numberOf(target.value);
  else if (target.id === "sort") state.sort = target.value;
  else if (target.id === "descending") state.descending = target.checked;
  else return;
  const {id} = target;
  redraw();
  if (id) $(id).focus();
});
let waiting;
$("filter").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    state.filter = $("filter").value;
    drawBoard();
    writeAddressSoon();
  }, 80);
});
$("size").addEventListener("input", () => {
  state.size = Number($("size").value);
  if (state.view === "wall") drawBoard();
  else setStyle("--tile", `${state.size}px`);
  writeAddressSoon();
});
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width && !isChart() && (state.view === "wall" || state.size === null)) drawBoard();
  width = innerWidth;
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || document.querySelector("dialog[open]") || event.target.matches("input")) return;
  event.preventDefault();
  $("filter").focus();
});

// Values: each dimension's values with a box to tick. Thousands of prompts are searched with the filter, not ticked.
const MAX_BOXES = 300;

function drawValues() {
  const parts = offered.map((dim) => {
    const {key, values} = dims[dim];
    const boxes = values.slice(0, MAX_BOXES).map((text, index) => {
      const box = element("input", {type: "checkbox", checked: !state.hidden[dim].has(index)});
      box.dataset.dim = dim;
      box.dataset.index = index;
      return element("label", {class: "check"}, box, element("bdi", {}, text.slice(0, 300)));
    });
    const rest = values.length - boxes.length;
    return element("fieldset", {class: "boxes"}, element("legend", {}, key), ...boxes,
      ...(rest > 0 ? [element("p", {class: "note"}, `and ${rest} more; the filter finds them`)] : []));
  });
  $("values-list").replaceChildren(...parts);
}

$("values-open").addEventListener("click", () => {
  drawValues();
  $("values").showModal();
});
$("values-list").addEventListener("change", ({target}) => {
  const dim = Number(target.dataset.dim), index = Number(target.dataset.index);
  if (target.checked) state.hidden[dim].delete(index);
  else hide(dim, index);
  target.checked = !state.hidden[dim].has(index);  // the last one stays
  redraw();
});
$("values-all").addEventListener("click", () => {
  for (const one of state.hidden) one.clear();
  drawValues();
  redraw();
});
