// One photo, large: what is known of it, why it matched, and the ones before and after it.

import { isStale, onlyLatest, showPicture } from "./api.js";
import { byId, make, percent, say } from "./elements.js";
import { heatOver, scale } from "./heat.js";
import { clock, cosine, explain, pictureOf, titleOf } from "./photos.js";

const FAINT = 1.5; // heat below which nothing is said to stand out: 1 and 2 are common

const latest = onlyLatest();
let photos = [];
let at = 0;
let asked = ""; // the text that the photos were found by
let like = () => {};

const status = (text, kind) => say(byId("viewer-status"), text, kind);

/** Shows a photo of a list. `text` is what was looked for, if it was a text; `similar(photo)` asks for ones like it. */
export function view(list, photo, { text = "", similar }) {
  photos = list;
  like = similar;
  asked = text;
  byId("viewer-text").value = text;
  start();
  showPhoto(photos.indexOf(photo));
  byId("viewer").showModal();
  byId("viewer-close").focus();
}

function showPhoto(next) {
  at = next;
  const photo = photos[at];
  const image = make("img", { alt: titleOf(photo) });
  const frame = make(
    "div",
    { className: "framed", "--shape": photo.width && photo.height ? photo.width / photo.height : 1 },
    image,
  );
  image.onerror = () => status("This photo cannot be shown.", "wrong");
  image.onload = () => frame.style.setProperty("--shape", image.naturalWidth / image.naturalHeight);
  showPicture(image, pictureOf(photo, "image"));
  byId("viewer-stage").replaceChildren(frame);
  byId("viewer-name").textContent = photo.name;
  byId("viewer-facts").textContent = facts(photo).join(" · ");
  byId("viewer-previous").disabled = at === 0;
  byId("viewer-next").disabled = at === photos.length - 1;
  noHeat();
}

/** A photo that does not match is not said to: there it is only shown where it is most like the text. */
function nameHeat() {
  const isWhy = photos[at].match && byId("viewer-text").value === asked;
  byId("viewer-why").lastChild.textContent = isWhy ? "Why it matched" : "Show where";
}

const facts = (photo) =>
  [
    photo.sure != null && `${percent(photo.sure)} sure: ${photo.match ? "a match" : "too little for a match"}`,
    photo.score != null && `cosine ${cosine(photo.score)}`,
    photo.moment != null && `at ${clock(photo.moment)}`,
    photo.taken && `taken ${photo.taken.slice(0, 16).replace("T", " ")}`,
    photo.width && photo.height && `${photo.width} × ${photo.height}`,
    photo.copies > 0 && (photo.copies === 1 ? "1 copy" : `${photo.copies} copies`),
  ].filter(Boolean);

function noHeat() {
  latest();
  byId("viewer-stage").querySelector(".heat")?.remove();
  byId("viewer-stage").classList.remove("heated");
  byId("viewer-why").setAttribute("aria-pressed", "false");
  byId("viewer-scale").hidden = true;
  nameHeat();
  status("");
}

async function why(event) {
  event.preventDefault();
  const text = byId("viewer-text").value.trim();
  if (byId("viewer-why").getAttribute("aria-pressed") === "true" && event.submitter === byId("viewer-why"))
    return noHeat();
  noHeat();
  if (!text) return status("Write what to look for in this photo.");
  const [photo, signal] = [photos[at], latest()];
  status("Looking at the photo part by part…", "working");
  try {
    const map = await explain(photo, text, { signal, waiting: (line) => status(line, "working") });
    if (signal.aborted) return;
    byId("viewer-stage").querySelector(".framed").append(heatOver(map));
    byId("viewer-stage").classList.add("heated");
    byId("viewer-why").setAttribute("aria-pressed", "true");
    byId("viewer-scale").hidden = false;
    status(said(map, text));
  } catch (error) {
    if (!isStale(error)) status(error.message, "wrong");
  }
}

function said({ grid, fit }, text) {
  const hottest = Math.max(...grid.flat());
  if (hottest < FAINT) return `“${text}” stands out nowhere: it fits no part much better than other texts do.`;
  const above = `${hottest.toFixed(1)} deviations above other texts`;
  return `Where it is brightest, “${text}” stands ${above}; for the whole photo ${fit.toFixed(1)}.`;
}

/** Wires the dialog, the first time. */
function start() {
  const dialog = byId("viewer");
  if (dialog.onclick) return;
  const step = (by) => photos[at + by] && showPhoto(at + by);
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // beside what is in it
  };
  dialog.onclose = () => noHeat();
  dialog.onkeydown = (event) => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  };
  byId("viewer-close").onclick = () => dialog.close();
  byId("viewer-previous").onclick = () => step(-1);
  byId("viewer-next").onclick = () => step(1);
  byId("viewer-heat").onsubmit = why;
  byId("viewer-text").oninput = noHeat;
  byId("viewer-similar").onclick = () => {
    dialog.close(); // which gives the focus back: what comes then may take it
    like(photos[at]);
  };
  scale(byId("viewer-scale").querySelector("canvas"));
}
