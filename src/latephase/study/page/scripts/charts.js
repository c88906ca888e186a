// Figures in place of their pictures: shown and hidden by strategy, zoomed, and read off by mouse, finger or keyboard.
const hidden = new Set();
const legends = [];

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

// What lies near a place of a panel: of lines that share their x the values there, else the nearest point.
function readings(chart, keys, left, top) {
  const { plot, panel } = chart, found = [];
  const marks = panel.marks.filter((mark) => !hidden.has(keys[mark.of].key));
  const lines = panel.marks.filter((mark) => mark.drawn !== "dots" && !mark.notes);
  if (lines.length === panel.marks.length) {
    const x = plot.posToVal(left, "x");
    for (const mark of marks) {
      let best = -1;
      mark.x.forEach((at, i) => {
        if (at !== null && mark.y[i] !== null && (best < 0 || Math.abs(at - x) < Math.abs(mark.x[best] - x))) best = i;
      });
      if (best >= 0) found.push([mark, best]);
    }
    return found.sort((a, b) => b[0].y[b[1]] - a[0].y[a[1]]);
  }
  let nearest = 60 ** 2, best = null;
  for (const mark of marks) {
    mark.x.forEach((at, i) => {
      if (at === null || mark.y[i] === null) return;
      const far = (plot.valToPos(at, "x") - left) ** 2 + (plot.valToPos(mark.y[i], "y") - top) ** 2;
      if (far < nearest) [nearest, best] = [far, [mark, i]];
    });
  }
  return best ? [best] : [];
}
function said(panel, keys, [mark, i]) {
  const axis = mark.across ? panel.x : panel.y;
  const interval = mark.low ? ` (${valueText(mark.low[i], axis)} to ${mark.high[i] === null ? "∞" : valueText(mark.high[i], axis)})` : "";
  const value = `${valueText(mark.across ? mark.x[i] : mark.y[i], axis)}${interval}`;
  return [keys[mark.of].label, value, mark.notes ? mark.notes[i] : ""];
}

function tipOf(box, chart, keys, spoken) {
  const tip = element("div", "tip");
  tip.setAttribute("aria-hidden", "true");
  tip.hidden = true;
  box.append(tip);
  return (left, top) => {
    const found = left < 0 ? [] : readings(chart, keys, left, top);
    tip.hidden = !found.length;
    if (!found.length) return;
    const [mark, i] = found[0];
    const isRow = mark.across || chart.panel.y.ticks && mark.drawn === "dots";
    const where = isRow ? valueText(mark.y[i], chart.panel.y) : `${valueText(mark.x[i], chart.panel.x)} ${chart.panel.x.label}`;
    const rows = found.map((each) => {
      const [label, value, note] = said(chart.panel, keys, each);
      const shown = isRow ? `${valueText(each[0].x[each[1]], chart.panel.x)}${value.includes("(") ? value.slice(value.indexOf(" (")) : ""}` : value;
      return [keys[each[0].of], label, [shown, note].filter(Boolean).join(", ")];
    });
    tip.replaceChildren(element("div", "where", where), ...rows.map(([key, label, text]) => element("div", "", sample(key), `${label}: ${text}`)));
    spoken(`${where}: ${rows.map(([, label, text]) => `${label} ${text}`).join("; ")}`);
    const over = chart.plot.over, start = over.offsetLeft + left + 14;
    const room = box.clientWidth - tip.offsetWidth - 2;
    tip.style.left = `${Math.max(0, Math.min(start, room))}px`;
    tip.style.top = `${over.offsetTop + Math.min(top + 14, over.offsetHeight - 10) + chart.plot.root.offsetTop}px`;
  };
}

function sample(key) {
  const made = element("span", `sample ${key.ink}`), [corners, turn, inner] = SHAPES[key.marker] || SHAPES.o;
  made.innerHTML = '<svg viewBox="0 0 28 12" width="28" height="12" aria-hidden="true"><line x1="0" y1="6" x2="28" y2="6"/><polygon/></svg>';
  const line = made.querySelector("line"), dot = made.querySelector("polygon"), points = [];
  for (let i = 0; i < corners; i++) {
    const angle = ((turn + (360 * i) / corners) * Math.PI) / 180, radius = 4.5 * (i % 2 ? inner : 1);
    points.push(`${14 + radius * Math.cos(angle)},${6 + radius * Math.sin(angle)}`);
  }
  dot.setAttribute("points", points.join(" "));
  if (key.filled) dot.setAttribute("class", "filled");
  if (key.lines) line.setAttribute("stroke-dasharray", key.dash.join(" "));
  else line.remove();
  return made;
}

// Keys of a focused panel: arrows read off, + and - zoom, 0 and Escape show all again.
function listenTo(box, chart, keys, zoom) {
  let at = null;
  const points = () => {
    const all = new Map();
    for (const mark of chart.panel.marks) {
      if (hidden.has(keys[mark.of].key)) continue;
      mark.x.forEach((x, i) => { if (x !== null && mark.y[i] !== null) all.set(mark.drawn === "dots" || mark.notes ? `${x} ${mark.y[i]}` : x, [x, mark.y[i]]); });
    }
    return [...all.values()].sort((a, b) => a[0] - b[0]);
  };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      const all = points();
      if (!all.length) return;
      const next = at === null ? (steps[event.key] > 0 ? 0 : all.length - 1) : at + steps[event.key];
      at = Math.max(0, Math.min(all.length - 1, next));
      box.dataset.spoken = "yes";
      chart.plot.setCursor({ left: chart.plot.valToPos(all[at][0], "x"), top: chart.plot.valToPos(all[at][1], "y") });
    } else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 0.5 : 2);
    else if (event.key === "0" || event.key === "Escape") chart.reset();
    else return;
    event.preventDefault();
  });
  box.addEventListener("blur", () => { at = null; delete box.dataset.spoken; chart.plot.setCursor({ left: -10, top: -10 }); });
}

function zoomed(chart, factor) {
  const { plot, home } = chart, wanted = {};
  const sizes = { x: plot.over.clientWidth, y: plot.over.clientHeight };
  for (const key of ["x", "y"]) {
    const ends = [0.5 - factor / 2, 0.5 + factor / 2].map((share) => plot.posToVal(share * sizes[key], key)).sort((a, b) => a - b);
    wanted[key] = [Math.max(ends[0], home[key][0]), Math.min(ends[1], home[key][1])];
    if (!(wanted[key][0] < wanted[key][1])) wanted[key] = home[key];
  }
  chart.set(wanted);
}

// Panels of a figure with the same axis of x are zoomed together.
function joined(charts) {
  let busy = false;
  for (const chart of charts) {
    chart.listeners.zoomed.push((key, range) => {
      if (busy || key !== "x") return;
      busy = true;
      for (const other of charts) {
        const same = other !== chart && other.panel.x.label === chart.panel.x.label && String(other.home.x) === String(chart.home.x);
        if (same && String([other.plot.scales.x.min, other.plot.scales.x.max]) !== String(range)) other.plot.setScale("x", { min: range[0], max: range[1] });
      }
      busy = false;
    });
  }
}

function toggles(keys) {
  const made = element("div", "legend");
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", "Show and hide");
  const buttons = keys.map((key) => {
    const one = button(key.label, !hidden.has(key.key), () => {
      if (!hidden.delete(key.key)) hidden.add(key.key);
      for (const each of legends) each();
    });
    one.prepend(sample(key));
    made.append(one);
    return [key, one];
  });
  const all = button("Show all", null, () => {
    hidden.clear();
    for (const each of legends) each();
    buttons[0][1].focus();
  });
  made.append(all);
  return [made, () => {
    for (const [key, one] of buttons) one.setAttribute("aria-pressed", String(!hidden.has(key.key)));
    all.hidden = !keys.some((key) => hidden.has(key.key));
  }];
}

function numbersOf(panels, keys) {
  const made = element("details", "numbers", element("summary", "", "Numbers of this figure"));
  made.addEventListener("toggle", () => {
    if (made.childElementCount > 1) return;
    for (const panel of panels) {
      const scroll = element("div", "scroll"), table = element("table", "");
      scroll.tabIndex = 0;
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", `Numbers of ${panel.title}`);
      const head = table.createTHead().insertRow();
      for (const text of ["", panel.x.label || "x", panel.title, "interval", ""]) {
        const cell = element("th", "", text);
        cell.scope = "col";
        head.append(cell);
      }
      const body = table.createTBody();
      for (const mark of panel.marks) {
        mark.x.forEach((x, i) => {
          const row = body.insertRow(), [label] = said(panel, keys, [mark, i]);
          const ends = mark.low ? `${valueText(mark.low[i], mark.across ? panel.x : panel.y)} to ${valueText(mark.high[i], mark.across ? panel.x : panel.y)}` : "";
          for (const text of [label, valueText(x, panel.x), valueText(mark.y[i], panel.y), ends, mark.notes ? mark.notes[i] : ""]) row.insertCell().append(text);
        });
      }
      scroll.append(table);
      made.append(scroll);
    }
  });
  return made;
}

function build(live) {
  const { keys, panels } = JSON.parse(live.dataset.chart);
  keys.forEach((key, place) => {
    key.lines = panels.some((panel) => panel.marks.some((mark) => mark.of === place && mark.drawn !== "dots"));
  });
  const shown = (key) => !hidden.has(key.key);
  const grid = element("div", panels.length === 1 ? "panels one" : "panels"), spoken = element("p", "unseen");
  spoken.setAttribute("aria-live", "polite");
  live.append(grid);
  live.hidden = false;
  const charts = panels.map((panel) => {
    const box = element("div", "panel"), place = element("div", "plot");
    box.append(element("p", "title", panel.title, element("span", "", panel.y.label ? ` ${panel.y.label}` : "")), place);
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-roledescription", "chart");
    box.setAttribute("aria-label", `${panel.title}. ${live.dataset.alt} Arrow keys read it off, plus and minus zoom.`);
    grid.append(box);
    const chart = plotOf(place, panel, keys, shown);
    chart.listeners.moved.push(tipOf(box, chart, keys, (text) => { if (box.dataset.spoken) spoken.textContent = text; }));
    listenTo(box, chart, keys, (factor) => zoomed(chart, factor));
    return chart;
  });
  joined(charts);
  const [legend, update] = toggles(keys);
  const tools = element("div", "tools",
    button("Zoom in", null, () => charts.forEach((chart) => zoomed(chart, 0.5))),
    button("Zoom out", null, () => charts.forEach((chart) => zoomed(chart, 2))),
    button("Whole figure", null, () => charts.forEach((chart) => chart.reset())));
  if (keys.length > 1) live.append(legend);
  live.append(tools, numbersOf(panels, keys), spoken);
  legends.push(() => { update(); charts.forEach((chart) => chart.show()); });
  update();
  repaints.push(() => charts.forEach((chart) => chart.plot.redraw(true, true)));
}

for (const live of document.querySelectorAll(".live")) {
  try {
    build(live);
    live.parentElement.classList.add("drawn"); // the picture is then for print alone
  } catch (error) {
    live.remove();
    console.error(error);
  }
}
