// The page: what is drawn runs through the net, and every layer shows what it makes of it.

import { heat, probabilities, worth } from "./branches.js";
import { drawLanes, drawMaps, fitLanes } from "./lanes.js";
import { drawDetail, select } from "./layer.js";
import { deviation, run } from "./net.js";
import { clearPad, drawReceived, pixelCanvas, preparePad, readPad, samples, showSample } from "./pad.js";
import { $, changes, last, make, net, normalised, page, short, state, t, tell } from "./state.js";
import { drawTour, go, recall, remember, save } from "./tour.js";

Object.assign(tell, { update, remember, select });

let queued = false;
/** Run the net on what is drawn, at the next frame. */
function update() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => {
    queued = false;
    const began = performance.now();
    readPad();
    if (state.pixels) {
      const image = normalised(state.pixels), active = changes();
      state.values = run(net, image, active);
      state.whole = active.length ? run(net, image) : state.values;
    } else {
      state.values = state.whole = [];
    }
    drawReceived();
    drawBars();
    drawMaps();
    drawDetail();
    document.body.dataset.milliseconds = (performance.now() - began).toFixed(1);
  });
}

function drawBars() {
  const list = $("bars");
  list.replaceChildren();
  if (!state.values.length) return void list.append(make("p", { className: "faint" }, t("empty")));
  const shares = probabilities(state.values[last].data), before = probabilities(state.whole[last].data);
  const logits = state.values[last].data, old = state.whole[last].data;
  const order = [...shares.keys()].sort((a, b) => (page.classes.length > 10 ? shares[b] - shares[a] : a - b)).slice(0, 10);
  const best = shares.indexOf(Math.max(...shares));
  for (const k of order) {
    const moved = logits[k] - old[k];
    list.append(
      make("div", { className: k === best ? "bar best" : "bar" },
        make("span", { className: "name" }, page.classes[k]),
        make("span", { className: "track" }, make("i", { style: `width:${100 * shares[k]}%` }), make("b", { style: `left:${100 * before[k]}%` })),
        make("span", { className: "number" }, `${(100 * shares[k]).toFixed(1)}%`),
        make("span", { className: "number logit" }, short(logits[k]), Math.abs(moved) > 0.005 ? make("em", {}, ` ${moved > 0 ? "▲" : "▼"}${short(Math.abs(moved))}`) : ""),
      ),
    );
  }
  $("answer").textContent = t("answer", { name: page.classes[best], share: `${(100 * shares[best]).toFixed(1)}%` });
}

/** Write all fixed words in the page's language. */
function say() {
  document.documentElement.lang = state.language === "zh" ? "zh-Hans" : "en";
  for (const element of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-say]"))) element.textContent = t(element.dataset.say ?? "", page.facts);
  $("language").textContent = state.language === "zh" ? "English" : "中文";
  drawBars();
  drawDetail();
  drawTour();
}

function start() {
  const check = deviation(run(net, normalised(Uint8Array.from(atob(page.golden.image), (letter) => letter.charCodeAt(0)))), page.golden.nodes);
  document.body.dataset.deviation = String(check);
  page.facts.deviation = check.toExponential(0);
  if (!(check < (page.half ? 2e-2 : 1e-3))) {
    // Nothing is shown that torch would not have computed.
    $("warning").textContent = t("disagrees", { deviation: page.facts.deviation });
    document.querySelector("main")?.remove();
    return;
  }
  preparePad();
  drawLanes();
  recall();
  const size = page.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
  page.samples.labels.forEach((/** @type {number} */ label, /** @type {number} */ index) => {
    const canvas = pixelCanvas(samples.subarray(index * size, (index + 1) * size));
    canvas.className = page.samples.wrong[index] ? "sample wrong" : "sample";
    canvas.title = page.classes[label];
    $("samples").append(make("button", { className: "plain", "aria-label": page.classes[label], onclick: () => showSample(index) }, canvas));
  });
  $("clear").addEventListener("click", () => { clearPad(); remember(); });
  $("language").addEventListener("click", () => { state.language = state.language === "zh" ? "en" : "zh"; say(); remember(); });
  $("start-tour").addEventListener("click", () => go(0));
  $("ask-worth").addEventListener("click", worth);
  $("ask-heat").addEventListener("click", heat);
  $("save").addEventListener("click", save);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  addEventListener("resize", fitLanes);
  say();
  if (state.step >= 0) go(state.step);
  update();
}

start();
