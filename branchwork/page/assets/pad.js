// The drawing pad, pictures and test images: what the net gets.

import { place } from "./place.js";
import { $, PAD, make, page, state, t, tell } from "./state.js";

export const samples = Uint8Array.from(atob(page.samples.images), (letter) => letter.charCodeAt(0));

/** @type {any} */
let pen = null;

export function preparePad() {
  const pad = $("pad");
  pad.width = pad.height = PAD;
  const context = pad.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth: PAD / 13, lineCap: "round", lineJoin: "round", strokeStyle: "white", fillStyle: "black" });
  clearPad();
  const point = (/** @type {PointerEvent} */ event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) * PAD) / box.width, ((event.clientY - box.top) * PAD) / box.height];
  };
  pad.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (state.shown) clearPad();
    pad.setPointerCapture(event.pointerId);
    pen = point(event);
    stroke(pen, [pen[0] + 0.1, pen[1]]);
    event.preventDefault();
  });
  pad.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (!pen) return;
    const next = point(event);
    stroke(pen, next);
    pen = next;
  });
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { pen = null; tell.remember(); });
  const accept = (/** @type {DataTransfer | null} */ data) => {
    const file = [...(data?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) loadPicture(file);
  };
  document.addEventListener("paste", (event) => accept(event.clipboardData));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => { event.preventDefault(); accept(event.dataTransfer); });
  $("file").addEventListener("change", () => $("file").files[0] && loadPicture($("file").files[0]));
}

function stroke(/** @type {number[]} */ from, /** @type {number[]} */ to) {
  const context = $("pad").getContext("2d");
  context.beginPath();
  context.moveTo(from[0], from[1]);
  context.lineTo(to[0], to[1]);
  context.stroke();
  tell.update();
}

export function clearPad() {
  state.shown = false;
  state.pixels = null;
  $("pad").getContext("2d").fillRect(0, 0, PAD, PAD);
  tell.update();
}

/** @param {Blob} file */
async function loadPicture(file) {
  try {
    const picture = await createImageBitmap(file);
    const pad = $("pad").getContext("2d"), scale = Math.min(PAD / picture.width, PAD / picture.height);
    clearPad();
    const [width, height] = [picture.width * scale, picture.height * scale];
    pad.drawImage(picture, (PAD - width) / 2, (PAD - height) / 2, width, height);
    tell.update();
  } catch {
    $("problem").textContent = t("unreadable");
  }
}

/** Take what is on the pad, placed as in training; a test image is taken as it is. */
export function readPad() {
  if (state.shown) return;
  const { data } = $("pad").getContext("2d").getImageData(0, 0, PAD, PAD);
  const [channels, height, width] = page.shape;
  $("problem").textContent = "";
  if (!page.rule || channels !== 1 || height !== width) return void (state.pixels = stretched());
  const grey = { height: PAD, width: PAD, data: new Float64Array(PAD * PAD) };
  // Pillow's grey of a colour, in whole numbers.
  for (let p = 0; p < grey.data.length; p++) grey.data[p] = (data[4 * p] * 19595 + data[4 * p + 1] * 38470 + data[4 * p + 2] * 7471 + 0x8000) >> 16;
  state.pixels = place(grey, height, page.rule);
}

/** The pad at the net's size, for nets of photographs. */
function stretched() {
  const [channels, height, width] = page.shape;
  const small = document.createElement("canvas");
  Object.assign(small, { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (small.getContext("2d"));
  context.drawImage($("pad"), 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: channels * height * width }, (_, p) => data[4 * (p % (height * width)) + (channels === 3 ? Math.floor(p / (height * width)) : 0)]);
}

/** @param {number} index */
export function showSample(index) {
  const size = page.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
  state.pixels = samples.subarray(index * size, (index + 1) * size);
  const picture = pixelCanvas(state.pixels);
  const context = $("pad").getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, PAD, PAD);
  state.shown = true;
  tell.remember();
  tell.update();
}

/** uint8 C×H×W as a canvas of that size. @param {Uint8Array} pixels */
export function pixelCanvas(pixels) {
  const [channels, height, width] = page.shape, size = height * width;
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  for (let p = 0; p < size; p++) {
    for (let c = 0; c < 3; c++) image.data[4 * p + c] = pixels[p + (channels === 3 ? c * size : 0)];
    image.data[4 * p + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export function drawReceived() {
  const [, height, width] = page.shape, canvas = $("received");
  Object.assign(canvas, { width, height });
  if (state.pixels) canvas.getContext("2d").drawImage(pixelCanvas(state.pixels), 0, 0);
}
