// The viewer: one image (b), alone or compared with another image or an input of its own (compare.js). It is in the address, and the browser's Back button closes it.
const viewer = $("viewer");

function openImage(image) {
  const wasOpen = viewer.open;
  state.image = image;
  drawViewer();
  if (!wasOpen) viewer.showModal();
  fitImage();
  if (wasOpen) writeAddressSoon();
  else writeAddress(true);
}

function drawViewer() {
  const {image} = state, position = shown.indexOf(image);
  $("frame").style.setProperty("--ratio", ratio(image));
  if (!(state.input in inputs(image))) state.input = null;
  picture("image-b", file(image), promptText(image));
  $("name").textContent = position < 0 ? stem(image) : `${position + 1} / ${shown.length}`;
  $("spoken").textContent = described(image);
  $("prompt").textContent = row(image).prompt;
  $("command").textContent = command(image);
  $("copy").textContent = "Copy command";
  $("file").href = file(image);
  $("run-link").hidden = data.kind !== "sweep" || isAlone;
  $("run-link").href = encodeURI(`${job(image).directory}index.html`);
  drawStar($("viewer-star"), image);
  drawSteppers();
  drawInputs(image);
  $("recipe").replaceChildren(...recipe(image).flatMap(([name, text]) => [element("dt", {}, name), element("dd", {dir: "auto"}, text)]));
  drawComparison();
}

function picture(id, src, alt) {
  const img = $(id);
  img.src = src;
  img.alt = alt;
}

const promptText = (image) => row(image).prompt.slice(0, 300);

// The picture that the image starts from, its mask and its control images. A page that holds its pictures has no file beside it.
function inputs(image) {
  const {control_images: controls = [], control_images_sha256: sums = [], ...own} = row(image);
  const files = [["The picture that it starts from", own.image, own.image_sha256], ["The mask", own.mask, own.mask_sha256],
    ...controls.map((file, place) => ["The control image", file, sums[place]])];
  const size = `${value(image, "width")}x${value(image, "height")}`;
  return (isAlone ? [] : files.filter(([, , sha256]) => sha256)).map(([what, title, sha256]) =>
    ({what, title, src: encodeURI(`${job(image).directory}.thumbs/input-${sha256.slice(0, 16)}-${size}.webp`)}));
}

// The button that has the keyboard's focus is drawn again, and keeps it.
function drawInputs(image) {
  const held = [...$("inputs").children].indexOf(document.activeElement);
  $("inputs").replaceChildren(...inputs(image).map(inputButton));
  if (held >= 0) ($("inputs").children[held] ?? $("close")).focus();
}

// A press lays the input over the image.
function inputButton({what, title, src}, number) {
  const made = element("button", {type: "button", title: `${title}: press to compare`, "aria-pressed": String(state.input === number)});
  const img = element("img", {src, alt: what});
  img.addEventListener("error", () => made.remove());  // its file was gone when the page was made
  made.append(img);
  made.addEventListener("click", () => compareWithInput(state.input === number ? null : number));
  return made;
}

function recipe(image) {
  const {settings} = job(image);
  const sampler = value(image, "sampler") === settings.sampler ? settings.sampler_text : value(image, "sampler");
  const parts = [["negative prompt", value(image, "negative_prompt") ?? "(none)"], ["seed", value(image, "seed")],
    ["row, copy", `${row(image).index}, ${images.copy[image]}`], ["sampler", sampler], ["steps", value(image, "num_inference_steps")],
    ["guidance scale", value(image, "guidance_scale")], ["size", `${value(image, "width")} \u00d7 ${value(image, "height")}`],
    ["model", settings.model], ["precision", settings.precision],
    ["tokens", `${images.tokens[image]}${images.truncated[image] ? ", truncated" : ""}`], ["file", fileName(image)], ["sha256", images.sha256[image]]];
  if (row(image).image) parts.push(["image", row(image).image], ["strength", row(image).strength ?? settings.strength]);
  if (row(image).mask) parts.push(["mask", row(image).mask]);
  for (const file of (row(image).control_images ?? []).filter(Boolean)) parts.push(["control image", file]);
  if (row(image).control_images?.some(Boolean)) parts.push(["control scale", row(image).control_scale ?? settings.control_scale]);
  for (const name of scoreNames) parts.push([name, numberText(scoreOf(image, name))]);
  for (const [name, text] of Object.entries(row(image).extra ?? {})) parts.push([name, typeof text === "string" ? text : JSON.stringify(text)]);
  return parts.map(([name, text]) => [name, String(text)]);
}

function drawSteppers() {
  const parts = [];
  for (const dim of offered) {
    const {key, values} = dims[dim];
    const button = (step, sign, word) => {
      const target = stepped(dim, step);
      const made = element("button", {type: "button", disabled: target === null, "aria-label": `${word} ${key}`}, sign);
      made.addEventListener("click", () => stepTo(target, `${word} ${key}`));
      return made;
    };
    const text = values[at(state.image, dim)];
    parts.push(element("span", {class: "dim"}, key), button(-1, "\u2039", "Previous"),
      element("span", {class: "value", title: text, dir: "auto"}, element("bdi", {}, text)), button(1, "\u203a", "Next"));
  }
  $("steppers").replaceChildren(...parts);
}

// The button that was pressed is drawn again, and keeps the keyboard's focus.
function stepTo(image, name) {
  openImage(image);
  [...$("steppers").querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === name && !one.disabled)?.focus();
}

function stepped(dim, step) {
  const indices = dims.map((_, one) => at(state.image, one));
  for (indices[dim] += step; indices[dim] >= 0 && indices[dim] < dims[dim].values.length; indices[dim] += step) {
    const image = found.get(place(indices));
    if (image !== undefined && !state.hidden[dim].has(indices[dim])) return image;
  }
  return null;
}

function move(right, down) {
  openImage(neighbour(state.image, right, down));
}

async function copyCommand() {
  const text = command(state.image);
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
$("copy").addEventListener("click", copyCommand);
$("viewer-star").addEventListener("click", () => toggleFavourite(state.image));
viewer.addEventListener("close", () => {
  const wasClosedByAddress = state.image === null, last = state.image ?? lastOpened;
  clearInterval(blinking);
  resetZoom();
  state.image = state.pinned = state.input = null;
  if (state.favourites) drawBoard();  // without what is no favourite any more
  focusTile(last);
  if (wasClosedByAddress) return;
  if (history.state?.opened) history.back();
  else writeAddress();
});
viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;
  const pan = event.shiftKey && {ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[event.key];
  const action = pan ? () => panBy(60 * pan[0], 60 * pan[1])
    : {ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
      c: compare, s: () => setMode("slider"), b: () => setMode("blink"), d: () => setMode("side"), o: () => setMode("overlay"), e: () => setMode("difference"), x: swap, f: () => toggleFavourite(state.image),
      "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(.8), 0: resetZoom, 1: zoomToPixels}[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// The browser's Back and Forward, and an address that was typed.
let lastOpened = null;
function followAddress() {
  clearTimeout(addressTimer);
  lastOpened = state.image;
  readAddress();
  if (String(boardAddress()) !== drawnAddress) {
    drawToolbar();
    drawBoard();
  }
  if (state.image !== null) openFromAddress();
  else if (viewer.open) viewer.close();
}

function openFromAddress() {
  drawViewer();
  if (!viewer.open) viewer.showModal();
  fitImage();
}
addEventListener("popstate", followAddress);
