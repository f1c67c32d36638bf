// Runs a net on one image: the operations that Python read from it, with the kernels of kernels.js.

import * as kernels from "./kernels.js";

/** @typedef {import("./kernels.js").Tensor} Tensor */
/** @typedef {{name: string, op: string, shape: number[], args: any[]}} Node */
/** @typedef {{nodes: Node[], weights: Tensor[]}} Net */

/** @param {{shapes: number[][], data: string}} encoded @returns {Tensor[]} */
export function decode(encoded, half = false) {
  const bytes = Uint8Array.from(atob(encoded.data), (letter) => letter.charCodeAt(0));
  const numbers = half ? widen(new Uint16Array(bytes.buffer)) : new Float32Array(bytes.buffer);
  let start = 0;
  return encoded.shapes.map((shape) => {
    const count = shape.reduce((a, b) => a * b, 1);
    start += count;
    return { shape, data: numbers.subarray(start - count, start) };
  });
}

/** Half-precision numbers as single ones. @param {Uint16Array} halves */
function widen(halves) {
  return Float32Array.from(halves, (bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

/**
 * A change of what a join reads: a branch that is switched off, a shortcut at half its strength. `slot` is the position
 * of the tensor among those that the join `node` reads.
 * @typedef {{node: number, slot: number, change: (value: Tensor) => Tensor}} Change
 */

/**
 * Compute the value of every node for an image, already normalised, and say after each how many there are. What no change
 * reaches is taken from `known`, the values without changes.
 * @param {Net} net @param {Tensor} image @param {Change[]} [changes] @param {Tensor[]} [known]
 * @returns {Generator<number, Tensor[]>}
 */
export function* steps(net, image, changes = [], known = []) {
  /** @type {Tensor[]} */
  const values = [];
  for (const [index, node] of net.nodes.entries()) {
    const own = changes.filter((each) => each.node === index);
    const same = known.length && !own.length && inputs(node).every((source) => values[source] === known[source]);
    if (node.op === "input") values.push(known[index] ?? image);
    else if (same) values.push(known[index]);
    else values.push(compute(net, node, values, own));
    yield values.length;
  }
  return values;
}

/** The value of every node, at once. @param {Net} net @param {Tensor} image @param {Change[]} [changes] @param {Tensor[]} [known] */
export function run(net, image, changes, known) {
  const running = steps(net, image, changes, known);
  for (;;) {
    const { done, value } = running.next();
    if (done) return value;
  }
}

const SLICE = 40; // milliseconds that the browser can wait for

/**
 * Run a generator in slices, so that the browser can draw and listen in between.
 * @template T @param {Generator<number, T>} running @param {() => boolean} isWanted
 * @param {(value: number) => void} progress what it has yielded, after each slice
 * @returns {Promise<T | null>} null if it was not wanted any more
 */
export async function inSlices(running, isWanted, progress) {
  for (let began = performance.now(); ; ) {
    const { done, value } = running.next();
    if (done) return value;
    if (performance.now() - began < SLICE) continue;
    progress(value);
    await new Promise((resolve) => setTimeout(resolve));
    if (!isWanted()) return null;
    began = performance.now();
  }
}

/** @param {Net} net @param {Node} node @param {Tensor[]} values @param {Change[]} changes @returns {Tensor} */
function compute(net, node, values, changes) {
  const args = node.args.map((argument) => resolve(argument, net, values));
  const read = node.op === "cat" ? args[0] : args;
  for (const { slot, change } of changes) read[slot] = change(read[slot]);
  return /** @type {any} */ (kernels)[node.op](...args);
}

/** The last value if `given` takes the place of the value of node `entry`, of those nodes that depend on it. */
export function runFrom(/** @type {Net} */ net, /** @type {Tensor[]} */ known, /** @type {number} */ entry, /** @type {Tensor} */ given) {
  const values = [...known];
  values[entry] = given;
  for (let index = entry + 1; index < net.nodes.length; index++) {
    const changed = inputs(net.nodes[index]).some((source) => values[source] !== known[source]);
    if (changed) values[index] = compute(net, net.nodes[index], values, []);
  }
  return values[values.length - 1];
}

/** @param {any} argument @param {Net} net @param {Tensor[]} values @returns {any} */
function resolve(argument, net, values) {
  if (Array.isArray(argument)) return argument.map((item) => resolve(item, net, values));
  if (argument && typeof argument === "object") return "n" in argument ? values[argument.n] : net.weights[argument.w];
  return argument ?? undefined;
}

/** The nodes that a node reads. @param {Node} node @returns {number[]} */
export function inputs(node) {
  return node.args.flat().filter((argument) => argument && typeof argument === "object" && "n" in argument).map((argument) => argument.n);
}

/** How far the values are from torch's at most, relative to the largest of each node. */
export function deviation(/** @type {Tensor[]} */ values, /** @type {{at: number[], values: number[]}[]} */ golden) {
  let worst = 0;
  golden.forEach(({ at, values: expected }, index) => {
    const scale = Math.max(1e-6, ...expected.map(Math.abs));
    at.forEach((position, k) => { worst = Math.max(worst, Math.abs(values[index].data[position] - expected[k]) / scale); });
  });
  return worst;
}
