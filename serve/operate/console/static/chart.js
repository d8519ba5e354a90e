// A line chart over time, by uPlot, in the colours of the page. Its legend is also its table for who
// cannot see the lines: each line with its latest value, or with that below the pointer.
import { DASH, withUnit } from "./parts.js";

const { html, useEffect, useRef, useState } = htmPreact;
const HEIGHT = 150;
// While no browser looks, the console reads every 10 to 12 s. A longer break is a gap in the line.
const GAP_S = 15;
// Seconds between times on the axis. uPlot's own list has too few: of five minutes it would show one.
// The last three are for a machine that slept.
const STEPS_S = [
  1, 2, 3, 5, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 480, 600, 900, 1200, 1800, 3600, 14400, 86400,
];
const time = (seconds) => new Date(seconds * 1e3).toISOString().slice(11, 19);
// Ticks that are whole minutes apart need no seconds.
const ticks = (seconds, step) => seconds.map((one) => time(one).slice(0, step % 60 ? 8 : 5));

// Points as uPlot's columns: seconds, then the values at `places`; a gap breaks the lines.
function columns(points, places) {
  const rows = [];
  for (const point of points) {
    const at = point[0] / 1000, before = rows.at(-1);
    if (before && at - before[0] > GAP_S) rows.push([at - 1, ...places.map(() => null)]);
    rows.push([at, ...places.map(([place, factor]) => (point[place] == null ? null : point[place] * factor))]);
  }
  return [0, ...places].map((_, i) => rows.map((row) => row[i]));
}

function options(width, lines, top, onPointer) {
  const css = getComputedStyle(document.documentElement);
  const color = (name) => css.getPropertyValue(`--${name}`).trim();
  const axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  return {
    width, height: HEIGHT,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.15, top)] } },
    axes: [
      { ...axis, space: 70, size: 28, incrs: STEPS_S, values: (_, seconds, __, ___, step) => ticks(seconds, step) },
      { ...axis, size: 48, space: 30 },
    ],
    legend: { show: false },
    cursor: { drag: { x: false, y: false } },
    hooks: { setCursor: [(plot) => onPointer(plot.cursor.idx ?? null)] },
    series: [{}].concat(
      lines.map(({ tone, dash, bold }) => ({
        dash, stroke: color(tone), width: bold ? 2.5 : 1.5, points: { show: false },
      })),
    ),
  };
}

// `lines` are {label, at: the place in a point, factor, tone, dash, bold}; `top` is the least range.
export function Chart({ title, unit, points, lines, top = 1 }) {
  const place = useRef(null), plot = useRef(null);
  const [pointed, setPointed] = useState(null);
  const data = columns(points, lines.map(({ at, factor = 1 }) => [at, factor]));
  useEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      const given = options(place.current.clientWidth, lines, top, setPointed);
      plot.current = new uPlot(given, plot.current?.data ?? data, place.current);
    };
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const resize = new ResizeObserver(() => plot.current?.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    draw();
    resize.observe(place.current);
    scheme.addEventListener("change", draw);
    return () => { resize.disconnect(); scheme.removeEventListener("change", draw); plot.current.destroy(); };
  }, []);
  useEffect(() => plot.current?.setData(data), [points]);
  const [times, ...values] = data;
  const at = pointed ?? times.length - 1;
  return html`<figure><figcaption><b>${title}</b> ${pointed == null ? "now" : `at ${times[at] == null ? DASH : time(times[at])}`}
    <ul class="legend">${lines.map(({ label, tone, dash }, i) => html`<li>
      <i class=${dash ? "dashed" : ""} style=${{ color: `var(--${tone})` }}></i>${label} <b>${withUnit(values[i][at], unit)}</b></li>`)}</ul></figcaption>
    <div ref=${place} aria-hidden="true"></div></figure>`;
}
