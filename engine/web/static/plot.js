// The charting library: loaded once, late, from this very server; and figures that have the page's colours and a
// height that never changes. Not here: what is drawn.

const SOURCE = "/static/plotly.min.js";

/** @type {Promise<any> | null} */
let loading = null;

/** @type {Set<() => void>} */
const redraws = new Set();

/** Plotly, after the page has been painted and has nothing else to do. */
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const begin = () => {
      const script = document.createElement("script");
      script.src = SOURCE;
      script.addEventListener("load", () => resolve(/** @type {any} */ (window).Plotly));
      script.addEventListener("error", () => {
        loading = null;
        script.remove();
        reject(new Error("The charting library cannot be loaded."));
      });
      document.head.append(script);
    };
    requestAnimationFrame(() => ("requestIdleCallback" in window ? requestIdleCallback(begin, { timeout: 2000 }) : setTimeout(begin, 50)));
  });
  return loading;
}

/** @param {() => void} redraw called when the theme changes, for as long as the page lives */
export function onTheme(redraw) {
  redraws.add(redraw);
}

export function themeChanged() {
  for (const redraw of redraws) redraw();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);

/** What a colour of the style sheet is in the theme that is on. */
function colours() {
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const read = (/** @type {string} */ name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const found = {
    ink: read("ink"),
    soft: read("ink-soft"),
    line: read("line"),
    surface: read("surface"),
    series: [1, 2, 3, 4, 5, 6].map((n) => read(`chart-${n}`)),
  };
  probe.remove();
  return found;
}

/** A figure in a box of constant height. */
export class Figure {
  /** @param {HTMLElement} box */
  constructor(box) {
    this.box = box;
    this.drawn = false;
    /** @type {{traces: any[], options: {x: string, suffix: string, bars: boolean}} | null} */
    this.last = null;
    new ResizeObserver(() => this.fit()).observe(box);
    onTheme(() => this.last !== null && this.isSeen() && this.draw(this.last.traces, this.last.options));
  }

  isSeen() {
    return !document.hidden && this.box.offsetParent !== null;
  }

  fit() {
    if (this.drawn && this.isSeen()) void plotly().then((it) => it.Plots.resize(this.box));
  }

  /**
   * @param {any[]} traces each {x, y, name}
   * @param {{x: string, suffix: string, bars: boolean}} options the kind of the x axis (date, linear, category)
   */
  async draw(traces, options) {
    this.last = { traces, options };
    const it = await plotly();
    if (!this.isSeen() || this.last.traces !== traces) return;
    const found = colours();
    const styled = traces.map((trace, at) => {
      const colour = found.series[at % found.series.length];
      return options.bars
        ? { type: "bar", marker: { color: colour }, ...trace }
        : { type: "scatter", mode: trace.x.length === 1 ? "markers" : "lines", line: { color: colour, width: 1.5 }, ...trace };
    });
    if (!this.drawn) this.box.replaceChildren();
    this.drawn = true;
    await it.react(this.box, styled, layout(found, options, traces.length > 1, this.box.clientWidth < 400), { displayModeBar: false, responsive: false });
  }
}

/**
 * @param {ReturnType<typeof colours>} found
 * @param {{x: string, suffix: string, bars: boolean}} options
 * @param {boolean} legend
 * @param {boolean} narrow
 */
function layout(found, options, legend, narrow) {
  const axis = {
    gridcolor: found.line, linecolor: found.line, zerolinecolor: found.line, tickcolor: found.line,
    tickfont: { size: 11, color: found.soft }, automargin: false, fixedrange: true,
  };
  return {
    autosize: true,
    margin: { l: 52, r: 10, t: legend ? 22 : 8, b: 24 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: found.ink },
    hovermode: "x unified",
    hoverlabel: { bgcolor: found.surface, bordercolor: found.line, font: { color: found.ink, size: 11 } },
    showlegend: legend,
    legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { size: 11, color: found.soft }, itemclick: false, itemdoubleclick: false },
    xaxis: { ...axis, type: options.x, nticks: narrow ? 4 : 6, tickangle: options.x === "category" ? "auto" : 0, showgrid: false },
    yaxis: { ...axis, rangemode: "tozero", nticks: 5, ticksuffix: options.suffix, separatethousands: true, exponentformat: "SI", minexponent: 6 },
    barmode: "group",
  };
}
