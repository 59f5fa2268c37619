// The photos as a map: what looks alike lies together, in clusters with names; and the same photos as a list.

import { isStale, onlyLatest, showPicture } from "./api.js";
import { byId, counted, make, say } from "./elements.js";
import { map, pictureOf, thumbnail, titleOf } from "./photos.js";
import { Plane } from "./plane.js";
import { view } from "./viewer.js";

const AGAIN = 1500; // milliseconds until a map that is being made is asked for again
const LISTED = 60; // photos of a cluster that are listed, until more are wanted
const COLOURS = 10; // of style.css: --cluster-0 to --cluster-9

const latest = onlyLatest();
let page = null;
let library = null;
let plane = null;

const status = (text, kind) => say(byId("map-status"), text, kind);

/** The map, as soon as the server has made it. */
async function load() {
  const signal = latest();
  const options = { signal, waiting: (line) => status(line, "working") };
  try {
    for (;;) {
      status("Placing the photos. The first time this takes a while.", "working");
      const told = await map(options);
      if (told.points) return draw(told);
      await new Promise((done) => setTimeout(done, AGAIN));
      signal.throwIfAborted();
    }
  } catch (error) {
    if (!isStale(error)) status(error.message, "wrong");
  }
}

function draw(told) {
  library = told;
  byId("map-atlas").hidden = byId("map-keys").hidden = false;
  const left =
    told.total > told.points.length ? `, ${told.points.length.toLocaleString("en")} of them drawn at random` : "";
  status(`${counted(told.total, "photo")} in ${counted(told.clusters.length, "cluster")}${left}.`);
  byId("map-clusters").replaceChildren(...told.clusters.map(listed));
  plane = new Plane(byId("map-canvas"), told, {
    hovered,
    chosen,
    colours,
    picture: (point, image) => showPicture(image, pictureOf(point, "thumbnail")),
  });
  byId("map-in").onclick = () => plane.zoom(1.6);
  byId("map-out").onclick = () => plane.zoom(1 / 1.6);
  byId("map-whole").onclick = () => plane.whole();
}

/** The colours of the clusters and of the rest, as the style sheet has them for light or dark. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    clusters: Array.from({ length: COLOURS }, (_, i) => colour(`cluster-${i}`)),
    ink: colour("ink"),
    card: colour("card"),
    edge: colour("rim"),
  };
}

/** A cluster of the list; while it is open, its photos stand out on the map. */
function listed(cluster, number) {
  const dot = make("span", { className: "dot", "--colour": `var(--cluster-${number % COLOURS})` });
  const head = make(
    "summary",
    {},
    dot,
    make("span", { className: "name", textContent: cluster.name }),
    make("span", { className: "number", textContent: cluster.count.toLocaleString("en") }),
  );
  const body = make("div", { className: "thumbs" });
  const details = make("details", { name: "cluster" }, head, body);
  details.ontoggle = () => {
    if (details.open && !body.children.length)
      more(
        body,
        library.points.filter((point) => point.cluster === number),
        0,
      );
    const open = [...byId("map-clusters").children].findIndex((each) => each.open);
    plane.only = open < 0 ? null : open;
    plane.draw();
  };
  return details;
}

/** Lists the next photos of a cluster. */
function more(body, points, from) {
  const shown = points.slice(from, from + LISTED).map((point) => {
    const open = make(
      "button",
      { type: "button", className: "thumb", "aria-label": titleOf(point), title: titleOf(point) },
      thumbnail(point),
    );
    open.onclick = () => chosen(point, points);
    return open;
  });
  body.append(...shown);
  if (from + LISTED >= points.length) return;
  const rest = make("button", {
    type: "button",
    className: "quiet",
    textContent: `${(points.length - from - LISTED).toLocaleString("en")} more`,
  });
  rest.onclick = () => {
    rest.remove();
    more(body, points, from + LISTED);
    body.children[from + LISTED].focus();
  };
  body.append(rest);
}

function chosen(point, among = [point]) {
  view(among, point, { similar: page.similar });
}

/** Shows the photo under the pointer beside it; none: nothing. */
function hovered(point, x, y) {
  const card = byId("map-hovered");
  card.hidden = !point;
  if (!point) return;
  if (card.dataset.id !== point.id) {
    card.dataset.id = point.id;
    const image = make("img", { alt: "" });
    showPicture(image, pictureOf(point, "thumbnail"));
    card.replaceChildren(
      image,
      make(
        "figcaption",
        {},
        make("span", { textContent: titleOf(point) }),
        make("small", { textContent: library.clusters[point.cluster].name }),
      ),
    );
  }
  const box = byId("map-plane").getBoundingClientRect();
  card.style.setProperty("left", `${Math.max(4, Math.min(box.width - card.offsetWidth - 4, x + 14))}px`);
  card.style.setProperty(
    "top",
    `${y + 14 + card.offsetHeight > box.height ? Math.max(4, y - card.offsetHeight - 14) : y + 14}px`,
  );
}

function start(given) {
  page = given;
}

function show() {
  if (!library) load();
  else plane.fit();
  page.remember({});
}

export const mapTab = { start, show };
