"use strict";
// Feeds the curves of the page to uPlot, and connects the controls. Without it the tables still work.
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const NUM_COLORS = 8;
  const FEW_POINTS = 60; // drawn as points, never smoothed
  const settings = { axis: "step", logx: false, logy: false, branches: false, raw: true, smoothing: 0, hidden: new Set() };
  let data = JSON.parse(one("#data").textContent);
  let decoded = new Map();
  let view = null; // [first, last] of the x axis while zoomed
  let isDrawn = false;

  // ---- numbers ----
  const digits = options => new Intl.NumberFormat("en", options);
  const [compact, whole, precise] = [
    digits({ notation: "compact", maximumSignificantDigits: 4 }), digits({ maximumFractionDigits: 0 }), digits({ maximumSignificantDigits: 5 }),
  ];
  const isTiny = value => value !== 0 && Math.abs(value) < 1e-3;
  const tick = value => value == null ? "" : isTiny(value) ? Number(value.toPrecision(3)).toExponential()
    : Math.abs(value) >= 1e4 ? compact.format(value) : precise.format(value);
  const show = value => value == null ? "-" : isTiny(value) ? value.toExponential(3)
    : Math.abs(value) >= 1e4 ? whole.format(value) : precise.format(value);

  // ---- curves ----
  function decode(text, Kind) {
    if (text === undefined) return new Kind(0);
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return new Kind(bytes.buffer);
  }
  function once(key, make) {
    if (!decoded.has(key)) decoded.set(key, make());
    return decoded.get(key);
  }
  const curveOf = (run, metric) => once(`${run} ${metric}`, () => {
    const curve = data.runs[run].curves[metric];
    return curve && {
      x: decode(curve.x, Uint32Array), y: decode(curve.y, Float32Array),
      mx: decode(curve.mx, Float32Array), my: decode(curve.my, Float32Array),
    };
  });
  const axesOf = run => once(`${run}`, () => {
    const axes = data.runs[run].axes, floats = name => decode(axes[name], Float64Array);
    return { steps: decode(axes.steps, Uint32Array), tokens: floats("tokens"), clock: floats("clock"), running: floats("running") };
  });
  const isTime = () => settings.axis === "clock" || settings.axis === "running";
  function unit() { // of the x axis: its name, and its length in hours
    if (!isTime()) return [settings.axis === "step" ? "step" : "tokens", 1];
    const longest = Math.max(0, ...data.runs.map((_, run) => axesOf(run)[settings.axis].at(-1) || 0));
    return longest > 3 ? ["hours", 1] : longest > 0.1 ? ["minutes", 1 / 60] : ["seconds", 1 / 3600];
  }
  function along(run, steps) { // x of ascending steps, linear between the known rows
    const shift = shiftOf(run);
    if (settings.axis === "step") return Array.from(steps, step => step + shift);
    const { steps: known, [settings.axis]: values } = axesOf(run), [, length] = unit();
    let i = 0;
    return Array.from(steps, step => {
      while (i < known.length - 2 && known[i + 1] < step) i++;
      const width = known[i + 1] - known[i];
      const x = width > 0 ? values[i] + (values[i + 1] - values[i]) * (step - known[i]) / width : values[i];
      return x / length + shift;
    });
  }
  function shiftOf(run) {
    const origin = data.runs[run].origin;
    return settings.branches && origin ? along(origin.run, [origin.step])[0] : 0;
  }
  function smoothed(steps, values, scale) { // moving average, exponential in steps, without a bias at the start
    let sum = 0, weight = 0, before = steps[0];
    return Array.from(values, (value, i) => {
      const keep = Math.exp(-(i ? steps[i] - before : (steps[1] - steps[0]) || 1) / scale);
      before = steps[i];
      sum = keep * sum + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return sum / weight;
    });
  }
  const smoothings = () => {
    const longest = Math.max(1, ...data.runs.map((_, run) => axesOf(run).steps.at(-1) || 1)), found = [0];
    for (let i = 0; ; i++) {
      const scale = [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3);
      if (scale > longest / 5) return found;
      if (scale > longest / 2000) found.push(scale);
    }
  };

  // ---- the x axis ----
  const position = x => settings.logx ? Math.log(x) : x;
  const valueAt = place => settings.logx ? Math.exp(place) : place;
  const shownRuns = () => data.runs.map((_, run) => run).filter(run => !settings.hidden.has(run));
  function extent() {
    const ends = shownRuns().filter(run => axesOf(run).steps.length).flatMap(run => {
      const { steps } = axesOf(run), xs = along(run, steps).filter(x => Number.isFinite(x) && (!settings.logx || x > 0));
      return xs.length ? [xs[0], xs.at(-1)] : [];
    });
    const [first, last] = ends.length ? [Math.min(...ends), Math.max(...ends)] : [settings.logx ? 1 : 0, 10];
    return first < last ? [first, last] : [first / 2, first * 2 || 1];
  }
  let full = null;
  const range = () => view ?? full;
  function zoomTo(first, last) {
    const [low, high] = full.map(position), [a, b] = [position(first), position(last)];
    const width = Math.min(b - a, high - low), start = Math.min(Math.max(a, low), high - width);
    if (!(width > (high - low) / 1e6)) return;
    view = width >= (high - low) * 0.9999 ? null : [valueAt(start), valueAt(start + width)];
    applyView();
  }
  function zoom(how, center) {
    const [a, b] = range().map(position), width = b - a, middle = center === undefined ? (a + b) / 2 : position(center);
    const part = (middle - a) / width;
    const [start, size] = {
      in: [middle - part * width / 2, width / 2], out: [middle - part * width * 2, width * 2],
      left: [a - width / 4, width], right: [a + width / 4, width], reset: full && [position(full[0]), position(full[1]) - position(full[0])],
    }[how];
    zoomTo(valueAt(start), valueAt(start + size));
  }
  function applyView() {
    const [first, last] = range(), [name] = unit();
    one("#shown").textContent = view ? `Zoomed: ${name} ${show(first)} to ${show(last)}.` : "";
    for (const chart of charts) chart.plot?.setScale("x", { min: first, max: last });
  }

  // ---- drawing ----
  const probe = document.body.appendChild(Object.assign(document.createElement("i"), { hidden: true }));
  function color(name) {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }
  const runColor = run => color(`c${run % NUM_COLORS}`);
  const dash = run => run < NUM_COLORS ? [] : [8, 4];

  function tables(metric) { // [tables for uPlot.join, options of their series], the unsmoothed below all others
    const found = [[], []], isNoisy = data.charts.find(chart => chart.metric === metric).is_noisy;
    for (const run of shownRuns()) {
      const curve = curveOf(run, metric);
      if (!curve) continue;
      const main = { label: data.runs[run].label, run, stroke: runColor(run), dash: dash(run), width: 1.75, last: curve.y.at(-1) };
      main.value = (plot, y) => show(plot.cursor.idx == null ? main.last : y);
      const points = curve.x.length <= FEW_POINTS ? { show: true, size: 6, fill: main.stroke } : { show: false };
      if (settings.smoothing && isNoisy && curve.x.length > FEW_POINTS) {
        const thinned = curve.mx.length > 0, steps = thinned ? curve.mx : curve.x;
        const means = smoothed(steps, thinned ? curve.my : curve.y, settings.smoothing);
        main.last = means.at(-1);
        add({ ...main, points }, steps, means);
        if (settings.raw) add({ ...main, class: "raw", alpha: 0.22, width: 1, dash: [], points }, curve.x, curve.y, true);
      } else add({ ...main, points }, curve.x, curve.y);
      function add(series, steps, values, isBelow = false) {
        const x = along(run, steps), y = Array.from(values, value => settings.logy && !(value > 0) ? null : value);
        const keep = x.map((at, i) => Number.isFinite(at) && (!settings.logx || at > 0) && (i === 0 || at > x[i - 1]));
        const how = isBelow ? "unshift" : "push";
        found[0][how]([x.filter((_, i) => keep[i]), y.filter((_, i) => keep[i])]);
        found[1][how](series);
      }
    }
    return found;
  }
  function drawMarks(plot) { // restarts and rollbacks
    const { ctx, bbox } = plot;
    ctx.save();
    for (const run of shownRuns()) {
      ctx.strokeStyle = runColor(run);
      ctx.globalAlpha = 0.75;
      ctx.lineWidth = devicePixelRatio;
      along(run, data.runs[run].marks.map(([step]) => step)).forEach((x, i) => {
        const left = Math.round(plot.valToPos(x, "x", true));
        if (!(left >= bbox.left && left <= bbox.left + bbox.width)) return;
        ctx.setLineDash((data.runs[run].marks[i][1] === "rollback" ? [1, 3] : [6, 4]).map(length => length * devicePixelRatio));
        ctx.beginPath();
        ctx.moveTo(left, bbox.top);
        ctx.lineTo(left, bbox.top + bbox.height);
        ctx.stroke();
      });
    }
    ctx.restore();
  }
  function options(width, series, isLog) {
    const axis = { stroke: color("muted"), grid: { stroke: color("grid"), width: 1 }, ticks: { stroke: color("line"), width: 1, size: 5 }, font: "12px system-ui, sans-serif" };
    const [name] = unit();
    return {
      width, height: 250,
      scales: { x: { time: false, distr: settings.logx ? 3 : 1, range }, y: { distr: isLog ? 3 : 1 } },
      axes: [
        { ...axis, values: (_, at) => at.map(tick), label: name, labelSize: 20, labelGap: 0, labelFont: axis.font, size: 32, space: 60 },
        { ...axis, values: (_, at) => at.map(tick), size: 58 },
      ],
      series: [{ label: name, value: (_, x) => x == null ? "last" : show(x) }, ...series],
      legend: { markers: { width: 0, fill: (plot, i) => plot.series[i].stroke?.() ?? "none" } },
      cursor: { drag: { x: true, y: false, setScale: false }, sync: { key: "x", filters: { pub: type => type === "mousemove" || type === "mouseleave" } }, bind: { dblclick: () => () => zoom("reset") } },
      hooks: {
        draw: [drawMarks, () => { if (!isDrawn) performance.mark("first-curve"); isDrawn = true; }],
        setSelect: [plot => {
          const { left, width } = plot.select;
          if (width < 3) return;
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          zoomTo(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
        }],
      },
    };
  }
  function draw(chart) {
    const place = one(".plot", chart.figure), width = Math.floor(place.clientWidth);
    if (width < 10) return;
    const [found, series] = tables(chart.metric);
    chart.plot?.destroy();
    chart.plot = null;
    chart.stale = false;
    place.classList.toggle("empty", !found.length);
    if (!found.length) return;
    const isLog = settings.logy && found.some(([, y]) => y.some(value => value > 0));
    chart.plot = new uPlot(options(width, series, isLog), uPlot.join(found), place);
    const last = series.filter(({ class: kind }) => kind !== "raw").map(({ label, last }) => `${label} ${show(last)}`);
    chart.figure.setAttribute("aria-description", `Last values: ${last.join("; ")}`);
  }
  const charts = all(".chart").map(figure => ({ figure, metric: figure.dataset.metric, plot: null, stale: true, isNear: false }));
  function redraw() {
    full = extent();
    const scales = smoothings();
    one("#smoothing").max = scales.length - 1;
    one("#smoothed").textContent = settings.smoothing ? `${whole.format(settings.smoothing)} steps` : "off";
    for (const chart of charts) {
      chart.stale = true;
      if (chart.isNear) draw(chart);
    }
    applyView();
  }

  // ---- controls ----
  function connect() {
    const near = new IntersectionObserver(entries => {
      for (const { target, isIntersecting } of entries) {
        const chart = charts.find(({ figure }) => figure === target);
        chart.isNear = isIntersecting;
        if (isIntersecting && chart.stale) draw(chart);
      }
    }, { rootMargin: "400px" });
    const size = new ResizeObserver(entries => {
      for (const { target, contentRect } of entries) {
        const { plot } = charts.find(({ figure }) => figure === target.parentElement);
        const width = Math.floor(contentRect.width);
        if (plot && width > 10 && width !== plot.width) plot.setSize({ width, height: plot.height });
      }
    });
    for (const { figure } of charts) {
      near.observe(figure);
      size.observe(one(".plot", figure));
      figure.addEventListener("keydown", pressed);
    }
    for (const name of ["axis", "logx", "logy", "raw", "branches"]) {
      one(`#${name}`)?.addEventListener("change", ({ target }) => {
        settings[name] = target.type === "checkbox" ? target.checked : target.value;
        if (name !== "logy" && name !== "raw") view = null;
        redraw();
      });
    }
    one("#smoothing").addEventListener("input", ({ target }) => {
      settings.smoothing = smoothings()[Number(target.value)];
      redraw();
    });
    for (const box of all("[data-run]")) {
      box.addEventListener("change", () => {
        settings.hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
        redraw();
      });
    }
    for (const button of all("[data-zoom]")) button.addEventListener("click", () => zoom(button.dataset.zoom));
    addEventListener("beforeprint", () => print(true));
    addEventListener("afterprint", () => print(false));
  }
  function pressed(event) {
    const chart = charts.find(({ figure }) => figure === event.currentTarget), { plot } = chart;
    if (!plot || event.target !== chart.figure || event.ctrlKey || event.altKey || event.metaKey) return;
    const { clientWidth, clientHeight } = plot.over, at = plot.cursor.left >= 0 ? plot.cursor.left : clientWidth / 2;
    const center = plot.cursor.left >= 0 ? plot.posToVal(at, "x") : undefined;
    const side = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (side && event.shiftKey) zoom(side < 0 ? "left" : "right");
    else if (side) plot.setCursor({ left: Math.min(Math.max(at + side * Math.max(1, clientWidth / 100), 0), clientWidth - 1), top: clientHeight / 2 });
    else if (event.key === "+" || event.key === "=") zoom("in", center);
    else if (event.key === "-") zoom("out", center);
    else if (event.key === "0" || event.key === "Escape") zoom("reset");
    else return;
    event.preventDefault();
  }
  function theme(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    if (charts.length) redraw();
  }
  let printing = false;
  function print(begins) { // on white paper, with every chart of an open section
    printing = begins;
    const chosen = one("#theme").value;
    if (begins) for (const chart of charts) chart.isNear = true;
    theme(begins ? "light" : chosen);
    if (begins) for (const { plot } of charts) plot?.setSize({ width: 330, height: 220 });
  }
  one("#theme").addEventListener("change", ({ target }) => theme(target.value));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (!printing) theme(one("#theme").value);
  });

  // ---- a served page ----
  let version = null;
  async function refresh() {
    const answer = await fetch("/", { cache: "no-cache" });
    if (!answer.ok) throw new Error(answer.statusText);
    const newer = answer.headers.get("ETag"), text = await answer.text();
    if (newer === version) return;
    const next = new DOMParser().parseFromString(text, "text/html");
    const metrics = page => all(".chart, [data-run]", page).map(({ dataset }) => dataset.metric ?? dataset.run).join("\n");
    if (metrics(next) !== metrics(document)) return location.reload();
    for (const section of all("[data-live]")) {
      const open = all("details", section).map(each => each.open), renewed = one(`#${section.id}`, next);
      section.innerHTML = renewed.innerHTML;
      all("details", section).forEach((each, i) => { each.open = open[i] ?? each.open; });
    }
    one("#written").textContent = one("#written", next).textContent;
    version = newer;
    data = JSON.parse(one("#data", next).textContent);
    decoded = new Map();
    if (charts.length) redraw();
  }
  async function keepFresh() {
    let problem = "";
    try {
      await refresh();
    } catch {
      problem = "; the server cannot be reached, trying again";
    }
    one("#liveness").textContent = problem;
    setTimeout(keepFresh, 1000 * data.refresh_s);
  }

  if (charts.length) {
    const scales = smoothings(), longest = Math.max(1, ...data.runs.map((_, run) => axesOf(run).steps.at(-1) || 1));
    const usual = scales.findLastIndex(scale => scale <= longest / 50);
    connect();
    one("#smoothing").max = scales.length - 1;
    one("#smoothing").value = usual;
    settings.smoothing = scales[usual];
    redraw();
  }
  if (data.refresh_s) setTimeout(keepFresh, 1000 * data.refresh_s);
})();
