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

  async function loaded(address) {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  }

  // Grey levels, 0 to 255, of what is drawn on a black picture.
  function levelsOf([width, height], draw) {
    const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    pen.fillRect(0, 0, width, height);
    draw(pen);
    return pen.getImageData(0, 0, width, height).data.filter((_, place) => place % 4 === 0);
  }

  // The map at the picture's pixels, 0 to 1: bilinear, the maximum where there are several grids.
  function mapOf(grids, [width, height]) {
    const levels = levelsOf([width, height], (pen) => {
      pen.globalCompositeOperation = "lighten";
      for (const { image, box: [x0, y0, x1, y1] } of grids)
        pen.drawImage(image, x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height);
    });
    return Float32Array.from(levels, (level) => level / 255);
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

  function heat(values, [width, height]) {
    const canvas = new OffscreenCanvas(width, height);
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(width, height);
    values.forEach((value, place) => pixels.data.set([...shade[Math.round(255 * value)], 255], 4 * place));
    pen.putImageData(pixels, 0, 0);
    return canvas;
  }

  // What a picture is made of, once; `then` is called when it can be drawn.
  async function ready(one, then) {
    if (one.loading) return;
    one.loading = true;
    const { view } = one;
    one.image = await loaded(view.picture);
    one.paths = {};
    for (const [name, address] of [["truth", view.target], ["own", view.own], ["ignored", view.ignored]]) {
      if (address === null) continue;
      const mask = await loaded(address);
      one.paths[name] = outline(levelsOf(view.size, (pen) => pen.drawImage(mask, 0, 0)), view.size);
    }
    one.values = [];
    for (const grids of view.grids) {
      const images = await Promise.all(grids.map(async (grid) => ({ ...grid, image: await loaded(grid.image) })));
      one.values.push(mapOf(images, view.size));
    }
    one.heats = [];
    one.drawable = true;
    then();
  }

  // The image, greyed under a map (-1 for none), and outlines of what is on: masks, truth, points.
  function paint(canvas, one, map, t, on) {
    if (!one.drawable) return;
    const mapped = map >= 0 && one.view.grids[map].length > 0;
    const [width, height] = one.view.size;
    const scale = canvas.width / width;
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(one.image, 0, 0, canvas.width, canvas.height);
    if (mapped) {
      one.heats[map] = one.heats[map] || heat(one.values[map], one.view.size);
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
      const path = name === "mask" ? outline(one.values[map].map(inside), one.view.size) : one.paths[name];
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

  return { LAYERS, ready, paint };
})();
