// Tag clips with a file of `reeltag export`; the same in a browser and in Node.

import * as ort from "onnxruntime-web";
import "protobufjs/dist/minimal/protobuf.min.js"; // comes with onnxruntime-web, and sets the global `protobuf`

const SEGMENTS = 40; // most segments of a clip

// Open a model from its bytes, an Uint8Array.
export async function openModel(bytes) {
  const known = metadata(bytes);
  if (!known["reeltag.schema"]) throw new Error("the model is no file of `reeltag export`");
  // Computes with the weights exactly as they are stored; without it probabilities differ by up to 1e-4.
  const session = await ort.InferenceSession.create(bytes, { extra: { session: { disable_quant_qdq: "1" } } });
  if (!session.outputNames.includes("probabilities")) throw new Error("export the model without --top");
  const schema = JSON.parse(known["reeltag.schema"]);
  const width = schema.features.reduce((sum, feature) => sum + feature.width, 0);
  const names = JSON.parse(known["reeltag.label_names"]) ?? Array.from({ length: schema.classes }, (_, number) => String(number));
  return { session, schema, width, names };
}

// onnxruntime-web does not tell a file's metadata: they are field 14 of ONNX's ModelProto, pairs of key and value.
function metadata(bytes) {
  const found = {};
  const model = protobuf.Reader.create(bytes);
  while (model.pos < model.len) {
    const field = model.uint32();
    if (field >>> 3 !== 14) {
      model.skipType(field & 7);
      continue;
    }
    const pair = protobuf.Reader.create(model.bytes());
    const entry = {};
    while (pair.pos < pair.len) entry[pair.uint32() >>> 3] = pair.string();
    found[entry[1]] = entry[2];
  }
  return found;
}

// Tag a clip: T frames of D numbers, the features side by side. Gives every class with its probability for the clip and
// for each segment, the most probable first; of a model exported with --thresholds only those that reach theirs.
export async function tag(model, frames) {
  check(model, frames);
  const used = frames.slice(0, model.schema.max_frames);
  const count = Math.min(SEGMENTS, used.length);
  const segments = Array.from({ length: count }, (_, number) =>
    [0, 1].map((end) => Math.floor(((number + end) * used.length) / count)));
  const whole = await run(model, [used]);
  const parts = await run(model, segments.map(([begin, end]) => used.slice(begin, end)));
  const tags = model.names.map((name, number) =>
    ({ class: number, name, score: whole.rows[0][number], scores: parts.rows.map((row) => row[number]) }));
  const shown = whole.tagged ? tags.filter((each) => whole.tagged[each.class]) : tags;
  return { frames: used.length, segments, tags: shown.sort((a, b) => b.score - a.score) };
}

function check({ schema, width }, frames) {
  if (!Array.isArray(frames) || !frames.length) throw new Error('the clip has no "frames"');
  const fits = schema.dtype === "uint8" ? (value) => Number.isInteger(value) && value >= 0 && value < 256 : Number.isFinite;
  frames.forEach((frame, number) => {
    if (frame.length !== width) throw new Error(`frame ${number} has ${frame.length} numbers; the model reads ${width}`);
    if (!frame.every(fits)) throw new Error(`frame ${number} has a value that is not ${schema.dtype}`);
  });
}

// Clips of different lengths in one call: B × T × D, zeros after the frames of a shorter one.
async function run({ session, schema, width }, clips) {
  const longest = Math.max(...clips.map((clip) => clip.length));
  const values = new { uint8: Uint8Array, float32: Float32Array }[schema.dtype](clips.length * longest * width);
  clips.forEach((clip, number) => values.set(clip.flat(), number * longest * width));
  const lengths = BigInt64Array.from(clips, (clip) => BigInt(clip.length));
  const { probabilities, tagged } = await session.run({
    frames: new ort.Tensor(schema.dtype, values, [clips.length, longest, width]),
    lengths: new ort.Tensor("int64", lengths, [clips.length]),
  });
  const rows = clips.map((_, number) => probabilities.data.subarray(number * schema.classes, (number + 1) * schema.classes));
  return { rows, tagged: tagged?.data };
}
