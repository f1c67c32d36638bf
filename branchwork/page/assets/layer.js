// One layer, large: its channels, its branches, and the arithmetic of any pixel.

import { switches } from "./branches.js";
import { mapCanvas, strongest } from "./lanes.js";
import { inputs } from "./net.js";
import { arithmetic, markField, products, segmentOf } from "./pixel.js";
import { $, branchColour, chosen, counterpart, largest, make, page, short, state, t, tell, views } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

/** @param {number} number of the net @param {number} node */
export function select(number, node) {
  Object.assign(state, { view: number, node, channel: strongestChannel(views[number].values[node]), at: null, from: null });
  drawDetail();
  tell.remember();
  if (state.step < 0) $("detail").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

/** @param {Tensor | undefined} value */
function strongestChannel(value) {
  if (!value) return 0;
  const size = value.data.length / value.shape[0];
  return largest(Array.from({ length: value.shape[0] }, (_, c) => strongest(value.data.subarray(c * size, (c + 1) * size))));
}

export function drawDetail() {
  const panel = $("detail"), view = chosen();
  panel.replaceChildren();
  if (state.node === null) return void panel.append(make("p", { className: "faint" }, t("click")));
  const node = view.nodes[state.node], value = view.values[state.node];
  const title = views.length > 1 ? make("span", { className: `net${view.number}` }, `${view.title}: `) : "";
  panel.append(make("h2", {}, title, node.name, make("small", {}, ` ${node.op.replace("2d", "").replaceAll("_", " ")} · ${node.shape.join("×")}`)));
  const box = view.picture.boxes.find((/** @type {any} */ each) => each.nodes.includes(state.node));
  if (box && box.nodes.length > 1) {
    panel.append(make("p", {}, box.nodes.map((/** @type {number} */ each) =>
      make("button", { className: each === state.node ? "chip chosen" : "chip", onclick: () => select(view.number, each) }, view.nodes[each].name))));
  }
  const join = view.joins.find((/** @type {any} */ each) => each.node === state.node);
  if (join) panel.append(switches(view, join));
  if (!value) return void panel.append(make("p", { className: "faint" }, t("empty")));
  if (value.shape.length !== 3) return void panel.append(vectorView(node, value));
  const scale = strongest(value.data);
  const choose = (/** @type {number} */ channel) => {
    Object.assign(state, { channel, at: null });
    drawDetail();
    tell.remember();
  };
  const strip = make("div", {
    className: "strip", tabIndex: 0, role: "group", "aria-label": t("channels"),
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose((state.channel + step + value.shape[0]) % value.shape[0]);
      /** @type {HTMLElement | null} */ (panel.querySelector(".strip"))?.focus();
    },
  });
  for (let c = 0; c < Math.min(value.shape[0], 512); c++) {
    const canvas = mapCanvas(value, c, scale);
    canvas.className = c === state.channel ? "map chosen" : "map";
    canvas.title = t("channel", { number: c });
    const owner = join && join.branches[segmentOf(join, c) ?? -1];
    if (owner) canvas.style.borderColor = branchColour(owner.colour);
    canvas.addEventListener("click", () => choose(c));
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
  return make("div", { className: "channel" }, make("div", {}, make("h3", {}, t("channel", { number: state.channel })), big, legend(scale)), numbers, beside());
}

/** The same channel of the layer that is shown, in the other net. */
function beside() {
  const view = chosen(), found = counterpart(view, /** @type {number} */ (state.node));
  if (views.length < 2) return null;
  if (!found) return make("p", { className: "faint" }, t("alone", { name: views[1 - view.number].title }));
  const { other, node } = found, value = other.values[node], scale = strongest(value.data), canvas = mapCanvas(value, state.channel, scale);
  canvas.className = "big other";
  return make("div", {}, make("h3", { className: `net${other.number}` }, t("counterpart", { name: other.title })), canvas, legend(scale));
}

/** The scale of a layer's maps. @param {number} scale */
function legend(scale) {
  return make("p", { className: "legend" }, make("span", {}, `−${short(scale)}`), make("i", { className: "ramp" }), make("span", {}, `+${short(scale)}`));
}

/** A vector, as bars; each number of a linear layer is worked out. @param {any} node @param {Tensor} value */
function vectorView(node, value) {
  const scale = strongest(value.data), view = chosen(), names = node.shape[0] === page.classes.length ? page.classes : null;
  const numbers = make("div", { className: "numbers" });
  const look = (/** @type {number} */ k) => { state.channel = k; numbers.replaceChildren(...products(node, k)); };
  const list = make("div", { className: "vector" });
  value.data.slice(0, 64).forEach((v, k) => list.append(make(node.op === "linear" ? "button" : "div", { className: "bar", onclick: () => node.op === "linear" && look(k) },
    make("span", { className: "name" }, names ? names[k] : String(k)),
    make("span", { className: "track" }, make("i", { className: v < 0 ? "minus" : "", style: `width:${(100 * Math.abs(v)) / scale}%` })),
    make("span", { className: "number" }, short(v)))));
  const source = view.nodes[inputs(node)[0]];
  const words = node.op === "linear" ? t("linear", { count: view.weights[node.args[1].w].shape[1] }) : node.op === "view" ? t("flattened", { shape: source.shape.join("×"), count: node.shape[0] }) : "";
  if (node.op === "linear" && state.channel < node.shape[0]) look(state.channel);
  return make("div", {}, make("p", {}, words), make("div", { className: "channel" }, list, numbers));
}
