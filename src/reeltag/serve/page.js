// The browser splits a shard by the lengths of its records alone; each record is sent unchanged to the service, which
// checks it. Names are only ever set as text.

import { $, choose, counted, draw, list, seconds } from "./chart.js";

const PAGE = 100; // records that are listed at a time
const AT_ONCE = 4; // requests; the service tags them together
const OVERHEAD = 16; // bytes of a record beside its payload

let limits = { max_body: Infinity };
let samples = [];
let walk = null; // the open shard: { file, offset, number }
let latest = 0; // number of the newest request for a video, as an older answer may come later

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error ?? `The service answered with status ${response.status}.`);
  }
  return response;
}

const isMedia = (file) => /^(video|audio)\//.test(file.type);

async function predict(record, query) {
  const headers = { "Content-Type": isMedia(record) ? record.type : "application/x-tfrecord" };
  const response = await ask(`predict?${query}`, { method: "POST", headers, body: record });
  const answer = await response.json();
  return isMedia(record) ? { ...answer, id: record.name } : answer.videos[0];
}

function complain(message) {
  $("fault").textContent = message;
  $("fault").hidden = !message;
}

// --- the list of videos ---------------------------------------------------------------------------

function clear() {
  $("videos").replaceChildren();
  $("more").hidden = true;
  complain("");
}

function showSamples() {
  clear();
  walk = null;
  $("back").hidden = true;
  $("shard").textContent = samples.length ? counted(samples.length, "sample") : "";
  return samples.map((sample, number) =>
    list(sample.id, counted(sample.frames, "frame"), (button) =>
      open(button, async () => (await ask(`samples/${number}`)).blob())));
}

async function showFile(file) {
  clear();
  $("back").hidden = !samples.length;
  walk = { file, offset: 0, number: 0 };
  if (!file.size) complain(`${file.name} is empty.`);
  else if (isMedia(file)) showMedia(file);
  else await showMore();
}

function showMedia(file) {
  $("shard").textContent = "";
  if (file.size > limits.max_body) {
    complain(`${file.name} has ${file.size.toLocaleString("en")} bytes, more than the service accepts.`);
    return;
  }
  list(file.name, "video file", (button) => open(button, async () => file)).click();
}

// List the next records of the shard, then ask the service for the name and best tag of each.
async function showMore() {
  const mine = walk;
  const found = [];
  while (mine.offset < mine.file.size && found.length < PAGE) {
    const begin = mine.offset;
    const head = await mine.file.slice(begin, begin + 8).arrayBuffer();
    if (walk !== mine) return;
    const length = head.byteLength === 8 ? Number(new DataView(head).getBigUint64(0, true)) : 0;
    mine.offset = Math.min(begin + OVERHEAD + length, mine.file.size);
    if (mine.offset - begin > limits.max_body) {
      complain(`Record ${mine.number}, at byte ${begin} of ${mine.file.name}, has ${length.toLocaleString("en")} bytes, ` +
        "more than the service accepts. Is this a TFRecord file, uncompressed?");
      mine.offset = mine.file.size;
      break;
    }
    const record = mine.file.slice(begin, mine.offset);
    found.push({ record, button: list(`Record ${mine.number}`, "…", (button) => open(button, async () => record)) });
    mine.number += 1;
  }
  $("more").hidden = mine.offset >= mine.file.size;
  const so = $("more").hidden ? "" : "first ";
  $("shard").textContent = `${mine.file.name}: ${so}${counted(mine.number, "record")}`;
  const first = found[0];
  if (first && mine.number === found.length) first.button.click();
  const queue = found.values();
  await Promise.all(Array.from({ length: AT_ONCE }, () => describe(queue, mine)));
}

async function describe(queue, mine) {
  for (const { record, button } of queue) {
    if (walk !== mine) return;
    const [name, detail] = button.children;
    try {
      const video = await predict(record, "top=1");
      name.textContent = video.id || name.textContent;
      detail.textContent = `${counted(video.frames, "frame")} · ${video.tags[0].name}`;
    } catch (error) {
      button.classList.add("wrong");
      detail.textContent = reason(error);
    }
  }
}

// A record is sent alone, so its position within the request means nothing.
const reason = (error) => error.message.replace(/^record 0, byte 0: /, "");

// --- one video ------------------------------------------------------------------------------------

async function open(button, record) {
  const number = ++latest;
  choose(button);
  $("video").setAttribute("aria-busy", "true");
  try {
    const video = await predict(await record(), "timeline=true");
    if (number === latest) {
      complain("");
      show(video);
    }
  } catch (error) {
    if (number === latest) {
      $("video").hidden = $("empty").hidden = true;
      complain(reason(error));
    }
  } finally {
    if (number === latest) $("video").removeAttribute("aria-busy");
  }
}

const frames = {
  span: ([begin, end]) => (end - begin === 1 ? `frame ${begin}` : `frames ${begin} to ${end - 1}`),
  at: (frame) => (frame ? String(frame) : "frame 0"),
};

function show(video) {
  $("video").hidden = false;
  $("empty").hidden = true;
  const cut = video.cut ? `; the last ${video.cut.toLocaleString("en")} are beyond the model's limit` : "";
  const [noun, named] = video.remarks ? ["second", seconds] : ["frame", frames];
  draw(video, [counted(video.frames, noun) + cut, ...(video.remarks ?? [])].join(" · "), named);
}

// --- files, and the beginning ---------------------------------------------------------------------

$("file").onchange = () => {
  if ($("file").files.length) showFile($("file").files[0]);
  $("file").value = "";
};
$("back").onclick = () => showSamples()[0].click();
$("more").onclick = showMore;

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) showFile(event.dataTransfer.files[0]);
});

try {
  const model = await (await ask("model")).json();
  limits = model.limits;
  const reads = model.data.features.map((feature) => `${feature.name} ${feature.width}`).join(" + ");
  $("model").textContent =
    [model.name, counted(model.members.length, "member"), counted(model.classes, "class", "classes"), `reads ${reads}`].join(" · ");
  document.title = `${model.name} · reeltag`;
  if (model.videos) $("what").textContent = "Drop a video, or a shard of TFRecords, here,";
  samples = await (await ask("samples")).json();
  const buttons = showSamples();
  $("empty").hidden = buttons.length > 0;
  const wanted = Number(new URLSearchParams(location.search).get("sample") ?? 0);
  (buttons[wanted] ?? buttons[0])?.click();
} catch (error) {
  complain(error.message);
}
