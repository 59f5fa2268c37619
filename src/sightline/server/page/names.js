// Names of clusters on the map: each near its cluster, over no other name and as little as can be of what is drawn.

const HEIGHT = 24;
const STEPS = [0, -1.1, 1.1, -2.2, 2.2, -3.3, 3.3]; // of a name's height up and down, the nearest first
const ASIDE = [0, -0.55, 0.55, -1.1, 1.1]; // of its width to the left and right
const FAR = 0.01; // a pixel farther away is as bad as so much of its own area over something
const REACH = 250; // pixels from its place beyond which a name does not come

/**
 * Draws the names. `names` are {name, x, y, colour}, the most important first, with x and y in pixels; `drawn` are the
 * boxes {left, top, width, height} of what is there already. A name for which there is no room is left out.
 */
export function drawNames(context, names, drawn, { ink, card, edge, width, height }) {
  Object.assign(context, { font: "600 13px system-ui, sans-serif", textAlign: "left", textBaseline: "middle" });
  const placed = [];
  for (const { name, x, y, colour } of names) {
    if (x < 0 || y < 0 || x > width || y > height) continue;
    const size = { width: context.measureText(name).width + 32, height: HEIGHT };
    const box = bestPlace(x, y, size, placed, near(drawn, x, y), { width, height });
    if (!box) continue;
    placed.push(box);
    drawName(context, name, box, { ink, card, edge, colour });
  }
}

function bestPlace(x, y, size, placed, drawn, room) {
  let [best, least] = [null, Infinity];
  for (const step of STEPS) {
    for (const aside of ASIDE) {
      const [across, down] = [aside * size.width, step * HEIGHT];
      const left = clamp(x - size.width / 2 + across, 4, room.width - size.width - 4);
      const top = clamp(y - HEIGHT / 2 + down, 4, room.height - HEIGHT - 4);
      const box = { left, top, ...size };
      if (placed.some((other) => shared(box, other))) continue;
      const covered = drawn.reduce((sum, other) => sum + shared(box, other), 0) / (size.width * HEIGHT);
      const cost = covered + FAR * Math.hypot(across, down);
      if (cost < least) [best, least] = [box, cost];
    }
  }
  return best;
}

const near = (drawn, x, y) =>
  drawn.filter(({ left, top }) => Math.abs(left - x) < REACH && Math.abs(top - y) < REACH);
const clamp = (at, low, high) => Math.max(low, Math.min(high, at));

/** The area that two boxes share. */
function shared(a, b) {
  const across = Math.min(a.left + a.width, b.left + b.width) - Math.max(a.left, b.left);
  const down = Math.min(a.top + a.height, b.top + b.height) - Math.max(a.top, b.top);
  return Math.max(0, across) * Math.max(0, down);
}

/** A name on a plate of its own, with the colour of its cluster. */
function drawName(context, name, { left, top, width, height }, { ink, card, edge, colour }) {
  context.beginPath();
  context.roundRect(left, top, width, height, height / 2);
  Object.assign(context, { fillStyle: card, strokeStyle: edge, lineWidth: 1 });
  context.fill();
  context.stroke();
  context.beginPath();
  context.arc(left + 13, top + height / 2, 4, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
  context.fillStyle = ink;
  context.fillText(name, left + 22, top + height / 2 + 1);
}
