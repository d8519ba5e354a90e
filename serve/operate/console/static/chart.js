// A line chart of the last ten minutes, by uPlot, in the colours of the page.
import { withUnit } from "./parts.js";

const { html, useEffect, useRef } = htmPreact;
const HEIGHT = 150;
const GAP_S = 10;
// Seconds between times on the axis. uPlot has too few: of five minutes it would show one.
// The long ones are for a machine that slept.
const STEPS_S = [1, 2, 3, 5, 8, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 480, 600, 3600, 14400, 86400];

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

function options(width, unit, lines, top) {
  const css = getComputedStyle(document.documentElement);
  const color = (name) => css.getPropertyValue(`--${name}`).trim();
  const axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  return {
    width, height: HEIGHT,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC"),
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.15, top)] } },
    axes: [
      { ...axis, space: 70, size: 28, incrs: STEPS_S, values: (_, seconds) => seconds.map((one) => new Date(one * 1e3).toISOString().slice(11, 19)) },
      { ...axis, size: 48, space: 30 },
    ],
    cursor: { drag: { x: false, y: false } },
    series: [{ label: "UTC", value: "{HH}:{mm}:{ss}" }].concat(
      lines.map(({ label, tone, dash, bold }) => ({
        label, dash, stroke: color(tone), width: bold ? 2.5 : 1.5, points: { show: false },
        value: (_, value) => withUnit(value, unit),
      })),
    ),
  };
}

// `lines` are {label, at: the place in a point, factor, tone, dash, bold}; `top` is the least range.
export function Chart({ title, unit, points, lines, top = 1 }) {
  const place = useRef(null), plot = useRef(null);
  const data = columns(points, lines.map(({ at, factor = 1 }) => [at, factor]));
  useEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(place.current.clientWidth, unit, lines, top), plot.current?.data ?? data, place.current);
    };
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const resize = new ResizeObserver(() => plot.current?.setSize({ width: place.current.clientWidth, height: HEIGHT }));
    draw();
    resize.observe(place.current);
    scheme.addEventListener("change", draw);
    return () => { resize.disconnect(); scheme.removeEventListener("change", draw); plot.current.destroy(); };
  }, []);
  useEffect(() => plot.current?.setData(data), [points]);
  const now = lines.map(({ label, at, factor = 1 }) => {
    const last = points.at(-1)?.[at];
    return `${label} ${withUnit(last == null ? null : last * factor, unit)}`;
  });
  return html`<figure><figcaption><b>${title}</b><br />now ${now.join(", ")}</figcaption>
    <div ref=${place} aria-hidden="true"></div></figure>`;
}
