// Which labels fit which photo: labels, prompts to compare, and photos, each asked about by itself.

import { get, isStale, onlyLatest, post } from "./api.js";
import { bar, byId, calmly, counted, icon, make, percent, say } from "./elements.js";
import { asCsv, asJson, save } from "./export.js";
import { photosGivenTo } from "./given.js";

const OWN = "your own…";
const IDEAS = ["cat, dog, rocket", "a woman, a man, nobody", "coffee, tea, milk"];
const MOST_SETS = 3;
const AT_ONCE = 4; // photos that are asked about at a time
const SHOWN = 5; // labels of a photo, until all are wanted

const photos = []; // {file, url, row, result or error}
const latest = onlyLatest();
let templates = [];
let remember = () => {};

const labels = () => [
  ...new Set(
    byId("classify-labels")
      .value.split("\n")
      .map((line) => line.trim())
      .filter(Boolean),
  ),
];
const least = () => Number(byId("classify-least").value) / 100;
const status = (text, kind) => say(byId("classify-status"), text, kind);

/** The prompts that are compared: names for people, and what the server is told. */
function prompts() {
  return [...byId("classify-prompts").children].map((row) => {
    const [select, own] = row.querySelectorAll("select, textarea");
    const lines = own.value
      .split("\n")
      .map((line) => line.trim())
      .filter(Boolean);
    const isOwn = select.value === OWN;
    return { name: isOwn ? (lines[0] ?? OWN) : select.value, templates: isOwn ? lines : select.value };
  });
}

const again = calmly(classify, 400);

async function classify() {
  const asked = { labels: labels(), prompts: prompts(), independent: byId("classify-independent").checked };
  const signal = latest();
  remember({ labels: asked.labels.join("\n") });
  byId("classify-empty").hidden = photos.length > 0;
  byId("classify-export").hidden = true;
  const missing = !photos.length ? "" : !asked.labels.length ? "Write a label or two." : noPrompt(asked.prompts);
  if (!photos.length || !asked.prompts.length || missing) {
    photos.forEach(clear);
    return status(missing);
  }
  await askAll(asked, signal);
}

const noPrompt = (asked) =>
  asked.some((each) => !each.templates.length) ? "Write your own prompts, each with {} where the label goes." : "";

/** Asks about every photo, a few at a time, and shows each as it comes. */
async function askAll(asked, signal) {
  const waiting = [...photos];
  let done = 0;
  const progress = () => status(`Looking at ${counted(photos.length, "photo")}: ${done} done`, "working");
  const work = async () => {
    for (let photo = waiting.shift(); photo; photo = waiting.shift()) {
      await askAbout(photo, asked, signal);
      if (signal.aborted) return;
      done++;
      progress();
    }
  };
  progress();
  for (const photo of photos) photo.row.setAttribute("aria-busy", "true");
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  if (!signal.aborted) told();
}

function told() {
  const wrong = photos.filter((photo) => photo.error).length;
  const none = photos.filter((photo) => photo.result?.[0].abstain).length;
  const parts = [
    counted(photos.length, "photo"),
    none && `${none} with none of these`,
    wrong && `${wrong} that cannot be read`,
  ];
  status(parts.filter(Boolean).join(", "));
  byId("classify-export").hidden = wrong === photos.length;
}

async function askAbout(photo, asked, signal) {
  const form = new FormData();
  const sets = asked.prompts.map(({ templates }, i) => [
    `prompts ${i + 1}`,
    { labels: asked.labels, templates, independent: asked.independent },
  ]);
  form.append("file", photo.file, "photo");
  form.append("label_sets", JSON.stringify(Object.fromEntries(sets)));
  form.append("top_k", asked.labels.length);
  form.append("abstain_below", least());
  try {
    const reply = await post("v1/classify", form, { signal, waiting: (line) => status(line, "working") });
    const answered = reply.data[0].sets.map((set, i) => ({ ...set, prompts: asked.prompts[i].name }));
    Object.assign(photo, { result: answered, error: null });
  } catch (error) {
    if (isStale(error)) return;
    Object.assign(photo, { result: null, error: error.message });
  }
  showResult(photo);
}

function clear(photo) {
  Object.assign(photo, { result: null, error: null });
  photo.row.removeAttribute("aria-busy");
  photo.row.querySelector(".answers").replaceChildren();
}

function showResult(photo) {
  const place = photo.row.querySelector(".answers");
  photo.row.removeAttribute("aria-busy");
  if (photo.error) return place.replaceChildren(make("p", { className: "wrong", textContent: photo.error }));
  const isCompared = photo.result.length > 1;
  place.replaceChildren(...photo.result.map((set) => answer(set, isCompared)));
}

/** One set of labels for one photo: the answer, and the bars. */
function answer(set, isCompared) {
  const best = set.labels[0];
  const heading = set.abstain ? "none of these" : best.label;
  const why = set.abstain ? `nearest: ${best.label}, fit ${percent(set.fit)}` : `fit ${percent(set.fit)}`;
  const bars = set.labels.map((each, i) =>
    bar(each.label, each.probability, `${i ? "" : "best"} ${set.abstain ? "unsure" : ""}`),
  );
  const list = make("ol", { className: "bars" }, ...bars.slice(0, SHOWN));
  const rest = bars.slice(SHOWN);
  const all = make("button", { type: "button", className: "quiet", textContent: `All ${bars.length} labels` });
  all.onclick = () => {
    list.append(...rest);
    list.tabIndex = -1;
    list.focus({ preventScroll: true });
    all.remove();
  };
  return make(
    "div",
    { className: "answer" },
    ...(isCompared ? [make("p", { className: "kicker", textContent: set.prompts })] : []),
    make(
      "p",
      { className: `verdict ${set.abstain ? "none" : ""}` },
      make("b", { textContent: heading }),
      " ",
      make("span", { textContent: why }),
    ),
    list,
    ...(rest.length ? [all] : []),
  );
}

function add(files) {
  for (const file of files) {
    const url = URL.createObjectURL(file);
    const remove = make(
      "button",
      { type: "button", className: "quiet round remove", "aria-label": `Remove ${file.name}` },
      icon("close"),
    );
    const picture = make("img", { src: url, alt: "", loading: "lazy", decoding: "async" });
    picture.onerror = () => picture.classList.add("missing");
    const row = make(
      "li",
      { className: "card" },
      make("figure", {}, picture, make("figcaption", { textContent: file.name, title: file.name }), remove),
      make("div", { className: "answers" }),
    );
    const photo = { file, url, row };
    remove.onclick = () => {
      photos.splice(photos.indexOf(photo), 1);
      URL.revokeObjectURL(url);
      const near = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      (near?.querySelector(".remove") ?? byId("classify-files")).focus();
      again.now();
    };
    photos.push(photo);
    byId("classify-results").append(row);
  }
  again.now();
}

/** A choice of prompts; the first one cannot be taken away. */
function addPrompts(chosen) {
  const rows = byId("classify-prompts");
  const options = [...templates.map(({ name }) => name), OWN].map((name) =>
    make("option", { value: name, textContent: name }),
  );
  const select = make("select", { "aria-label": `Prompts ${rows.children.length + 1}` }, ...options);
  const own = make("textarea", {
    rows: 2,
    hidden: true,
    spellcheck: false,
    placeholder: "a photo of a {}.",
    "aria-label": "Your own prompts, one a line, with {} for the label",
  });
  const hint = make("p", { className: "hint" });
  const remove = make(
    "button",
    { type: "button", className: "quiet round", "aria-label": "Compare no longer" },
    icon("close"),
  );
  const row = make(
    "div",
    { className: "prompts" },
    make("div", { className: "line" }, select, ...(rows.children.length ? [remove] : [])),
    own,
    hint,
  );
  const changed = () => {
    const { templates: filled } = templates.find(({ name }) => name === select.value) ?? { templates: [] };
    own.hidden = select.value !== OWN;
    hint.textContent = own.hidden ? sample(filled) : "One a line, with {} for the label.";
  };
  remove.onclick = () => {
    row.remove();
    enough();
    byId("classify-compare").focus();
    again.now();
  };
  select.onchange = () => (changed(), again.now());
  own.oninput = again;
  select.value = chosen;
  changed();
  rows.append(row);
  enough();
}

const sample = (filled) =>
  filled.length > 1 ? `“${filled[0]}” and ${filled.length - 1} more, averaged` : `“${filled[0]}”`;
const enough = () => (byId("classify-compare").hidden = byId("classify-prompts").children.length >= MOST_SETS);

function compare() {
  const used = prompts().map(({ name }) => name);
  addPrompts(
    ["imagenet7", "imagenet", "plain"].find(
      (name) => !used.includes(name) && templates.some((set) => set.name === name),
    ) ?? OWN,
  );
  again.now();
}

async function start(page) {
  remember = page.remember;
  const panel = byId("panel-classify");
  const refused = (line) => status(line, "wrong");
  photosGivenTo({ panel, zone: byId("classify-drop"), input: byId("classify-files"), take: add, refused });
  byId("classify-options").open = matchMedia("(min-width: 901px)").matches;
  byId("classify-form").onsubmit = (event) => event.preventDefault();
  byId("classify-labels").oninput = again;
  byId("classify-independent").onchange = again.now;
  byId("classify-least").oninput = () => {
    byId("classify-least-shown").textContent = `${byId("classify-least").value}%`;
    again();
  };
  byId("classify-compare").onclick = compare;
  byId("classify-csv").onclick = () => save("labels.csv", "text/csv", asCsv(photos));
  byId("classify-json").onclick = () => save("labels.json", "application/json", asJson(photos));
  for (const idea of IDEAS) {
    const chip = make("button", { type: "button", className: "chip", textContent: idea });
    chip.onclick = () => {
      byId("classify-labels").value = idea.split(", ").join("\n");
      again.now();
      byId("classify-files").focus();
    };
    byId("classify-ideas").append(chip);
  }
  try {
    templates = (await get("v1/templates")).data;
  } catch (error) {
    refused(error.message);
  }
  addPrompts(templates.some(({ name }) => name === "plain") ? "plain" : (templates[0]?.name ?? OWN));
  if (photos.length) again.now();
}

function show(words) {
  if (words.has("labels")) byId("classify-labels").value = words.get("labels");
  again.now();
}

export const classifyTab = { start, show };
