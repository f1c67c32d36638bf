// Places what was drawn as `datasets/placing.py` does for a user's picture of a figure, to the last bit: the same steps
// in the same order, with the same arithmetic. Pictures are {height, width, data}, grey 0 to 255.

/** @typedef {{height: number, width: number, data: Float64Array}} Grey */
/** @typedef {{side: number, mass: boolean}} Rule */

const LEAST_CONTRAST = 24, STROKE = 0.12;

/**
 * Return uint8 numbers of `size` × `size`, light on black; null if there is no figure.
 * @param {Grey} grey whole numbers @param {number} size @param {Rule} rule
 */
export function place(grey, size, rule) {
  if (grey.height === size && grey.width === size) {
    for (const image of [grey, { ...grey, data: grey.data.map((v) => 255 - v) }]) {
      if (follows(image, rule)) return Uint8Array.from(image.data);
    }
  }
  let ink = extractInk(grey);
  if (ink && rule.mass) ink = thicken(ink);
  return ink && scaleAndCentre(ink, size, rule);
}

/** Half to even, as numpy and Python round. @param {number} value */
export function round(value) {
  const low = Math.floor(value), rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

/** @param {Grey} grey @returns {[number, number]} */
function centreOfMass({ height, width, data }) {
  let total = 0, y = 0, x = 0;
  for (let r = 0; r < height; r++) for (let c = 0; c < width; c++) total += data[r * width + c];
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      const mass = data[r * width + c] / total;
      y += mass * r;
      x += mass * c;
    }
  }
  return [y, x];
}

/** @param {Grey} grey @param {Rule} rule */
function follows(grey, rule) {
  const { height, width, data } = grey;
  const corners = [data[0], data[width - 1], data[(height - 1) * width], data[height * width - 1]].sort((a, b) => a - b);
  const [rows, columns] = extent(grey, 0, 1);
  if (!rows || !columns || (corners[1] + corners[2]) / 2 > 0) return false;
  const longer = Math.max(rows[1] - rows[0], columns[1] - columns[0]), side = Math.max(height, width);
  if (!rule.mass) return longer === side;
  const [y, x] = centreOfMass(grey);
  return longer === round(rule.side * side) && Math.max(Math.abs(y - height / 2), Math.abs(x - width / 2)) <= 1;
}

/** The rows and columns in which at least `least` numbers exceed `level`, as [first, after last]. */
function extent(/** @type {Grey} */ { height, width, data }, /** @type {number} */ level, /** @type {number} */ least) {
  const rows = new Array(height).fill(0), columns = new Array(width).fill(0);
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) if (data[r * width + c] > level) { rows[r]++; columns[c]++; }
  }
  return [rows, columns].map((counts) => {
    const found = counts.map((count, index) => (count >= least ? index : -1)).filter((index) => index >= 0);
    return found.length ? [found[0], found[found.length - 1] + 1] : null;
  });
}

/** @param {Grey} grey @returns {Grey | null} */
function extractInk(grey) {
  const ground = fitGround(grey);
  const difference = grey.data.map((value, p) => value - ground[p]);
  const sorted = Float64Array.from(difference).sort();
  const low = percentile(sorted, 0.5), high = percentile(sorted, 99.5);
  const lowest = sorted[0], highest = sorted[sorted.length - 1];
  const lighter = Math.abs(high + low) < LEAST_CONTRAST ? highest > -lowest : high > -low;
  const ink = difference.map((value) => Math.max(0, lighter ? value : -value));
  const strongest = Math.max(highest > 0 && lighter ? highest : 0, !lighter ? -lowest : 0);
  if (strongest < LEAST_CONTRAST) return null;
  const threshold = otsu(ink, strongest);
  const above = Float64Array.from(ink.filter((value) => value > threshold)).sort();
  const middle = above.length >> 1;
  const level = above.length % 2 ? above[middle] : (above[middle - 1] + above[middle]) / 2;
  const floor = threshold / 2;
  const data = ink.map((value) => Math.min(1, Math.max(0, (value - floor) / Math.max(level - floor, 1))) * 255);
  return { ...grey, data };
}

/** numpy's percentile, linear between neighbours. @param {Float64Array} sorted @param {number} percent */
function percentile(sorted, percent) {
  const at = (percent / 100) * (sorted.length - 1), low = Math.floor(at), rest = at - low;
  const [a, b] = [sorted[low], sorted[Math.min(low + 1, sorted.length - 1)]];
  return rest < 0.5 ? a + (b - a) * rest : b - (b - a) * (1 - rest);
}

/** A plane through the rim: paper in uneven light. @param {Grey} grey */
function fitGround({ height, width, data }) {
  const rim = Math.max(1, Math.floor(Math.min(height, width) / 20));
  /** @type {number[]} */
  const places = [];
  for (let p = 0; p < data.length; p++) {
    const y = Math.floor(p / width), x = p % width;
    if (y < rim || y >= height - rim || x < rim || x >= width - rim) places.push(p);
  }
  const sorted = places.map((p) => data[p]).sort((a, b) => a - b), middle = sorted.length >> 1;
  const level = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  const flat = new Float64Array(data.length).fill(level);
  const ground = places.filter((p) => Math.abs(data[p] - level) < 48);
  if (ground.length < 3 * rim) return flat;
  const plane = leastSquares(ground.map((p) => [1, Math.floor(p / width) / height, (p % width) / width]), ground.map((p) => data[p]));
  const value = (/** @type {number} */ p) => plane[0] + plane[1] * (Math.floor(p / width) / height) + plane[2] * ((p % width) / width);
  const atRim = places.map(value);
  if (Math.max(...atRim) - Math.min(...atRim) < 1) return flat;
  return flat.map((_, p) => value(p));
}

/** The three coefficients that fit best, by the normal equations. @param {number[][]} rows @param {number[]} values */
function leastSquares(rows, values) {
  const m = [0, 1, 2].map((i) => [0, 1, 2].map((j) => rows.reduce((sum, row) => sum + row[i] * row[j], 0)));
  const v = [0, 1, 2].map((i) => rows.reduce((sum, row, k) => sum + row[i] * values[k], 0));
  for (let i = 0; i < 3; i++) {
    for (let j = 0; j < 3; j++) {
      if (j === i) continue;
      const factor = m[j][i] / m[i][i];
      for (let k = 0; k < 3; k++) m[j][k] -= factor * m[i][k];
      v[j] -= factor * v[i];
    }
  }
  return v.map((value, i) => value / m[i][i]);
}

/** The threshold with the least variance on either side. @param {Float64Array} ink @param {number} most */
function otsu(ink, most) {
  const bins = 256, counts = new Float64Array(bins);
  const edges = Array.from({ length: bins + 1 }, (_, k) => k * (most / bins));
  edges[bins] = most;
  for (const value of ink) {
    let bin = Math.min(bins - 1, Math.floor(value * (bins / most)));
    if (value < edges[bin]) bin--;
    else if (bin < bins - 1 && value >= edges[bin + 1]) bin++;
    counts[bin]++;
  }
  const middles = counts.map((_, k) => (edges[k] + edges[k + 1]) / 2);
  const all = counts.reduce((a, b) => a + b, 0), sumAll = counts.reduce((sum, count, k) => sum + count * middles[k], 0);
  let best = -1, chosen = 0, below = 0, sum = 0;
  for (let k = 0; k < bins; k++) {
    below += counts[k];
    sum += counts[k] * middles[k];
    const above = all - below;
    const between = below * above * (sum / below - (sumAll - sum) / above) ** 2;
    if (between > best) { best = between; chosen = k; }
  }
  return middles[chosen];
}

/** @param {Grey} ink @returns {number[][] | null} */
function boundingBox(ink) {
  const longer = Math.max(ink.height, ink.width);
  const [rows, columns] = extent(ink, 96, longer > 64 ? Math.max(1, round(0.004 * longer)) : 1);
  if (!rows || !columns) return null;
  return [
    [Math.max(0, rows[0] - 1), Math.min(ink.height, rows[1] + 1)],
    [Math.max(0, columns[0] - 1), Math.min(ink.width, columns[1] + 1)],
  ];
}

/** @param {Grey} grey @param {number[][]} box @returns {Grey} */
function cut(grey, [rows, columns]) {
  const height = rows[1] - rows[0], width = columns[1] - columns[0];
  const data = new Float64Array(height * width);
  for (let r = 0; r < height; r++) {
    data.set(grey.data.subarray((rows[0] + r) * grey.width + columns[0], (rows[0] + r) * grey.width + columns[1]), r * width);
  }
  return { height, width, data };
}

/** Widen strokes that scaling would wash out. @param {Grey} ink @returns {Grey | null} */
function thicken(ink) {
  const box = boundingBox(ink);
  if (!box) return null;
  const { height, width, data } = cut(ink, box);
  const dark = (/** @type {number} */ r, /** @type {number} */ c) => data[((r + height) % height) * width + ((c + width) % width)] > 96;
  let area = 0, inner = 0;
  for (let r = 0; r < height; r++) {
    for (let c = 0; c < width; c++) {
      if (!dark(r, c)) continue;
      area++;
      if (kept(dark, r, c)) inner++;
    }
  }
  const missing = STROKE * Math.max(height, width) - (2 * area) / Math.max(1, area - inner);
  if (missing < 2) return ink;
  const grow = Math.min(15, round(missing / 2));
  return dilate(ink, grow);
}

/** @param {(r: number, c: number) => boolean} dark @param {number} r @param {number} c */
function kept(dark, r, c) {
  return dark(r + 1, c) && dark(r - 1, c) && dark(r, c + 1) && dark(r, c - 1);
}

/** The largest number within `grow` pixels, with room for it all around. @param {Grey} ink @param {number} grow */
function dilate(ink, grow) {
  const height = ink.height + 2 * grow, width = ink.width + 2 * grow;
  let data = new Float64Array(height * width);
  for (let r = 0; r < ink.height; r++) {
    for (let c = 0; c < ink.width; c++) data[(r + grow) * width + c + grow] = round(ink.data[r * ink.width + c]);
  }
  for (const [step, size] of [[1, width], [width, height]]) {
    const next = new Float64Array(data.length);
    for (let p = 0; p < data.length; p++) {
      const at = step === 1 ? p % width : Math.floor(p / width);
      let most = 0;
      for (let d = -grow; d <= grow; d++) if (at + d >= 0 && at + d < size) most = Math.max(most, data[p + d * step]);
      next[p] = most;
    }
    data = next;
  }
  return { height, width, data };
}

/** @param {Grey} ink @param {number} size @param {Rule} rule */
function scaleAndCentre(ink, size, rule) {
  const box = boundingBox(ink);
  if (!box) return null;
  const figure = cut(ink, box);
  const scale = (rule.side * size) / Math.max(figure.height, figure.width);
  const height = Math.max(1, round(figure.height * scale)), width = Math.max(1, round(figure.width * scale));
  const small = lanczos(figure, height, width);
  const data = Float64Array.from(small, (value) => Math.min(255, Math.max(0, value)));
  const most = Math.max(1, ...data), factor = 255 / most;
  for (let p = 0; p < data.length; p++) data[p] *= factor;
  let top = (size - height) >> 1, left = (size - width) >> 1;
  if (rule.mass) {
    const [y, x] = centreOfMass({ height, width, data });
    [top, left] = [round(size / 2 - y), round(size / 2 - x)];
  }
  top = Math.min(Math.max(0, top), size - height);
  left = Math.min(Math.max(0, left), size - width);
  const image = new Uint8Array(size * size);
  for (let r = 0; r < height; r++) for (let c = 0; c < width; c++) image[(top + r) * size + left + c] = round(data[r * width + c]);
  return image;
}

/** Pillow's resize of 32-bit numbers with a Lanczos filter: rows first, sums in double, results single. */
function lanczos(/** @type {Grey} */ grey, /** @type {number} */ height, /** @type {number} */ width) {
  const across = coefficients(grey.width, width), down = coefficients(grey.height, height);
  const first = new Float32Array(grey.height * width);
  const source = Float32Array.from(grey.data);
  for (let r = 0; r < grey.height; r++) {
    for (let c = 0; c < width; c++) {
      const { start, weights } = across[c];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += source[r * grey.width + start + k] * weights[k];
      first[r * width + c] = sum;
    }
  }
  const out = new Float32Array(height * width);
  for (let r = 0; r < height; r++) {
    const { start, weights } = down[r];
    for (let c = 0; c < width; c++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += first[(start + k) * width + c] * weights[k];
      out[r * width + c] = sum;
    }
  }
  return out;
}

/** For each new position, the first old one that counts and the weights from there on. */
function coefficients(/** @type {number} */ before, /** @type {number} */ after) {
  const scale = before / after, stretch = Math.max(1, scale), support = 3 * stretch;
  return Array.from({ length: after }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5)), end = Math.min(before, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, k) => lanczosAt((k + start - centre + 0.5) * (1 / stretch)));
    const total = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => (total ? weight * (1 / total) : weight)) };
  });
}

/** @param {number} x */
function lanczosAt(x) {
  const sinc = (/** @type {number} */ v) => (v === 0 ? 1 : Math.sin(v * Math.PI) / (v * Math.PI));
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}
