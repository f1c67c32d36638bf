// What the page shows, and the small tools that all of its parts use.

import * as kernels from "./kernels.js";
import { decode } from "./net.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */
/** @typedef {import("./net.js").Change} Change */

/** @type {any} */
export const page = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("page-data")).textContent ?? "{}");

/**
 * The nets of the page, one or two, with what each makes of the picture: `values` of its nodes, and `whole`, those
 * without any change. `strength` has, by "node/branch", that of each branch of a join that is not at 1.
 * @type {any[]}
 */
export const views = page.nets.map((/** @type {any} */ own, /** @type {number} */ number) => ({
  ...own, number, weights: decode(own.weights, own.half), last: own.nodes.length - 1, values: [], whole: [], strength: new Map(),
}));

export const INCH = 96; // the geometry is in inches
export const PAD = 196; // the side of the drawing pad in its own pixels
const SLOW = 1e8; // multiplies: what takes longer waits until the pen is up

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/** What is on the screen. */
export const state = {
  // The language of whoever made the page, if Chinese, else of the browser.
  /** @type {string} */ language: page.language === "zh" || navigator.language.startsWith("zh") ? "zh" : "en",
  /** @type {Uint8Array | null} */ pixels: null,
  replace: "zero",
  view: 0, // the number of the net whose layer is shown
  /** @type {number | null} */ node: null,
  channel: 0,
  /** @type {[number, number] | null} */ at: null,
  /** @type {number | null} */ from: null, // the input channel whose window is shown; if null the one that counts most
  step: -1,
  shown: false, // the pad shows a picture that has been placed already
};

/** The net whose layer is shown. */
export const chosen = () => views[state.view];

/** The node of the same name and shape in the other net, if there is one. @param {any} view @param {number} node @returns {{other: any, node: number} | null} */
export function counterpart(view, node) {
  const other = views[1 - view.number], { name, shape } = view.nodes[node];
  const found = other?.nodes.findIndex((/** @type {any} */ each) => each.name === name && String(each.shape) === String(shape)) ?? -1;
  return found < 0 ? null : { other, node: found };
}

export const isSlow = views.some((view) => view.macs > SLOW);

/** Words in the page's language. @param {string} key @param {Record<string, any>} [values] */
export function t(key, values = {}) {
  const text = page.words[state.language]?.[key] ?? page.words.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (/** @type {string} */ whole, /** @type {string} */ name) => String(values[name] ?? whole));
}

/** @param {string} tag @param {Record<string, any>} [fields] @param {...any} children @returns {any} */
export function make(tag, fields = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list") /** @type {any} */ (element)[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** @param {string} tag @param {Record<string, any>} fields @param {...any} children */
export function makeSvg(tag, fields, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, String(value));
  }
  element.append(...children);
  return element;
}

/** A number as people read it. @param {number} value */
export const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2)).replace("-", "−");

/** @param {number} share */
export const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** The colour of a branch; what is outside branches has that of text. @param {string | null} [colour] */
export const branchColour = (colour) => colour ?? "var(--ink)";

/** The number of the largest. @param {ArrayLike<number>} numbers */
export const largest = (numbers) => Array.from(numbers).reduce((best, number, index) => (number > numbers[best] ? index : best), 0);

/** @param {{data: Float32Array}} logits */
export const probabilities = ({ data }) => kernels.softmax({ shape: [data.length], data }, -1).data;

/** @param {number | null} share of the work that is done; null where there is none */
export function showProgress(share) {
  $("progress").hidden = share === null;
  $("progress").value = share ?? 0;
}

/** What other parts do when something changes: app.js fills these in. */
export const tell = {
  /** Run the nets again, at the next frame. */
  update() {},
  /** Keep what is shown in the address. */
  remember() {},
  /** Show a layer of a net. @type {(view: number, node: number) => void} */
  select() {},
};

/** Pixels 0 to 255 as a net gets them. @param {any} view @param {Uint8Array} pixels @returns {Tensor} */
export function normalised(view, pixels) {
  const [channels, height, width] = page.shape;
  const image = kernels.zeros(page.shape), size = height * width;
  for (let p = 0; p < image.data.length; p++) {
    const channel = Math.floor(p / size) % channels;
    image.data[p] = (pixels[p] / 255 - view.mean[channel]) / view.std[channel];
  }
  return image;
}

/** What the switches of a net change. @param {any} view @returns {Change[]} */
export function changes(view) {
  return view.joins.flatMap((/** @type {any} */ join) =>
    join.branches.flatMap((/** @type {any} */ branch) => {
      const strength = view.strength.get(`${join.node}/${branch.name}`) ?? 1;
      if (strength === 1) return [];
      return branch.slots.map((/** @type {number} */ slot) => ({ node: join.node, slot, change: replaced(branch, strength) }));
    }),
  );
}

/** What the join reads instead of a branch: its share, and for the rest zeros or its mean. */
function replaced(/** @type {any} */ branch, /** @type {number} */ strength) {
  return (/** @type {Tensor} */ value) => {
    const size = value.data.length / value.shape[0];
    const data = value.data.map((v, p) => {
      const rest = state.replace === "mean" ? branch.means[Math.floor(p / size)] ?? 0 : 0;
      return strength * v + (1 - strength) * rest;
    });
    return { shape: value.shape, data };
  };
}
