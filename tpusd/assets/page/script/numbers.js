// Scores: a column for each metric; of each image a number, or null where it has none.
const SCORE = "scores.";  // before a score's name, where fields of images are named
const scoreNames = Object.keys(data.scores);
const scoreOf = (image, name) => data.scores[name][image];
const numberText = (number) => number === null ? "\u2013" : String(Number(number.toPrecision(4)));
const hasPlot = scoreNames.length > 0 && data.kind === "sweep" && jobs.some((one) => one.rate);
const VIEWS = ["grid", "wall", ...(scoreNames.length ? ["heat"] : []), ...(hasPlot ? ["plot"] : [])];
const isChart = () => state.view === "heat" || state.view === "plot";

const mean = (numbers) => numbers.reduce((sum, one) => sum + one, 0) / numbers.length;

// The standard deviation of a sample; null where it has one number.
function deviation(numbers) {
  if (numbers.length < 2) return null;
  const middle = mean(numbers);
  return Math.sqrt(numbers.reduce((sum, one) => sum + (one - middle) ** 2, 0) / (numbers.length - 1));
}

// {mean, spread, count} of images that have the score. The spread is over the means of the values of a dimension, such as the
// seeds; over the images themselves where dim is null.
function statistics(chosen, name, dim) {
  const scored = chosen.filter((image) => scoreOf(image, name) !== null);
  if (!scored.length) return null;
  const parts = new Map();
  scored.forEach((image, number) => {
    const key = dim === null ? number : at(image, dim);
    parts.set(key, [...(parts.get(key) ?? []), scoreOf(image, name)]);
  });
  return {mean: mean(scored.map((image) => scoreOf(image, name))), spread: deviation([...parts.values()].map(mean)), count: scored.length};
}

const meanText = (one) => one.spread === null ? numberText(one.mean) : `${numberText(one.mean)} \u00b1 ${numberText(Number(one.spread.toPrecision(2)))}`;

// The dimension of the seeds, where they are swept.
const SEED = data.axes.findIndex((axis) => axis.key === "seed");
const seedDim = () => SEED >= 0 && offered.includes(SEED) ? SEED : null;
