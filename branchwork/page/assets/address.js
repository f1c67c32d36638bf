// The address holds what is shown, so that it can be sent as a link.

import { pixelCanvas, show } from "./pad.js";
import { page, state, views } from "./state.js";

const MOST_PIXELS = 4096; // that an address holds

/** What tells the nets of this page from others. */
const digest = views.map((view) => view.digest).join(".");

export function remember() {
  const parts = new URLSearchParams({ net: digest, lang: state.language });
  if (state.step >= 0) parts.set("step", String(state.step + 1));
  if (state.node !== null) parts.set("node", `${state.view}:${views[state.view].nodes[state.node].name}`);
  for (const view of views) for (const [branch, strength] of view.strength) parts.append("set", `${view.number}:${branch}=${strength}`);
  if (state.replace !== "zero") parts.set("by", state.replace);
  if (state.pixels && state.pixels.length <= MOST_PIXELS) parts.set("pixels", btoa(String.fromCharCode(...state.pixels)).replaceAll("+", "-").replaceAll("/", "_"));
  try { history.replaceState(null, "", `#${parts}`); } catch { /* an embedded page has no address */ }
}

/**
 * Show what the address holds; of an address made for other nets only the picture and the step of the tour.
 * @returns {boolean} whether it says what is shown of these nets
 */
export function recall() {
  const parts = new URLSearchParams(location.hash.slice(1)), step = Number(parts.get("step"));
  if (parts.get("lang")) state.language = parts.get("lang") === "zh" ? "zh" : "en";
  if (Number.isInteger(step) && step >= 1 && step <= views[0].tour.length) state.step = step - 1;
  const isWhole = parts.get("net") === digest;
  if (isWhole) recallNets(parts);
  try {
    const pixels = Uint8Array.from(atob((parts.get("pixels") ?? "").replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
    if (pixels.length === page.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1)) show(pixelCanvas(pixels), pixels);
  } catch { /* a damaged address shows an empty page */ }
  return isWhole;
}

/** @param {URLSearchParams} parts */
function recallNets(parts) {
  for (const entry of parts.getAll("set")) {
    const [, number, branch, strength] = /^(\d):(.*)=([\d.]+)$/.exec(entry) ?? [];
    if (views[Number(number)]) views[Number(number)].strength.set(branch, Math.min(1, Number(strength)));
  }
  if (parts.get("by") === "mean") state.replace = "mean";
  const [, number, name] = /^(\d):(.*)$/.exec(parts.get("node") ?? "") ?? [];
  const node = views[Number(number)]?.nodes.findIndex((/** @type {any} */ each) => each.name === name) ?? -1;
  if (node >= 0) Object.assign(state, { view: Number(number), node });
}
