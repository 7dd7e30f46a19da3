// The page as it opens.
for (const dialog of document.querySelectorAll("dialog.sheet")) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
setStyle("--ratio", COUNT ? ratio(0) : 1);
$("title").textContent = data.title;
$("summary").textContent = data.summary;
$("sort").append(...sorts.map(([key, text]) => element("option", {value: key}, text)));
readAddress();
redraw();
if (state.image !== null) openFromAddress();
