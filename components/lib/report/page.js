(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  const SVG = "http://www.w3.org/2000/svg";
  const L = 72, R = 16, T = 14, B = 44;
  const data = JSON.parse(document.getElementById("charts").textContent);

  const svg = (name, attributes, parent) => {
    const node = document.createElementNS(SVG, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (parent) parent.appendChild(node);
    return node;
  };
  const html = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const short = (v) => {
    const a = Math.abs(v);
    if (v === 0) return "0";
    if (a >= 1e5 || a < 1e-3) return v.toExponential(0).replace("e+", "e");
    return a < 1e3 ? String(+v.toPrecision(6)) : Math.round(v).toLocaleString("en");
  };
  const exact = (v) => {
    const a = Math.abs(v);
    if (v === 0) return "0";
    return a >= 1e5 || a < 1e-3 ? v.toExponential(3) : String(+v.toPrecision(5));
  };

  // Exponential moving average, corrected for its start: weight w keeps about 1 / (1 - w) points.
  const smooth = (values, w) => {
    if (w <= 0) return values;
    let mean = 0, scale = 0;
    return values.map((v) => { mean = w * mean + (1 - w) * v; scale = w * scale + (1 - w); return mean / scale; });
  };
  const ticks = (low, high, count, log) => {
    if (log) {
      const a = Math.floor(Math.log10(low)), b = Math.ceil(Math.log10(high));
      const at = [];
      for (let e = a; e <= b; e++) for (const m of b - a <= 3 ? [1, 2, 5] : [1]) {
        const v = m * 10 ** e;
        if (v >= low && v <= high) at.push(v);
      }
      if (at.length >= 2) return at;
    }
    const raw = (high - low || 1) / count, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * size).find((s) => s >= raw * 0.999);
    const at = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) at.push(i * step);
    return at;
  };
  const nearest = (at, x) => {
    let low = 0, high = at.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (at[mid] < x) low = mid; else high = mid; }
    return Math.abs(at[low] - x) <= Math.abs(at[high] - x) ? low : high;
  };

  function live(figure) {
    const chart = data[figure.dataset.chart];
    const old = figure.querySelector("svg.plot");
    if (!chart || !old || !chart.lines.some((line) => line.at.length)) return;
    const [W, H] = chart.size;
    const state = { log: chart.log, weight: 0, range: null, hidden: new Set() };
    const canvas = html("div");
    old.replaceWith(canvas);
    const tip = html("div", "tip");
    tip.hidden = true;
    figure.appendChild(tip);

    const controls = html("div", "controls");
    const logButton = html("button", "", "Log scale");
    const reset = html("button", "", "Reset zoom");
    const slider = html("input");
    Object.assign(slider, { type: "range", min: 0, max: 99, step: 1, value: 0 });
    const label = html("label", "", "Smoothing");
    const reading = html("span", "", "off");
    slider.setAttribute("aria-label", "Smoothing");
    label.append(slider, reading);
    controls.append(logButton);
    if (chart.lines.some((line) => line.style === "line")) controls.append(label);
    controls.append(reset, html("span", "hint", "Drag to zoom, double-click to reset."));
    figure.prepend(controls);
    logButton.setAttribute("aria-pressed", state.log);
    logButton.onclick = () => { state.log = !state.log; logButton.setAttribute("aria-pressed", state.log); draw(); };
    slider.oninput = () => {
      state.weight = slider.value / 100;
      reading.textContent = state.weight ? "≈ " + Math.round(1 / (1 - state.weight)) + " points" : "off";
      draw();
    };
    const unzoom = () => { state.range = null; draw(); };
    reset.onclick = unzoom;

    const legend = figure.querySelector(".legend");
    if (legend) [...legend.children].forEach((item, index) => {
      const button = html("button", item.className);
      button.append(...item.childNodes);
      button.setAttribute("aria-pressed", "true");
      button.title = "Show or hide";
      button.onclick = () => {
        if (!state.hidden.delete(index)) state.hidden.add(index);
        button.setAttribute("aria-pressed", String(!state.hidden.has(index)));
        draw();
      };
      item.replaceWith(button);
    });

    let scale = null, drawn = [];
    function draw() {
      reset.hidden = !state.range;
      const shown = chart.lines.map((line, i) => ({ ...line, i })).filter((l) => l.at.length && !state.hidden.has(l.i));
      const every = chart.lines.flatMap((l) => (l.at.length ? [l.at[0], l.at[l.at.length - 1]] : []));
      let [x0, x1] = state.range || [Math.min(...every), Math.max(...every)];
      if (x0 === x1) { x0 -= 1; x1 += 1; }
      if (!state.range) { const side = (x1 - x0) / 100; x0 -= side; x1 += side; }
      drawn = shown.map((line) => {
        const smoothed = line.style === "line" ? smooth(line.value, state.weight) : line.value;
        const inside = line.at.map((x, k) => k).filter((k) => line.at[k] >= x0 && line.at[k] <= x1);
        return { ...line, smoothed, inside };
      });
      let low = Infinity, high = -Infinity;
      for (const line of drawn) for (const k of line.inside) {
        low = Math.min(low, line.value[k]); high = Math.max(high, line.value[k]);
      }
      if (!isFinite(low)) { low = 0; high = 1; }
      const log = state.log && low > 0;
      if (log) { const r = Math.max((high / low) ** 0.06, 1.02); low /= r; high *= r; }
      else { const m = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1; low -= m; high += m; }
      const f = log ? Math.log : (v) => v;
      scale = {
        x0, x1,
        x: (v) => L + ((v - x0) / (x1 - x0)) * (W - L - R),
        y: (v) => H - B - ((f(v) - f(low)) / (f(high) - f(low))) * (H - T - B),
      };
      const plot = svg("svg", { class: "plot", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${chart.y} over ${chart.x}` });
      const id = "clip-" + figure.dataset.chart;
      const clip = svg("clipPath", { id }, svg("defs", {}, plot));
      svg("rect", { x: L - 6, y: T - 6, width: W - L - R + 12, height: H - T - B + 12 }, clip);
      for (const v of ticks(low, high, 5, log)) {
        svg("line", { class: "grid", x1: L, x2: W - R, y1: scale.y(v), y2: scale.y(v) }, plot);
        svg("text", { class: "tick", x: L - 8, y: scale.y(v) + 4, "text-anchor": "end" }, plot).textContent = short(v);
      }
      for (const v of ticks(x0, x1, W / 115)) svg("text", { class: "tick", x: scale.x(v), y: H - B + 18, "text-anchor": "middle" }, plot).textContent = short(v);
      svg("line", { class: "axis", x1: L, x2: W - R, y1: H - B, y2: H - B }, plot);
      svg("text", { class: "label", x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, plot).textContent = chart.x;
      svg("text", { class: "label", transform: `translate(14 ${(T + H - B) / 2}) rotate(-90)`, "text-anchor": "middle" }, plot).textContent = chart.y;
      const area = svg("g", { "clip-path": `url(#${id})` }, plot);
      for (const line of drawn) {
        const group = svg("g", { class: "s" + (line.colour % 8), "data-line": line.i }, area);
        const from = Math.max(0, (line.inside[0] ?? 0) - 1), to = Math.min(line.at.length, (line.inside[line.inside.length - 1] ?? -1) + 2);
        const points = (values) => {
          const out = [];
          for (let k = from; k < to; k++) out.push(scale.x(line.at[k]).toFixed(1) + "," + Math.max(-1e4, Math.min(1e4, scale.y(values[k]))).toFixed(1));
          return out.join(" ");
        };
        if (line.style === "points") {
          svg("polyline", { class: "dash", points: points(line.value) }, group);
          for (let k = from; k < to; k++) svg("circle", { cx: scale.x(line.at[k]), cy: scale.y(line.value[k]), r: 3.5 }, group);
        } else if (state.weight > 0) {
          svg("polyline", { class: "raw", points: points(line.value) }, group);
          svg("polyline", { class: "main", points: points(line.smoothed) }, group);
        } else if (line.trend) {
          svg("polyline", { class: "raw", points: points(line.value) }, group);
          const band = [];
          for (let k = from; k < to; k++) band.push(scale.x(line.at[k]).toFixed(1) + "," + scale.y(line.high[k]).toFixed(1));
          for (let k = to - 1; k >= from; k--) band.push(scale.x(line.at[k]).toFixed(1) + "," + scale.y(log ? Math.max(line.low[k], low) : line.low[k]).toFixed(1));
          svg("polygon", { class: "band", points: band.join(" ") }, group);
          svg("polyline", { class: "main", points: points(line.mean) }, group);
        } else svg("polyline", { class: "main", points: points(line.value) }, group);
      }
      if (!drawn.length) svg("text", { class: "none", x: W / 2, y: H / 2 }, plot).textContent = "every line is hidden";
      canvas.replaceChildren(plot);
      listen(plot);
    }

    function listen(plot) {
      let from = null, box = null;
      const cursor = svg("line", { class: "cursor", y1: T, y2: H - B, visibility: "hidden" }, plot);
      const marks = svg("g", {}, plot);
      const where = (event) => {
        const frame = plot.getBoundingClientRect();
        const px = ((event.clientX - frame.left) / frame.width) * W;
        return Math.max(scale.x0, Math.min(scale.x1, scale.x0 + ((px - L) / (W - L - R)) * (scale.x1 - scale.x0)));
      };
      plot.onpointermove = (event) => {
        const at = where(event);
        if (box) {
          const a = scale.x(Math.min(from, at)), b = scale.x(Math.max(from, at));
          box.setAttribute("x", a); box.setAttribute("width", Math.max(0, b - a));
        }
        hover(event, at, cursor, marks, plot);
      };
      plot.onpointerleave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); marks.replaceChildren(); };
      plot.onpointerdown = (event) => {
        if (event.button) return;
        from = where(event);
        box = svg("rect", { class: "select", y: T, height: H - T - B, x: scale.x(from), width: 0 }, plot);
        plot.setPointerCapture(event.pointerId);
        event.preventDefault();
      };
      plot.onpointerup = (event) => {
        if (!box) return;
        const to = where(event);
        box.remove(); box = null;
        if (Math.abs(scale.x(to) - scale.x(from)) > 6) { state.range = [Math.min(from, to), Math.max(from, to)]; tip.hidden = true; draw(); }
      };
      plot.ondblclick = unzoom;
    }

    function hover(event, at, cursor, marks, plot) {
      const lines = drawn.filter((line) => line.inside.length);
      if (!lines.length) return;
      // The cursor snaps to the nearest logged step of the densest line.
      const lead = lines.reduce((a, b) => (b.inside.length > a.inside.length ? b : a));
      const step = lead.at[nearest(lead.at, at)];
      cursor.setAttribute("x1", scale.x(step)); cursor.setAttribute("x2", scale.x(step));
      cursor.setAttribute("visibility", "visible");
      marks.replaceChildren();
      tip.replaceChildren(html("b", "", `${chart.x} ${step.toLocaleString("en")}`));
      for (const line of lines) {
        const k = nearest(line.at, step);
        const value = line.value[k];
        const trend = line.style === "points" ? null : state.weight > 0 ? line.smoothed[k] : line.trend ? line.mean[k] : null;
        const row = html("span", "s" + (line.colour % 8));
        const late = line.at[k] !== step ? ` (at ${line.at[k]})` : "";
        row.append(html("em", "", line.name + late), html("em", "", exact(value) + (trend === null ? "" : ` · trend ${exact(trend)}`)));
        tip.append(row);
        svg("circle", { class: "s" + (line.colour % 8), cx: scale.x(line.at[k]), cy: scale.y(trend === null ? value : trend), r: 4 }, marks);
      }
      tip.hidden = false;
      const frame = plot.getBoundingClientRect(), own = figure.getBoundingClientRect();
      const x = event.clientX - own.left, wide = tip.offsetWidth;
      tip.style.left = (x + 18 + wide > frame.width ? Math.max(0, x - wide - 18) : x + 18) + "px";
      tip.style.top = Math.max(0, event.clientY - own.top - tip.offsetHeight / 2) + "px";
    }
    draw();
  }

  function sortable(table) {
    table.querySelectorAll("th").forEach((head, column) => {
      head.dataset.sort = "";
      head.onclick = () => {
        const up = head.dataset.dir !== "up";
        table.querySelectorAll("th").forEach((other) => delete other.dataset.dir);
        head.dataset.dir = up ? "up" : "down";
        const body = table.tBodies[0];
        const key = (row) => { const c = row.cells[column]; const t = c.dataset.value ?? c.textContent.trim(); const n = Number(t); return t !== "" && !isNaN(n) ? n : t; };
        const rows = [...body.rows].sort((a, b) => {
          const p = key(a), q = key(b);
          const order = typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(String(q));
          return up ? order : -order;
        });
        body.append(...rows);
      };
    });
  }

  // Links to "#id" would leave the page where it is shown through srcdoc, so sections are buttons.
  function navigation() {
    const nav = document.querySelector("nav");
    document.querySelectorAll("section > h2").forEach((head) => {
      const button = html("button", "", head.textContent);
      button.onclick = () => head.parentElement.scrollIntoView({ behavior: "smooth" });
      nav.append(button);
    });
    const theme = html("button", "", "Light / dark");
    theme.onclick = () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    };
    nav.append(html("span", "spacer"), theme);
  }

  document.querySelectorAll("figure.chart").forEach(live);
  document.querySelectorAll("table.sortable").forEach(sortable);
  navigation();
  root.classList.add("ready");
})();
