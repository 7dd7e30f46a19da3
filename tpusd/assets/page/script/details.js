// Details: what the images were made on and with.
function drawFacts() {
  const parts = data.kind === "sweep" ? runTable() : [];
  for (const [title, facts] of data.facts) {
    parts.push(element("h3", {}, title), element("dl", {}, ...facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, String(text))])));
  }
  $("facts").replaceChildren(...parts);
}

function runTable() {
  const head = ["run", ...data.axes.map((axis) => axis.key), "images", "images/s", "state"];
  const body = jobs.concat(data.failed).map((one) => element("tr", {class: one.error ? "failed" : ""}, element("td", {}, one.name),
    ...data.axes.map((axis, dim) => element("td", {}, axis.labels[one.at[dim]])), element("td", {}, String(one.num_images ?? 0)),
    element("td", {}, one.rate ? one.rate.toFixed(2) : ""), element("td", {}, one.error ?? one.state)));
  return [element("h3", {}, "Runs"), element("div", {class: "scroll", tabIndex: 0}, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((name) => element("th", {scope: "col"}, name)))), element("tbody", {}, ...body)))];
}

$("about-open").addEventListener("click", () => {
  drawFacts();
  $("about").showModal();
});
