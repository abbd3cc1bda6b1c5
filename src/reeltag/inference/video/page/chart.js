// Draw the tags of a video as bars and their scores over time as strips of colour, beside a list of videos. The pages of
// the service and of `reeltag tag` share this file. Names are only ever set as text.

const $ = (id) => document.getElementById(id);
const FAINT = 0.1; // probability below which a tag is dimmed
const decimals = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

const counted = (count, noun, plural = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : plural}`;

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
// Words of a video file, whose frames are seconds; see `draw`.
const seconds = { span: ([begin, end]) => `${clock(begin)} to ${clock(end)}`, at: clock };

// --- the list -------------------------------------------------------------------------------------

function list(name, detail, open) {
  const button = make("button", "");
  button.type = "button";
  button.append(make("span", "name", name), make("span", "detail", detail));
  button.onclick = () => open(button);
  const item = make("li", "");
  item.append(button);
  $("videos").append(item);
  return button;
}

function choose(button) {
  document.querySelector("#videos [aria-current]")?.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
}

// --- one video ------------------------------------------------------------------------------------

// Draw the tags and the timeline of a video. `words.span` names a segment, `words.at` a position; `words.pointed`, which
// is optional, is called with the index of the segment under the pointer, or -1.
function draw(video, facts, words) {
  const { segments, scores } = video.timeline;
  const whole = segments.length < 2;
  $("video").classList.toggle("whole", whole);
  $("title").textContent = video.id || "Unnamed video";
  $("facts").textContent = facts;
  displayed = { video, words, row: -1, column: -1 };
  const rows = video.tags.map((tag, row) => tagRow(tag, row, whole ? [] : scores[row], segments));
  $("chart").replaceChildren(...rows, axis(video.frames));
  read();
}

function axis(frames) {
  const line = make("div", "");
  line.id = "axis";
  line.setAttribute("aria-hidden", "true");
  const ends = make("div", "");
  ends.append(...[0, 0.5, 1].map((fraction) => make("span", "", displayed.words.at(Math.round(fraction * frames)))));
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

const sentence = (tag, segment, value) => `${tag.name}, ${displayed.words.span(segment)}: ${decimals.format(value)}`;

let displayed = null; // the video on the page, its words, and the row and column of the cell under the pointer

function point(row, column) {
  displayed.row = row;
  displayed.column = column;
  read();
}

function read() {
  document.querySelector(".cell.here")?.classList.remove("here");
  const { video, row, column } = displayed;
  const cell = $(`cell-${row}-${column}`);
  cell?.classList.add("here");
  $("chart").setAttribute("aria-activedescendant", cell?.id ?? "");
  const { segments, scores } = video.timeline;
  $("reading").textContent = cell ? sentence(video.tags[row], segments[column], scores[row][column]) : "";
  displayed.words.pointed?.(column);
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

$("chart").onkeydown = (event) => {
  const step = STEPS[event.key];
  if (!step || displayed.video.timeline.segments.length < 2) return;
  event.preventDefault();
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  const { video, row, column } = displayed;
  if (row < 0) point(0, 0);
  else point(within(row + step[0], video.tags.length), within(column + step[1], video.timeline.segments.length));
};

export { $, choose, counted, draw, list, make, seconds };
