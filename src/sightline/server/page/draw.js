// The game: a word is given, you draw it, and CLIP says what it takes your drawing for.

import { isStale, onlyLatest, post } from "./api.js";
import { keep, kept } from "./drawings.js";
import { bar, byId, calmly, counted, icon, make, percent, say } from "./elements.js";
import { Paper } from "./pen.js";
import { PROMPTS, withArticle, WORDS } from "./words.js";

const COLOURS = {
  black: "#1c2430",
  grey: "#8b93a1",
  brown: "#7a4a24",
  red: "#d63333",
  orange: "#f08a1d",
  yellow: "#f5cf2e",
  green: "#2f9e4f",
  blue: "#2864dc",
  pink: "#ea7fb0",
  white: "#ffffff",
};
const SIDE = 256; // pixels of what is kept and looked at
const SHOWN = 5;

const latest = onlyLatest();
let paper = null;
let word = "";
let seen = null; // what CLIP said of the drawing as it is: {rank, of, share}
let page = null;

const status = (text, kind) => say(byId("draw-status"), text, kind);
const look = calmly(guess, 350);

/** Asks what the drawing is taken for. */
async function guess() {
  const signal = latest();
  seen = null;
  byId("draw-keep").disabled = true;
  if (paper.isEmpty) {
    byId("draw-guesses").replaceChildren();
    return status(`Draw ${withArticle(word)}: after each stroke CLIP says what it sees.`);
  }
  status("Looking…", "working");
  const words = [...new Set([word, ...WORDS])];
  const label_sets = { words: { labels: words, templates: PROMPTS } };
  const asked = { images: [paper.picture(SIDE)], label_sets, top_k: words.length };
  try {
    const reply = await post("v1/classify", asked, { signal, waiting: (line) => status(line, "working") });
    if (!signal.aborted) told(reply.data[0].sets[0].labels);
  } catch (error) {
    if (!isStale(error)) status(error.message, "wrong");
  }
}

function told(guesses) {
  const at = guesses.findIndex(({ label }) => label === word);
  seen = { rank: at + 1, of: guesses.length, share: guesses[at].probability };
  byId("draw-keep").disabled = false;
  const rows = guesses
    .slice(0, SHOWN)
    .map(({ label, probability }) => bar(label, probability, label === word ? "asked" : ""));
  if (at >= SHOWN) rows.push(bar(`${word} (${place(at + 1)})`, guesses[at].probability, "asked far"));
  byId("draw-guesses").replaceChildren(...rows);
  const share = percent(guesses[at].probability);
  status(
    at === 0
      ? `CLIP sees it: ${word}, ${share}.`
      : at < SHOWN
        ? `Close: ${word} comes ${place(at + 1)} of ${guesses.length}.`
        : `CLIP takes it for ${withArticle(guesses[0].label)}. ${word} comes ${place(at + 1)} of ${guesses.length}.`,
  );
}

function place(n) {
  const end = n % 100 > 10 && n % 100 < 14 ? "th" : ({ 1: "st", 2: "nd", 3: "rd" }[n % 10] ?? "th");
  return `${n}${end}`;
}

/** Keeps the drawing, and has CLIP rank it among the earlier ones of the same word. */
async function keepIt() {
  const mine = { word, picture: paper.picture(SIDE), rank: seen.rank, of: seen.of };
  byId("draw-keep").disabled = true;
  if (!keep([mine, ...kept()]))
    return status("This browser keeps nothing for this page: the drawing is lost with it.", "wrong");
  const ranked = await showKept();
  const at = ranked.findIndex(({ picture }) => picture === mine.picture);
  const best = at === 0 ? "your best" : `the ${place(at + 1)} best`;
  status(
    ranked.length > 1
      ? `Kept: ${best} of ${ranked.length} drawings of ${withArticle(word)}.`
      : "Kept. Draw it again to beat it, or take another word.",
  );
}

/** Shows the earlier drawings, those of the word first; gives these, as well as they fit it. */
async function showKept() {
  const all = kept();
  const same = all.filter((drawing) => drawing.word === word);
  byId("draw-kept").hidden = !all.length;
  byId("draw-kept-hint").textContent = `${counted(all.length, "drawing")}, kept in this browser alone.`;
  const others = all.filter((drawing) => drawing.word !== word);
  const ranked = same.length > 1 ? await rankedByFit(same) : same;
  byId("draw-drawings").replaceChildren(
    ...ranked.map((drawing, i) => shown(drawing, same.length > 1 ? place(i + 1) : "")),
    ...others.map((drawing) => shown(drawing)),
  );
  return ranked;
}

async function rankedByFit(drawings) {
  try {
    const some = drawings.slice(0, 50);
    const reply = await post("v1/rank", {
      text: `a drawing of ${withArticle(word)}.`,
      images: some.map(({ picture }) => picture),
    });
    return reply.data.map(({ index }) => some[index]);
  } catch {
    return drawings; // in the order in which they were drawn, then
  }
}

function shown(drawing, medal = "") {
  const forget = make(
    "button",
    { type: "button", className: "quiet round remove", "aria-label": `Forget this drawing of ${drawing.word}` },
    icon("close"),
  );
  forget.onclick = () => {
    keep(kept().filter(({ picture, word: its }) => picture !== drawing.picture || its !== drawing.word));
    byId(kept().length ? "draw-forget" : "draw-next").focus();
    showKept();
  };
  const of = drawing.rank === 1 ? "recognised" : `${place(Number(drawing.rank))} of ${Number(drawing.of)}`;
  return make(
    "li",
    { className: drawing.word === word ? "same" : "" },
    make("img", { src: drawing.picture, alt: `Your drawing of ${withArticle(drawing.word)}` }),
    ...(medal ? [make("span", { className: "medal", textContent: medal })] : []),
    make("b", { textContent: drawing.word }),
    make("span", { className: "hint", textContent: of }),
    forget,
  );
}

/** Gives a word: the paper is empty again. */
function give(next) {
  word = next;
  byId("draw-word").textContent = withArticle(word);
  page.remember({ word });
  paper.clear();
  look.now();
  showKept();
}

/** Another word, one that was not drawn yet where there is one. */
function nextWord() {
  const drawn = new Set(kept().map((drawing) => drawing.word));
  const others = WORDS.filter((other) => other !== word);
  const fresh = others.filter((other) => !drawn.has(other));
  const from = fresh.length ? fresh : others;
  give(from[Math.floor(Math.random() * from.length)]);
}

function start(given) {
  page = given;
  paper = new Paper(byId("draw-canvas"), byId("draw-cursor"), look);
  byId("draw-colours").append(...Object.entries(COLOURS).map(colourChoice));
  byId("draw-width").oninput = (event) => (paper.width = Number(event.target.value));
  byId("draw-undo").onclick = () => paper.undo();
  byId("draw-clear").onclick = () => paper.clear();
  byId("draw-keep").onclick = keepIt;
  byId("draw-next").onclick = nextWord;
  byId("draw-own-form").onsubmit = (event) => {
    event.preventDefault();
    const own = byId("draw-own").value.trim();
    if (own) give(own);
    byId("draw-own").value = "";
  };
  byId("draw-forget").onclick = () => {
    if (confirm("Forget all your drawings? They are nowhere else.")) keep([]);
    byId("draw-next").focus();
    showKept();
  };
}

function colourChoice([name, colour], i) {
  const choice = make("input", {
    type: "radio",
    name: "colour",
    value: colour,
    checked: i === 0,
    "aria-label": name,
    title: name,
    "--colour": colour,
  });
  choice.onchange = () => (paper.colour = colour);
  return choice;
}

function show(words) {
  const asked = words.get("word")?.trim().slice(0, 100);
  if (asked && asked !== word) give(asked);
  else if (!word) nextWord();
  else page.remember({ word });
}

export const drawTab = { start, show };
