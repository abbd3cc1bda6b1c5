"use strict";
// Without this script the page shows everything; with it tables sort and search, and points say their numbers.
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// --- light and dark -------------------------------------------------------------------------------

const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); };
prefersDark.addEventListener("change", nameTheme);
theme.hidden = false;
nameTheme();

// --- tables ---------------------------------------------------------------------------------------

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text.replace(/−/g, "-"));
  return text !== "" && !Number.isNaN(number) ? number : text;
}

const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b
  : String(a).localeCompare(String(b), "en", { numeric: true, sensitivity: "base" }));

function sort(table, head, column) {
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  const numbers = rows.every(([value]) => typeof value === "number");
  const before = head.getAttribute("aria-sort");
  const order = before ? (before === "ascending" ? "descending" : "ascending") : (numbers ? "descending" : "ascending");
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  rows.sort(([a], [b]) => sign * compare(a, b));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of all("table")) {
  const first = table.tBodies[0].rows[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.classList.toggle("number", first?.cells[column].classList.contains("number") ?? false);
    if (!table.classList.contains("sortable") || !head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.onclick = () => sort(table, head, column);
    head.replaceChildren(button);
  });
}

for (const input of all("input[type=search]")) {
  const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
  const said = input.parentElement.querySelector("output");
  input.oninput = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
      shown += !row.hidden;
    }
    said.textContent = words.length ? `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
  };
}

// --- what is pointed at ---------------------------------------------------------------------------

const tip = document.getElementById("tip");

function say(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x - width / 2, root.clientWidth - width - 8))}px`;
  tip.style.top = `${y - height - 12 < 8 ? y + 16 : y - height - 12}px`;
}

function sayOf(element) {
  const told = element?.closest?.("[data-tip]");
  if (!told) {
    tip.hidden = true;
    return;
  }
  const box = told.getBoundingClientRect();
  say(told.dataset.tip, box.x + box.width / 2, box.y);
}

for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, (event) => sayOf(event.target));
for (const kind of ["pointerout", "focusout"]) document.addEventListener(kind, () => { tip.hidden = true; });
document.addEventListener("scroll", () => sayOf(document.activeElement), true); // what has the focus was scrolled to
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// --- curves ---------------------------------------------------------------------------------------

function choose(chart, name) {
  for (const series of all(".series", chart)) {
    series.classList.toggle("chosen", series.dataset.name === name);
    if (series.dataset.name === name) series.parentElement.append(series); // before the others
  }
  for (const chip of all(".chip", chart)) chip.setAttribute("aria-pressed", String(chip.dataset.series === name));
}

function nearest(svg, x, y) {
  let found = null;
  for (const series of all(".series", svg)) {
    for (const point of series.querySelector("polyline").points) {
      const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (!found || distance < found.distance) found = { distance, point, name: series.dataset.name };
    }
  }
  return found;
}

for (const chart of all(".many")) {
  const svg = chart.querySelector("svg");
  const [x0, x1, y0, y1] = svg.dataset.scale.split(" ").map(Number);
  const [left, right, bottom, top] = svg.dataset.box.split(" ").map(Number);
  const [across, up] = svg.dataset.axes.split("|");
  const logY = svg.dataset.log === "y";
  const between = (low, high, share) => low + share * (high - low);
  const height = (share) => (logY ? Math.exp(between(Math.log(y0), Math.log(y1), share)) : between(y0, y1, share));
  const values = (point) => [between(x0, x1, (point.x - left) / (right - left)), height((bottom - point.y) / (bottom - top))];
  for (const chip of all(".chip", chart)) chip.onclick = () => choose(chart, chip.dataset.series);
  choose(chart, chart.querySelector(".chip").dataset.series);
  svg.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const found = nearest(svg, place.x, place.y);
    if (!found || found.distance > 900) { tip.hidden = true; return; }
    const [x, y] = values(found.point);
    const there = new DOMPoint(found.point.x, found.point.y).matrixTransform(svg.getScreenCTM());
    say(`${found.name}, ${across} ${x.toFixed(1)}: ${up} ${y.toPrecision(4)}`, there.x, there.y);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
}
