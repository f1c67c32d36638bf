// What branches do: switched off, turned down, and measured for the picture that is shown.

import * as kernels from "./kernels.js";
import { mapCanvas, strongest } from "./lanes.js";
import { run } from "./net.js";
import { $, branchColour, last, make, net, normalised, page, short, state, t, tell } from "./state.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */

/** @param {any} join */
export function switches(join) {
  const rows = join.branches.map((/** @type {any} */ branch) => {
    const key = `${join.node}/${branch.name}`, strength = state.strength.get(key) ?? 1;
    const set = (/** @type {number} */ value) => { if (value === 1) state.strength.delete(key); else state.strength.set(key, value); note(join, branch, value); tell.update(); tell.remember(); };
    const lost = branch.lost?.[state.replace];
    return make("div", { className: "switch" },
      make("label", {}, make("input", { type: "checkbox", checked: strength > 0, onchange: (/** @type {any} */ event) => set(event.target.checked ? 1 : 0) }), make("b", { style: `color:${branchColour(branch.colour)}` }, branch.name)),
      make("input", { type: "range", min: 0, max: 1, step: 0.05, value: strength, "aria-label": t("strength", { name: branch.name }), oninput: (/** @type {any} */ event) => set(Number(event.target.value)) }),
      make("span", { className: "number" }, strength.toFixed(2)),
      make("span", { className: "faint" }, lost ? t("lost", { points: short(100 * lost[0]), low: short(100 * lost[1]), high: short(100 * lost[2]) }) : ""));
  });
  const choice = make("select", { onchange: (/** @type {any} */ event) => { state.replace = event.target.value; tell.update(); } },
    ["zero", "mean"].map((name) => make("option", { value: name, selected: name === state.replace }, t(name))));
  return make("div", { className: "switches" }, make("p", {}, t("switch"), " ", choice), rows);
}

/** Keep what was tried. @param {any} join @param {any} branch @param {number} value */
function note(join, branch, value) {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    if (!state.values.length) return;
    const after = probabilities(state.values[last].data), before = probabilities(state.whole[last].data);
    const [a, b] = [before, after].map((shares) => shares.indexOf(Math.max(...shares)));
    const key = `${join.node}/${branch.name}`;
    const row = make("tr", { "data-key": key }, make("td", {}, `${net.nodes[join.node].name} · ${branch.name}`), make("td", {}, value.toFixed(2)),
      make("td", {}, `${page.classes[a]} ${(100 * before[a]).toFixed(1)}% → ${page.classes[b]} ${(100 * after[b]).toFixed(1)}%`));
    const top = $("ledger-rows").firstElementChild;
    if (top?.dataset.key === key) top.replaceWith(row);
    else $("ledger-rows").prepend(row);
    $("ledger").hidden = false;
  }));
}

export function worth() {
  const panel = $("worth");
  panel.replaceChildren();
  if (!state.pixels) return;
  const image = normalised(state.pixels), whole = run(net, image)[last].data;
  const best = whole.indexOf(Math.max(...whole));
  const rows = page.joins.flatMap((/** @type {any} */ join) => join.branches.map((/** @type {any} */ branch) => {
    const zero = branch.slots.map((/** @type {number} */ slot) => ({ node: join.node, slot, change: (/** @type {Tensor} */ value) => kernels.zeros(value.shape) }));
    return { name: `${net.nodes[join.node].name} · ${branch.name}`, colour: branch.colour, lost: whole[best] - run(net, image, zero)[last].data[best] };
  }));
  const most = Math.max(1e-9, ...rows.map((/** @type {any} */ row) => Math.abs(row.lost)));
  panel.append(make("p", {}, t("worth", { name: page.classes[best] })), ...rows.map((/** @type {any} */ row) => make("div", { className: "bar" },
    make("span", { className: "name wide" }, row.name),
    make("span", { className: "track" }, make("i", { className: row.lost < 0 ? "minus" : "", style: `width:${(100 * Math.abs(row.lost)) / most}%;background:${branchColour(row.colour)}` })),
    make("span", { className: "number" }, short(row.lost)))));
}

/** How much the answer falls where a patch of the picture is black, drawn over what the net got. */
export function heat() {
  if (!state.pixels) return;
  const [channels, height, width] = page.shape, size = Math.max(3, Math.round(height / 6)), step = Math.max(1, Math.round(height / 14));
  const whole = run(net, normalised(state.pixels))[last].data, best = whole.indexOf(Math.max(...whole));
  const falls = new Float32Array(height * width), counts = new Float32Array(height * width);
  for (let y = -size + step; y < height; y += step) {
    for (let x = -size + step; x < width; x += step) {
      const hidden = Uint8Array.from(state.pixels);
      /** @type {number[]} */
      const covered = [];
      for (let r = Math.max(0, y); r < Math.min(height, y + size); r++) for (let c = Math.max(0, x); c < Math.min(width, x + size); c++) covered.push(r * width + c);
      for (const p of covered) for (let k = 0; k < channels; k++) hidden[k * height * width + p] = 0;
      const fall = whole[best] - run(net, normalised(hidden))[last].data[best];
      for (const p of covered) { falls[p] += fall; counts[p]++; }
    }
  }
  const data = falls.map((v, p) => v / Math.max(1, counts[p]));
  const canvas = mapCanvas({ shape: [1, height, width], data }, 0, strongest(data));
  const target = $("received").getContext("2d");
  target.globalAlpha = 1;
  target.fillStyle = getComputedStyle(document.body).getPropertyValue("--paper");
  target.globalAlpha = 0.6;
  target.fillRect(0, 0, width, height);
  target.globalAlpha = 1;
  target.drawImage(canvas, 0, 0);
  $("heat-words").textContent = t("heat-words", { size, name: page.classes[best], most: short(strongest(data)) });
}

/** @param {Float32Array} logits */
export function probabilities(logits) {
  return [...kernels.softmax({ shape: [logits.length], data: logits }, -1).data];
}
