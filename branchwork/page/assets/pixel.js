// One output pixel: what it reads, and how its number comes about.

import * as kernels from "./kernels.js";
import { inputs } from "./net.js";
import { $, chosen, make, page, short, state, t } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

/** Mark on the drawing what an output pixel can see. @param {[number, number]} at */
export function markField(at) {
  const [top, left, bottom, right] = fieldOf(/** @type {number} */ (state.node), at);
  const [, height, width] = page.shape;
  const frame = $("field");
  frame.hidden = false;
  const clip = (/** @type {number} */ n, /** @type {number} */ most) => Math.min(most, Math.max(0, n));
  const box = [clip(top, height), clip(left, width), clip(bottom, height), clip(right, width)];
  Object.assign(frame.style, {
    top: `${(100 * box[0]) / height}%`, left: `${(100 * box[1]) / width}%`,
    height: `${(100 * (box[2] - box[0])) / height}%`, width: `${(100 * (box[3] - box[1])) / width}%`,
  });
}

/** The pixels of the image that an output reads, as top, left, after bottom, after right. */
function fieldOf(/** @type {number} */ index, /** @type {[number, number]} */ at) {
  /** @type {Map<number, number[]>} */
  const windows = new Map([[index, [at[0], at[1], at[0] + 1, at[1] + 1]]]);
  let field = [0, 0, page.shape[1], page.shape[2]];
  for (let k = index; k >= 0; k--) {
    const own = windows.get(k);
    if (!own) continue;
    const node = chosen().nodes[k];
    if (node.op === "input") field = own;
    const { kernel, stride, padding, dilation, whole } = geometry(node);
    for (const source of inputs(node)) {
      const [, h, w] = chosen().nodes[source].shape;
      const read = whole
        ? [0, 0, h ?? 1, w ?? 1]
        : [0, 1, 2, 3].map((side) => {
            const axis = side % 2;
            return side < 2 ? own[side] * stride[axis] - padding[axis] : (own[side] - 1) * stride[axis] - padding[axis] + dilation[axis] * (kernel[axis] - 1) + 1;
          });
      const before = windows.get(source);
      windows.set(source, before ? before.map((n, side) => (side < 2 ? Math.min(n, read[side]) : Math.max(n, read[side]))) : read);
    }
  }
  return field;
}

/** @param {any} node */
function geometry(node) {
  const plain = { kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1], whole: false };
  const args = node.args;
  if (node.op === "conv2d") {
    const kernel = chosen().weights[args[1].w].shape.slice(2), dilation = kernels.pair(args[5], 1);
    const padding = args[4] === "same" ? kernel.map((/** @type {number} */ k, /** @type {number} */ axis) => Math.floor((dilation[axis] * (k - 1)) / 2)) : args[4] === "valid" ? [0, 0] : kernels.pair(args[4], 0);
    return { ...plain, kernel, stride: kernels.pair(args[3], 1), padding, dilation };
  }
  if (node.op === "max_pool2d" || node.op === "avg_pool2d") {
    return { ...plain, kernel: kernels.pair(args[1]), stride: kernels.pair(args[2], args[1]), padding: kernels.pair(args[3], 0) };
  }
  const reshapes = node.op === "view" && node.shape.length !== 3;
  return { ...plain, whole: reshapes || ["linear", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "permute", "slice", "pad", "softmax"].includes(node.op) };
}

/** The number of the branch that a channel of a concatenation comes from. */
export function segmentOf(/** @type {any} */ join, /** @type {number} */ channel) {
  if (chosen().nodes[join.node].op !== "cat") return null;
  let end = 0;
  return join.branches.findIndex((/** @type {any} */ branch) => channel < (end += branch.channels));
}

/** How the number at an output pixel comes about. @param {any} node @param {Tensor} value @param {() => void} again */
export function arithmetic(node, value, again) {
  const [y, x] = /** @type {[number, number]} */ (state.at), [, height, width] = value.shape;
  const result = value.data[(state.channel * height + y) * width + x];
  const sources = inputs(node);
  const head = make("h3", {}, t("pixel", { row: y, column: x, value: short(result) }));
  if (node.op === "conv2d") return [head, ...convolution(node, chosen().values[sources[0]], y, x, result, again)];
  if (node.op === "max_pool2d" || node.op === "avg_pool2d") return [head, ...pooling(node, chosen().values[sources[0]], y, x, result)];
  if (node.op === "cat") {
    const join = chosen().joins.find((/** @type {any} */ each) => each.node === state.node);
    const branch = join?.branches[segmentOf(join, state.channel) ?? 0];
    return [head, make("p", {}, t("copied", { branch: branch?.name ?? "", channels: branch?.channels ?? "" }))];
  }
  const terms = sources.map((source) => {
    const before = chosen().values[source];
    return before.shape.length === 3 && before.shape[1] === height ? before.data[(state.channel * height + y) * width + x] : null;
  });
  if (node.op === "add") return [head, make("p", { className: "sum" }, `${terms.map((v) => (v === null ? "…" : short(v))).join(" + ")} = ${short(result)}`)];
  return [head, make("p", { className: "sum" }, `${node.op}(${terms.map((v) => (v === null ? "…" : short(v))).join(", ")}) = ${short(result)}`)];
}

const SHOWN = 12; // of the products or sums, the largest

/** How a number of a linear layer comes about. @param {any} node @param {number} output */
export function products(node, output) {
  const view = chosen(), weight = view.weights[node.args[1].w], bias = node.args[2] ? view.weights[node.args[2].w].data[output] : 0;
  const input = view.values[inputs(node)[0]], count = weight.shape[1];
  const terms = Array.from({ length: count }, (_, i) => ({ i, value: input.data[i], weight: weight.data[output * count + i] })).sort((a, b) => Math.abs(b.value * b.weight) - Math.abs(a.value * a.weight));
  const total = terms.reduce((sum, term) => sum + term.value * term.weight, 0);
  return [
    make("h3", {}, t("number", { name: node.shape[0] === page.classes.length ? page.classes[output] : output, value: short(total + bias) })),
    make("p", {}, t("products", { shown: Math.min(SHOWN, count), count })),
    make("table", { className: "grid" }, terms.slice(0, SHOWN).map((term) => make("tr", {}, make("th", {}, placeOf(node, term.i)), make("td", {}, short(term.value)), make("td", {}, "×"), make("td", {}, short(term.weight)), make("td", {}, `= ${short(term.value * term.weight)}`)))),
    make("p", { className: "sum" }, `${short(total)} + ${short(bias)} (${t("bias")}) = ${short(total + bias)}`),
  ];
}

/** Where a number of a flattened map stood. @param {any} node @param {number} index */
function placeOf(node, index) {
  const source = chosen().nodes[inputs(node)[0]], before = source.op === "view" ? chosen().nodes[inputs(source)[0]].shape : [];
  if (before.length !== 3) return String(index);
  const [, height, width] = before;
  return t("place", { channel: Math.floor(index / (height * width)), row: Math.floor(index / width) % height, column: index % width });
}

/** A grid of numbers; what lies outside the image is marked. @param {(number | null)[][]} rows */
function grid(rows, words = "") {
  const most = Math.max(1e-12, ...rows.flat().map((v) => Math.abs(v ?? 0)));
  return make("figure", {},
    make("table", { className: "grid" }, rows.map((row) => make("tr", {}, row.map((v) => {
      const cell = make("td", { className: v === null ? "outside" : "" }, v === null ? "0" : short(v));
      if (v) cell.style.background = `color-mix(in srgb, var(${v > 0 ? "--plus" : "--minus"}) ${Math.round((35 * Math.abs(v)) / most)}%, transparent)`;
      return cell;
    })))),
    make("figcaption", {}, words),
  );
}

function convolution(/** @type {any} */ node, /** @type {Tensor} */ input, /** @type {number} */ y, /** @type {number} */ x, /** @type {number} */ result, /** @type {() => void} */ again) {
  const weight = chosen().weights[node.args[1].w], bias = node.args[2] ? chosen().weights[node.args[2].w].data[state.channel] : 0;
  const { kernel, stride, padding, dilation } = geometry(node);
  const [outputs, count] = weight.shape, [, height, width] = input.shape;
  const first = Math.floor(state.channel / (outputs / (node.args[6] ?? 1))) * count;
  const read = (/** @type {number} */ i, /** @type {number} */ ky, /** @type {number} */ kx) => {
    const [row, column] = [y * stride[0] - padding[0] + ky * dilation[0], x * stride[1] - padding[1] + kx * dilation[1]];
    return row < 0 || row >= height || column < 0 || column >= width ? null : input.data[((first + i) * height + row) * width + column];
  };
  const w = (/** @type {number} */ i, /** @type {number} */ ky, /** @type {number} */ kx) => weight.data[((state.channel * count + i) * kernel[0] + ky) * kernel[1] + kx];
  const sums = Array.from({ length: count }, (_, i) => {
    let sum = 0;
    for (let ky = 0; ky < kernel[0]; ky++) for (let kx = 0; kx < kernel[1]; kx++) sum += (read(i, ky, kx) ?? 0) * w(i, ky, kx);
    return sum;
  });
  const order = sums.map((_, i) => i).sort((a, b) => Math.abs(sums[b]) - Math.abs(sums[a]));
  const from = state.from !== null && state.from < count ? state.from : order[0];
  const rows = (/** @type {(ky: number, kx: number) => number | null} */ f) => Array.from({ length: kernel[0] }, (_, ky) => Array.from({ length: kernel[1] }, (_, kx) => f(ky, kx)));
  const parts = [
    make("div", { className: "product" },
      grid(rows((ky, kx) => read(from, ky, kx)), t("window", { channel: first + from })), make("span", {}, "×"),
      grid(rows((ky, kx) => w(from, ky, kx)), t("kernel")), make("span", {}, `= ${short(sums[from])}`)),
  ];
  if (count > 1) {
    parts.push(make("p", {}, t("inputs", { count }), " ", order.slice(0, SHOWN).map((i) => make("button", { className: i === from ? "chip chosen" : "chip", onclick: () => { state.from = i; again(); } }, `${first + i}: ${short(sums[i])}`))));
  }
  const total = sums.reduce((a, b) => a + b, 0);
  parts.push(make("p", { className: "sum" }, `${short(total)} + ${short(bias)} (${t("bias")}) = ${short(result)}`));
  if (rows((ky, kx) => read(from, ky, kx)).flat().includes(null)) parts.push(make("p", { className: "note" }, t("padded")));
  return parts;
}

function pooling(/** @type {any} */ node, /** @type {Tensor} */ input, /** @type {number} */ y, /** @type {number} */ x, /** @type {number} */ result) {
  const { kernel, stride, padding } = geometry(node), [, height, width] = input.shape;
  const rows = Array.from({ length: kernel[0] }, (_, ky) => Array.from({ length: kernel[1] }, (_, kx) => {
    const [row, column] = [y * stride[0] - padding[0] + ky, x * stride[1] - padding[1] + kx];
    return row < 0 || row >= height || column < 0 || column >= width ? null : input.data[(state.channel * height + row) * width + column];
  }));
  const outside = rows.flat().includes(null), inside = rows.flat().filter((v) => v !== null);
  const average = node.op === "avg_pool2d", counted = average && (node.args[5] ?? true);
  const words = average ? t("average", { count: counted ? rows.flat().length : inside.length, value: short(result) }) : t("largest", { value: short(result) });
  return [grid(rows), make("p", { className: "sum" }, words), outside && average ? make("p", { className: "note" }, t(counted ? "counted" : "uncounted")) : ""];
}
