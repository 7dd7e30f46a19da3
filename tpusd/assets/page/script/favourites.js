// Favourites: kept by the browser for each run, so that a run's own page and its sweep's page share them where the browser
// lets files share. A list in a file takes them elsewhere.
const favourites = jobs.map((one) => new Set(storedStems(one.id)));
const isFavourite = (image) => favourites[images.job[image]].has(stem(image));
const numFavourites = () => favouriteImages().length;

function storedStems(id) {
  try {
    const stems = JSON.parse(localStorage.getItem(`tpusd.favourites ${id}`) ?? "[]");
    return Array.isArray(stems) ? stems : [];
  } catch { return []; }  // no storage, or not ours
}

function favouriteImages() {
  const marked = [];
  if (favourites.some((one) => one.size)) for (let image = 0; image < COUNT; image++) if (isFavourite(image)) marked.push(image);
  return marked;
}

function setFavourites(chosen, on) {
  for (const image of chosen) favourites[images.job[image]][on ? "add" : "delete"](stem(image));
  for (const number of new Set(chosen.map((image) => images.job[image]))) {
    const name = `tpusd.favourites ${jobs[number].id}`, own = favourites[number];
    try {
      if (own.size) localStorage.setItem(name, JSON.stringify([...own].sort()));
      else localStorage.removeItem(name);
    } catch { /* kept until the page closes */ }
  }
}

function toggleFavourite(image) {
  setFavourites([image], !isFavourite(image));
  for (const one of document.querySelectorAll(`.star[data-image="${image}"]`)) drawStar(one, image);
  drawNumFavourites();
}

function star(image) {
  const made = element("button", {type: "button", class: "star", tabIndex: -1, "aria-label": "Favourite"});
  made.dataset.image = image;
  drawStar(made, image);
  made.addEventListener("click", () => toggleFavourite(Number(made.dataset.image)));
  return made;
}

function drawStar(button, image) {
  button.dataset.image = image;
  button.textContent = isFavourite(image) ? "\u2605" : "\u2606";
  button.setAttribute("aria-pressed", isFavourite(image));
  button.title = isFavourite(image) ? "Remove from favourites (F)" : "Add to favourites (F)";
}

function drawNumFavourites() {
  const number = numFavourites();
  $("favourites-open").textContent = `\u2605 ${number}`;
  $("favourites-open").setAttribute("aria-label", `Favourites: ${number}`);
  $("only-favourites").checked = state.favourites;
  for (const one of document.querySelectorAll("#exports button")) one.disabled = !number;
}

// What is exported: [file, text of the file] of the marked images.
const EXPORTS = {
  names: () => ["favourites.txt", favouriteImages().map(fileName)],
  lines: () => ["favourites.jsonl", favouriteImages().map((image) => JSON.stringify(exported(image)))],
  prompts: () => ["favourite-prompts.jsonl", [...new Set(favouriteImages().map((image) => JSON.stringify(promptRow(image))))]],
  commands: () => ["favourites.sh", ["#!/bin/sh", "# Makes these images again, each in a run of its own.", "set -e", ...favouriteImages().map(command)]],
};

function exported(image) {
  const fields = Object.fromEntries([...new Set([...Object.keys(job(image).settings), ...FIELDS])]
    .filter((name) => name !== "sampler_text").map((name) => [name, value(image, name)]));
  return {file_name: fileName(image), sha256: images.sha256[image], row: row(image).index, copy: images.copy[image], prompt: row(image).prompt,
    ...fields, ...Object.fromEntries(scoreNames.map((name) => [`${SCORE}${name}`, scoreOf(image, name)])), ...row(image).extra, command: command(image)};
}

function promptRow(image) {
  const {index, command, extra, ...own} = row(image);
  return {...own, ...extra};
}

function download(name, texts) {
  const address = URL.createObjectURL(new Blob(texts.map((text) => `${text}\n`), {type: "text/plain"}));
  const link = element("a", {href: address, download: name, hidden: true});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// Marks the images that a list names: favourites.txt, favourites.jsonl, or a manifest's lines.
function markFrom(text) {
  const byFile = new Map(images.job.map((_, image) => [fileName(image), image]));
  const lines = text.split("\n").map((one) => one.trim()).filter(Boolean);
  const marked = lines.map((line) => byFile.get(nameIn(line))).filter((image) => image !== undefined);
  setFavourites(marked, true);
  const unknown = lines.length - marked.length;
  return `${marked.length} marked${unknown ? `; ${unknown} not on this page` : ""}`;
}

function nameIn(line) {
  if (!line.startsWith("{")) return line;
  try { return JSON.parse(line).file_name; } catch { return undefined; }
}

$("only-favourites").addEventListener("change", ({target}) => {
  state.favourites = target.checked;
  redraw();
});
$("favourites-open").addEventListener("click", () => {
  $("prompts-command").textContent = `${jobs[0]?.command} prompts=file prompts.path=favourite-prompts.jsonl`;
  $("marked").textContent = "";
  drawNumFavourites();
  $("favourites-sheet").showModal();
});
$("exports").addEventListener("click", ({target}) => {
  if (target.dataset.export) download(...EXPORTS[target.dataset.export]());
});
$("mark-from").addEventListener("change", async ({target}) => {
  for (const one of target.files) $("marked").textContent = markFrom(await one.text());
  target.value = "";
  redraw();
});
$("unmark-all").addEventListener("click", () => {
  setFavourites(favouriteImages(), false);
  redraw();
});
