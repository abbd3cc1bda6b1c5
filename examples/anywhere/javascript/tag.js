// Tag clips in Node: node tag.js model.onnx clip.json …

import { readFile } from "node:fs/promises";
import { openModel, tag } from "./tagger.js";

const [file, ...clips] = process.argv.slice(2);
const model = await openModel(await readFile(file));
for (const clip of clips) {
  const { tags } = await tag(model, JSON.parse(await readFile(clip, "utf8")).frames);
  console.log(clip);
  for (const { class: number, name, score } of tags.slice(0, 5)) console.log(`  ${score.toFixed(6)}  ${number}  ${name}`);
}
