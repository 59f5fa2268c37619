// The photos of the index: what the server is asked about them, and how one is shown in a gallery.

import { get, post, showPicture } from "./api.js";
import { make, percent } from "./elements.js";

const FEWEST_PIXELS = 0.62; // the narrowest and the widest shape that a gallery shows, width over height
const WIDEST = 2.2;

export const pictureOf = (photo, size) => `v1/photos/${encodeURIComponent(photo.id)}/${size}`;
export const search = (asked, options) => post("v1/search", asked, options);
export const similar = (asked, options) => post("v1/similar", asked, options);
export const map = (options) => get("v1/map", options);

/** Where in a photo a text is found: {text, score, fit, grid, square, size}. */
export const explain = async (photo, text, options) =>
  (await post("v1/explain", { id: photo.id, texts: [text] }, options)).data[0];

/** 83 → "1:23": the moment of a video. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = (n) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

export const titleOf = (photo) => (photo.moment == null ? photo.name : `${photo.name} @ ${clock(photo.moment)}`);

/** A cosine, with a minus that is one. */
export const cosine = (score) => score.toFixed(3).replace("-", "−");

/** How well a photo fits: how sure it is where that can be said, else the cosine. */
const fitOf = ({ sure, score }) => (sure == null ? `cosine ${cosine(score)}` : `${percent(sure)} sure`);

/** A picture of a photo, which keeps its shape while it loads. */
export function thumbnail(photo) {
  const image = make("img", { alt: titleOf(photo), loading: "lazy", decoding: "async", draggable: false });
  image.onerror = () => image.classList.add("missing");
  showPicture(image, pictureOf(photo, "thumbnail"));
  return image;
}

/** Photos as a list of rows that fill the width. `chosen(photo)` opens one, `like(photo)` asks for similar ones. */
export function gallery(photos, { chosen, like, className = "" }) {
  const tiles = photos.map((photo) => {
    const open = make(
      "button",
      { type: "button", className: "picture", "aria-label": titleOf(photo) },
      thumbnail(photo),
    );
    open.onclick = () => chosen(photo);
    const others = make("button", {
      type: "button",
      className: "quiet",
      textContent: "Similar",
      "aria-label": `Photos similar to ${titleOf(photo)}`,
    });
    others.onclick = () => like(photo);
    const shape = photo.width && photo.height ? photo.width / photo.height : 1;
    return make(
      "li",
      { className: "tile", "--shape": Math.min(WIDEST, Math.max(FEWEST_PIXELS, shape)) },
      open,
      make(
        "div",
        { className: "told" },
        make("span", { className: "name", textContent: titleOf(photo), title: titleOf(photo) }),
        make("span", { className: "how" }, make("span", { textContent: fitOf(photo) }), others),
        make("span", { className: "track", "aria-hidden": "true", "--part": Math.max(0, photo.sure ?? photo.score) }),
      ),
    );
  });
  const list = make("ol", { className: `gallery ${className}` }, ...tiles);
  list.addEventListener("keydown", byArrows);
  return list;
}

/** Arrow keys go from picture to picture; up and down to the nearest in the row above or below. */
function byArrows(event) {
  const pictures = [...event.currentTarget.querySelectorAll(".picture")];
  const at = pictures.indexOf(event.target);
  const moves = {
    ArrowRight: () => at + 1,
    ArrowLeft: () => at - 1,
    ArrowDown: () => vertical(pictures, at, 1),
    ArrowUp: () => vertical(pictures, at, -1),
  };
  if (at < 0 || !(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  pictures[Math.min(pictures.length - 1, Math.max(0, moves[event.key]()))].focus();
}

function vertical(pictures, at, direction) {
  const boxes = pictures.map((picture) => picture.getBoundingClientRect());
  const middle = (box) => box.left + box.width / 2;
  const beyond = boxes.map((box, i) => [i, box]).filter(([, box]) => (box.top - boxes[at].top) * direction > 5);
  beyond.sort(
    ([, a], [, b]) =>
      Math.abs(a.top - boxes[at].top) - Math.abs(b.top - boxes[at].top) ||
      Math.abs(middle(a) - middle(boxes[at])) - Math.abs(middle(b) - middle(boxes[at])),
  );
  return beyond.length ? beyond[0][0] : at;
}
