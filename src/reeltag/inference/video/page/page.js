import { $, choose, counted, draw, list, make, seconds } from "./chart.js";

const FILM = 8; // most pictures in the strip beneath a timeline; pointing at a segment shows that segment's own picture

const { videos, left_out } = JSON.parse($("data").textContent);

function show(video) {
  $("fault").hidden = true;
  $("video").hidden = false;
  const picture = (column) => {
    const source = video.pictures[column];
    $("picture").hidden = !source;
    if (source) $("picture").src = source;
  };
  draw(video, [counted(video.frames, "second"), ...video.remarks].join(" · "), { ...seconds, pointed: picture });
  if (video.pictures.length) $("chart").append(film(video.pictures));
}

function film(pictures) {
  const line = make("div", "");
  line.id = "film";
  line.setAttribute("aria-hidden", "true");
  const strip = make("div", "");
  const count = Math.min(FILM, pictures.length);
  for (let index = 0; index < count; index += 1) {
    const image = make("img", "");
    image.alt = "";
    image.src = pictures[Math.floor(((index + 0.5) / count) * pictures.length)];
    strip.append(image);
  }
  line.append(strip);
  return line;
}

function fail(name, reason) {
  $("video").hidden = true;
  $("fault").textContent = `${name}: ${reason}`;
  $("fault").hidden = false;
}

for (const video of videos) {
  list(video.id, `${counted(video.frames, "second")} · ${video.tags[0]?.name ?? "no tag"}`, (button) => {
    choose(button);
    show(video);
  });
}
for (const [name, reason] of Object.entries(left_out)) {
  const entry = list(name, `left out: ${reason}`, (button) => {
    choose(button);
    fail(name, reason);
  });
  entry.classList.add("wrong");
}
document.body.classList.toggle("alone", videos.length + Object.keys(left_out).length === 1);
document.querySelector("#videos button").click();
