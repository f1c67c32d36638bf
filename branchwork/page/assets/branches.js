// What branches do: switched off, turned down, and what each adds to the answer for the picture that is shown.

import { mapCanvas, strongest } from "./lanes.js";
import { inSlices, steps } from "./net.js";
import { $, branchColour, chosen, largest, make, normalised, page, percent, probabilities, short, showProgress, state, t, tell } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */
/** @typedef {import("./net.js").Change} Change */

/** @param {any} view @param {any} join */
export function switches(view, join) {
  const rows = join.branches.map((/** @type {any} */ branch) => {
    const key = `${join.node}/${branch.name}`, strength = view.strength.get(key) ?? 1;
    const set = (/** @type {number} */ value) => {
      if (value === 1) view.strength.delete(key);
      else view.strength.set(key, value);
      note(view, `${view.nodes[join.node].name} · ${branch.name}`, value);
      tell.update();
      tell.remember();
    };
    const lost = branch.lost[state.replace];
    return make("div", { className: "switch" },
      make("label", {}, make("input", { type: "checkbox", checked: strength > 0, onchange: (/** @type {any} */ event) => set(event.target.checked ? 1 : 0) }), make("i", { className: "swatch", style: `background:${branchColour(branch.colour)}` }), make("b", {}, branch.name)),
      make("input", { type: "range", min: 0, max: 1, step: 0.05, value: strength, "aria-label": t("strength", { name: branch.name }), oninput: (/** @type {any} */ event) => set(Number(event.target.value)) }),
      make("span", { className: "number" }, strength.toFixed(2)),
      make("span", { className: "faint" }, t("lost", { points: short(100 * lost[0]), low: short(100 * lost[1]), high: short(100 * lost[2]) })));
  });
  const choice = make("select", { "aria-label": t("switch"), onchange: (/** @type {any} */ event) => { state.replace = event.target.value; tell.update(); tell.remember(); } },
    ["zero", "mean"].map((name) => make("option", { value: name, selected: name === state.replace }, t(name))));
  return make("div", { className: "switches" }, make("p", {}, t("switch"), " ", choice), rows);
}

/** Keep what was tried. @param {any} view @param {string} name @param {number} value */
function note(view, name, value) {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    if (!view.values.length) return;
    const [before, after] = [view.whole, view.values].map((values) => probabilities(values[view.last]));
    const [a, b] = [largest(before), largest(after)];
    const row = make("tr", { "data-key": name }, make("td", {}, name), make("td", {}, value.toFixed(2)),
      make("td", {}, `${page.classes[a]} ${percent(before[a])} → ${page.classes[b]} ${percent(after[b])}`));
    const top = $("ledger-rows").firstElementChild;
    if (top?.dataset.key === name) top.replaceWith(row);
    else $("ledger-rows").prepend(row);
    $("ledger").hidden = false;
  }));
}

/** @type {object | null} */
let asked = null;
/**
 * What is asked of the picture that is shown: a function that runs the net in turn, and gives null once the picture is
 * another or something else is asked. @param {any} view
 */
function ask(view) {
  const own = (asked = {}), { pixels } = state;
  return (/** @type {Uint8Array} */ given, /** @type {number} */ share, /** @type {Change[]} */ changes = [], /** @type {Tensor[]} */ known = []) =>
    inSlices(steps(view, normalised(view, given), changes, known), () => asked === own && state.pixels === pixels, () => showProgress(share));
}

/** Take back the answers to another picture. */
export function forgetAnswers() {
  $("worth").replaceChildren();
  $("heat-words").textContent = "";
}

/** Show by how much the logit falls if one branch alone is given a black picture, for each branch of each join. */
export async function worth() {
  const view = chosen(), { pixels } = state;
  if (!pixels) return void $("worth").replaceChildren(make("p", { className: "faint" }, t("empty")));
  const run = ask(view), branches = view.joins.flatMap((/** @type {any} */ join) => join.branches.map((/** @type {any} */ branch) => ({ join, branch })));
  const whole = await run(pixels, 0), black = whole && (await run(new Uint8Array(pixels.length), 0));
  if (!whole || !black) return showProgress(null);
  const logits = whole[view.last].data, best = largest(logits);
  for (const [number, row] of branches.entries()) {
    const read = readBy(view, row.join.node);
    const blind = row.branch.slots.map((/** @type {number} */ slot) => ({ node: row.join.node, slot, change: () => black[read[slot]] }));
    const values = await run(pixels, number / branches.length, blind, whole);
    if (!values) return showProgress(null);
    row.lost = logits[best] - values[view.last].data[best];
  }
  showProgress(null);
  $("worth").replaceChildren(...worthOf(view, branches, { name: page.classes[best], whole: short(logits[best]), black: short(black[view.last].data[best]) }));
}

/** The bars of each join, with what they add up to. */
function worthOf(/** @type {any} */ view, /** @type {any[]} */ branches, /** @type {Record<string, string>} */ values) {
  const most = Math.max(1e-9, ...branches.map(({ lost }) => Math.abs(lost)));
  const parts = [make("p", {}, t("worth", values))];
  for (const join of view.joins) {
    const rows = branches.filter((row) => row.join === join), total = rows.reduce((sum, { lost }) => sum + lost, 0);
    parts.push(make("h3", {}, view.nodes[join.node].name), ...rows.map(({ branch, lost }) => make("div", { className: "bar" },
      make("span", { className: "name wide" }, branch.name),
      make("span", { className: "track" }, make("i", { className: lost < 0 ? "minus" : "", style: `width:${(100 * Math.abs(lost)) / most}%;background:${branchColour(branch.colour)}` })),
      make("span", { className: "number" }, short(lost)))),
      make("p", { className: "faint" }, t(join.affine ? "exact" : "overlap", { ...values, total: short(total) })));
  }
  return parts;
}

/** The nodes that a join reads, by slot. @param {any} view @param {number} node @returns {number[]} */
function readBy(view, node) {
  const { op, args } = view.nodes[node];
  return (op === "cat" ? args[0] : args).map((/** @type {any} */ argument) => argument?.n);
}

/** Draw over what the net gets by how much the answer falls where a patch of it is black. */
export async function heat() {
  const view = chosen(), { pixels } = state;
  if (!pixels) return;
  const [channels, height, width] = page.shape, size = Math.max(3, Math.round(height / 6)), step = Math.max(1, Math.round(height / 14));
  const run = ask(view), patches = [...patchesOf(height, width, size, step)], whole = await run(pixels, 0);
  if (!whole) return showProgress(null);
  const logits = whole[view.last].data, best = largest(logits), falls = new Float32Array(height * width), counts = new Float32Array(height * width);
  for (const [number, covered] of patches.entries()) {
    const hidden = Uint8Array.from(pixels);
    for (const p of covered) for (let k = 0; k < channels; k++) hidden[k * height * width + p] = 0;
    const values = await run(hidden, number / patches.length);
    if (!values) return showProgress(null);
    for (const p of covered) { falls[p] += logits[best] - values[view.last].data[best]; counts[p]++; }
  }
  showProgress(null);
  const data = falls.map((v, p) => v / Math.max(1, counts[p]));
  cover($("received").getContext("2d"), mapCanvas({ shape: [1, height, width], data }, 0, strongest(data)));
  $("heat-words").textContent = t("heat-words", { size, name: page.classes[best], most: short(strongest(data)) });
}

/** The pixels of each patch, in rows. */
function* patchesOf(/** @type {number} */ height, /** @type {number} */ width, /** @type {number} */ size, /** @type {number} */ step) {
  for (let y = step - size; y < height; y += step) {
    for (let x = step - size; x < width; x += step) {
      /** @type {number[]} */
      const covered = [];
      for (let r = Math.max(0, y); r < Math.min(height, y + size); r++) for (let c = Math.max(0, x); c < Math.min(width, x + size); c++) covered.push(r * width + c);
      yield covered;
    }
  }
}

/** Lay a map over a picture that fades behind it. @param {CanvasRenderingContext2D} context @param {HTMLCanvasElement} map */
function cover(context, map) {
  Object.assign(context, { globalAlpha: 0.6, fillStyle: getComputedStyle(document.body).getPropertyValue("--paper") });
  context.fillRect(0, 0, map.width, map.height);
  context.globalAlpha = 1;
  context.drawImage(map, 0, 0);
}
