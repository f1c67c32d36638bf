// The tour: the lecture's questions, each with the layer that answers it.

import { worth } from "./branches.js";
import { drawDetail } from "./layer.js";
import { runFrom } from "./net.js";
import { showSample } from "./pad.js";
import { $, make, page, short, state, t, tell, views } from "./state.js";

export function drawTour() {
  const panel = $("tour"), { tour } = views[0];
  const step = tour[state.step];
  panel.hidden = !step;
  $("stage").className = step?.at ? "pixel" : step?.ask ?? ""; // what answers the question comes next to it
  if (!step) return;
  panel.replaceChildren(
    make("p", { className: "faint" }, `${state.step + 1} / ${tour.length}`),
    make("h2", {}, t(step.question, step.values)), make("p", {}, t(step.words, step.values)),
    make("div", { id: "collapsed", className: "scroll" }),
    make("p", {}, make("button", { onclick: () => go(state.step - 1), disabled: state.step === 0 }, t("back")), " ",
      make("button", { className: "primary", onclick: () => go(state.step + 1) }, t(state.step + 1 < tour.length ? "next" : "explore")), " ",
      make("button", { onclick: () => go(-1) }, t("close"))),
  );
}

/** Go to a step; a fresh one begins with every branch on, but for the one that it is about. @param {number} step */
export function go(step, { isFresh = true } = {}) {
  state.step = step < views[0].tour.length ? step : -1;
  const { node, at, off } = views[0].tour[state.step] ?? {};
  if (isFresh) views[0].strength = new Map(off ? [[off, 0]] : []);
  if (state.step >= 0 && !state.pixels) showSample(0);
  tell.update();
  // After the nets have run.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    drawTour();
    if (state.step < 0) return tell.remember();
    if (isFresh) tell.select(0, node);
    if (at) {
      state.at = at;
      drawDetail();
    }
    answerTour();
    $("tour").scrollIntoView({ block: "start" });
  }));
}

/** Answer the question of the step that is shown, for the picture that is shown. */
export function answerTour() {
  const step = views[0].tour[state.step];
  if (step?.ask === "worth") void worth();
  if (step?.ask === "collapse") $("collapsed")?.replaceChildren(views[0].whole.length ? collapse() : "");
}

/** The logits as written, and by the table that all layers after the last activation are. */
function collapse() {
  const view = views[0], { entry, inputs, macs } = view.tail, { data } = view.whole[entry];
  /** @type {ReturnType<typeof tableOf>} */
  const { bias, columns } = (view.table ??= tableOf(view));
  /** @type {Float32Array} */
  const written = view.whole[view.last].data;
  const sums = Float64Array.from(bias, (value, k) => columns.reduce((sum, column, i) => sum + column[k] * data[i], value));
  const most = written.reduce((far, value, k) => Math.max(far, Math.abs(value - sums[k])), 0);
  const row = (/** @type {string} */ name, /** @type {ArrayLike<number>} */ numbers, /** @type {number} */ products) =>
    make("tr", {}, make("th", {}, name), Array.from(numbers, (value) => make("td", {}, short(value))), make("td", {}, t("multiplies", { count: products.toLocaleString("en") })));
  return make("div", {}, make("table", { className: "grid" },
    make("tr", {}, make("th", {}), page.classes.map((/** @type {string} */ name) => make("th", {}, name)), make("th", {})),
    row(t("as-written"), written, macs), row(t("as-table"), sums, inputs * written.length)),
    make("p", { className: "sum" }, t("same", { most: most.toExponential(0) })));
}

/**
 * The table of a net's affine tail, which no picture changes: what it gives for zeros, and what each input adds at 1.
 * @param {any} view @returns {{bias: Float32Array, columns: Float32Array[]}}
 */
function tableOf(view) {
  const { entry, inputs } = view.tail, { shape } = view.whole[entry];
  const answerTo = (/** @type {Float32Array} */ data) => runFrom(view, view.whole, entry, { shape, data }).data;
  const bias = answerTo(new Float32Array(inputs));
  const columns = Array.from({ length: inputs }, (_, i) => {
    const lit = new Float32Array(inputs);
    lit[i] = 1;
    return answerTo(lit).map((value, k) => value - bias[k]);
  });
  return { bias, columns };
}
