// What branches do: switched off, turned down, and what each adds to the answer for the picture that is shown.

import * as kernels from "./kernels.js";
import { mapCanvas, strongest } from "./lanes.js";
import { inSlices, run, steps } from "./net.js";
import { $, branchColour, chosen, largest, make, normalised, page, percent, probabilities, short, state, t, tell } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

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

/** Show by how much the logit falls if one branch alone sees a black picture, for each branch of each join. */
export function worth() {
  const view = chosen(), panel = $("worth");
  panel.replaceChildren();
  if (!state.pixels) return void panel.append(make("p", { className: "faint" }, t("empty")));
  const image = normalised(view, state.pixels), whole = run(view, image), logits = whole[view.last].data, best = largest(logits);
  const black = run(view, normalised(view, new Uint8Array(state.pixels.length)));
  const joins = view.joins.map((/** @type {any} */ join) => ({ join, rows: join.branches.map((/** @type {any} */ branch) => {
    const read = readBy(view, join.node);
    const blind = branch.slots.map((/** @type {number} */ slot) => ({ node: join.node, slot, change: () => black[read[slot]] }));
    return { branch, lost: logits[best] - run(view, image, blind, whole)[view.last].data[best] };
  }) }));
  const most = Math.max(1e-9, ...joins.flatMap((/** @type {any} */ { rows }) => rows.map((/** @type {any} */ row) => Math.abs(row.lost))));
  panel.append(make("p", {}, t("worth", { name: page.classes[best] })));
  for (const { join, rows } of joins) {
    const total = rows.reduce((/** @type {number} */ sum, /** @type {any} */ row) => sum + row.lost, 0);
    panel.append(make("h3", {}, view.nodes[join.node].name), ...rows.map((/** @type {any} */ { branch, lost }) => make("div", { className: "bar" },
      make("span", { className: "name wide" }, branch.name),
      make("span", { className: "track" }, make("i", { className: lost < 0 ? "minus" : "", style: `width:${(100 * Math.abs(lost)) / most}%;background:${branchColour(branch.colour)}` })),
      make("span", { className: "number" }, short(lost)))),
      make("p", { className: "faint" }, t(join.affine ? "exact" : "overlap", { total: short(total), whole: short(logits[best]), black: short(black[view.last].data[best]) })));
  }
}

/** The nodes that a join reads, by slot. @param {any} view @param {number} node @returns {number[]} */
function readBy(view, node) {
  const { op, args } = view.nodes[node];
  return (op === "cat" ? args[0] : args).map((/** @type {any} */ argument) => argument?.n);
}

/** @type {object | null} */
let asked = null;
/** Draw over what the net gets by how much the answer falls where a patch of it is black. */
export async function heat() {
  if (!state.pixels) return;
  const view = chosen(), own = (asked = {}), { pixels } = state;
  const [channels, height, width] = page.shape, size = Math.max(3, Math.round(height / 6)), step = Math.max(1, Math.round(height / 14));
  const best = largest(view.whole[view.last].data), patches = [...patchesOf(height, width, size, step)];
  const falls = new Float32Array(height * width), counts = new Float32Array(height * width);
  for (const [number, covered] of patches.entries()) {
    const hidden = Uint8Array.from(pixels);
    for (const p of covered) for (let k = 0; k < channels; k++) hidden[k * height * width + p] = 0;
    const values = await inSlices(steps(view, normalised(view, hidden)), () => asked === own, () => showShare(number / patches.length));
    if (!values || state.pixels !== pixels) return showShare(null);
    const fall = view.whole[view.last].data[best] - values[view.last].data[best];
    for (const p of covered) { falls[p] += fall; counts[p]++; }
  }
  showShare(null);
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

/** @param {number | null} share of the patches that are done */
function showShare(share) {
  $("heat-words").textContent = share === null ? "" : percent(share);
}

/** Lay a map over a picture that fades behind it. @param {CanvasRenderingContext2D} context @param {HTMLCanvasElement} map */
function cover(context, map) {
  Object.assign(context, { globalAlpha: 0.6, fillStyle: getComputedStyle(document.body).getPropertyValue("--paper") });
  context.fillRect(0, 0, map.width, map.height);
  context.globalAlpha = 1;
  context.drawImage(map, 0, 0);
}
