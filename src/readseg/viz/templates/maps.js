"use strict";
// One state; what it decides is made anew when it changes. Texts of the data become text nodes, never markup.
(() => {
  const { LAYERS, ready, paint } = pictures;
  const data = JSON.parse(document.getElementById("data").textContent);
  const STEPS = 100;
  const UNION_EPSILON = 1e-5;
  const ROWS = 100;
  const CARDS = 24;
  const $ = (id) => document.getElementById(id);

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "text") made.textContent = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  function draw(tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  }

  const number = (value) => (value === null || Number.isNaN(value) ? "-" : value.toFixed(3));
  const step = (k) => (k / STEPS).toFixed(2);

  // -- what the data hold ---------------------------------------------------------------------------------------------

  const iou = (I, U) => (U ? I / (U + UNION_EPSILON) : 1);

  const cases = data.cases.map((one, index) => ({
    ...one,
    index,
    text: `${one.question}\n${one.answer}\n${one.key}`.toLowerCase(),
  }));

  // Of the masks at every threshold: gIoU, cIoU; and the mean over units of the IoU at each one's own best threshold.
  function scoresOf(units, map) {
    const giou = new Float64Array(STEPS + 1);
    const inter = new Float64Array(STEPS + 1);
    const union = new Float64Array(STEPS + 1);
    let best = 0;
    let count = 0;
    for (const { curves } of units) {
      const { I, U } = curves[map];
      let top = -1;
      let at = 0;
      for (let k = 0; k <= STEPS; k++) {
        giou[k] += iou(I[k], U[k]);
        inter[k] += I[k];
        union[k] += U[k];
        const plain = U[k] ? I[k] / U[k] : 1;
        if (plain > top) [top, at] = [plain, k];
      }
      best += iou(I[at], U[at]);
      count += 1;
    }
    return {
      count,
      giou: giou.map((sum) => sum / count),
      ciou: inter.map((sum, k) => (count ? (union[k] ? sum / union[k] : 0) : NaN)),
      best: best / count,
    };
  }

  // -- state ----------------------------------------------------------------------------------------------------------

  const state = { sorted: null, up: true, page: 0, cards: CARDS, map: data.maps.length ? 0 : -1, t: data.maps.map(() => STEPS / 2) };
  let found = []; // what the filter lets through, in the order of the table
  const mapped = [...data.maps.keys()];

  // -- scores at a threshold ------------------------------------------------------------------------------------------

  const blocks = new Map(); // by map: what its slider moves

  function slider(map) {
    const label = data.maps[map].name;
    const input = make("input", { type: "range", min: 0, max: 1, step: 0.01, "data-map": map, "aria-label": `${label}, t` });
    const output = make("output", { "data-t": map });
    input.addEventListener("input", () => setThreshold(map, Math.round(input.valueAsNumber * STEPS)));
    const made = make("label", { class: "slider" }, make("span", { text: `${label} t` }), input, output);
    input.value = state.t[map] / STEPS;
    output.value = step(state.t[map]);
    return made;
  }

  function setThreshold(map, k) {
    state.t[map] = k;
    for (const input of document.querySelectorAll(`input[data-map="${map}"]`)) input.value = k / STEPS;
    for (const output of document.querySelectorAll(`output[data-t="${map}"]`)) output.value = step(k);
    slid(map);
    repaint();
  }

  const X = (k) => 34 + (k / STEPS) * 290;
  const Y = (value) => 150 - value * 140;

  function chart(scores, name) {
    const made = draw("svg", { viewBox: "0 0 340 182", role: "img", "aria-label": `gIoU and cIoU by threshold, ${name}` });
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      made.append(draw("line", { class: "grid", x1: X(0), x2: X(STEPS), y1: Y(value), y2: Y(value) }));
      made.append(draw("text", { x: 29, y: Y(value) + 3, "text-anchor": "end" }, value.toFixed(2)));
      made.append(draw("text", { x: X(value * STEPS), y: 163, "text-anchor": "middle" }, value.toFixed(2)));
    }
    made.append(draw("text", { x: X(STEPS / 2), y: 178, "text-anchor": "middle" }, "threshold t"));
    if (!scores.count) return { made };
    made.append(draw("line", { class: "bound", x1: X(0), x2: X(STEPS), y1: Y(scores.best), y2: Y(scores.best) }));
    for (const name of ["giou", "ciou"]) {
      const points = Array.from(scores[name], (value, k) => `${X(k).toFixed(1)},${Y(value).toFixed(1)}`).join(" ");
      made.append(draw("polyline", { class: name, points }));
    }
    const line = draw("line", { class: "at", y1: Y(0), y2: Y(1) });
    const dots = ["giou", "ciou"].map((name) => draw("circle", { class: name, r: 3.5 }));
    made.append(line, ...dots);
    return { made, line, dots };
  }

  function measured() {
    for (const map of mapped) {
      const { name, heading } = data.maps[map];
      const all = scoresOf(cases, map);
      const single = all.giou.indexOf(Math.max(...all.giou));
      const drawn = chart(all, name);
      const row = (label, id) =>
        make(
          "tr",
          { "data-units": id },
          make("th", { scope: "row", text: label }),
          ...["count", "giou", "ciou"].map((key) => make("td", { "data-score": key })),
        );
      const rows = [row("all", "all"), row("filtered", "found")];
      const head = ["units", "n", "gIoU", "cIoU"].map((text) => make("th", { scope: "col", text }));
      const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
      const told = all.count
        ? `Best t of each unit: gIoU ${number(all.best)}. Best single t: gIoU ${number(all.giou[single])} at ${step(single)}. ` +
          "Both are bounds."
        : "No units.";
      const key = make(
        "p",
        { class: "key" },
        make("span", { class: "giou", text: "gIoU" }),
        make("span", { class: "ciou", text: "cIoU" }),
        make("span", { class: "bound", text: "gIoU, best t of each unit" }),
      );
      const block = make("section", { class: "map", "data-block": map }, make("h3", { text: heading }), slider(map), table);
      block.append(drawn.made, key, make("p", { class: "notes", text: told }));
      $("maps").append(block);
      blocks.set(map, { ...drawn, rows, all, found: all });
    }
  }

  function slid(map) {
    const { rows, all, found: some, line, dots } = blocks.get(map);
    const k = state.t[map];
    [all, some].forEach((scores, place) => {
      const values = [String(scores.count), number(scores.giou[k]), number(scores.ciou[k])];
      [...rows[place].querySelectorAll("td")].forEach((cell, column) => (cell.textContent = values[column]));
    });
    rows[1].hidden = some === all;
    if (!line) return;
    line.setAttribute("x1", X(k));
    line.setAttribute("x2", X(k));
    dots.forEach((dot, place) => {
      dot.setAttribute("cx", X(k));
      dot.setAttribute("cy", Y((place ? all.ciou : all.giou)[k]));
    });
  }

  // -- table ----------------------------------------------------------------------------------------------------------

  const lost = (value) => value === null || value === "";
  const words = (name) => ({ name, heading: name, value: (one) => one[name].toLowerCase(), fill: (one) => one[name] });
  const flagged = { name: "flags", heading: "flags", value: (one) => one.flags.join(), fill: chips };
  const columns = [
    { ...words("question"), fill: asked },
    words("answer"),
    ...["kind", "section"].filter((name) => cases.some((one) => one[name])).map(words),
    ...(cases.some((one) => one.flags.length) ? [flagged] : []),
    ...data.columns.map(({ name, heading }, place) => {
      const value = (one) => one.numbers[place];
      return { name, heading, value, numeric: true, fill: (one) => number(value(one)) };
    }),
  ];

  function asked(one) {
    const key = make("small", { text: one.key });
    const text = one.question || "(no text)";
    if (!one.view) return make("span", {}, text, key);
    return make("button", { type: "button", class: "link", onclick: () => look(one) }, text, key);
  }

  function chips(one) {
    return make("span", {}, ...one.flags.map((text) => make("span", { class: "chip", text })));
  }

  function sortBy(column) {
    [state.up, state.sorted] = [state.sorted === column ? !state.up : true, column];
    state.page = 0;
    chosen();
  }

  function heads() {
    for (const column of columns) {
      const button = make("button", { type: "button", onclick: () => sortBy(column) }, column.heading);
      button.append(make("span", { class: "arrow", "aria-hidden": "true" }));
      $("head").append(make("th", { scope: "col", class: column.numeric ? "" : "words", "data-column": column.name }, button));
    }
  }

  function inOrder(a, b) {
    const [x, y] = [state.sorted.value(a), state.sorted.value(b)];
    if (lost(x) || lost(y)) return lost(x) - lost(y);
    const sign = (x > y) - (x < y);
    return state.up ? sign : -sign;
  }

  function rows() {
    columns.forEach((column, place) => {
      const head = $("head").children[place];
      if (column === state.sorted) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const start = state.page * ROWS;
    const part = found.slice(start, start + ROWS);
    const cell = (one, { numeric, fill }) => make("td", { class: numeric ? "" : "words" }, fill(one));
    $("rows").replaceChildren(...part.map((one) => make("tr", {}, ...columns.map((column) => cell(one, column)))));
    $("place").textContent = part.length ? `${start + 1} to ${start + part.length} of ${found.length}` : "none";
    $("back").disabled = !start;
    $("forth").disabled = start + ROWS >= found.length;
  }

  function turn(by) {
    state.page += by;
    rows();
    $("table").scrollTop = 0;
  }

  // -- filter ---------------------------------------------------------------------------------------------------------

  const NONE = "\u0000"; // no text of the data holds it

  function choices(id, values, none) {
    const options = [...new Set(values)].sort().map((value) => make("option", { value, text: value || "(none)" }));
    const extra = none ? [make("option", { value: NONE, text: none })] : [];
    $(id).replaceChildren(make("option", { value: "any", text: "any" }), ...options, ...extra);
    // An option may itself be called "any": the first one is asked for by its place.
    $(id).closest("label").hidden = options.length + extra.length < 2;
  }

  const picked = (id) => ($(id).selectedIndex > 0 ? $(id).value : null);

  function chosen() {
    const text = $("text").value.trim().toLowerCase();
    const [kind, section, flag] = ["kind", "section", "flag"].map(picked);
    found = cases.filter(
      (one) =>
        one.text.includes(text) &&
        (one.view || !$("seen").checked) &&
        (kind === null || one.kind === kind) &&
        (section === null || one.section === section) &&
        (flag === null || (flag === NONE ? !one.flags.length : one.flags.includes(flag))),
    );
    for (const map of mapped) {
      const block = blocks.get(map);
      block.found = found.length === cases.length ? block.all : scoresOf(found, map);
      slid(map);
    }
    if (state.sorted) found.sort(inOrder);
    $("count").textContent = `${found.length} of ${cases.length} units`;
    rows();
    gallery();
  }

  // -- gallery --------------------------------------------------------------------------------------------------------

  const painted = new Map(); // by canvas: how to paint it
  const visible = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target);
    repaint();
  });
  let waiting = false;

  function repaint() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const canvas of visible) painted.get(canvas)?.();
    });
  }

  const layersOn = () => Object.fromEntries(LAYERS.map(({ name }) => [name, $(`layer-${name}`).checked]));

  function picture(one, times, map, on, tell) {
    ready(one, repaint);
    const [width, height] = one.view.size;
    const canvas = make("canvas", { width: times * width, height: times * height, role: "img" });
    painted.set(canvas, () => {
      paint(canvas, one, map(), state.t[map()] / STEPS, on());
      tell?.();
    });
    watch.observe(canvas);
    return canvas;
  }

  function forget(parent) {
    for (const canvas of parent.querySelectorAll("canvas")) {
      watch.unobserve(canvas);
      visible.delete(canvas);
      painted.delete(canvas);
    }
    parent.replaceChildren();
  }

  function summary(one) {
    const [first] = data.columns;
    const parts = first ? [`${first.heading}: ${number(one.numbers[0])}`] : [];
    for (const map of mapped) {
      const { I, U } = one.curves[map];
      parts.push(`${data.maps[map].name} \u2265 ${step(state.t[map])}: ${number(iou(I[state.t[map]], U[state.t[map]]))}`);
    }
    return parts.join(" · ");
  }

  function card(one) {
    const told = make("p", { class: "scores" });
    const canvas = picture(one, 2, () => state.map, layersOn, () => (told.textContent = summary(one)));
    canvas.setAttribute("aria-hidden", "true");
    const button = make("button", { type: "button", class: "look", "aria-label": `Look closer: ${one.question}` }, canvas);
    button.addEventListener("click", () => look(one));
    return make(
      "article",
      {},
      button,
      told,
      make("p", { class: "question", text: one.question }),
      make("p", { class: "answer", text: one.answer }),
      make("p", { class: "place" }, chips(one), ` ${one.key}`),
    );
  }

  function gallery() {
    const pictured = found.filter((one) => one.view);
    forget($("cards"));
    $("cards").append(...pictured.slice(0, state.cards).map(card));
    $("more").hidden = pictured.length <= state.cards;
    $("pictured").textContent =
      `${pictured.length} of these ${found.length} units have a picture, in the order of the table. Maps and masks are ` +
      "drawn from small copies; the scores beside them are exact.";
  }

  function toolbar() {
    const radio = (map, label) => {
      const input = make("input", { type: "radio", name: "map", value: map, checked: map === state.map });
      input.addEventListener("change", () => {
        state.map = map;
        slideOne();
        repaint();
      });
      return make("label", {}, input, label);
    };
    $("shown").append(...mapped.map((map) => radio(map, data.maps[map].name)), radio(-1, "none"));
    slideOne();
  }

  function slideOne() {
    $("slide").replaceChildren(...(state.map >= 0 ? [slider(state.map)] : []));
  }

  function layers() {
    for (const { name, label, on } of LAYERS) {
      const input = make("input", { type: "checkbox", id: `layer-${name}`, checked: on, onchange: repaint });
      $("layers").append(make("label", { class: `layer ${name}` }, input, make("i", { "aria-hidden": "true" }), label));
    }
  }

  // -- one unit -------------------------------------------------------------------------------------------------------

  let looked = null;

  function look(one) {
    looked = one;
    const there = found.filter((other) => other.view);
    const place = there.indexOf(one);
    $("look-back").disabled = place <= 0;
    $("look-forth").disabled = place < 0 || place + 1 >= there.length;
    $("look-place").textContent = `${place + 1} of ${there.length}`;
    $("look-title").textContent = one.question;
    $("look-answer").replaceChildren(one.answer, " ", chips(one), make("small", { text: one.key }));
    forget($("look-pictures"));
    const all = { mask: true, truth: true, own: true };
    const figure = (map, heading, on) => {
      const drawn = map < 0 || one.view.grids[map].length > 0;
      const caption = drawn ? heading : `${heading}: there is none`;
      const canvas = picture(one, 4, () => map, on);
      canvas.setAttribute("aria-label", caption);
      return make("figure", {}, canvas, make("figcaption", {}, caption, ...(drawn && map >= 0 ? [slider(map)] : [])));
    };
    $("look-pictures").append(
      figure(-1, "own mask and truth", () => ({ ...all, points: $("layer-points").checked })),
      ...mapped.map((map) => figure(map, data.maps[map].heading, () => ({ ...all, own: false }))),
    );
    const numbers = columns.filter(({ numeric, value }) => numeric && !lost(value(one)));
    $("look-numbers").replaceChildren(
      ...numbers.map(({ heading, fill }) => make("div", {}, make("dt", { text: heading }), make("dd", { text: fill(one) }))),
    );
    if (!$("look").open) $("look").showModal();
  }

  function leaf(by) {
    const there = found.filter((one) => one.view);
    const other = there[there.indexOf(looked) + by];
    if (other) look(other);
  }

  // -- start ----------------------------------------------------------------------------------------------------------

  function refiltered() {
    state.page = 0;
    state.cards = CARDS;
    chosen();
  }

  choices("kind", cases.map((one) => one.kind));
  choices("section", cases.map((one) => one.section));
  choices("flag", cases.flatMap((one) => one.flags), cases.some((one) => one.flags.length) ? "without" : "");
  for (const id of ["text", "kind", "section", "flag", "seen"]) $(id).addEventListener("input", refiltered);
  for (const id of ["filter", "show"]) $(id).addEventListener("submit", (event) => event.preventDefault());
  $("filter").addEventListener("reset", () => setTimeout(refiltered));
  $("back").addEventListener("click", () => turn(-1));
  $("forth").addEventListener("click", () => turn(1));
  $("more").addEventListener("click", () => {
    state.cards += CARDS;
    gallery();
  });
  $("look-back").addEventListener("click", () => leaf(-1));
  $("look-forth").addEventListener("click", () => leaf(1));
  $("look-close").addEventListener("click", () => $("look").close());
  $("look").addEventListener("close", () => forget($("look-pictures")));
  document.addEventListener("keydown", (event) => {
    if (!$("look").open || event.target.matches("input")) return;
    if (event.key === "ArrowLeft") leaf(-1);
    if (event.key === "ArrowRight") leaf(1);
  });
  heads();
  layers();
  measured();
  toolbar();
  chosen();
  $("app").hidden = false;
})();
