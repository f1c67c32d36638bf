// What the page shows, and the small tools that all of its parts use.

import * as kernels from "./kernels.js";
import { decode } from "./net.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */
/** @typedef {import("./net.js").Change} Change */

/** @type {any} */
export const page = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("page-data")).textContent ?? "{}");
export const net = { nodes: page.nodes, weights: decode(page.weights, page.half) };
export const last = net.nodes.length - 1;
export const INCH = 96; // the geometry is in inches
export const PAD = 196; // the side of the drawing pad in its own pixels

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/** What is on the screen. `off` has the strength of each branch that is not at 1, by "join/branch". */
export const state = {
  // The language of whoever made the page, if Chinese, else of the browser.
  /** @type {string} */ language: page.language === "zh" || navigator.language.startsWith("zh") ? "zh" : "en",
  /** @type {Uint8Array | null} */ pixels: null,
  /** @type {Tensor[]} */ values: [],
  /** @type {Tensor[]} */ whole: [], // without any change
  /** @type {Map<string, number>} */ strength: new Map(),
  replace: "zero",
  /** @type {number | null} */ node: null,
  channel: 0,
  /** @type {[number, number] | null} */ at: null,
  from: 0, // the input channel whose window is shown
  step: -1,
  shown: false, // the pad shows a test image, which needs no placing
};

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
export const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2));

/** The colour of a branch; what is outside branches has that of text. @param {string | null} [colour] */
export const branchColour = (colour) => colour ?? "var(--ink)";

/** What other parts do when something changes: app.js fills these in. */
export const tell = {
  /** Run the net again, at the next frame. */
  update() {},
  /** Keep what is shown in the address. */
  remember() {},
  /** Show a layer. @type {(node: number) => void} */
  select() {},
};

/** Pixels 0 to 255 as the net gets them. @param {Uint8Array} pixels @returns {Tensor} */
export function normalised(pixels) {
  const [channels, height, width] = page.shape;
  const image = kernels.zeros(page.shape);
  const size = height * width;
  for (let p = 0; p < image.data.length; p++) {
    const channel = Math.floor(p / size) % channels;
    image.data[p] = (pixels[p] / 255 - page.mean[channel]) / page.std[channel];
  }
  return image;
}

/** @returns {Change[]} */
export function changes() {
  return page.joins.flatMap((/** @type {any} */ join) =>
    join.branches.flatMap((/** @type {any} */ branch) => {
      const strength = state.strength.get(`${join.node}/${branch.name}`) ?? 1;
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
