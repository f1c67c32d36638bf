// One layer, large: its channels, its branches, and the arithmetic of any pixel.

import { switches } from "./branches.js";
import { mapCanvas, strongest } from "./lanes.js";
import { inputs } from "./net.js";
import { arithmetic, markField, segmentOf } from "./pixel.js";
import { $, branchColour, make, net, page, short, state, t, tell } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

/** @param {number} node */
export function select(node) {
  const value = state.values[node];
  const size = value ? value.data.length / value.shape[0] : 1;
  let best = 0;
  if (value) for (let c = 1, most = strongest(value.data.subarray(0, size)); c < value.shape[0]; c++) {
    const own = strongest(value.data.subarray(c * size, (c + 1) * size));
    if (own > most) [best, most] = [c, own];
  }
  Object.assign(state, { node, channel: best, at: null, from: 0 });
  drawDetail();
  tell.remember();
  $("detail").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

export function drawDetail() {
  const panel = $("detail");
  panel.replaceChildren();
  if (state.node === null) return void panel.append(make("p", { className: "faint" }, t("click")));
  const node = net.nodes[state.node], value = state.values[state.node];
  panel.append(make("h2", {}, node.name, make("small", {}, ` ${node.op.replace("2d", "").replaceAll("_", " ")} · ${node.shape.join("×")}`)));
  const box = page.picture.boxes.find((/** @type {any} */ each) => each.nodes.includes(state.node));
  if (box && box.nodes.length > 1) {
    panel.append(make("p", {}, box.nodes.map((/** @type {number} */ each) =>
      make("button", { className: each === state.node ? "chip chosen" : "chip", onclick: () => select(each) }, net.nodes[each].name))));
  }
  const join = page.joins.find((/** @type {any} */ each) => each.node === state.node);
  if (join) panel.append(switches(join));
  if (!value) return void panel.append(make("p", { className: "faint" }, t("empty")));
  if (value.shape.length !== 3) return void panel.append(vectorView(node, value));
  const scale = strongest(value.data);
  const strip = make("div", { className: "strip" });
  for (let c = 0; c < Math.min(value.shape[0], 512); c++) {
    const canvas = mapCanvas(value, c, scale);
    canvas.className = c === state.channel ? "map chosen" : "map";
    canvas.title = t("channel", { number: c });
    const owner = join && join.branches[segmentOf(join, c) ?? -1];
    if (owner) canvas.style.borderColor = branchColour(owner.colour);
    canvas.addEventListener("click", () => { state.channel = c; state.at = null; drawDetail(); tell.remember(); });
    strip.append(canvas);
  }
  panel.append(strip, channelView(node, value, scale));
}

/** @param {any} node @param {Tensor} value @param {number} scale */
function channelView(node, value, scale) {
  const [, height, width] = value.shape;
  const side = Math.max(4, Math.min(16, Math.floor(260 / Math.max(height, width))));
  const big = make("canvas", { className: "big", width: width * side, height: height * side, tabIndex: 0 });
  const context = big.getContext("2d");
  context.imageSmoothingEnabled = false;
  const paint = () => {
    context.clearRect(0, 0, big.width, big.height);
    context.drawImage(mapCanvas(value, state.channel, scale), 0, 0, big.width, big.height);
    if (!state.at) return;
    context.strokeStyle = getComputedStyle(document.body).getPropertyValue("--accent");
    context.lineWidth = 2;
    context.strokeRect(state.at[1] * side + 1, state.at[0] * side + 1, side - 2, side - 2);
  };
  const numbers = make("div", { className: "numbers" });
  const look = (/** @type {[number, number]} */ at) => {
    state.at = at;
    paint();
    numbers.replaceChildren(...arithmetic(node, value, () => look(at)));
    markField(at);
  };
  const move = (/** @type {MouseEvent} */ event) => {
    const box = big.getBoundingClientRect();
    const at = [Math.floor(((event.clientY - box.top) / box.height) * height), Math.floor(((event.clientX - box.left) / box.width) * width)];
    look([Math.min(height - 1, Math.max(0, at[0])), Math.min(width - 1, Math.max(0, at[1]))]);
  };
  big.addEventListener("pointermove", move);
  big.addEventListener("click", move);
  big.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const steps = /** @type {Record<string, number[]>} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] });
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const [y, x] = state.at ?? [0, 0];
    look([Math.min(height - 1, Math.max(0, y + step[0])), Math.min(width - 1, Math.max(0, x + step[1]))]);
  });
  paint();
  if (state.at) queueMicrotask(() => look(/** @type {[number, number]} */ (state.at)));
  else numbers.append(make("p", { className: "faint" }, t("hover")));
  return make("div", { className: "channel" }, make("div", {}, make("h3", {}, t("channel", { number: state.channel })), big, legend(scale)), numbers);
}

/** The scale of a layer's maps. @param {number} scale */
function legend(scale) {
  return make("p", { className: "legend" }, make("span", {}, `−${short(scale)}`), make("i", { className: "ramp" }), make("span", {}, `+${short(scale)}`));
}

/** A vector, as bars; a linear layer's numbers are sums over all inputs. @param {any} node @param {Tensor} value */
function vectorView(node, value) {
  const scale = strongest(value.data), names = node.shape[0] === page.classes.length ? page.classes : null;
  const list = make("div", { className: "vector" });
  value.data.slice(0, 64).forEach((v, k) => list.append(make("div", { className: "bar" },
    make("span", { className: "name" }, names ? names[k] : String(k)),
    make("span", { className: "track" }, make("i", { className: v < 0 ? "minus" : "", style: `width:${(100 * Math.abs(v)) / scale}%` })),
    make("span", { className: "number" }, short(v)))));
  const source = net.nodes[inputs(node)[0]];
  const words = node.op === "linear" ? t("linear", { count: net.weights[node.args[1].w].shape[1] }) : node.op === "view" ? t("flattened", { shape: source.shape.join("×"), count: node.shape[0] }) : "";
  return make("div", {}, make("p", {}, words), list);
}
