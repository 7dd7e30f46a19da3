// Two pictures, one over the other: b is the image (state.image), which moves. a is another image (state.pinned), which stays,
// or an input of b (state.input, its number).
let blinking;

const isCompared = () => state.pinned !== null || state.input !== null;

function drawComparison() {
  const {pinned, mode} = state, on = isCompared();
  clearInterval(blinking);
  $("compare").textContent = on ? "Stop" : "Compare";
  for (const id of ["modes", "tag-a", "tag-b", "pane-a"]) $(id).hidden = !on;
  $("swap").hidden = pinned === null;
  $("handle").hidden = !on || mode !== "slider";
  $("frame").className = on ? `compared ${mode} ${mode === "side" ? "" : "layered"}` : "";
  const pane = $("pane-a");
  pane.style.clipPath = pane.style.visibility = "";
  if (!on) return;
  if (pinned !== null) picture("image-a", file(pinned), promptText(pinned));
  const input = pinned === null ? inputs(state.image)[state.input] : null;
  if (input) picture("image-a", input.src, input.what);
  const [left, right] = input ? [input.what, "The image"] : differences(pinned, state.image);
  $("tag-a").textContent = left;
  $("tag-b").textContent = right;
  for (const input of document.getElementsByName("mode")) input.checked = input.value === mode;
  if (mode === "slider") slide(.5);
  if (mode === "blink") blinking = setInterval(blink, 600);
}

function blink() {
  const pane = $("pane-a");
  pane.style.visibility = pane.style.visibility === "hidden" ? "" : "hidden";
}

function slide(share) {
  const percent = Math.min(100, Math.max(0, share * 100));
  $("pane-a").style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
  $("handle").style.left = `${percent}%`;
}

function differences(a, b) {
  const apart = dims.map((_, dim) => dim).filter((dim) => at(a, dim) !== at(b, dim));
  const text = (image) => apart.length ? apart.map((dim) => `${shortKey(dim)} ${dims[dim].values[at(image, dim)]}`).join(" \u00b7 ") : "the same image";
  return [text(a), text(b)];
}

function compare() {
  if (isCompared()) state.pinned = state.input = null;
  else {
    state.pinned = state.image;
    for (const [right, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      state.image = neighbour(state.pinned, right, down);
      if (state.image !== state.pinned) break;
    }
  }
  openImage(state.image);
}

function swap() {
  if (state.pinned === null) return;
  [state.pinned, state.image] = [state.image, state.pinned];
  openImage(state.image);
}

// number: of the input; null for the image alone.
function compareWithInput(number) {
  state.pinned = null;
  state.input = number;
  openImage(state.image);
}

function setMode(name) {
  if (!isCompared()) compare();
  state.mode = name;
  openImage(state.image);
}

$("compare").addEventListener("click", compare);
$("swap").addEventListener("click", swap);
$("modes").addEventListener("change", (event) => setMode(event.target.value));
