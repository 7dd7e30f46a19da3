"use strict";
// What the page shows. Everything comes from the JSON block #data and is set as text, never as markup.
// The page's files are one script in the order that tpusd/gallery/page.py has: a page opened from a disk loads no modules.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const {jobs, rows, images} = data;
const COUNT = images.job.length;
const NARROW = matchMedia("(max-width: 760px)");

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

// An image's fields. A column of `images` holds a field in which images of one run differ; the run's settings hold the others.
const job = (image) => jobs[images.job[image]];
const row = (image) => rows[images.row[image]];
const value = (image, field) => field in images ? images[field][image] : job(image).settings[field];
const ratio = (image) => value(image, "width") / value(image, "height");
const digits = (number, width) => String(number).padStart(width, "0");
const stem = (image) => `${digits(row(image).index, 5)}-${digits(images.copy[image], 3)}`;
const imageName = (image) => `${job(image).directory}${stem(image)}`;  // how addresses name it
const fileName = (image) => `${job(image).directory}images/${stem(image)}${job(image).suffix}`;
const isAlone = "pictures" in data;  // the page holds its pictures, and no file is beside it
const file = (image) => isAlone ? data.pictures[fileName(image)] : encodeURI(fileName(image));
const isLarge = (image) => Math.max(value(image, "width"), value(image, "height")) > data.thumbnail_size;
const hasThumbnail = (image) => !isAlone && job(image).thumbnails && isLarge(image);
const thumbnail = (image) => hasThumbnail(image) ? encodeURI(`${job(image).directory}.thumbs/${stem(image)}.webp`) : file(image);
const command = (image) => [job(image).command, row(image).command, images.copy[image] ? `first_copy=${images.copy[image]}` : ""]
  .filter(Boolean).join(" ");
const imagesByName = new Map();
const imageNamed = (name) => {
  if (name === null) return null;
  if (!imagesByName.size) for (let image = 0; image < COUNT; image++) imagesByName.set(imageName(image), image);
  return imagesByName.get(name) ?? null;
};

// Dimensions: each swept field, then prompt and copy. An image has one value index in each. `keys` name the values in addresses:
// a prompt's is the number of its row, which stays when the run grows.
const swept = data.axes.length;
const PROMPT = swept, COPY = swept + 1;
const rowNumbers = data.prompts.map(([number]) => number);
const copies = [...new Set(images.copy)].sort((a, b) => a - b);
const dims = data.axes.map((axis) => ({key: axis.key, values: axis.labels, keys: axis.values, isText: axis.key === "prompts.rows"}));
dims.push({key: "prompt", values: data.prompts.map(([, text]) => text), keys: rowNumbers.map(String), isText: true});
dims.push({key: "copy", values: copies.map(String), keys: copies.map(String), isText: false});
const rowPlace = new Map(rowNumbers.map((number, place) => [number, place]));
const copyPlace = new Map(copies.map((copy, place) => [copy, place]));
const at = (image, dim) => dim < swept ? job(image).at[dim] : dim === PROMPT ? rowPlace.get(row(image).index) : copyPlace.get(images.copy[image]);
const place = (indices) => indices.join(",");
const found = new Map();
for (let image = 0; image < COUNT; image++) found.set(place(dims.map((_, dim) => at(image, dim))), image);
const offered = dims.map((_, dim) => dim).filter((dim) => dims[dim].values.length > 1);
const dimNamed = (key) => offered.find((dim) => dims[dim].key === key) ?? dims.findIndex((one) => one.key === key);

// A field's last word, unless another swept field ends in it too.
const shortKey = (dim) => {
  const last = (key) => key.split(".").pop();
  const own = last(dims[dim].key);
  return dims.some((one, other) => other !== dim && last(one.key) === own) ? dims[dim].key : own;
};

// How many words all of the lists begin with.
function numShared(lists) {
  const [first, ...others] = lists;
  let number = 0;
  while (number < first.length && others.every((words) => words[number] === first[number])) number++;
  return number;
}
