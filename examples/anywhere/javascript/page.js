// The page: opens the chosen model, tags the chosen clip, and shows the tags and when they hold. Names are set as text.

import { openModel, tag } from "./tagger.js";

const TOP = 10;
const SHOWN = 4; // decimals
let latest = 0; // number of the newest choice, as an older one may finish later
const $ = (selector) => document.querySelector(selector);

function make(kind, text = "") {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

function say(text, fault = false) {
  $("#state").textContent = text;
  $("#state").classList.toggle("fault", fault);
}

function row({ class: number, name, score, scores }, segments) {
  const line = make("tr");
  const head = make("th", name === String(number) ? name : `${name} (${number})`);
  head.scope = "row";
  const probability = make("td", score.toFixed(SHOWN));
  probability.className = "score";
  const strip = make("div");
  strip.className = "strip";
  strip.append(...scores.map((value, index) => {
    const cell = make("i");
    cell.style.setProperty("--score", value);
    cell.title = `frames ${segments[index][0]} to ${segments[index][1] - 1}: ${value.toFixed(SHOWN)}`;
    return cell;
  }));
  const time = make("td");
  time.append(strip);
  line.append(head, probability, time);
  return line;
}

async function show() {
  const [file, clip] = [$("#model").files[0], $("#clip").files[0]];
  if (!file || !clip) return;
  const mine = ++latest;
  $("table").hidden = true;
  say("Tagging …");
  try {
    const model = await openModel(new Uint8Array(await file.arrayBuffer()));
    const { id, frames } = JSON.parse(await clip.text());
    const began = performance.now();
    const found = await tag(model, frames);
    const took = Math.round(performance.now() - began);
    if (mine !== latest) return;
    $("tbody").replaceChildren(...found.tags.slice(0, TOP).map((each) => row(each, found.segments)));
    $("#end").textContent = `frame ${found.frames - 1}`;
    $("table").hidden = false;
    const cut = frames.length - found.frames;
    const rest = cut ? `; the last ${cut} are beyond the model's limit` : "";
    say(`${id || clip.name}: ${found.frames} frames${rest}, tagged in ${took} ms`);
  } catch (error) {
    if (mine === latest) say(`${clip.name}, ${file.name}: ${error.message}`, true);
  }
}

$("#model").onchange = $("#clip").onchange = show;
