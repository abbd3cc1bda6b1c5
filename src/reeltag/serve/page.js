// A shard in the browser is walked by its records' lengths alone; each record goes to the service as it stands in the
// file, which checks it. Names are only ever set as text.

const $ = (id) => document.getElementById(id);
const PAGE = 100; // records that are listed at a time
const AT_ONCE = 4; // requests; the service tags them together
const FAINT = 0.1; // probability below which a tag stands back
const OVERHEAD = 16; // bytes of a record beside its payload
const decimals = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

let limits = { max_body: Infinity };
let samples = [];
let walk = null; // the shard that is looked at: { file, offset, number }
let latest = 0; // number of the newest request for a video, as an older answer may come later

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

const counted = (count, noun, plural = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : plural}`;

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

async function predict(record, query) {
  const headers = { "Content-Type": "application/x-tfrecord" };
  const response = await ask(`predict?${query}`, { method: "POST", headers, body: record });
  return (await response.json()).videos[0];
}

function complain(message) {
  $("fault").textContent = message;
  $("fault").hidden = !message;
}

// --- the list of videos ---------------------------------------------------------------------------

function list(name, detail, record) {
  const button = make("button", "");
  button.type = "button";
  button.append(make("span", "name", name), make("span", "detail", detail));
  button.onclick = () => open(button, record);
  const item = make("li", "");
  item.append(button);
  $("videos").append(item);
  return button;
}

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
    list(sample.id, counted(sample.frames, "frame"), async () => (await ask(`samples/${number}`)).blob()));
}

async function showFile(file) {
  clear();
  $("back").hidden = !samples.length;
  walk = { file, offset: 0, number: 0 };
  if (!file.size) {
    complain(`${file.name} is empty.`);
    return;
  }
  await showMore();
}

// The next records of the shard: first their names, then what the service says of each.
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
        "more than the service takes. Is this a TFRecord file, uncompressed?");
      mine.offset = mine.file.size;
      break;
    }
    const record = mine.file.slice(begin, mine.offset);
    found.push({ record, button: list(`Record ${mine.number}`, "…", async () => record) });
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

// A record is sent alone, so its place within the request says nothing.
const reason = (error) => error.message.replace(/^record 0, byte 0: /, "");

// --- one video ------------------------------------------------------------------------------------

async function open(button, record) {
  const number = ++latest;
  document.querySelector("#videos [aria-current]")?.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
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

function show(video) {
  const { segments, scores } = video.timeline;
  const whole = segments.length < 2;
  $("video").hidden = false;
  $("empty").hidden = true;
  $("video").classList.toggle("whole", whole);
  $("title").textContent = video.id || "A video without a name";
  const cut = video.cut ? `; the last ${video.cut.toLocaleString("en")} are beyond the model's limit` : "";
  $("facts").textContent = counted(video.frames, "frame") + cut;
  const rows = video.tags.map((tag, row) => tagRow(tag, row, whole ? [] : scores[row], segments));
  $("chart").replaceChildren(...rows, axis(video.frames));
  shown = { video, row: -1, column: -1 };
  read();
}

function axis(frames) {
  const line = make("div", "");
  line.id = "axis";
  line.setAttribute("aria-hidden", "true");
  const ends = make("div", "");
  ends.append(...[0, 0.5, 1].map((share) => make("span", "", `${share ? "" : "frame "}${Math.round(share * frames)}`)));
  line.append(ends);
  return line;
}

function tagRow(tag, row, scores, segments) {
  const line = make("div", tag.score < FAINT ? "tag faint" : "tag");
  line.setAttribute("role", "row");
  const name = make("span", "name", tag.name);
  name.title = tag.name;
  name.setAttribute("role", "rowheader");
  const bar = make("span", "bar");
  bar.setAttribute("aria-hidden", "true");
  bar.append(make("i", ""));
  bar.firstChild.style.setProperty("--score", tag.score);
  const score = make("span", "score", decimals.format(tag.score));
  score.setAttribute("role", "gridcell");
  const strip = make("span", "strip");
  strip.setAttribute("role", "presentation");
  scores.forEach((value, column) => {
    const cell = make("span", "cell");
    cell.id = `cell-${row}-${column}`;
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-label", sentence(tag, segments[column], value));
    cell.style.setProperty("--score", value);
    cell.onpointerenter = () => point(row, column);
    strip.append(cell);
  });
  line.append(name, bar, score, strip);
  return line;
}

const sentence = (tag, [begin, end], value) =>
  `${tag.name}, ${end - begin === 1 ? `frame ${begin}` : `frames ${begin} to ${end - 1}`}: ${decimals.format(value)}`;

let shown = null; // the video on the page, and the cell that is pointed at

function point(row, column) {
  shown.row = row;
  shown.column = column;
  read();
}

function read() {
  document.querySelector(".cell.here")?.classList.remove("here");
  const { video, row, column } = shown;
  const cell = $(`cell-${row}-${column}`);
  cell?.classList.add("here");
  $("chart").setAttribute("aria-activedescendant", cell?.id ?? "");
  const { segments, scores } = video.timeline;
  $("reading").textContent = cell ? sentence(video.tags[row], segments[column], scores[row][column]) : "";
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

$("chart").onkeydown = (event) => {
  const step = STEPS[event.key];
  if (!step || shown.video.timeline.segments.length < 2) return;
  event.preventDefault();
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  const { video, row, column } = shown;
  if (row < 0) point(0, 0);
  else point(within(row + step[0], video.tags.length), within(column + step[1], video.timeline.segments.length));
};

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
  samples = await (await ask("samples")).json();
  const buttons = showSamples();
  $("empty").hidden = buttons.length > 0;
  const wanted = Number(new URLSearchParams(location.search).get("sample") ?? 0);
  (buttons[wanted] ?? buttons[0])?.click();
} catch (error) {
  complain(error.message);
}
