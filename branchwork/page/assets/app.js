// The page: what is drawn runs through each net, and every layer shows what it makes of it.

import { recall, remember } from "./address.js";
import { forgetAnswers, heat, worth } from "./branches.js";
import { drawLanes, drawMaps, fitLanes } from "./lanes.js";
import { drawDetail, select } from "./layer.js";
import { deviation, inSlices, steps } from "./net.js";
import { drawReceived, pixelCanvas, preparePad, readPad, samples, showSample, wipe } from "./pad.js";
import { save } from "./save.js";
import { $, changes, largest, make, normalised, page, percent, probabilities, short, showProgress, state, t, tell, views } from "./state.js";
import { answerTour, drawTour, go } from "./tour.js";

Object.assign(tell, { update, remember, select });

let queued = false, turn = 0;
/** Run the nets on what is drawn, at the next frame. */
function update() {
  turn++;
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; void compute(turn); });
}

/** @type {Uint8Array | null} */
let before = null;
/** @param {number} own the turn, which ends where another begins */
async function compute(own) {
  const began = performance.now();
  readPad();
  drawReceived();
  const { pixels } = state, isSame = pixels && before?.every((value, p) => value === pixels[p]);
  if (!isSame) {
    before = null;
    forgetAnswers();
  }
  for (const view of views) {
    if (!pixels) {
      view.values = view.whole = [];
      continue;
    }
    const inTurn = (/** @type {Generator<number, any[]>} */ running) => inSlices(running, () => own === turn, (done) => showProgress((view.number + done / view.nodes.length) / views.length));
    const image = normalised(view, pixels), active = changes(view);
    const whole = isSame ? view.whole : await inTurn(steps(view, image));
    const values = whole && (active.length ? await inTurn(steps(view, image, active, whole)) : whole);
    if (!values) return;
    Object.assign(view, { whole, values });
  }
  before = pixels;
  showProgress(null);
  drawBars();
  drawMaps();
  drawDetail();
  answerTour();
  document.body.dataset.milliseconds = (performance.now() - began).toFixed(1);
}

function drawBars() {
  const list = $("bars");
  list.replaceChildren();
  const known = views.filter((view) => view.values.length);
  $("answer").replaceChildren();
  if (!known.length) return void list.append(make("p", { className: "faint" }, t("empty")));
  const all = known.map((view) => {
    const [logits, old] = [view.values[view.last], view.whole[view.last]];
    return { view, logits: logits.data, old: old.data, shares: probabilities(logits), before: probabilities(old) };
  });
  const [{ shares }] = all;
  const order = [...shares.keys()].sort((a, b) => (page.classes.length > 10 ? shares[b] - shares[a] : a - b)).slice(0, 10);
  for (const k of order) {
    for (const [number, each] of all.entries()) list.append(bar(each, k, number));
  }
  for (const each of all) {
    const best = largest(each.shares), answer = t("answer", { name: page.classes[best], share: percent(each.shares[best]) });
    $("answer").append(make("span", { className: `net${each.view.number}` }, views.length > 1 ? `${each.view.title}: ${answer}` : answer));
  }
  const answers = new Set(all.map((each) => largest(each.shares)));
  if (answers.size > 1) $("answer").append(make("span", { className: "note" }, t("differ")));
}

/** The probability and logit of one class. @param {any} each @param {number} k @param {number} number of the net */
function bar({ logits, old, shares, before }, k, number) {
  const moved = logits[k] - old[k];
  return make("div", { className: `bar net${number}${k === largest(shares) ? " best" : ""}` },
    make("span", { className: "name" }, number ? "" : page.classes[k]),
    make("span", { className: "track" }, make("i", { style: `width:${100 * shares[k]}%` }), make("b", { style: `left:${100 * before[k]}%` })),
    make("span", { className: "number" }, percent(shares[k])),
    make("span", { className: "number logit" }, short(logits[k]), Math.abs(moved) > 0.005 ? make("em", {}, ` ${moved > 0 ? "▲" : "▼"}${short(Math.abs(moved))}`) : ""),
  );
}

/** Write all fixed words in the page's language. */
function say() {
  document.documentElement.lang = state.language === "zh" ? "zh-Hans" : "en";
  const values = { deviation: document.body.dataset.deviation, count: views[0].tour.length };
  for (const element of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-say]"))) element.textContent = t(element.dataset.say ?? "", values);
  if (views.some((view) => view.half)) document.querySelector("footer")?.append(` ${t("half")}`);
  $("about").replaceChildren(...views.map((view) => make("span", { className: `net${view.number}` }, views.length > 1 ? `${view.title}: ` : "", t("about", view.facts))));
  $("language").textContent = state.language === "zh" ? "English" : "中文";
  drawBars();
  drawDetail();
  drawTour();
}

/** Whether every net computes what torch computes; nothing is shown that it would not have computed. */
async function agrees() {
  const found = [];
  for (const view of views) {
    const image = normalised(view, Uint8Array.from(atob(view.golden.image), (letter) => letter.charCodeAt(0)));
    const values = await inSlices(steps(view, image), () => true, (done) => showProgress(done / view.nodes.length));
    found.push(deviation(values ?? [], view.golden.nodes));
  }
  document.body.dataset.deviation = Math.max(...found).toExponential(0);
  if (found.every((deviation, k) => deviation < (views[k].half ? 2e-2 : 1e-3))) return true;
  $("warning").textContent = t("disagrees", { deviation: document.body.dataset.deviation });
  document.querySelector("main")?.remove();
  return false;
}

async function start() {
  if (!await agrees()) return;
  preparePad();
  drawLanes();
  const isWhole = recall();
  const size = page.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
  page.samples.labels.forEach((/** @type {number} */ label, /** @type {number} */ index) => {
    const canvas = pixelCanvas(samples.subarray(index * size, (index + 1) * size));
    canvas.className = page.samples.wrong[index] ? "sample wrong" : "sample";
    canvas.title = page.classes[label];
    $("samples").append(make("button", { className: "plain", "aria-label": page.classes[label], onclick: () => showSample(index) }, canvas));
  });
  $("clear").addEventListener("click", () => { wipe(); remember(); });
  $("language").addEventListener("click", () => { state.language = state.language === "zh" ? "en" : "zh"; say(); remember(); });
  $("start-tour").addEventListener("click", () => go(0));
  $("ask-worth").addEventListener("click", worth);
  $("ask-heat").addEventListener("click", heat);
  $("save-png").addEventListener("click", () => save("png"));
  $("save-svg").addEventListener("click", () => save("svg"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  addEventListener("resize", fitLanes);
  say();
  if (state.step >= 0) go(state.step, { isFresh: !isWhole });
  update();
}

void start();
