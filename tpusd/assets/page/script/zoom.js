// Zoom in the viewer: 1 is the whole image in its pane. Both images of a comparison have the same zoom, and it stays while you
// step to other images, so that one detail can be followed.
const frame = $("frame"), stage = $("stage");
const zoom = {scale: 1, x: 0, y: 0};  // x, y: CSS pixels of the image's middle from the pane's middle
const MAX_SCREEN_PIXELS = 16;  // for one pixel of the image
const pointers = new Map();
let sliding = false, gesture = null;

const pane = () => $("pane-b").getBoundingClientRect();

function fitted() {  // CSS pixels of the image at scale 1
  const {width, height} = pane(), own = ratio(state.image);
  return width / height > own ? {width: height * own, height} : {width, height: width / own};
}
// The scale at which a pixel of the image is a pixel of the screen.
const pixelScale = () => value(state.image, "width") / (fitted().width * devicePixelRatio);

function drawZoom() {
  const room = pane(), own = fitted(), perPixel = pixelScale();
  const limit = (size, around) => Math.max(0, (size * zoom.scale - around) / 2);
  const [right, down] = [limit(own.width, room.width), limit(own.height, room.height)];
  zoom.x = Math.min(right, Math.max(-right, zoom.x));
  zoom.y = Math.min(down, Math.max(-down, zoom.y));
  for (const [name, text] of [["--zoom", zoom.scale], ["--x", `${zoom.x}px`], ["--y", `${zoom.y}px`]]) frame.style.setProperty(name, text);
  frame.classList.toggle("pannable", right > 0 || down > 0);
  frame.classList.toggle("pixels", zoom.scale !== 1 && zoom.scale / perPixel >= 2);
  $("zoom-text").textContent = `${Math.round(100 * zoom.scale / perPixel)} %`;
}

// The zoom of the image before, where the new one has its shape.
let fittedRatio = null;
function fitImage() {
  if (fittedRatio !== ratio(state.image)) Object.assign(zoom, {scale: 1, x: 0, y: 0});
  fittedRatio = ratio(state.image);
  drawZoom();
}

// Keeps what is at (x, y) of the window where it is; the middle if they are left out.
function zoomTo(scale, x, y) {
  const perPixel = pixelScale();
  const wanted = Math.min(Math.max(8, MAX_SCREEN_PIXELS * perPixel), Math.max(Math.min(1, perPixel), scale));
  const [dx, dy] = x === undefined ? [0, 0] : fromMiddle(x, y);
  zoom.x = dx - (dx - zoom.x) * wanted / zoom.scale;
  zoom.y = dy - (dy - zoom.y) * wanted / zoom.scale;
  zoom.scale = wanted;
  drawZoom();
}

function fromMiddle(x, y) {
  const pinnedPane = $("pane-a").getBoundingClientRect();
  const box = isCompared() && state.mode === "side" && x < pinnedPane.right ? pinnedPane : pane();
  return [x - box.left - box.width / 2, y - box.top - box.height / 2];
}

const zoomBy = (factor, x, y) => zoomTo(zoom.scale * factor, x, y);
const zoomToPixels = (x, y) => zoomTo(pixelScale(), x, y);
function resetZoom() {
  Object.assign(zoom, {scale: 1, x: 0, y: 0});
  if (state.image !== null && viewer.open) drawZoom();
}

function panBy(x, y) {
  zoom.x += x;
  zoom.y += y;
  drawZoom();
}

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : 16);
  zoomBy(Math.exp(-pixels * (event.ctrlKey ? .01 : .002)), event.clientX, event.clientY);  // ctrl: a pinch on a touchpad
}, {passive: false});
stage.addEventListener("dblclick", (event) => {
  if (event.target.closest("button")) return;
  if (zoom.scale !== 1) resetZoom();
  else zoomTo(Math.max(2, pixelScale()), event.clientX, event.clientY);
});

// Pointers: one drags the slider, pans what is zoomed, or swipes to the next image; two pinch.
const slideTo = (x) => {
  const box = frame.getBoundingClientRect();
  slide((x - box.left) / box.width);
};

function isOnSlider(x) {
  if (!isCompared() || state.mode !== "slider") return false;
  const handle = $("handle").getBoundingClientRect().left;
  return !frame.classList.contains("pannable") || Math.abs(x - handle) < 24;
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button || event.target.closest("button")) return;
  pointers.set(event.pointerId, event);
  stage.setPointerCapture(event.pointerId);
  if (pointers.size > 1) {
    sliding = false;
    gesture = {distance: apart(), scale: zoom.scale};
    return;
  }
  sliding = isOnSlider(event.clientX);
  gesture = {from: event};
  if (sliding) slideTo(event.clientX);
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  pointers.set(event.pointerId, event);
  if (pointers.size > 1) {
    const [one, other] = [...pointers.values()];
    zoomTo(gesture.scale * apart() / gesture.distance, (one.clientX + other.clientX) / 2, (one.clientY + other.clientY) / 2);
    return;
  }
  if (sliding) slideTo(event.clientX);
  else if (frame.classList.contains("pannable")) panBy(event.clientX - before.clientX, event.clientY - before.clientY);
});

function apart() {
  const [one, other] = [...pointers.values()];
  return Math.max(1, Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY));
}

function release(event) {
  if (!pointers.delete(event.pointerId)) return;
  const {from} = gesture;
  if (pointers.size || !from) return;
  const [right, down] = [event.clientX - from.clientX, event.clientY - from.clientY];
  const isSwipe = event.type === "pointerup" && event.pointerType === "touch" && !sliding && !frame.classList.contains("pannable");
  if (isSwipe && Math.abs(right) > 50 && Math.abs(right) > 2 * Math.abs(down)) move(right < 0 ? 1 : -1, 0);
  sliding = false;
}
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, release);
stage.addEventListener("dragstart", (event) => event.preventDefault());
addEventListener("resize", () => { if (viewer.open) drawZoom(); });
$("zoom-in").addEventListener("click", () => zoomBy(1.25));
$("zoom-out").addEventListener("click", () => zoomBy(.8));
$("zoom-fit").addEventListener("click", resetZoom);
$("zoom-pixels").addEventListener("click", () => zoomToPixels());
