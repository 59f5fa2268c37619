// Points on a canvas that can be moved and zoomed, by mouse, touch and keyboard. Few in view are drawn as photos.

import { drawNames } from "./names.js";

const NEAR = 14; // pixels from a point that count as on it
const MANY = 5000; // points, of which each is a square, and names may lie over them: else drawing would take too long
const PICTURES = 80; // as many photos are drawn at most
const MARGIN = 0.14; // of the canvas around the whole map
const STRETCH = 1.5; // as much wider than high, or higher than wide, a map is drawn to fill its canvas
const [LEAST, MOST] = [0.8, 400]; // zoom

export class Plane {
  /**
   * Points {x, y, cluster} from -1 to 1 and clusters {name, x, y}. `hovered(point, x, y)` and `chosen(point)` are told
   * of; `colours()` gives {clusters, ink, card, edge}; `picture(point, image)` loads its picture into an image.
   */
  constructor(canvas, { points, clusters }, { hovered, chosen, colours, picture }) {
    Object.assign(this, { canvas, points, clusters, hovered, chosen, colours, picture, only: null });
    this.context = canvas.getContext("2d");
    this.pictures = new Map();
    this.fingers = new Map();
    this.view = { zoom: 1, x: 0, y: 0 }; // the middle, and how near
    canvas.onpointerdown = (event) => this.#down(event);
    canvas.onpointermove = (event) => this.#moved(event);
    canvas.onpointerup = canvas.onpointercancel = (event) => this.#up(event);
    canvas.onpointerleave = () => this.hovered(null);
    canvas.ondblclick = (event) => this.zoom(2, this.#place(event));
    canvas.onkeydown = (event) => this.#key(event);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(() => this.fit()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Makes the canvas as fine as the screen. */
  fit() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width) return;
    this.ratio = devicePixelRatio || 1;
    Object.assign(this, { width: box.width, height: box.height });
    this.canvas.width = Math.round(box.width * this.ratio);
    this.canvas.height = Math.round(box.height * this.ratio);
    this.draw();
  }

  whole() {
    this.view = { zoom: 1, x: 0, y: 0 };
    this.draw();
  }

  /** Nearer or farther by a factor, around a place on the canvas that stays where it is. */
  zoom(factor, [x, y] = [this.width / 2, this.height / 2]) {
    const before = this.#toMap(x, y);
    this.view.zoom = Math.max(LEAST, Math.min(MOST, this.view.zoom * factor));
    const after = this.#toMap(x, y);
    this.view.x += before[0] - after[0];
    this.view.y += before[1] - after[1];
    this.draw();
  }

  /** Draws at the next frame, once however often it is called. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#paint();
    });
  }

  /** Pixels for 1 of the map, to the right and down. */
  get #scales() {
    const least = Math.min(this.width, this.height) * STRETCH;
    return [this.width, this.height].map((side) => (Math.min(side, least) * (1 - MARGIN) * this.view.zoom) / 2);
  }

  #toScreen({ x, y }) {
    const [across, down] = this.#scales;
    return [this.width / 2 + (x - this.view.x) * across, this.height / 2 - (y - this.view.y) * down];
  }

  #toMap(x, y) {
    const [across, down] = this.#scales;
    return [this.view.x + (x - this.width / 2) / across, this.view.y - (y - this.height / 2) / down];
  }

  #paint() {
    const { context, width, height } = this;
    if (!width) return;
    const colours = this.colours();
    const shown = this.points
      .map((point) => [point, ...this.#toScreen(point)])
      .filter(([, x, y]) => x > -40 && y > -40 && x < width + 40 && y < height + 40);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const size = Math.max(2, Math.min(7, (104 / Math.sqrt(this.points.length)) * Math.sqrt(this.view.zoom)));
    const arePictures = shown.length <= PICTURES;
    this.side = arePictures ? Math.max(34, Math.min(76, this.width / 11)) : 0; // of a picture, in pixels
    const boxes = [];
    for (const [point, x, y] of shown) {
      context.globalAlpha = this.only === null || this.only === point.cluster ? 1 : 0.15;
      const colour = colours.clusters[point.cluster % colours.clusters.length];
      const photo = arePictures && this.#picture(point, x, y, colour);
      boxes.push(photo || { left: x - size, top: y - size, width: 2 * size, height: 2 * size });
      if (!photo) this.#dot(x, y, size, colour, colours.card);
    }
    context.globalAlpha = 1;
    drawNames(context, this.#names(colours), boxes.length > MANY ? [] : boxes, { ...colours, width, height });
  }

  #dot(x, y, size, colour, edge) {
    const { context } = this;
    if (this.points.length > MANY) {
      context.fillStyle = colour;
      return context.fillRect(x - size / 2, y - size / 2, size, size);
    }
    context.beginPath();
    context.arc(x, y, size, 0, 2 * Math.PI);
    Object.assign(context, { fillStyle: colour, strokeStyle: edge, lineWidth: 1 });
    context.fill();
    context.stroke();
  }

  /** Draws the photo itself, in the frame of its cluster, and gives its box; null while it is not loaded. */
  #picture(point, x, y, colour) {
    let image = this.pictures.get(point.id);
    if (!image) {
      image = new Image();
      image.onload = () => this.draw();
      this.picture(point, image);
      this.pictures.set(point.id, image);
    }
    if (!image.complete || !image.naturalWidth) return null;
    const scale = this.side / Math.max(image.naturalWidth, image.naturalHeight);
    const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
    const box = { left: x - w / 2 - 2, top: y - h / 2 - 2, width: w + 4, height: h + 4 };
    this.context.fillStyle = colour;
    this.context.fillRect(box.left, box.top, box.width, box.height);
    this.context.drawImage(image, x - w / 2, y - h / 2, w, h);
    return box;
  }

  /** What stands on the map of the clusters that are not faded, the largest first. */
  #names(colours) {
    const named = this.clusters.map(({ name, x, y }, i) => {
      const [left, top] = this.#toScreen({ x, y });
      return { name, x: left, y: top, colour: colours.clusters[i % colours.clusters.length] };
    });
    return named.filter((_, i) => this.only === null || this.only === i);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** The point at a place, the nearest one within reach. */
  #at([x, y]) {
    let [best, least] = [null, Math.max(NEAR, this.side / 2)];
    for (const point of this.points) {
      const [left, top] = this.#toScreen(point);
      const distance = Math.hypot(left - x, top - y);
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, this.#place(event));
    this.travelled = this.fingers.size > 1 ? Infinity : 0; // two fingers choose nothing
  }

  #moved(event) {
    const place = this.#place(event);
    const before = this.fingers.get(event.pointerId);
    if (!before) {
      const point = this.#at(place);
      this.canvas.classList.toggle("pointing", Boolean(point));
      return this.hovered(point, ...place);
    }
    const [middle, spread] = this.#grip();
    this.fingers.set(event.pointerId, place);
    const [newMiddle, newSpread] = this.#grip();
    this.travelled += Math.hypot(place[0] - before[0], place[1] - before[1]);
    const [across, down] = this.#scales;
    this.view.x -= (newMiddle[0] - middle[0]) / across;
    this.view.y += (newMiddle[1] - middle[1]) / down;
    this.hovered(null);
    if (spread && newSpread) this.zoom(newSpread / spread, newMiddle);
    else this.draw();
  }

  #up(event) {
    if (!this.fingers.delete(event.pointerId)) return;
    const point = event.type === "pointerup" && this.travelled < 6 ? this.#at(this.#place(event)) : null;
    if (point) this.chosen(point);
  }

  /** The middle of the fingers, and how far they are apart. */
  #grip() {
    const places = [...this.fingers.values()];
    const middle = [0, 1].map((i) => places.reduce((sum, place) => sum + place[i], 0) / places.length);
    return [middle, places.length > 1 ? Math.hypot(places[0][0] - places[1][0], places[0][1] - places[1][1]) : 0];
  }

  #wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) * 0.006), this.#place(event));
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [across, down] = this.#scales.map((scale) => 60 / scale);
    const moves = { ArrowLeft: [-across, 0], ArrowRight: [across, 0], ArrowUp: [0, down], ArrowDown: [0, -down] };
    if (event.key in moves) {
      this.view.x += moves[event.key][0];
      this.view.y += moves[event.key][1];
      this.draw();
    } else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "0") this.whole();
    else return;
    event.preventDefault();
  }
}
