"use strict";
// Without this script the page shows all its content. The script sorts and searches tables, shows the values of the
// point under the pointer, highlights one curve, and switches between light and dark.
const root = document.documentElement;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// --- light and dark -------------------------------------------------------------------------------

const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const labelThemeButton = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; labelThemeButton(); };
prefersDark.addEventListener("change", labelThemeButton);
theme.hidden = false;
labelThemeButton();

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
  const counter = input.parentElement.querySelector("output");
  input.oninput = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let matches = 0;
    for (const row of rows) {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
      matches += !row.hidden;
    }
    counter.textContent = words.length ? `${matches.toLocaleString("en")} of ${rows.length.toLocaleString("en")}` : "";
  };
}

// --- tooltips -------------------------------------------------------------------------------------

const tip = document.getElementById("tip");

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x - width / 2, root.clientWidth - width - 8))}px`;
  tip.style.top = `${y - height - 12 < 8 ? y + 16 : y - height - 12}px`;
}

function showTipOf(element) {
  const owner = element?.closest?.("[data-tip]");
  if (!owner) {
    tip.hidden = true;
    return;
  }
  const box = owner.getBoundingClientRect();
  showTip(owner.dataset.tip, box.x + box.width / 2, box.y);
}

for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, (event) => showTipOf(event.target));
for (const kind of ["pointerout", "focusout"]) document.addEventListener(kind, () => { tip.hidden = true; });
document.addEventListener("scroll", () => showTipOf(document.activeElement), true); // scrolling moves the focused element
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// --- mistakes of a class --------------------------------------------------------------------------

function openTarget() {
  const target = document.getElementById(location.hash.slice(1));
  const folded = target?.closest("details");
  if (!folded) return;
  folded.open = true;
  folded.scrollIntoView();
}

addEventListener("hashchange", openTarget);
openTarget();

// --- curves ---------------------------------------------------------------------------------------

function choose(chart, name) {
  for (const series of all(".series", chart)) {
    series.classList.toggle("chosen", series.dataset.name === name);
    if (series.dataset.name === name) series.parentElement.append(series); // in front of the others
  }
  for (const chip of all(".chip", chart)) chip.setAttribute("aria-pressed", String(chip.dataset.series === name));
}

function nearest(series, x, y) {
  let closest = null;
  for (const { name, points, tips } of series) {
    points.forEach((point, index) => {
      const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (!closest || distance < closest.distance) closest = { distance, point, text: `${name}, ${tips[index]}` };
    });
  }
  return closest;
}

for (const chart of all(".many")) {
  const svg = chart.querySelector("svg");
  const series = all(".series", svg).map((group) => {
    const line = group.querySelector("polyline");
    return { name: group.dataset.name, points: [...line.points], tips: line.dataset.tips.split("|") };
  });
  for (const chip of all(".chip", chart)) chip.onclick = () => choose(chart, chip.dataset.series);
  choose(chart, chart.querySelector(".chip").dataset.series);
  svg.addEventListener("pointermove", (event) => {
    const toScreen = svg.getScreenCTM();
    const pointer = new DOMPoint(event.clientX, event.clientY).matrixTransform(toScreen.inverse());
    const closest = nearest(series, pointer.x, pointer.y);
    if (closest.distance > 900) { tip.hidden = true; return; } // 30 units of the chart
    const { x, y } = new DOMPoint(closest.point.x, closest.point.y).matrixTransform(toScreen);
    showTip(closest.text, x, y);
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; });
}
