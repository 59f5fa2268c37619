// Photos by words, by a photo, or by both; with more of this and less of that.

import { isStale, onlyLatest } from "./api.js";
import { byId, calmly, counted, icon, make, percent, say } from "./elements.js";
import { photosGivenTo } from "./given.js";
import { gallery, search, similar, thumbnail, titleOf } from "./photos.js";
import { view } from "./viewer.js";

const IDEAS = ["a cat", "a rocket", "a cup of coffee", "a woman", "a clock"];
const TOP = 48;
const NEAREST = 12; // photos that are shown beside the matches, until more are wanted
const FIELDS = {
  q: "search-text",
  more: "search-add",
  less: "search-subtract",
  from: "search-after",
  to: "search-before",
  kind: "search-kind",
};

const latest = onlyLatest();
let photo = null; // what is looked for: {file} of one's own, or {id, name} of the index
let page = null;

const status = (text, kind) => say(byId("search-status"), text, kind);
const field = (name) => byId(FIELDS[name]).value.trim();
const terms = (name) =>
  field(name)
    .split(",")
    .map((term) => term.trim())
    .filter(Boolean);
const again = calmly(find, 250);

async function find() {
  const signal = latest();
  remember();
  const text = field("q");
  const isAsked = Boolean(text || photo || field("more") || field("less"));
  byId("search-empty").hidden = isAsked;
  if (!isAsked) {
    byId("search-results").replaceChildren();
    return status("");
  }
  byId("search-results").setAttribute("aria-busy", "true");
  status("Searching…", "working");
  try {
    const options = { signal, waiting: (line) => status(line, "working") };
    const found = await ask(text, options);
    if (!signal.aborted) showFound(found, text);
  } catch (error) {
    if (isStale(error)) return;
    byId("search-results").replaceChildren();
    status(error.message, "wrong");
  }
  byId("search-results").setAttribute("aria-busy", "false");
}

async function ask(text, options) {
  const filters = Object.fromEntries(
    Object.entries({ after: field("from"), before: field("to") }).filter(([, value]) => value),
  );
  if (field("kind")) filters.types = [field("kind")];
  const [add, subtract] = [terms("more"), terms("less")];
  if (photo?.id && !text && !add.length && !subtract.length)
    return similar({ id: photo.id, top_k: TOP, ...filters }, options);
  const asked = { top_k: TOP, add: photo?.id ? [{ id: photo.id }, ...add] : add, subtract, ...filters };
  if (text) asked.query = text;
  if (photo?.file) asked.images = [await dataUri(photo.file)];
  return search(asked, options);
}

const dataUri = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });

/** The photos that were found: matches first, where it can be said what one is, and the nearest below them. */
function showFound({ data }, text) {
  const matches = data.filter((found) => found.match);
  const others = data.filter((found) => !found.match);
  const isSaid = data.some((found) => found.match !== null);
  const open = (found) => view(data, found, { text, similar: like });
  const show = (list, className) => gallery(list, { chosen: open, like, className });
  const heading = (line) => make("h2", { className: "between", textContent: line });
  if (!data.length) {
    byId("search-results").replaceChildren();
    return status("No photo passes the filters.");
  }
  if (!isSaid) {
    byId("search-results").replaceChildren(show(data));
    return status(`${counted(data.length, "photo")}, the nearest first.`);
  }
  const best = data[0].sure ?? 0;
  byId("search-results").replaceChildren(
    ...(matches.length ? [show(matches, "matches")] : []),
    ...(matches.length && others.length ? [heading("Less sure")] : []),
    ...(others.length ? [show(others.slice(0, NEAREST), "others"), ...more(others.slice(NEAREST), show)] : []),
  );
  status(
    matches.length
      ? `${counted(matches.length, "photo")} ${matches.length === 1 ? "matches" : "match"} “${text}”.`
      : `No photo matches “${text}”: the best is ${percent(best)} sure, a match 95% or more. The nearest are below.`,
  );
}

/** A button for the photos that are left, if there are any. */
function more(left, show) {
  const all = make("button", {
    type: "button",
    className: "rest",
    textContent: `${counted(left.length, "more photo")}`,
  });
  all.onclick = () => {
    const shown = show(left, "others");
    all.replaceWith(shown);
    shown.querySelector("button").focus({ preventScroll: true });
  };
  return left.length ? [all] : [];
}

/** Asks for photos like one of the index. */
function like(found) {
  for (const name of ["q", "more", "less"]) byId(FIELDS[name]).value = "";
  lookFor({ id: found.id, name: titleOf(found), found });
  byId("panel-search").focus({ preventScroll: true }); // the button that was pressed goes
  scrollTo({ top: 0 });
}

/** Takes a photo as what is looked for, or none. */
function lookFor(wanted) {
  const place = byId("search-photo");
  if (photo?.url) URL.revokeObjectURL(photo.url);
  photo = wanted;
  place.hidden = !photo;
  place.replaceChildren();
  if (photo) {
    if (photo.file) photo.url = URL.createObjectURL(photo.file);
    const picture = photo.file ? make("img", { src: photo.url, alt: "" }) : thumbnail(photo.found);
    const remove = make(
      "button",
      { type: "button", className: "quiet round", "aria-label": `Do not look for ${photo.name}` },
      icon("close"),
    );
    remove.onclick = () => (lookFor(null), byId(FIELDS.q).focus());
    place.append(picture, make("span", { className: "name", textContent: `like ${photo.name}` }), remove);
  }
  again.now();
}

function remember() {
  page.remember(Object.fromEntries(Object.keys(FIELDS).map((name) => [name, field(name)])));
}

function start(given) {
  page = given;
  const take = ([file]) => lookFor({ file, name: file.name });
  const refused = (line) => status(line, "wrong");
  photosGivenTo({ panel: byId("panel-search"), zone: byId("search-drop"), input: byId("search-file"), take, refused });
  byId("search-form").onsubmit = (event) => (event.preventDefault(), again.now());
  for (const id of Object.values(FIELDS)) byId(id).oninput = again;
  for (const idea of IDEAS) {
    const chip = make("button", { type: "button", className: "chip", textContent: idea });
    chip.onclick = () => ((byId(FIELDS.q).value = idea), byId(FIELDS.q).focus(), again.now());
    byId("search-ideas").append(chip);
  }
}

/** Words in the URL are what is asked; without any, what was asked before stays. */
function show(words) {
  if (words.size) for (const [name, id] of Object.entries(FIELDS)) byId(id).value = words.get(name) ?? "";
  byId("search-filters").open ||= Boolean(field("from") || field("to") || field("kind"));
  if (words.size || !byId("search-results").children.length) again.now();
  else remember();
  if (document.activeElement === document.body && matchMedia("(hover: hover)").matches) byId(FIELDS.q).focus();
}

export const searchTab = { start, show, like };
