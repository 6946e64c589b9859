"use strict";
// Pictures of a unit: its image, a map on it, outlines of masks. Lengths are pixels of the small picture; a map, its
// grids interpolated, is 0 to 1.
const pictures = (() => {
  // Viridis at equal distances; colours of Okabe and Ito for what is drawn on top of it.
  const VIRIDIS = ["440154", "482878", "3e4a89", "31688e", "26838f", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
  const LAYERS = [
    { name: "mask", label: "mask at t", colour: "#ffffff", dash: [], on: true },
    { name: "own", label: "own mask", colour: "#56b4e9", dash: [], on: true },
    { name: "truth", label: "truth", colour: "#e69f00", dash: [5, 3], on: true },
    { name: "points", label: "points", on: false },
  ];
  const POINTS = { 1: "#0072b2", 0: "#d55e00", [-1]: "#787878" };

  const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  function unpacked(text) {
    const values = [];
    let value = 0;
    let unit = 1;
    for (const byte of bytesOf(text)) {
      value += (byte & 127) * unit;
      if (byte & 128) {
        unit *= 128;
      } else {
        values.push(value);
        value = 0;
        unit = 1;
      }
    }
    return values;
  }

  // Where the pixels of one side lie between cells: the lower cell, -1 outside of the box, and the way to the next.
  function between(pixels, low, high, cells) {
    const cell = new Int32Array(pixels).fill(-1);
    const way = new Float32Array(pixels);
    for (let i = 0; i < pixels; i++) {
      const centre = (i + 0.5) / pixels;
      if (centre < low || centre >= high) continue;
      const u = Math.min(Math.max(((centre - low) * cells) / (high - low) - 0.5, 0), cells - 1);
      cell[i] = Math.min(Math.floor(u), Math.max(0, cells - 2));
      way[i] = u - cell[i];
    }
    return { cell, way };
  }

  // The map at the picture's pixels, 0 to 1: bilinear, the maximum where there are several grids.
  function valuesOf(one, map) {
    if (one.values[map]) return one.values[map];
    const [width, height] = one.view.size;
    const values = new Float32Array(width * height);
    for (const { hw: [h, w], box: [x0, y0, x1, y1], levels } of one.view.grids[map]) {
      const grid = bytesOf(levels);
      const across = between(width, x0, x1, w);
      const down = between(height, y0, y1, h);
      for (let y = 0; y < height; y++) {
        if (down.cell[y] < 0) continue;
        const upper = down.cell[y] * w;
        const lower = upper + (h > 1 ? w : 0);
        for (let x = 0; x < width; x++) {
          const left = across.cell[x];
          if (left < 0) continue;
          const right = left + (w > 1 ? 1 : 0);
          const a = grid[upper + left] + (grid[upper + right] - grid[upper + left]) * across.way[x];
          const b = grid[lower + left] + (grid[lower + right] - grid[lower + left]) * across.way[x];
          const value = (a + (b - a) * down.way[y]) / 255;
          if (value > values[y * width + x]) values[y * width + x] = value;
        }
      }
    }
    one.values[map] = values;
    return values;
  }

  function maskOf(text, [width, height]) {
    const mask = new Uint8Array(width * height);
    let place = 0;
    unpacked(text).forEach((run, k) => {
      if (k % 2) mask.fill(1, place, place + run);
      place += run;
    });
    return mask;
  }

  // The mask's edge as closed lines through the middles of its pixels' sides.
  function outline(mask, [width, height]) {
    const next = new Map();
    const on = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x];
    const edge = (x, y, toX, toY) => {
      const from = y * (width + 1) + x;
      const ends = next.get(from);
      if (ends) ends.push(toY * (width + 1) + toX);
      else next.set(from, [toY * (width + 1) + toX]);
    };
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        if (!mask[y * width + x]) continue;
        if (!on(x, y - 1)) edge(x, y, x + 1, y);
        if (!on(x + 1, y)) edge(x + 1, y, x + 1, y + 1);
        if (!on(x, y + 1)) edge(x + 1, y + 1, x, y + 1);
        if (!on(x - 1, y)) edge(x, y + 1, x, y);
      }
    }
    const path = new Path2D();
    const place = (corner) => [corner % (width + 1), Math.floor(corner / (width + 1))];
    const middle = (a, b) => {
      const [[x, y], [toX, toY]] = [place(a), place(b)];
      return [(x + toX) / 2, (y + toY) / 2];
    };
    for (const [start, ends] of next) {
      while (ends.length) {
        let [from, to] = [start, ends.pop()];
        path.moveTo(...middle(from, to));
        while (to !== start) {
          [from, to] = [to, next.get(to).pop()];
          path.lineTo(...middle(from, to));
        }
        path.closePath();
      }
    }
    return path;
  }

  const shade = Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const part = (colour, k) => parseInt(VIRIDIS[colour].slice(2 * k, 2 * k + 2), 16);
    return [0, 1, 2].map((k) => Math.round(part(low, k) + (part(low + 1, k) - part(low, k)) * (place - low)));
  });

  function heat(one, map) {
    const [width, height] = one.view.size;
    const canvas = new OffscreenCanvas(width, height);
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(width, height);
    valuesOf(one, map).forEach((value, place) => {
      pixels.data.set(shade[Math.round(255 * value)], 4 * place);
      pixels.data[4 * place + 3] = 255;
    });
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  // What a picture is made of, once; `then` is called when the image can be drawn.
  function ready(one, then) {
    if (one.image) return;
    one.values = [];
    one.heats = [];
    one.image = new Image();
    one.image.src = one.view.picture;
    one.image.decode().then(then);
    one.paths = {};
    for (const [name, key] of [["truth", "target"], ["own", "own"], ["ignored", "ignored"]]) {
      if (one.view[key] !== null) one.paths[name] = outline(maskOf(one.view[key], one.view.size), one.view.size);
    }
  }

  // The image, greyed under a map (-1 for none), and outlines of what is on: masks, truth, points.
  function paint(canvas, one, map, t, on) {
    if (!one.image.complete) return;
    const mapped = map >= 0 && one.view.grids[map].length > 0;
    const [width, height] = one.view.size;
    const scale = canvas.width / width;
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(one.image, 0, 0, canvas.width, canvas.height);
    if (mapped) {
      one.heats[map] = one.heats[map] || heat(one, map);
      pen.globalCompositeOperation = "saturation";
      pen.fillStyle = "#808080";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.globalCompositeOperation = "source-over";
      pen.globalAlpha = 0.6;
      pen.drawImage(one.heats[map], 0, 0, canvas.width, canvas.height);
      pen.globalAlpha = 1;
    }
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    const thin = width / 240;
    if (on.truth && one.paths.ignored) {
      pen.fillStyle = "rgb(128 128 128 / 60%)";
      pen.fill(one.paths.ignored, "evenodd");
    }
    for (const { name, colour, dash } of LAYERS.slice(0, 3)) {
      if (!on[name] || (name === "mask" && !mapped)) continue;
      const inside = (value) => value >= t;
      const path = name === "mask" ? outline(valuesOf(one, map).map(inside), one.view.size) : one.paths[name];
      if (name === "own" && !mapped) {
        pen.fillStyle = `${colour}55`;
        pen.fill(path, "evenodd");
      }
      // A dark rim shows on any colour; what lies beneath shows between dashes.
      pen.lineJoin = "round";
      pen.setLineDash(dash.map((length) => length * thin));
      for (const [style, lines] of [["rgb(0 0 0 / 75%)", 3], [colour, 1.6]]) {
        pen.strokeStyle = style;
        pen.lineWidth = lines * thin;
        pen.stroke(path);
      }
      pen.setLineDash([]);
    }
    if (on.points) dots(pen, one.view, 2 * thin);
  }

  function cross(path, x, y, r) {
    for (const side of [1, -1]) {
      path.moveTo(x - r, y - side * r);
      path.lineTo(x + r, y + side * r);
    }
  }

  // Points as everywhere in the package: discs are positive, crosses negative, squares neutral; positive ones on top.
  function dots(pen, { points, size: [width, height] }, r) {
    for (const [x, y, label] of [...points].sort((a, b) => a[2] - b[2])) {
      const [cx, cy] = [x * width, y * height];
      const path = new Path2D();
      if (label === 1) path.arc(cx, cy, r, 0, 2 * Math.PI);
      else if (label === -1) path.rect(cx - r, cy - r, 2 * r, 2 * r);
      else cross(path, cx, cy, r);
      pen.strokeStyle = "#fff";
      pen.lineWidth = label ? 0.7 * r : 1.3 * r;
      pen.stroke(path);
      pen.fillStyle = pen.strokeStyle = POINTS[label];
      pen.lineWidth = 0.7 * r;
      if (label) pen.fill(path);
      else pen.stroke(path);
    }
  }

  return { LAYERS, unpacked, ready, paint };
})();
