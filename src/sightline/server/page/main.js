// The tabs, and which there are. Where one is, and what was asked there, stands in the URL: #search?q=a+rocket

import { get } from "./api.js";
import { classifyTab } from "./classify.js";
import { drawTab } from "./draw.js";
import { byId } from "./elements.js";
import { mapTab } from "./map.js";
import { searchTab } from "./search.js";

const tabs = { search: searchTab, classify: classifyTab, draw: drawTab, map: mapTab };
const buttons = [...document.querySelectorAll('[role="tab"]')];
const nameOf = (button) => button.id.slice("tab-".length);
const started = new Set();
let shown = null;

/** The tab and the words after it that the URL tells of; the first tab if it tells of none. */
function place() {
  const [name, words = ""] = location.hash.slice(1).split("?", 2);
  const there = buttons.filter((button) => !button.hidden).map(nameOf);
  return [there.includes(name) ? name : there[0], new URLSearchParams(words)];
}

/** Writes the words of a tab into the URL, in place of those that were there. */
function remember(name, words) {
  const kept = new URLSearchParams(Object.entries(words).filter(([, value]) => value));
  const hash = kept.size ? `#${name}?${kept}` : `#${name}`;
  if (name === shown && hash !== location.hash) history.replaceState(null, "", hash);
}

function show() {
  const [name, words] = place();
  shown = name;
  for (const button of buttons) {
    const isIt = nameOf(button) === name;
    button.setAttribute("aria-selected", isIt);
    button.tabIndex = isIt ? 0 : -1;
    byId(`panel-${nameOf(button)}`).hidden = !isIt;
  }
  const label = byId(`tab-${name}`).textContent;
  document.title = `${label} – Sightline`;
  if (!started.has(name)) {
    started.add(name);
    tabs[name].start({ remember: (told) => remember(name, told), similar });
  }
  tabs[name].show(words);
}

/** Shows photos like one of the index: the search, from wherever. */
function similar(photo) {
  if (shown !== "search") location.hash = "search";
  show();
  searchTab.like(photo);
}

/** Arrow keys go round the tabs, Home and End to the first and the last. */
function byKeyboard(event) {
  const there = buttons.filter((button) => !button.hidden);
  const at = there.indexOf(event.target);
  const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: there.length - 1 };
  if (at < 0 || !(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const next = there.at(moves[event.key] % there.length);
  next.focus();
  next.click();
}

async function begin() {
  const photos = await get("v1/photos").catch((error) => {
    trouble(error);
    return null;
  });
  byId("tab-search").hidden = !(photos?.count || photos?.videos);
  byId("tab-map").hidden = !photos?.map;
  for (const button of buttons) button.addEventListener("click", () => (location.hash = nameOf(button)));
  document.querySelector('[role="tablist"]').addEventListener("keydown", byKeyboard);
  addEventListener("hashchange", show);
  // A file that is dropped beside its place must not take the place of the page.
  for (const event of ["dragover", "drop"]) document.addEventListener(event, (dropped) => dropped.preventDefault());
  show();
  byId("served").textContent = (await get("v1/models")).data[0].id;
}

function trouble(error) {
  byId("trouble").textContent = error.message;
  byId("trouble").hidden = false;
}

begin().catch(trouble);
