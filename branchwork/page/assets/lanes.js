// The lanes: the net from left to right, with the maps of every layer.

import { $, INCH, branchColour, counterpart, make, makeSvg, percent, tell, views } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

/** @param {number[][]} points */
function pathOf(points) {
  const px = points.map(([x, y]) => [x * INCH, y * INCH]);
  let path = `M${px[0]}`;
  for (let k = 1; k < px.length; k++) {
    const [from, to, next] = [px[k - 1], px[k], px[k + 1]];
    const straight = Math.min(Math.abs(from[0] - to[0]), Math.abs(from[1] - to[1])) < 0.01;
    if (!straight) {
      const half = (from[0] + to[0]) / 2;
      path += `C${half},${from[1]} ${half},${to[1]} ${to}`;
    } else if (next && Math.min(Math.abs(next[0] - to[0]), Math.abs(next[1] - to[1])) < 0.01) {
      const near = (/** @type {number[]} */ other) => {
        const length = Math.abs(other[0] - to[0]) + Math.abs(other[1] - to[1]), share = Math.min(0.5, 10 / Math.max(length, 1e-6));
        return [to[0] + (other[0] - to[0]) * share, to[1] + (other[1] - to[1]) * share];
      };
      path += `L${near(from)}Q${to} ${near(next)}`;
    } else path += `L${to}`;
  }
  return path;
}

/**
 * The pictures on the page: one for each net, and one for each block that is open.
 * @type {{view: any, picture: any, svg: any, canvas: any, holder: any}[]}
 */
export const drawn = [];

/** Whether the two nets share most of their layers: only then are those dashed that one has alone. */
const areAlike = views.length > 1 && views.every((view) => view.nodes.filter((/** @type {any} */ _, /** @type {number} */ node) => counterpart(view, node)).length > view.nodes.length / 2);

export function drawLanes() {
  for (const view of views) {
    const title = views.length > 1 && make("h2", { className: `net${view.number}` }, view.title, areAlike && make("small", { "data-say": "dashed" }));
    $("lanes").append(make("div", { className: "lanes" }, title, drawPicture(view, view.picture)));
  }
  fitLanes();
}

/** @param {any} view @param {any} picture */
function drawPicture(view, picture) {
  const { width, height, boxes, lines, captions } = picture;
  const svg = makeSvg("svg", { viewBox: `0 0 ${width * INCH} ${height * INCH}`, width: width * INCH, height: height * INCH });
  for (const line of lines) svg.append(makeSvg("path", { d: pathOf(line.points), class: "edge", style: `stroke:${branchColour(line.colour)}` }));
  for (const caption of captions) svg.append(makeSvg("text", { x: caption.x * INCH, y: caption.y * INCH + 4, class: "caption" }, caption.text));
  for (const box of boxes) svg.append(drawBox(view, box));
  const canvas = make("canvas", { className: "maps" });
  const holder = make("div", { className: "picture" }, svg, canvas);
  drawn.push({ view, picture, svg, canvas, holder });
  return holder;
}

/** Open a block below the picture of its net, in place of another that was open. */
function openBlock(/** @type {any} */ view, /** @type {any} */ box) {
  const lanes = drawn.find((each) => each.view === view)?.holder.parentElement;
  const at = drawn.findIndex((each) => each.view === view && each.picture !== view.picture);
  if (at >= 0) drawn.splice(at, 1);
  lanes.querySelector(".block")?.remove();
  lanes.append(make("div", { className: "block" }, make("h3", {}, box.label.slice(2)), drawPicture(view, view.blocks[box.id])));
  fitLanes();
  drawMaps();
}

/** Show all lanes side by side where that leaves them legible; on a small screen they are scrolled. */
export function fitLanes() {
  for (const { picture, holder } of drawn) {
    const room = holder.parentElement.clientWidth - 14, scale = Math.min(1, Math.max(0.5, room / (picture.width * INCH)));
    Object.assign(holder.style, { width: `${picture.width * INCH}px`, height: `${picture.height * INCH}px`, zoom: scale });
  }
}

/** @param {any} view @param {any} box */
function drawBox(view, box) {
  const [x, y, width, height] = [box.x, box.top, box.width, box.height].map((n) => n * INCH);
  // A join first shows what its branches give, any other box what leaves it.
  const target = box.kind === "bar" || box.kind === "sum" ? box.nodes[0] : box.nodes[box.nodes.length - 1];
  const choose = () => { if (box.id in view.blocks) openBlock(view, box); tell.select(view.number, target); };
  const group = makeSvg("g", {
    class: `box ${box.kind}${areAlike && !counterpart(view, target) ? " alone" : ""}`, tabindex: 0, role: "button", "aria-label": `${views.length > 1 ? `${view.title} ` : ""}${view.nodes[target].name}`, onclick: choose,
    onkeydown: (/** @type {KeyboardEvent} */ event) => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); choose(); } },
  });
  const colour = branchColour(box.colour);
  if (box.kind === "bar") {
    let top = y;
    box.channels.forEach((/** @type {number} */ count, /** @type {number} */ number) => {
      const part = (height * count) / box.channels.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
      group.append(makeSvg("rect", { x, y: top, width, height: part, style: `fill:${branchColour(box.colours[number])};opacity:.65` }));
      group.append(makeSvg("text", { x: x + width / 2, y: top + part / 2 + 4, class: "count" }, String(count)));
      top += part;
    });
    group.append(makeSvg("text", { x: x + width / 2, y: y + height + 16, class: "count strong" }, String(box.channels.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0))));
  } else {
    group.append(makeSvg("rect", { x, y, width, height, rx: 5, style: `stroke:${colour}`, class: "frame" }));
    const words = [box.kind === "sum" ? "+" : box.label, ...box.bands].join(" · ");
    group.append(makeSvg("text", { x: x + width / 2, y: y + 14, class: "label" }, words));
    group.append(makeSvg("text", { x: x + width / 2, y: y + height - 5, class: "shape" }, box.name));
  }
  if (box.shape) group.append(makeSvg("text", { x: x + width + 5, y: y + height / 2 + 15, class: "size" }, box.shape));
  return group;
}

/** The largest size of any number of a layer, for one scale. @param {Float32Array} data */
export function strongest(data) {
  let most = 1e-12;
  for (let p = 0; p < data.length; p++) most = Math.max(most, Math.abs(data[p]));
  return most;
}

/** One channel as a small canvas. */
export function mapCanvas(/** @type {Tensor} */ value, /** @type {number} */ channel, /** @type {number} */ scale) {
  return tiles(value, [channel], 1, scale);
}

/** Channels as a small canvas, in rows with a pixel between them: the stronger a number the less transparent. */
function tiles(/** @type {Tensor} */ value, /** @type {number[]} */ channels, /** @type {number} */ columns, /** @type {number} */ scale) {
  const [height, width] = value.shape.length === 3 ? value.shape.slice(1) : [1, 1], size = height * width;
  const gap = size > 1 ? 1 : 0, rows = Math.ceil(channels.length / columns);
  const canvas = make("canvas", { width: columns * (width + gap) - gap, height: rows * (height + gap) - gap });
  const image = new ImageData(canvas.width, canvas.height), pixels = new Uint32Array(image.data.buffer);
  const [light, dark] = [plus, minus].map(([r, g, b]) => r | (g << 8) | (b << 16));
  channels.forEach((channel, k) => {
    const start = Math.floor(k / columns) * (height + gap) * canvas.width + (k % columns) * (width + gap);
    for (let p = 0, from = channel * size; p < size; p++) {
      const share = value.data[from + p] / scale, y = Math.floor(p / width);
      const strength = Math.round(255 * Math.min(1, Math.abs(share)) ** 0.7);
      pixels[start + y * canvas.width + p - y * width] = (share >= 0 ? light : dark) | (strength << 24);
    }
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
let plus = [30, 30, 30], minus = [208, 74, 2];

export function drawMaps() {
  const style = getComputedStyle(document.body);
  [plus, minus] = ["--plus", "--minus"].map((name) => rgb(style.getPropertyValue(name)));
  for (const each of drawn) drawMapsOf(each);
}

function drawMapsOf(/** @type {any} */ { view, picture, canvas }) {
  const ratio = Math.max(1, window.devicePixelRatio);
  Object.assign(canvas, { width: picture.width * INCH * ratio, height: picture.height * INCH * ratio });
  Object.assign(canvas.style, { width: `${picture.width * INCH}px`, height: `${picture.height * INCH}px` });
  if (!view.values.length) return;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false;
  for (const box of picture.boxes) {
    const node = box.nodes[box.nodes.length - 1], value = view.values[node];
    if (box.kind !== "bar") drawTiles(context, value, { x: box.x * INCH + 6, y: box.top * INCH + 20, width: box.width * INCH - 12, height: box.height * INCH - 38 });
    if (value !== view.whole[node]) markChange(context, box, difference(value, view.whole[node]));
  }
  for (const line of picture.lines) if (line.carries !== null) drawCarried(context, line.points, view.values[line.carries]);
}

/** How far a value is from another, as a share of the other. */
function difference(/** @type {Tensor} */ value, /** @type {Tensor} */ other) {
  const square = (/** @type {Float32Array} */ data) => data.reduce((sum, v) => sum + v * v, 0);
  return Math.sqrt(square(value.data.map((v, p) => v - other.data[p])) / Math.max(1e-12, square(other.data)));
}

/** Write above a box by how much its value has changed. */
function markChange(/** @type {CanvasRenderingContext2D} */ context, /** @type {any} */ box, /** @type {number} */ share) {
  Object.assign(context, { font: "bold 11px system-ui, sans-serif", textAlign: "right", fillStyle: `rgb(${minus})` });
  context.fillText(`Δ ${percent(share)}`, (box.x + box.width) * INCH, box.top * INCH - 3);
}

const CARRIED = 20; // pixels a side, of a map on a shortcut's line

/** Show on the longest level part of a shortcut's line what it carries past the other branches. */
function drawCarried(/** @type {CanvasRenderingContext2D} */ context, /** @type {number[][]} */ points, /** @type {Tensor} */ value) {
  const parts = points.slice(1).map((to, k) => ({ from: points[k], to, length: to[1] === points[k][1] ? Math.abs(to[0] - points[k][0]) : 0 }));
  const { from, to, length } = parts.reduce((best, part) => (part.length > best.length ? part : best));
  const count = Math.min(3, value.shape[0]), width = count * CARRIED;
  if (length * INCH < 2 * width) return;
  const area = { x: ((from[0] + to[0]) / 2) * INCH - width / 2, y: from[1] * INCH - CARRIED / 2, width, height: CARRIED };
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--card");
  context.fillRect(area.x - 2, area.y, width + 4, CARRIED);
  drawTiles(context, value, area);
}

/** As many maps as fit, the strongest first. */
function drawTiles(/** @type {CanvasRenderingContext2D} */ context, /** @type {Tensor} */ value, /** @type {any} */ area) {
  const channels = value.shape[0], least = value.shape.length === 3 ? 20 : 7;
  let columns = Math.max(1, Math.floor(area.width / least)), rows = Math.max(1, Math.floor(area.height / least));
  while ((columns - 1) * rows >= channels && columns > 1) columns--;
  while (columns * (rows - 1) >= channels && rows > 1) rows--;
  const tile = Math.min(area.width / columns, area.height / rows), scale = strongest(value.data), size = value.data.length / channels;
  const strength = Array.from({ length: channels }, (_, c) => strongest(value.data.subarray(c * size, (c + 1) * size)));
  const order = strength.map((_, c) => c).sort((a, b) => strength[b] - strength[a]).slice(0, columns * rows).sort((a, b) => a - b);
  const picture = tiles(value, order, columns, scale), width = columns * tile, height = rows * tile;
  context.drawImage(picture, area.x + (area.width - width) / 2, area.y + (area.height - height) / 2, width, height);
}

/** @param {string} text "#rrggbb" @returns {number[]} */
const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.trim().slice(at, at + 2), 16));
