// The drawing pad, pictures and test images: what the net gets.

import { place } from "./place.js";
import { $, PAD, isSlow, make, page, state, t, tell } from "./state.js";

export const samples = Uint8Array.from(atob(page.samples.images), (letter) => letter.charCodeAt(0));

/** @type {any} */
let pen = null;

export function preparePad() {
  const pad = $("pad");
  pad.width = pad.height = PAD;
  const context = pad.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth: PAD / 13, lineCap: "round", lineJoin: "round", strokeStyle: "white", fillStyle: "black" });
  wipe();
  const point = (/** @type {PointerEvent} */ event) => {
    const box = pad.getBoundingClientRect();
    return [((event.clientX - box.left) * PAD) / box.width, ((event.clientY - box.top) * PAD) / box.height];
  };
  pad.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (state.shown) wipe();
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
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { pen = null; tell.update(); tell.remember(); });
  const accept = (/** @type {DataTransfer | null} */ data) => {
    const [file] = data?.files ?? [];
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
  if (!isSlow) tell.update();
}

export function wipe() {
  Object.assign(state, { shown: false, pixels: null });
  $("problem").textContent = "";
  $("pad").getContext("2d").fillRect(0, 0, PAD, PAD);
  tell.update();
}

const LARGEST = 512; // pixels a side, of what is looked at: as in datasets/placing.py

/** Take a picture, placed as in training; beyond 512 pixels a side the browser reduces it first. @param {Blob} file */
async function loadPicture(file) {
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
    const canvas = make("canvas", { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
    const context = canvas.getContext("2d");
    Object.assign(context, { fillStyle: "white", imageSmoothingQuality: "high" });
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    show(canvas, placed(canvas));
  } catch {
    $("problem").textContent = t("unreadable");
  }
}

/** Take what is on the pad. */
export function readPad() {
  if (!state.shown) state.pixels = placed($("pad"));
}

/** A picture as the net gets it; null if there is no figure in it. @param {HTMLCanvasElement} canvas */
function placed(canvas) {
  const [channels, height, width] = page.shape;
  if (!page.rule || channels !== 1 || height !== width) return fitted(canvas);
  const { data } = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).getImageData(0, 0, canvas.width, canvas.height);
  const grey = { height: canvas.height, width: canvas.width, data: new Float64Array(canvas.width * canvas.height) };
  // Pillow's grey of a colour, in whole numbers.
  for (let p = 0; p < grey.data.length; p++) grey.data[p] = (data[4 * p] * 19595 + data[4 * p + 1] * 38470 + data[4 * p + 2] * 7471 + 0x8000) >> 16;
  return place(grey, height, page.rule);
}

/** A photograph, cropped, padded or stretched to the size of the net's images. @param {HTMLCanvasElement} canvas */
function fitted(canvas) {
  const [channels, height, width] = page.shape;
  const ratios = [width / canvas.width, height / canvas.height];
  const scale = page.fit === "pad" ? Math.min(...ratios) : Math.max(...ratios);
  const size = page.fit === "stretch" ? [width, height] : [canvas.width * scale, canvas.height * scale];
  const context = make("canvas", { width, height }).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, (width - size[0]) / 2, (height - size[1]) / 2, size[0], size[1]);
  const { data } = context.getImageData(0, 0, width, height);
  return Uint8Array.from({ length: channels * height * width }, (_, p) => data[4 * (p % (height * width)) + (channels === 3 ? Math.floor(p / (height * width)) : 0)]);
}

/** Show a picture on the pad, and take `pixels` for it. @param {HTMLCanvasElement} picture @param {Uint8Array | null} pixels */
export function show(picture, pixels) {
  const context = $("pad").getContext("2d"), scale = Math.min(PAD / picture.width, PAD / picture.height);
  wipe();
  context.imageSmoothingEnabled = scale < 1;
  context.drawImage(picture, (PAD - picture.width * scale) / 2, (PAD - picture.height * scale) / 2, picture.width * scale, picture.height * scale);
  Object.assign(state, { pixels, shown: true });
  $("problem").textContent = pixels ? "" : t("blank");
  tell.update();
  tell.remember();
}

/** Take a test image, as it is. @param {number} index */
export function showSample(index) {
  const size = page.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
  const pixels = samples.subarray(index * size, (index + 1) * size);
  show(pixelCanvas(pixels), pixels);
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
