// Which words say how images differ: the captions of the wall, and what a screen reader says of a tile.
const FIELDS = ["seed", "sampler", "num_inference_steps", "guidance_scale", "negative_prompt"];  // of an image, beside the swept ones
const MIN_SHARED = 24;  // characters; a shorter beginning is not worth cutting off
const sizeOf = (image) => `${value(image, "width")}\u00d7${value(image, "height")}`;

const MAX_VALUE = 24;  // characters
const shortened = (text) => text.length <= MAX_VALUE ? text : `${text.slice(0, MAX_VALUE - 1)}\u2026`;

// {words, meta}: functions from an image to its prompt, and to a list of fields. words is null where all have one prompt.
function captionsOf(chosen) {
  const differ = (read) => chosen.some((image) => read(image) !== read(chosen[0]));
  const reads = [];
  for (const dim of offered) {
    if (dim !== PROMPT && differ((image) => at(image, dim))) reads.push((image) => `${shortKey(dim)}\u00a0${shortened(dims[dim].values[at(image, dim)])}`);
  }
  const axes = new Set(data.axes.map((axis) => axis.key.split(".").pop()));
  for (const name of FIELDS) {
    if (!axes.has(name) && differ((image) => value(image, name))) reads.push((image) => `${name}\u00a0${shortened(String(value(image, name) ?? "(none)"))}`);
  }
  if (differ(sizeOf)) reads.push(sizeOf);
  const {score} = state;
  if (score !== null) reads.push((image) => `${score}\u00a0${numberText(scoreOf(image, score))}`);
  const meta = (image) => reads.map((read) => read(image));
  const alike = !differ((image) => row(image).prompt);
  return {words: alike && reads.length ? null : differingWords(chosen), meta};
}

// Prompts that begin alike are shown from the first word in which they differ.
function differingWords(chosen) {
  const prompts = [...new Set(chosen.map((image) => row(image).prompt))].map((text) => text.split(" "));
  const start = prompts.length < 2 ? 0 : Math.min(numShared(prompts), ...prompts.map((words) => words.length - 1));
  const length = start ? prompts[0].slice(0, start).join(" ").length + 1 : 0;
  return (image) => length < MIN_SHARED ? row(image).prompt : `\u2026 ${row(image).prompt.slice(length)}`;
}

// The values in which an image can differ from others of the page, in words.
function described(image) {
  const parts = offered.filter((dim) => dim !== PROMPT).map((dim) => `${shortKey(dim)} ${dims[dim].values[at(image, dim)]}`);
  return [...parts, row(image).prompt.slice(0, 300)].join(", ");
}
