/** Bars by day, stacked by series, drawn as wide as there is room; a table with the same numbers stands beside it. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { html } from "./html.js";

const HEIGHT = 220;
const BOTTOM = 24;
const LEFT = 48;
/** @param {number} most */
const nice = (most) => { const power = 10 ** Math.floor(Math.log10(most || 1)); return [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= most) ?? 1; };

/** A bar from `bottom` up to `top`, its upper corners rounded by `r`. @param {number} x @param {number} width @param {number} bottom @param {number} top @param {number} r */
const column = (x, width, bottom, top, r) => `M${x} ${bottom - 0.5}V${top + r}q0-${r} ${r}-${r}h${width - 2 * r}q${r} 0 ${r} ${r}V${bottom - 0.5}z`;

/**
 * `values` of a series has one for each of `days`; `format` writes a value, `dayName` a day.
 * @param {{ label: string, days: string[], series: { key: string, name: string, values: number[] }[], format: (value: number) => string, dayName: (day: string) => string }} props
 */
export function BarChart({ label, days, series, format, dayName }) {
  const box = useRef(/** @type {any} */ (null));
  const width = useSignal(0);
  const over = useSignal(-1);
  useEffect(() => { const watch = new ResizeObserver(([entry]) => { width.value = entry.contentRect.width; }); watch.observe(box.current); return () => watch.disconnect(); }, []);
  const totals = days.map((_, day) => series.reduce((sum, { values }) => sum + values[day], 0));
  const top = nice(Math.max(...totals, 0));
  const slot = Math.max(0, width.value - LEFT) / days.length;
  const bar = Math.max(2, Math.min(28, slot * 0.64));
  /** @param {number} value */
  const y = (value) => (HEIGHT - BOTTOM) * (1 - value / top);
  const every = Math.ceil(days.length / Math.max(1, Math.floor(width.value / 84)));
  const shown = over.value;
  return html`<figure class="chart" ref=${box} onPointerLeave=${() => { over.value = -1; }}>
    ${width.value > 0 && html`<svg width=${width.value} height=${HEIGHT} role="img" aria-label=${label} onPointerMove=${(event) => { over.value = Math.max(-1, Math.min(days.length - 1, Math.floor((event.offsetX - LEFT) / slot))); }}>
      ${[0, 0.5, 1].map((part) => html`<g key=${part} class="grid"><line x1=${LEFT} x2=${width.value} y1=${y(top * part) + 0.5} y2=${y(top * part) + 0.5} /><text x=${LEFT - 10} y=${Math.max(10, y(top * part) + 4)} text-anchor="end">${format(top * part)}</text></g>`)}
      ${shown >= 0 && html`<rect class="column" x=${LEFT + shown * slot} y="0" width=${slot} height=${HEIGHT - BOTTOM} />`}
      ${days.map((day, index) => { let sum = 0; const x = LEFT + index * slot + (slot - bar) / 2; return html`<g key=${day}>
        ${series.map(({ key, values }, which) => { const from = sum; sum += values[index]; return values[index] > 0 && html`<path key=${key} class=${`series-${which % 6}`} d=${column(x, bar, y(from), Math.min(y(sum), y(from) - 1.5), sum === totals[index] ? Math.min(4, bar / 3) : 0)} />`; })}
        ${index % every === 0 && html`<text x=${x + bar / 2} y=${HEIGHT - 6} text-anchor="middle">${dayName(day)}</text>`}</g>`; })}</svg>`}
    ${shown >= 0 && html`<div class="chart-tip" style=${{ left: `${shown < days.length / 2 ? LEFT + (shown + 1) * slot + 8 : LEFT + shown * slot - 192}px` }}><b>${dayName(days[shown])}</b>${series.filter(({ values }) => values[shown] > 0).map(({ key, name, values }) => html`<span key=${key}><i class=${`series-${series.findIndex((one) => one.key === key) % 6}`}></i>${name}<em>${format(values[shown])}</em></span>`)}</div>`}
    <figcaption>${series.map(({ key, name }, which) => html`<span key=${key}><i class=${`series-${which % 6}`}></i>${name}</span>`)}</figcaption></figure>`;
}
