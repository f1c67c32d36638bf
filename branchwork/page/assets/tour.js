// The tour, the address, and the picture to save.

import { pixelCanvas, showSample } from "./pad.js";
import { $, INCH, PAD, make, net, page, state, t, tell } from "./state.js";

export function drawTour() {
  const panel = $("tour");
  panel.hidden = state.step < 0;
  if (state.step < 0) return;
  const step = page.tour[state.step];
  panel.replaceChildren(
    make("p", { className: "faint" }, `${state.step + 1} / ${page.tour.length}`),
    make("h2", {}, t(step.question)), make("p", {}, t(step.words, step.values ?? {})),
    make("p", {}, make("button", { onclick: () => go(state.step - 1), disabled: state.step === 0 }, t("back")), " ",
      make("button", { className: "primary", onclick: () => go(state.step + 1) }, t(state.step + 1 < page.tour.length ? "next" : "explore")), " ",
      make("button", { onclick: () => go(-1) }, t("close"))),
  );
}

/** @param {number} step */
export function go(step) {
  state.step = step < page.tour.length ? step : -1;
  if (state.step >= 0) {
    const { node, sample } = page.tour[state.step];
    if (!state.pixels) showSample(sample ?? 0);
    if (node !== undefined && node !== null) requestAnimationFrame(() => requestAnimationFrame(() => { tell.select(node); $("tour").scrollIntoView({ block: "nearest" }); }));
  }
  drawTour();
  tell.remember();
}

export function remember() {
  const parts = new URLSearchParams();
  if (state.step >= 0) parts.set("step", String(state.step + 1));
  if (state.node !== null) parts.set("node", net.nodes[state.node].name);
  for (const [key, value] of state.strength) parts.append("set", `${key}=${value}`);
  if (state.pixels && page.shape[0] * page.shape[1] * page.shape[2] <= 4096) parts.set("pixels", btoa(String.fromCharCode(...state.pixels)).replaceAll("+", "-").replaceAll("/", "_"));
  parts.set("lang", state.language);
  try { history.replaceState(null, "", `#${parts}`); } catch { /* an embedded page has no address */ }
}

export function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (parts.get("lang")) state.language = parts.get("lang") === "zh" ? "zh" : "en";
  for (const entry of parts.getAll("set")) {
    const [key, value] = entry.split("=");
    if (Number.isFinite(Number(value))) state.strength.set(key, Math.min(1, Math.max(0, Number(value))));
  }
  const size = page.shape.reduce((/** @type {number} */ a, /** @type {number} */ b) => a * b, 1);
  try {
    const text = atob((parts.get("pixels") ?? "").replaceAll("-", "+").replaceAll("_", "/"));
    if (text.length === size) {
      state.pixels = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
      const context = $("pad").getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(pixelCanvas(state.pixels), 0, 0, PAD, PAD);
      state.shown = true;
    }
  } catch { /* a damaged address shows an empty page */ }
  const node = net.nodes.findIndex((/** @type {any} */ each) => each.name === parts.get("node"));
  if (node >= 0) state.node = node;
  const step = Number(parts.get("step"));
  if (step >= 1 && step <= page.tour.length) state.step = step - 1;
}

/** Save the lanes with their maps as a PNG. */
export function save() {
  const { width, height } = page.picture, canvas = make("canvas", { width: width * INCH, height: height * INCH }), context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  const svg = $("picture").querySelector("svg").cloneNode(true), style = document.createElementNS("http://www.w3.org/2000/svg", "style");
  const shown = getComputedStyle(document.body);
  style.textContent = [...document.querySelectorAll("style")].map((each) => each.textContent).join("\n").replace(/var\((--[\w-]+)\)/g, (_, name) => shown.getPropertyValue(name));
  svg.prepend(style);
  const text = new XMLSerializer().serializeToString(svg).replace(/var\((--[\w-]+)\)/g, (_, name) => shown.getPropertyValue(name));
  const picture = new Image();
  picture.onload = () => {
    context.drawImage(picture, 0, 0);
    context.drawImage($("maps"), 0, 0, canvas.width, canvas.height);
    make("a", { href: canvas.toDataURL("image/png"), download: `${page.facts.net}.png` }).click();
  };
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}
