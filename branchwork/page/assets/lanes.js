// The lanes: the net from left to right, with the maps of every layer.

import { $, INCH, branchColour, make, makeSvg, net, page, state, tell } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

const REACH = 0.5; // of a sum's circle
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

export function drawLanes() {
  const { width, height, boxes, lines, captions } = page.picture;
  const svg = makeSvg("svg", { viewBox: `0 0 ${width * INCH} ${height * INCH}`, width: width * INCH, height: height * INCH, role: "img", "aria-label": page.title });
  for (const line of lines) svg.append(makeSvg("path", { d: pathOf(line.points), class: "edge", style: `stroke:${branchColour(line.colour)}` }));
  for (const caption of captions) svg.append(makeSvg("text", { x: caption.x * INCH, y: caption.y * INCH + 4, class: "caption" }, caption.text));
  for (const box of boxes) svg.append(drawBox(box));
  const maps = make("canvas", { id: "maps" });
  Object.assign(maps.style, { width: `${width * INCH}px`, height: `${height * INCH}px` });
  $("picture").replaceChildren(svg, maps);
  fitLanes();
}

/** Show all lanes side by side where that leaves them legible; on a small screen they are scrolled. */
export function fitLanes() {
  const { width, height } = page.picture, room = $("lanes").clientWidth - 14;
  const scale = Math.min(1, Math.max(0.5, room / (width * INCH)));
  Object.assign($("picture").style, { width: `${width * INCH}px`, height: `${height * INCH}px`, zoom: scale });
}

/** @param {any} box */
function drawBox(box) {
  const [x, y, width, height] = [box.x, box.top, box.width, box.height].map((n) => n * INCH);
  // A join first shows what its branches give, any other box what leaves it.
  const target = box.kind === "bar" || box.kind === "sum" ? box.nodes[0] : box.nodes[box.nodes.length - 1];
  const group = makeSvg("g", {
    class: `box ${box.kind}`, tabindex: 0, role: "button", "aria-label": net.nodes[target].name,
    onclick: () => tell.select(target),
    onkeydown: (/** @type {KeyboardEvent} */ event) => ["Enter", " "].includes(event.key) && tell.select(target),
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
  } else if (box.kind === "sum") {
    const middle = x + width / 2;
    group.append(makeSvg("circle", { cx: middle, cy: y + height / 2, r: width * REACH, style: `stroke:${colour}` }));
    group.append(makeSvg("text", { x: middle, y: y + height / 2 + 6, class: "plus" }, "+"));
  } else {
    group.append(makeSvg("rect", { x, y, width, height, rx: 5, style: `stroke:${colour}`, class: "frame" }));
    const bands = box.bands.length ? ` · ${box.bands.join(" · ")}` : "";
    group.append(makeSvg("text", { x: x + width / 2, y: y + 14, class: "label" }, box.label + bands));
    group.append(makeSvg("text", { x: x + width / 2, y: y + height - 5, class: "shape" }, box.name));
  }
  if (box.shape) group.append(makeSvg("text", { x: x + width + 5, y: y + height / 2 + 15, class: "size" }, box.shape));
  return group;
}

/** The largest size of any number of a layer, for one scale. @param {Float32Array} data */
export const strongest = (data) => data.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-12);

/** One channel as a small canvas: nothing is transparent, positive one colour, negative another. */
export function mapCanvas(/** @type {Tensor} */ value, /** @type {number} */ channel, /** @type {number} */ scale) {
  const [height, width] = value.shape.length === 3 ? value.shape.slice(1) : [1, 1];
  const canvas = make("canvas", { width, height }), image = new ImageData(width, height), size = width * height;
  for (let p = 0; p < size; p++) {
    const share = value.data[channel * size + p] / scale, [r, g, b] = share >= 0 ? plus : minus;
    image.data.set([r, g, b, Math.round(255 * Math.min(1, Math.abs(share)) ** 0.7)], 4 * p);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
let plus = [30, 30, 30], minus = [208, 74, 2];

export function drawMaps() {
  const maps = $("maps"), ratio = Math.max(1, window.devicePixelRatio);
  const { width, height, boxes } = page.picture;
  maps.width = width * INCH * ratio;
  maps.height = height * INCH * ratio;
  if (!state.values.length) return;
  const style = getComputedStyle(document.body);
  plus = rgb(style.getPropertyValue("--plus"));
  minus = rgb(style.getPropertyValue("--minus"));
  const context = maps.getContext("2d");
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false;
  for (const box of boxes) {
    if (box.kind === "bar" || box.kind === "sum") continue;
    const value = state.values[box.nodes[box.nodes.length - 1]];
    const area = { x: box.x * INCH + 6, y: box.top * INCH + 20, width: box.width * INCH - 12, height: box.height * INCH - 38 };
    drawTiles(context, value, area);
  }
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
  const left = area.x + (area.width - columns * tile) / 2, top = area.y + (area.height - rows * tile) / 2;
  order.forEach((channel, k) => {
    const [x, y] = [left + (k % columns) * tile, top + Math.floor(k / columns) * tile];
    context.drawImage(mapCanvas(value, channel, scale), x, y, tile - 1.5, tile - 1.5);
  });
}

/** @param {string} text "#rrggbb" @returns {number[]} */
const rgb = (text) => [1, 3, 5].map((at) => parseInt(text.trim().slice(at, at + 2), 16));
