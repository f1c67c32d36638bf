// The operations of a net on one image, as torch computes them. Every value is a tensor {shape, data}: shape is C,H,W or
// F, data a Float32Array in that order. Nothing is changed in place, so that every intermediate value can be looked at.

/** @typedef {{shape: number[], data: Float32Array}} Tensor */
/** @typedef {number | [number, number]} Pair */

/** @param {number[]} shape @returns {Tensor} */
export function zeros(shape) {
  return { shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) };
}

/** @param {any} value @param {any} [fallback] @returns {[number, number]} */
export function pair(value, fallback = 0) {
  if (value === undefined || value === null || (Array.isArray(value) && !value.length)) return pair(fallback);
  return Array.isArray(value) ? [value[0], value[value.length - 1]] : [value, value];
}

const TILE = 4; // outputs, and pixels of each, that are computed at once

/**
 * Convolution. `weight` is O×(I/groups)×H×W; `padding` is a number for each axis, "same" or "valid".
 * @param {Tensor} x @param {Tensor} weight @param {Tensor | null} bias @param {any} stride @param {any} padding
 * @param {any} dilation
 * @returns {Tensor}
 */
export function conv2d(x, weight, bias, stride = 1, padding = 0, dilation = 1, groups = 1) {
  const [, height, width] = x.shape, [outputs, inputs, kh, kw] = weight.shape;
  const [sy, sx] = pair(stride), [dy, dx] = pair(dilation);
  const spans = [dy * (kh - 1), dx * (kw - 1)], [py, px] = window_padding(padding, spans);
  const total = padding === "same" ? spans : [2 * py, 2 * px];
  const oh = Math.floor((height + total[0] - spans[0] - 1) / sy) + 1;
  const ow = Math.floor((width + total[1] - spans[1] - 1) / sx) + 1;
  const out = zeros([outputs, oh, ow]), size = oh * ow, count = inputs * kh * kw, perGroup = outputs / groups;
  const patches = new Float64Array(count * TILE), sums = new Float64Array(TILE * TILE), weights = doubles(weight);
  for (let group = 0; group < groups; group++) {
    const end = (group + 1) * perGroup;
    for (let first = 0; first < size; first += TILE) {
      const pixels = Math.min(TILE, size - first);
      patches.fill(0);
      for (let pixel = 0; pixel < pixels; pixel++) {
        const top = Math.floor((first + pixel) / ow) * sy - py, left = ((first + pixel) % ow) * sx - px;
        for (let i = 0, to = pixel; i < inputs; i++) {
          const from = (group * inputs + i) * height;
          for (let ky = 0; ky < kh; ky++) {
            const row = top + ky * dy, inside = row >= 0 && row < height;
            for (let kx = 0; kx < kw; kx++, to += TILE) {
              const column = left + kx * dx;
              if (inside && column >= 0 && column < width) patches[to] = x.data[(from + row) * width + column];
            }
          }
        }
      }
      for (let o = end - perGroup; o < end; o += TILE) {
        multiply(weights, o, end - 1, patches, sums);
        for (let k = 0; k < TILE && o + k < end; k++) {
          const start = (o + k) * size + first, offset = bias ? bias.data[o + k] : 0;
          for (let pixel = 0; pixel < pixels; pixel++) out.data[start + pixel] = sums[k * TILE + pixel] + offset;
        }
      }
    }
  }
  return out;
}

/** The sums of four rows of weights, from `row` on and at most to `last`, over the four columns of `patches`. */
function multiply(/** @type {Float64Array} */ weights, /** @type {number} */ row, /** @type {number} */ last, /** @type {Float64Array} */ patches, /** @type {Float64Array} */ sums) {
  const count = patches.length / TILE;
  const r = row * count, s = Math.min(row + 1, last) * count, t = Math.min(row + 2, last) * count, u = Math.min(row + 3, last) * count;
  let r0 = 0, r1 = 0, r2 = 0, r3 = 0, s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0, u0 = 0, u1 = 0, u2 = 0, u3 = 0;
  for (let q = 0, p = 0; q < count; q++, p += TILE) {
    const p0 = patches[p], p1 = patches[p + 1], p2 = patches[p + 2], p3 = patches[p + 3];
    const a = weights[r + q], b = weights[s + q], c = weights[t + q], d = weights[u + q];
    r0 += a * p0; r1 += a * p1; r2 += a * p2; r3 += a * p3;
    s0 += b * p0; s1 += b * p1; s2 += b * p2; s3 += b * p3;
    t0 += c * p0; t1 += c * p1; t2 += c * p2; t3 += c * p3;
    u0 += d * p0; u1 += d * p1; u2 += d * p2; u3 += d * p3;
  }
  sums[0] = r0; sums[1] = r1; sums[2] = r2; sums[3] = r3;
  sums[4] = s0; sums[5] = s1; sums[6] = s2; sums[7] = s3;
  sums[8] = t0; sums[9] = t1; sums[10] = t2; sums[11] = t3;
  sums[12] = u0; sums[13] = u1; sums[14] = u2; sums[15] = u3;
}

/** @type {WeakMap<Tensor, Float64Array>} */
const asDoubles = new WeakMap();

/** A layer's weights as doubles, kept: converting each number where it is used takes longer than the product. */
function doubles(/** @type {Tensor} */ weight) {
  const known = asDoubles.get(weight) ?? Float64Array.from(weight.data);
  asDoubles.set(weight, known);
  return known;
}

/** @param {any} padding @param {number[]} spans @returns {[number, number]} */
function window_padding(padding, spans) {
  if (padding === "valid") return [0, 0];
  // torch pads one more at the end if the span is odd.
  return padding === "same" ? [Math.floor(spans[0] / 2), Math.floor(spans[1] / 2)] : pair(padding);
}

/** The number of outputs of a pooling along one axis. */
function pooled(/** @type {number} */ size, /** @type {number} */ span, /** @type {number} */ stride, /** @type {number} */ pad, /** @type {boolean} */ ceil) {
  const room = size + 2 * pad - span - 1;
  let count = (ceil ? Math.ceil(room / stride) : Math.floor(room / stride)) + 1;
  if (ceil && (count - 1) * stride >= size + pad) count--; // a window must begin within the image or its left padding
  return count;
}

/** @param {Tensor} x @returns {Tensor} */
export function max_pool2d(x, kernel = 2, stride = undefined, padding = 0, dilation = 1, ceil = false) {
  const [channels, height, width] = x.shape;
  const [kh, kw] = pair(kernel), [sy, sx] = pair(stride, kernel), [py, px] = pair(padding), [dy, dx] = pair(dilation);
  const oh = pooled(height, dy * (kh - 1), sy, py, ceil), ow = pooled(width, dx * (kw - 1), sx, px, ceil);
  const out = zeros([channels, oh, ow]);
  for (let c = 0, p = 0; c < channels; c++) {
    for (let y = 0; y < oh; y++) {
      for (let u = 0; u < ow; u++, p++) {
        let most = -Infinity;
        for (let ky = 0; ky < kh; ky++) {
          const row = y * sy - py + ky * dy;
          if (row < 0 || row >= height) continue;
          for (let kx = 0; kx < kw; kx++) {
            const column = u * sx - px + kx * dx;
            if (column < 0 || column >= width) continue;
            const value = x.data[(c * height + row) * width + column];
            if (value > most || Number.isNaN(value)) most = value;
          }
        }
        out.data[p] = most;
      }
    }
  }
  return out;
}

/** @param {Tensor} x @returns {Tensor} */
export function avg_pool2d(x, kernel = 2, stride = undefined, padding = 0, ceil = false, counted = true, divisor = 0) {
  const [channels, height, width] = x.shape;
  const [kh, kw] = pair(kernel), [sy, sx] = pair(stride, kernel), [py, px] = pair(padding);
  const oh = pooled(height, kh - 1, sy, py, ceil), ow = pooled(width, kw - 1, sx, px, ceil);
  const out = zeros([channels, oh, ow]);
  for (let c = 0, p = 0; c < channels; c++) {
    for (let y = 0; y < oh; y++) {
      const top = y * sy - py, bottom = Math.min(top + kh, height + py);
      for (let u = 0; u < ow; u++, p++) {
        const left = u * sx - px, right = Math.min(left + kw, width + px);
        const rows = [Math.max(0, top), Math.min(height, bottom)], columns = [Math.max(0, left), Math.min(width, right)];
        let sum = 0;
        for (let row = rows[0]; row < rows[1]; row++) {
          for (let column = columns[0]; column < columns[1]; column++) sum += x.data[(c * height + row) * width + column];
        }
        const inside = (rows[1] - rows[0]) * (columns[1] - columns[0]);
        out.data[p] = sum / (divisor || (counted ? (bottom - top) * (right - left) : inside));
      }
    }
  }
  return out;
}

/** @param {Tensor} x @param {any} size @returns {Tensor} */
export function adaptive_avg_pool2d(x, size) {
  return adaptive(x, size, (values) => values.reduce((a, b) => a + b, 0) / values.length);
}

/** @param {Tensor} x @param {any} size @returns {Tensor} */
export function adaptive_max_pool2d(x, size) {
  return adaptive(x, size, (values) => values.reduce((a, b) => Math.max(a, b), -Infinity));
}

/** @param {Tensor} x @param {any} size @param {(values: number[]) => number} join @returns {Tensor} */
function adaptive(x, size, join) {
  const [channels, height, width] = x.shape;
  const [oh, ow] = pair(size).map((side, axis) => side ?? x.shape[axis + 1]);
  const out = zeros([channels, oh, ow]);
  for (let c = 0, p = 0; c < channels; c++) {
    for (let y = 0; y < oh; y++) {
      for (let u = 0; u < ow; u++, p++) {
        const values = [];
        for (let row = Math.floor((y * height) / oh); row < Math.ceil(((y + 1) * height) / oh); row++) {
          for (let column = Math.floor((u * width) / ow); column < Math.ceil(((u + 1) * width) / ow); column++) {
            values.push(x.data[(c * height + row) * width + column]);
          }
        }
        out.data[p] = join(values);
      }
    }
  }
  return out;
}

/** @param {Tensor} x @param {Tensor} weight O×I @param {Tensor | null} bias @returns {Tensor} */
export function linear(x, weight, bias) {
  const [outputs, inputs] = weight.shape;
  const rows = x.data.length / inputs;
  const out = zeros([...x.shape.slice(0, -1), outputs]);
  for (let r = 0; r < rows; r++) {
    for (let o = 0; o < outputs; o++) {
      let sum = bias ? bias.data[o] : 0;
      for (let i = 0; i < inputs; i++) sum += weight.data[o * inputs + i] * x.data[r * inputs + i];
      out.data[r * outputs + o] = sum;
    }
  }
  return out;
}

/** Batch norm with the statistics of training. @param {Tensor} x @returns {Tensor} */
export function batch_norm(x, /** @type {Tensor|null} */ weight, /** @type {Tensor|null} */ bias, /** @type {Tensor} */ mean, /** @type {Tensor} */ variance, training = false, momentum = 0.1, eps = 1e-5) {
  const out = zeros(x.shape);
  const size = x.data.length / x.shape[0];
  for (let c = 0; c < x.shape[0]; c++) {
    const scale = (weight ? weight.data[c] : 1) / Math.sqrt(variance.data[c] + eps);
    const shift = (bias ? bias.data[c] : 0) - mean.data[c] * scale;
    for (let p = c * size; p < (c + 1) * size; p++) out.data[p] = x.data[p] * scale + shift;
  }
  return out;
}

/** @param {(value: number) => number} f @returns {(x: Tensor) => Tensor} */
const each = (f) => (x) => ({ shape: x.shape, data: x.data.map(f) });

export const relu = each((v) => (v > 0 ? v : 0));
export const relu6 = each((v) => Math.min(6, Math.max(0, v)));
export const sigmoid = each((v) => 1 / (1 + Math.exp(-v)));
export const tanh = each(Math.tanh);
export const silu = each((v) => v / (1 + Math.exp(-v)));
export const neg = each((v) => -v);
export const hardswish = each((v) => (v * Math.min(6, Math.max(0, v + 3))) / 6);
export const hardsigmoid = each((v) => Math.min(6, Math.max(0, v + 3)) / 6);

/** @param {Tensor} x @returns {Tensor} */
export function leaky_relu(x, slope = 0.01) {
  return each((v) => (v > 0 ? v : v * slope))(x);
}

/** @param {Tensor} x @returns {Tensor} */
export function elu(x, alpha = 1) {
  return each((v) => (v > 0 ? v : alpha * Math.expm1(v)))(x);
}

/** @param {Tensor} x @returns {Tensor} */
export function gelu(x, approximate = "none") {
  if (approximate === "tanh") return each((v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))))(x);
  return each((v) => 0.5 * v * (1 + erf(v / Math.SQRT2)))(x);
}

/** The error function by its series, or by its continued fraction far from 0. @param {number} x */
function erf(x) {
  const size = Math.abs(x);
  if (size > 5) return Math.sign(x);
  if (size < 2.5) {
    let term = size, sum = size;
    for (let n = 1; Math.abs(term) > 1e-17; n++) {
      term *= (-size * size) / n;
      sum += term / (2 * n + 1);
      if (n > 200) break;
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (size + fraction);
  return Math.sign(x) * (1 - Math.exp(-size * size) / Math.sqrt(Math.PI) / (size + fraction));
}

/** @param {Tensor} x @returns {Tensor} */
export function hardtanh(x, low = -1, high = 1) {
  return each((v) => Math.min(high, Math.max(low, v)))(x);
}

/** @param {Tensor} x @returns {Tensor} */
export function clamp(x, low = -Infinity, high = Infinity) {
  return hardtanh(x, low, high);
}

/** @param {Tensor} x @param {number} axis as torch counts it, the batch first @returns {Tensor} */
export function softmax(x, axis) {
  return each(Math.exp)(log_softmax(x, axis));
}

/** @param {Tensor} x @param {number} axis @returns {Tensor} */
export function log_softmax(x, axis) {
  const [outer, size, inner] = around(x.shape, axis);
  const out = zeros(x.shape);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const at = (/** @type {number} */ k) => (o * size + k) * inner + i;
      let most = -Infinity, sum = 0;
      for (let k = 0; k < size; k++) most = Math.max(most, x.data[at(k)]);
      for (let k = 0; k < size; k++) sum += Math.exp(x.data[at(k)] - most);
      for (let k = 0; k < size; k++) out.data[at(k)] = x.data[at(k)] - most - Math.log(sum);
    }
  }
  return out;
}

/** The axis of `shape`, which leaves the batch out, for an axis of torch, which counts it. */
function axis_of(/** @type {number[]} */ shape, /** @type {number} */ axis) {
  return axis < 0 ? axis + shape.length : axis - 1;
}

/** How many values lie before, along and after an axis. */
function around(/** @type {number[]} */ shape, /** @type {number} */ axis) {
  const at = axis_of(shape, axis);
  const product = (/** @type {number[]} */ sizes) => sizes.reduce((a, b) => a * b, 1);
  return [product(shape.slice(0, at)), shape[at], product(shape.slice(at + 1))];
}

/** @param {Tensor[]} tensors @param {number} axis @returns {Tensor} */
export function cat(tensors, axis = 0) {
  const at = axis_of(tensors[0].shape, axis);
  const shape = [...tensors[0].shape];
  shape[at] = tensors.reduce((sum, tensor) => sum + tensor.shape[at], 0);
  const out = zeros(shape);
  const [outer] = around(shape, axis);
  let start = 0;
  for (const tensor of tensors) {
    const length = tensor.data.length / outer;
    for (let o = 0; o < outer; o++) out.data.set(tensor.data.subarray(o * length, (o + 1) * length), o * (out.data.length / outer) + start);
    start += length;
  }
  return out;
}

/** @param {Tensor} x @param {any} axes @returns {Tensor} */
export function mean(x, axes, keep = false) {
  let out = x;
  const sorted = [axes].flat().map((axis) => axis_of(x.shape, axis)).sort((a, b) => b - a);
  for (const at of sorted) {
    const [outer, size, inner] = around(out.shape, at + 1);
    const next = zeros(out.shape.map((side, index) => (index === at ? 1 : side)));
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let sum = 0;
        for (let k = 0; k < size; k++) sum += out.data[(o * size + k) * inner + i];
        next.data[o * inner + i] = sum / size;
      }
    }
    out = next;
  }
  return keep ? out : { shape: out.shape.filter((_, index) => !sorted.includes(index)), data: out.data };
}

/** A sum, difference, product or quotient of tensors or numbers, sizes of 1 repeated. */
function combine(/** @type {any} */ a, /** @type {any} */ b, /** @type {(a: number, b: number) => number} */ f) {
  if (typeof a === "number") return each((v) => f(a, v))(b);
  if (typeof b === "number") return each((v) => f(v, b))(a);
  if (a.data.length === b.data.length) return { shape: a.shape, data: a.data.map((/** @type {number} */ v, /** @type {number} */ p) => f(v, b.data[p])) };
  const rank = Math.max(a.shape.length, b.shape.length);
  const sizes = [a, b].map((t) => [...Array(rank - t.shape.length).fill(1), ...t.shape]);
  const shape = sizes[0].map((side, axis) => Math.max(side, sizes[1][axis]));
  const out = zeros(shape);
  const steps = sizes.map((own) => own.map((side, axis) => (side === 1 ? 0 : own.slice(axis + 1).reduce((m, n) => m * n, 1))));
  for (let p = 0; p < out.data.length; p++) {
    let rest = p, i = 0, j = 0;
    for (let axis = rank - 1; axis >= 0; axis--) {
      const at = rest % shape[axis];
      rest = (rest - at) / shape[axis];
      i += at * steps[0][axis];
      j += at * steps[1][axis];
    }
    out.data[p] = f(a.data[i], b.data[j]);
  }
  return out;
}
export const add = (/** @type {any} */ a, /** @type {any} */ b, alpha = 1) => combine(a, b, (m, n) => m + alpha * n);
export const sub = (/** @type {any} */ a, /** @type {any} */ b, alpha = 1) => combine(a, b, (m, n) => m - alpha * n);
export const mul = (/** @type {any} */ a, /** @type {any} */ b) => combine(a, b, (m, n) => m * n);
export const div = (/** @type {any} */ a, /** @type {any} */ b) => combine(a, b, (m, n) => m / n);

/** Zeros or a value around the last axes: [left, right, top, bottom, front, back]. @param {Tensor} x @returns {Tensor} */
export function pad(x, /** @type {number[]} */ sides, mode = "constant", value = 0) {
  const amounts = x.shape.map((_, axis) => {
    const from = 2 * (x.shape.length - 1 - axis);
    return [sides[from] ?? 0, sides[from + 1] ?? 0];
  });
  const out = zeros(x.shape.map((side, axis) => side + amounts[axis][0] + amounts[axis][1]));
  out.data.fill(value ?? 0);
  copy(x, out, amounts.map(([before]) => before), x.shape.map(() => 1));
  return out;
}

/** Part of an axis. @param {Tensor} x @returns {Tensor} */
export function slice(x, axis = 1, start = 0, end = Infinity, step = 1) {
  const at = axis_of(x.shape, axis);
  const side = x.shape[at];
  const bound = (/** @type {number} */ n) => Math.min(side, Math.max(0, n < 0 ? n + side : n));
  const [low, high] = [bound(start ?? 0), bound(Math.min(end ?? side, 2 ** 40))];
  const out = zeros(x.shape.map((n, index) => (index === at ? Math.max(0, Math.ceil((high - low) / step)) : n)));
  const [outer, , inner] = around(x.shape, axis);
  const count = out.shape[at];
  for (let o = 0; o < outer; o++) {
    for (let k = 0; k < count; k++) {
      const from = (o * side + low + k * step) * inner;
      out.data.set(x.data.subarray(from, from + inner), (o * count + k) * inner);
    }
  }
  return out;
}

/** Copy all of `x` into `out`, from `start` on each axis. */
function copy(/** @type {Tensor} */ x, /** @type {Tensor} */ out, /** @type {number[]} */ start, /** @type {number[]} */ step) {
  const strides = out.shape.map((_, axis) => out.shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  for (let p = 0; p < x.data.length; p++) {
    let rest = p, q = 0;
    for (let axis = x.shape.length - 1; axis >= 0; axis--) {
      const at = rest % x.shape[axis];
      rest = (rest - at) / x.shape[axis];
      q += (start[axis] + at * step[axis]) * strides[axis];
    }
    out.data[q] = x.data[p];
  }
}

/** Another order of the axes, which count the batch. @param {Tensor} x @returns {Tensor} */
export function permute(x, /** @type {number[]} */ order) {
  const axes = order.slice(1).map((axis) => axis_of(x.shape, axis));
  const out = zeros(axes.map((axis) => x.shape[axis]));
  const steps = x.shape.map((_, axis) => x.shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  for (let p = 0; p < out.data.length; p++) {
    let rest = p, q = 0;
    for (let axis = axes.length - 1; axis >= 0; axis--) {
      const at = rest % out.shape[axis];
      rest = (rest - at) / out.shape[axis];
      q += at * steps[axes[axis]];
    }
    out.data[p] = x.data[q];
  }
  return out;
}

/** The same numbers in another shape. @param {Tensor} x @param {number[]} shape @returns {Tensor} */
export function view(x, shape) {
  return { shape, data: x.data };
}
