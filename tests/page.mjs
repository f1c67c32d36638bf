// Answers the tests' questions about the page's own code: JSON lines in, JSON lines out.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const folder = pathToFileURL(process.argv[2] + "/");
const kernels = await import(new URL("kernels.js", folder));
const { decode, run } = await import(new URL("net.js", folder));
const { place } = await import(new URL("place.js", folder));

/** Arguments come with tensors as {shape, data}. */
const read = (value) => {
  if (Array.isArray(value)) return value.map(read);
  return value && typeof value === "object" ? { shape: value.shape, data: Float32Array.from(value.data) } : (value ?? undefined);
};

const tasks = {
  kernel: ({ op, args }) => {
    const { shape, data } = kernels[op](...args.map(read));
    return { shape, data: [...data].map(String) };
  },
  place: ({ height, width, data, size, rule }) => {
    const image = place({ height, width, data: Float64Array.from(data) }, size, rule);
    return image && [...image];
  },
  net: ({ nodes, weights, half, image }) => {
    const net = { nodes, weights: decode(weights, half) };
    return run(net, read(image)).map(({ shape, data }) => ({ shape, data: [...data].map(String) }));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { task, ...question } = JSON.parse(line);
  console.log(JSON.stringify(tasks[task](question)));
}
