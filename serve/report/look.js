// Plots and sortable tables of a report. The page is readable without it: plots repeat tables.
"use strict";

const THEME = {
  background: "transparent",
  font: "system-ui, sans-serif",
  aria: false,
  view: { stroke: null },
  axis: {
    labelColor: "var(--muted)", titleColor: "var(--muted)", domainColor: "var(--line)",
    tickColor: "var(--line)", gridColor: "var(--line)", gridOpacity: 0.6, labelFontSize: 12,
    titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8, labelLimit: 220, labelOverlap: true,
    labelSeparation: 8,
  },
  axisX: { grid: false, labelAngle: 0, labelFlush: false },
};

// One colour for one thing on every page; other names take those of OTHERS in turn.
const COLOURS = {
  model: "model", popular: "popular", baseline: "baseline", "the baseline": "baseline",
  lightgbm: "lightgbm", "current model": "other",
};
const OTHERS = ["text", "other", "muted", "lightgbm"];
const colour = (name) => `var(--${name})`;
const DASHES = [6, 4];

// The rows of all series, one object a value: s(eries), x, y, l(ow), h(igh), n(ote).
function rowsOf(series) {
  const columns = { x: "x", y: "y", l: "low", h: "high", n: "notes" };
  return series.flatMap((one) =>
    one.x.map((_, i) => {
      const row = { s: one.name };
      for (const [short, name] of Object.entries(columns)) if (one[name]) row[short] = one[name][i];
      return row;
    }));
}

// `isFixed`: no limit has a value on this axis.
function channel(name, given, series, isFixed) {
  const common = { field: name, title: given.title || null };
  const values = series.flatMap((one) => one[name]);
  if (typeof values[0] === "string") {
    const categories = [...new Set(values)];
    const axis = { grid: false, labelOverlap: name === "x" };
    return { ...common, type: "nominal", sort: categories, scale: { domain: categories }, axis };
  }
  const scale = given.log ? { type: "log", nice: false } : { zero: given.zero };
  // One value has no extent, and so one tick.
  const ends = series.flatMap((one) => [...one[name], ...(one.low ?? []), ...(one.high ?? [])]);
  const [known] = new Set(ends.filter((value) => value !== null));
  if (isFixed && known !== undefined && ends.every((value) => value === known || value === null)) {
    scale.domain = given.log ? [known / 2, 2 * known] : given.zero ? [Math.min(known, 0), Math.max(known, 0) || 1] : [known - 1, known + 1];
  }
  const ticks = { format: given.format };
  if (given.whole) ticks.tickMinStep = 1;
  // Plots below each other align.
  Object.assign(ticks, name === "y" ? { minExtent: 44 } : { tickCount: { expr: "ceil(width / 80)" } });
  return { ...common, type: "quantitative", scale, axis: ticks };
}

const only = (...series) => [{ filter: { field: "s", oneOf: series.map((one) => one.name) } }];

const bySeries = (series) => ({
  field: "s", type: "nominal", legend: null,
  scale: { domain: series.map((one) => one.name), range: series.map((one) => colour(one.colour)) },
});

// The layers of one series: its interval first, below its line or points.
function layersOf(one, axes, along) {
  const layers = [];
  const paint = { color: colour(one.colour) };
  const step = one.kind === "step" ? { interpolate: "step-after" } : {};
  if (one.low) {
    const bar = one.kind === "points" || one.kind === "bars";
    const mark = bar ? { type: "rule", strokeWidth: 2 } : { type: "area", opacity: 0.22, ...step };
    const ends = { [along]: { ...axes[along], field: "l" }, [`${along}2`]: { field: "h" } };
    layers.push({ transform: only(one), mark: { ...mark, ...paint }, encoding: { ...axes, ...ends } });
  }
  if (one.kind === "line" || one.kind === "step") {
    const dash = one.dashed ? { strokeDash: DASHES } : {};
    const mark = { type: "line", strokeWidth: 2, ...paint, ...step, ...dash };
    layers.push({ transform: only(one), mark, encoding: axes });
  } else if (one.kind === "points") {
    const mark = { type: "point", filled: !one.dashed, size: 60, opacity: 1, ...paint };
    layers.push({ transform: only(one), mark, encoding: axes });
  }
  return layers;
}

// One layer of all series of bars, side by side where there are several.
function barsOf(series, axes, across) {
  const encoding = { ...axes, color: bySeries(series) };
  const names = series.map((one) => one.name);
  if (names.length > 1) encoding[`${across}Offset`] = { field: "s", sort: names, scale: { domain: names } };
  return { transform: only(...series), mark: { type: "bar", opacity: 0.85 }, encoding };
}

function limitOf(limit) {
  const color = colour(limit.colour);
  const line = { type: "rule", color, strokeDash: [2, 3], strokeWidth: 1.5 };
  // Above the plot, where no other line crosses them.
  const left = { align: "left", baseline: "bottom", dy: -3 };
  const words = { type: "text", text: limit.name, color: "var(--muted)", fontSize: 12, ...left };
  const top = { x: { datum: limit.x }, y: { value: 0 } };
  let layers;
  if (limit.until !== null) {
    const span = { x: { datum: limit.x }, x2: { datum: limit.until } };
    const shade = { type: "rect", color, opacity: 0.12 };
    layers = [{ mark: shade, encoding: span }, { mark: words, encoding: top }];
  } else if (limit.x !== null) {
    layers = [{ mark: line, encoding: { x: top.x } }, { mark: words, encoding: top }];
  } else {
    const y = { datum: limit.y };
    const above = { ...words, align: "right" };
    layers = [{ mark: line, encoding: { y } }, { mark: above, encoding: { y, x: { value: "width" } } }];
  }
  return { data: { values: [{}] }, layer: limit.name ? layers : layers.slice(0, 1) };
}

// Marks the point nearest to the pointer and shows its values.
function hoverOf(series, given, axes, along) {
  const tips = [{ field: "s", title: "title" }];
  for (const name of ["x", "y"]) {
    const format = axes[name].type === "quantitative" ? { format: given[name].format } : {};
    if (axes[name].type === "quantitative" || given[name].title) {
      tips.push({ field: name, title: given[name].title || name, ...format });
    }
  }
  const transform = only(...series);
  if (series.some((one) => one.low)) {
    const [low, high] = ["l", "h"].map((end) => `format(datum.${end}, '${given[along].format}')`);
    transform.push({ calculate: `isValid(datum.l) ? ${low} + ' to ' + ${high} : '–'`, as: "i" });
    tips.push({ field: "i", title: "interval" });
  }
  if (series.some((one) => one.notes)) tips.push({ field: "n", title: "note" });
  const shown = { condition: { param: "hover", empty: false, value: 1 }, value: 0 };
  const select = { type: "point", on: "pointerover", clear: "pointerout", nearest: true };
  return {
    transform,
    params: [{ name: "hover", select }],
    mark: { type: "point", filled: true, size: 90 },
    encoding: { ...axes, color: bySeries(series), opacity: shown, tooltip: tips },
  };
}

function specOf(given) {
  const { series, limits } = given;
  const isFixed = (name) => limits.every((limit) => limit[name] === null);
  const [x, y] = ["x", "y"].map((name) => channel(name, given[name], series, isFixed(name)));
  const axes = { x, y };
  // Intervals lie along the axis of numbers.
  const [along, across] = axes.y.type === "nominal" ? ["x", "y"] : ["y", "x"];
  const bars = series.filter((one) => one.kind === "bars");
  const layer = limits.filter((limit) => limit.until !== null).map(limitOf);
  if (bars.length) layer.push(barsOf(bars, axes, across));
  for (const one of series) layer.push(...layersOf(one, axes, along));
  layer.push(...limits.filter((limit) => limit.until === null).map(limitOf));
  const pointed = series.filter((one) => one.kind !== "band");
  if (pointed.length) layer.push(hoverOf(pointed, given, axes, along));
  return {
    width: "container", height: given.height, autosize: { type: "fit-x", contains: "padding" },
    data: { values: rowsOf(series) }, layer,
  };
}

// The latest value of a line over time, in the words of its axis; others have none.
function latest(one, { x, y }) {
  if (!x.is_time || !["line", "step"].includes(one.kind)) return "";
  const value = one.y.findLast((each) => each !== null);
  return value === undefined ? "" : ` ${vega.defaultLocale().format(y.format)(value)}`;
}

function legendOf(given) {
  const { series } = given;
  const list = document.createElement("ul");
  list.className = "legend";
  for (const one of series) {
    const key = document.createElement("i");
    key.className = one.dashed ? `${one.kind} dashed` : one.kind;
    if (one.low && ["line", "step"].includes(one.kind)) key.classList.add("ranged");
    key.style.color = colour(one.colour);
    const item = document.createElement("li");
    item.append(key, one.name);
    const value = document.createElement("b");
    value.textContent = latest(one, given);
    item.append(value);
    list.append(item);
  }
  return list;
}

for (const place of document.querySelectorAll(".plot")) {
  const given = JSON.parse(place.querySelector("script").textContent);
  const { series } = given;
  let others = 0;
  for (const one of series) {
    one.colour ??= COLOURS[one.name.toLowerCase()] ?? OTHERS[others++ % OTHERS.length];
  }
  // Rows that are named on the axis need no legend, and one line only for its latest value.
  if ((series.length > 1 || latest(series[0], given)) && !series.every((one) => one.y.every((row) => row === one.name))) {
    place.before(legendOf(given));
  }
  // The label of the place describes the plot; its numbers are in the page's tables.
  const inside = document.createElement("div");
  inside.setAttribute("aria-hidden", "true");
  place.replaceChildren(inside);
  vegaEmbed(inside, specOf(given), {
    actions: false, renderer: "svg", config: THEME, tooltip: { theme: "page" },
  });
}

// A plot inside a closed list has no width until the list opens.
for (const list of document.querySelectorAll("details")) {
  list.addEventListener("toggle", () => dispatchEvent(new Event("resize")));
}
addEventListener("beforeprint", () => {
  for (const list of document.querySelectorAll("details")) list.open = true;
});

// The first number of a cell; a cell without one comes last in either direction.
function numberOf(text) {
  const found = text.replaceAll(",", "").replaceAll("−", "-").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : null;
}

function sort(table, head) {
  const column = head.cellIndex;
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const numeric = head.classList.contains("number");
  const rows = [...table.tBodies[0].rows].map((row) => {
    const text = row.cells[column].textContent;
    return { row, key: numeric ? numberOf(text) : text };
  });
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
    const order = numeric ? a.key - b.key : a.key.localeCompare(b.key, "en", { numeric: true });
    return ascending ? order : -order;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  table.tBodies[0].append(...rows.map((one) => one.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.querySelectorAll("th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}
