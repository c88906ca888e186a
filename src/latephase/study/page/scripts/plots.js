// One panel of a figure, drawn by uPlot from the data that the page carries.
const SHAPES = { // corners, turn in degrees, and how far in every second corner lies
  o: [32, 0, 1], s: [4, 45, 1], D: [4, 0, 1], "^": [3, -90, 1], v: [3, 90, 1], p: [5, -90, 1],
  P: [8, 0, 0.45], X: [8, 45, 0.45],
};
const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

function colourOf(name) {
  return getComputedStyle(root).getPropertyValue(name).trim();
}
function inkOf(key) {
  return key.inks[isDark() ? 1 : 0];
}
function numberText(value) {
  if (value === null) return "";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(+value.toPrecision(4));
}
function valueText(value, axis) {
  if (value === null) return "–";
  const tick = axis.ticks && axis.ticks.find((each) => Math.abs(each[0] - value) < 0.45);
  if (tick && Number.isInteger(tick[0])) return tick[1];
  return axis.percent ? `${(100 * value).toFixed(2)}%` : numberText(value);
}

// Marks have places in x of their own; uPlot takes one column of them for all.
function aligned(marks) {
  const rows = new Map();
  const places = marks.map((mark) => {
    const seen = new Map();
    const order = mark.x.map((_, i) => i).filter((i) => mark.x[i] !== null).sort((a, b) => mark.x[a] - mark.x[b] || a - b);
    return order.map((i) => {
      const count = seen.get(mark.x[i]) || 0;
      seen.set(mark.x[i], count + 1);
      const name = `${mark.x[i]} ${count}`;
      if (!rows.has(name)) rows.set(name, [mark.x[i], count]);
      return [name, i];
    });
  });
  const names = [...rows.keys()].sort((a, b) => rows.get(a)[0] - rows.get(b)[0] || rows.get(a)[1] - rows.get(b)[1]);
  const at = new Map(names.map((name, place) => [name, place]));
  const column = (mark, number, values) => {
    const found = new Array(names.length); // undefined where this mark has no point, null where it has a gap
    for (const [name, i] of places[number]) found[at.get(name)] = values[i];
    return found;
  };
  const far = (value, sign) => (value === null ? sign * 1e300 : value);
  const columns = [names.map((name) => rows.get(name)[0])];
  marks.forEach((mark, number) => {
    columns.push(column(mark, number, mark.y));
    if (mark.low && !mark.across) {
      columns.push(column(mark, number, mark.low.map((value) => far(value, -1))));
      columns.push(column(mark, number, mark.high.map((value) => far(value, 1))));
    }
  });
  return columns;
}

function dotsPath(shape, size) {
  const [corners, turn, inner] = shape;
  return (plot, series, first, last) => {
    const path = new Path2D(), clip = new Path2D(), box = plot.bbox;
    clip.rect(box.left - 9, box.top - 9, box.width + 18, box.height + 18);
    for (let i = first; i <= last; i++) {
      const value = plot.data[series][i];
      if (value === null || value === undefined) continue;
      const x = plot.valToPos(plot.data[0][i], "x", true), y = plot.valToPos(value, "y", true);
      for (let corner = 0; corner < corners; corner++) {
        const angle = ((turn + (360 * corner) / corners) * Math.PI) / 180;
        const radius = 0.5 * size * devicePixelRatio * (corner % 2 ? inner : 1);
        path[corner ? "lineTo" : "moveTo"](x + radius * Math.cos(angle), y + radius * Math.sin(angle));
      }
      path.closePath();
    }
    return { stroke: path, fill: path, clip, flags: 3 };
  };
}

function seriesOf(mark, key) {
  const dots = mark.drawn === "dots", ink = () => inkOf(key);
  const fill = () => (key.filled ? inkOf(key) : colourOf("--page"));
  const many = mark.x.length > 60 || mark.notes;
  const drawn = {
    show: true, width: dots ? 0 : 2, stroke: ink, dash: key.dash, alpha: dots || !mark.notes ? 1 : 0.8,
    points: { show: dots || !many, size: 7, width: 1.5, stroke: ink, fill, paths: dotsPath(SHAPES[key.marker] || SHAPES.o, dots ? 9 : 7) },
  };
  if (dots) drawn.paths = () => null;
  if (mark.drawn === "steps") drawn.paths = uPlot.paths.stepped({ align: 1 });
  const edge = { show: true, width: 0, stroke: "transparent", points: { show: false } };
  return mark.low && !mark.across ? [drawn, edge, { ...edge }] : [drawn];
}

function scaleOf(axis) {
  const kinds = { linear: 1, log: 3, symlog: 4 };
  const made = { time: false, distr: kinds[axis.scale] || 1, dir: axis.falls ? -1 : 1 };
  if (axis.scale === "symlog") made.asinh = axis.threshold;
  return made;
}

function axisOf(axis, across, width) {
  const made = {
    scale: across ? "x" : "y", font: FONT, labelFont: FONT, stroke: () => colourOf("--soft"),
    grid: { stroke: () => colourOf("--line"), width: 1 }, ticks: { stroke: () => colourOf("--line"), width: 1, size: 5 },
  };
  if (across) Object.assign(made, { label: axis.label, labelSize: 22, labelGap: 2, size: 30, space: 55 });
  const short = (text) => (text.length > 44 ? `${text.slice(0, 43)}…` : text);
  if (axis.ticks) {
    made.splits = () => axis.ticks.map((each) => each[0]);
    made.values = (plot) => axis.ticks.map((each) => (across ? short(each[1]) : fitted(plot, each[1], 0.4 * width())));
    if (axis.scale === "log") made.filter = (plot, splits) => splits;
  } else if (axis.scale === "symlog") {
    made.splits = () => powersTo(axis);
    made.values = (plot, splits) => splits.map(numberText);
  } else if (axis.scale === "log") {
    made.splits = (plot) => powersWithin(plot.scales[made.scale]);
    made.filter = (plot, splits) => splits;
    made.values = (plot, splits) => splits.map(numberText);
  } else if (axis.percent) {
    made.values = (plot, splits) => splits.map((value) => `${+(100 * value).toFixed(2)}%`);
  } else {
    made.values = (plot, splits) => splits.map(numberText);
  }
  if (!across) {
    made.size = (plot, values, place, cycle) => {
      if (cycle > 1) return plot.axes[place]._size;
      plot.ctx.font = plot.axes[place].font[0];
      const widths = (values || []).map((text) => plot.ctx.measureText(text).width / devicePixelRatio);
      return Math.ceil(Math.max(20, ...widths) + 12);
    };
  }
  return made;
}
// Powers of ten within a range, seven at most, and their multiples where there are few.
function powersWithin({ min, max }) {
  const first = Math.floor(Math.log10(min)), last = Math.ceil(Math.log10(max)), found = [];
  const parts = last - first > 3 ? [1] : last - first > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const step = Math.max(1, Math.ceil((last - first) / 7));
  for (let power = first; power <= last; power += step) for (const part of parts) found.push(part * 10 ** power);
  const kept = found.filter((value) => value >= min * (1 - 1e-9) && value <= max * (1 + 1e-9));
  return kept.length > 1 ? kept : [min, max];
}
// Zero and powers of ten, as many as there is room for, of an axis that is logarithmic down to a threshold.
function powersTo(axis) {
  const first = Math.ceil(Math.log10(axis.threshold)), last = Math.floor(Math.log10(axis.range[1]));
  const step = Math.max(1, Math.ceil((last - first + 1) / 5)), found = [0];
  for (let power = last; power >= first; power -= step) found.splice(1, 0, 10 ** power);
  return found;
}
function fitted(plot, text, most) {
  plot.ctx.font = FONT;
  let kept = text;
  while (kept.length > 4 && plot.ctx.measureText(kept === text ? kept : `${kept}…`).width > most) kept = kept.slice(0, -1);
  return kept === text ? text : `${kept.trimEnd()}…`;
}

// What uPlot has no series for: shaded spans below everything, dotted guides and intervals of x above it.
function drawBelow(plot, panel) {
  plot.ctx.fillStyle = colourOf("--shade");
  for (const [start, end] of panel.shades || []) {
    const from = Math.max(plot.valToPos(start, "x", true), plot.bbox.left);
    const to = Math.min(plot.valToPos(end, "x", true), plot.bbox.left + plot.bbox.width);
    if (to > from) plot.ctx.fillRect(from, plot.bbox.top, to - from, plot.bbox.height);
  }
}
function drawAbove(plot, panel, keys, shown) {
  const { ctx, bbox } = plot, ratio = devicePixelRatio;
  const line = (points) => {
    ctx.beginPath();
    points.forEach(([x, y], i) => ctx[i ? "lineTo" : "moveTo"](x, y));
    ctx.stroke();
  };
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.lineWidth = ratio;
  ctx.strokeStyle = colourOf("--soft");
  ctx.setLineDash([2 * ratio, 3 * ratio]);
  for (const [direction, value] of panel.guides || []) {
    const at = plot.valToPos(value, direction, true);
    if (direction === "x") line([[at, bbox.top], [at, bbox.top + bbox.height]]);
    else line([[bbox.left, at], [bbox.left + bbox.width, at]]);
  }
  ctx.setLineDash([]);
  ctx.lineWidth = 1.6 * ratio;
  for (const mark of panel.marks) {
    if (!mark.across || !mark.low || !shown(keys[mark.of])) continue;
    ctx.strokeStyle = inkOf(keys[mark.of]);
    mark.y.forEach((value, i) => {
      const y = plot.valToPos(value, "y", true);
      const from = mark.low[i] === null ? bbox.left : plot.valToPos(mark.low[i], "x", true);
      const to = mark.high[i] === null ? bbox.left + bbox.width : plot.valToPos(mark.high[i], "x", true);
      line([[from, y], [to, y]]);
      for (const end of [from, to]) line([[end, y - 4 * ratio], [end, y + 4 * ratio]]);
    });
  }
  ctx.restore();
}

// The panel as uPlot has it, with what is needed to show, hide and zoom.
function plotOf(place, panel, keys, shown) {
  const width = () => Math.max(200, place.clientWidth);
  const rows = panel.y.ticks ? panel.y.ticks.length : 0;
  const height = rows > 6 ? 70 + 24 * rows : 240;
  const owners = [null], bands = [], series = [{}];
  panel.marks.forEach((mark) => {
    const first = series.length, made = seriesOf(mark, keys[mark.of]);
    series.push(...made);
    made.forEach(() => owners.push(keys[mark.of]));
    if (made.length === 3) {
      bands.push({ series: [first + 2, first + 1], fill: () => `${inkOf(keys[mark.of])}${isDark() ? "3a" : "2a"}` });
    }
  });
  const view = { x: panel.x.range, y: panel.y.range };
  const set = (plot, wanted) => plot.batch(() => ["x", "y"].forEach((key) => plot.setScale(key, { min: wanted[key][0], max: wanted[key][1] })));
  const listeners = { zoomed: [], moved: [] };
  const plot = new uPlot({
    width: width(), height, series, bands, legend: { show: false }, padding: [10, 22, 0, 0],
    scales: {
      x: { ...scaleOf(panel.x), range: (_, low, high) => (low === null || !Number.isFinite(low) ? view.x : [low, high]) },
      y: { ...scaleOf(panel.y), range: () => view.y },
    },
    axes: [axisOf(panel.x, true, width), axisOf(panel.y, false, width)],
    cursor: {
      drag: { x: true, y: true, uni: 30, dist: 6 }, points: { show: false },
      bind: { dblclick: () => () => { reset(); return null; } },
    },
    hooks: {
      drawClear: [(self) => drawBelow(self, panel)],
      draw: [(self) => drawAbove(self, panel, keys, shown)],
      setScale: [(self, key) => {
        view[key] = [self.scales[key].min, self.scales[key].max];
        for (const each of listeners.zoomed) each(key, view[key]);
      }],
      setCursor: [(self) => { for (const each of listeners.moved) each(self.cursor.left, self.cursor.top); }],
    },
  }, aligned(panel.marks), place);
  const home = { x: panel.x.range, y: panel.y.range };
  const reset = () => set(plot, home);
  reset();
  new ResizeObserver(() => plot.setSize({ width: width(), height })).observe(place);
  return {
    plot, panel, home, listeners, reset,
    set: (wanted) => set(plot, wanted),
    show: () => plot.batch(() => owners.forEach((key, i) => {
      if (key && plot.series[i].show !== shown(key)) plot.setSeries(i, { show: shown(key) });
    })),
  };
}
