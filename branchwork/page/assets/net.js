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
 * Return the value of every node for an image, already normalised.
 * @param {Net} net @param {Tensor} image @param {Change[]} [changes]
 * @returns {Tensor[]}
 */
export function run(net, image, changes = []) {
  /** @type {Tensor[]} */
  const values = [];
  net.nodes.forEach((node, index) => {
    if (node.op === "input") return void values.push(image);
    const args = node.args.map((argument) => resolve(argument, net, values));
    for (const { slot, change } of changes.filter((each) => each.node === index)) {
      const read = node.op === "cat" ? args[0] : args;
      read[slot] = change(read[slot]);
    }
    values.push(/** @type {any} */ (kernels)[node.op](...args));
  });
  return values;
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
