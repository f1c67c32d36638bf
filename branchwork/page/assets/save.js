// The lanes with their maps, as a picture to keep.

import { drawn } from "./lanes.js";
import { INCH, make, makeSvg, views } from "./state.js";

/** @param {"png" | "svg"} format */
export function save(format) {
  const svg = wholePicture(), name = `${views.map((view) => view.title).join("-")}.${format}`;
  const address = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg.text)}`;
  const keep = (/** @type {string} */ href) => make("a", { href, download: name }).click();
  if (format === "svg") return keep(address);
  const picture = new Image();
  picture.onload = () => {
    const canvas = make("canvas", { width: 2 * svg.width, height: 2 * svg.height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    keep(canvas.toDataURL("image/png"));
  };
  picture.src = address;
}

/** All pictures, one below another, with their styles and maps inside. */
function wholePicture() {
  const shown = getComputedStyle(document.body), width = Math.max(...drawn.map(({ picture }) => picture.width)) * INCH;
  const height = drawn.reduce((sum, { picture }) => sum + picture.height * INCH, 0);
  const fixed = (/** @type {string} */ text) => text.replace(/var\((--[\w-]+)\)/g, (_, name) => shown.getPropertyValue(name));
  const style = makeSvg("style", {}, fixed([...document.querySelectorAll("style")].map((each) => each.textContent).join("\n")));
  const root = makeSvg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height }, style, makeSvg("rect", { width, height, fill: shown.getPropertyValue("--card") }));
  let y = 0;
  for (const { picture, svg, canvas } of drawn) {
    const size = { y, width: picture.width * INCH, height: picture.height * INCH };
    const copy = svg.cloneNode(true);
    copy.setAttribute("y", y);
    root.append(copy, makeSvg("image", { ...size, href: canvas.toDataURL("image/png") }));
    y += size.height;
  }
  return { width, height, text: fixed(new XMLSerializer().serializeToString(root)) };
}
