// ---- Histograms and thresholds ------------------------------------------------------------------------------------

const PAD = {left: 42, right: 12, top: 16, bottom: 36}, HEIGHT = 210;

function drawPlots() {
  $("legend").replaceChildren(...origins.map(tag));
  $("log").checked = view.log !== "";
  for (const score of scored) {
    let box = $("plot-" + score);
    if (!box) {
      const [low, high] = range(score);
      const slider = h("input", {type: "range", min: low, max: high, step: 0.01, "aria-label": `least ${score} score`,
        oninput: event => setView({["min_" + score]: bin(score, event.target.value) <= bin(score, low) ? "any" :
          (+event.target.value).toFixed(2)})});
      box = h("figure", {id: "plot-" + score}, h("div"), slider, h("figcaption"));
      $("plots").append(box);
    }
    drawPlot(box, score);
  }
}

function drawPlot(box, score) {
  const width = box.clientWidth || 400, inner = width - PAD.left - PAD.right, tall = HEIGHT - PAD.top - PAD.bottom;
  const [low, high] = range(score), x = v => PAD.left + (v - low) / (high - low) * inner;
  const step = Math.max(1, Math.round((high - low) / 50 * bins[score] / (SCORES[score].high - SCORES[score].low)));
  const first = bin(score, low), last = bin(score, high);
  const lines = origins.map(name => {
    const of = texts(data.origins[name]);
    const ys = [];
    for (let b = first; b < last; b += step) {
      ys.push(marginal[score][name].slice(b, Math.min(b + step, last)).reduce((a, c) => a + c, 0) / of);
    }
    return [name, ys];
  }).filter(([, ys]) => ys.some(y => y));
  const all = lines.flatMap(([, ys]) => ys).filter(y => y);
  const log = view.log !== "", most = Math.max(...all);
  const floor = 10 ** Math.max(-6, Math.floor(Math.log10(Math.min(...all))));
  const roof = log ? 10 ** Math.ceil(Math.log10(most)) : most * 1.05;
  const level = v => log ? Math.log(Math.max(v, floor) / floor) / Math.log(roof / floor) : v / roof;
  const y = v => PAD.top + tall * (1 - level(v));
  const svg = s("svg", {height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": `histogram of ${score}`});
  const cut = cutNow(), line = cut ? cut[score] : threshold[score] ?? null;
  const at = v => Math.min(Math.max(x(v), PAD.left), width - PAD.right);
  const upright = (v, name) => s("line", {class: name, x1: at(v), x2: at(v), y1: PAD.top, y2: PAD.top + tall});
  if (line !== null) {
    svg.append(s("rect", {class: "gone", x: PAD.left, y: PAD.top, width: at(line) - PAD.left, height: tall}));
  }
  for (const tick of log ? decades(floor, roof) : steps(0, roof, 4)) {
    svg.append(s("line", {class: "axis", x1: PAD.left, x2: width - PAD.right, y1: y(tick), y2: y(tick)}),
      s("text", {x: PAD.left - 6, y: y(tick) + 4, "text-anchor": "end"}, `${+(100 * tick).toPrecision(2)}%`));
  }
  for (const tick of steps(low, high, Math.max(3, Math.floor(inner / 60)))) {
    svg.append(s("text", {x: x(tick), y: HEIGHT - PAD.bottom + 15, "text-anchor": "middle"}, +tick.toFixed(2)));
  }
  svg.append(s("text", {x: PAD.left + inner / 2, y: HEIGHT - 4, "text-anchor": "middle"}, SCORES[score].axis),
    s("text", {x: PAD.left - 34, y: 9}, "share of the origin's texts"));
  for (const [name, ys] of lines) {
    const edge = i => x(Math.min(value(score, first + i * step), high));
    const path = ys.map((v, i) => `L${[edge(i), y(v), edge(i + 1), y(v)].map(n => n.toFixed(1))}`);
    svg.append(s("path", {class: `area ${colour(name)}`, d: `M${x(low)},${y(0)}${path.join("")}L${x(high)},${y(0)}Z`}));
  }
  if (threshold[score] !== undefined) svg.append(upright(threshold[score], "run"));
  if (line !== null) svg.append(upright(line, "cut"));
  const [plot, slider, caption] = box.children;
  plot.replaceChildren(svg);
  // The thumb's centre is at the score that it stands for.
  Object.assign(slider.style, {marginLeft: `${PAD.left - 9}px`, width: `${inner + 18}px`});
  slider.value = line === null ? low : line;
  const ran = threshold[score] === undefined ? "none in this run" : `${+threshold[score].toFixed(4)} in this run`;
  const least = line === null ? "any" : String(+line.toFixed(4));
  caption.replaceChildren("least ", score, " ", h("b", {}, least), ` (${ran})`);
}

function steps(low, high, most) {
  const raw = (high - low) / most, ten = 10 ** Math.floor(Math.log10(raw));
  const size = ten * [1, 2, 5, 10].find(k => k * ten >= raw);
  const out = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9; i++) out.push(i * size);
  return out;
}
function decades(low, high) {
  const out = [];
  for (let e = Math.round(Math.log10(low)); e <= Math.round(Math.log10(high)); e++) out.push(10 ** e);
  return out;
}

function drawCuts() {
  const cut = cutNow();
  const rows = origins.map(name => {
    const o = data.origins[name], all = texts(o), now = cut ? keeps(name, cut) : o.kept, change = now - o.kept;
    return [tag(name), count(all), `${count(o.kept)} (${share(o.kept, all)})`,
      h("b", {id: "kept-" + name}, `${count(now)} (${share(now, all)})`),
      h("span", {class: change > 0 ? "up" : change < 0 ? "down" : ""},
        (change > 0 ? "+" : change < 0 ? "−" : "") + count(Math.abs(change))),
      h("div", {class: `bar ${colour(name)}`}, h("i", {style: {width: `${100 * now / all}%`}}))];
  });
  const flags = cut ? scored.filter(score => cut[score] !== null)
    .map(score => h("code", {}, `--config.data.sources.<name>.min_${score}=${+cut[score].toFixed(4)} `)) : [];
  const back = () => setView({min_matching: "", min_contrastive: ""});
  $("cuts").replaceChildren(table(["Origin", "Texts", "Kept in the run", "Kept now", "Change", ""], rows), cut ?
    h("p", {class: "note"}, "Train at ", h("b", {}, rule(cut)), ": ", ...flags,
      h("button", {class: "link", type: "button", onclick: back}, "Back to the run")) :
    h("p", {class: "say"}, "“Kept now” is what was decided in the run until you move a threshold. Human pairs are " +
      "always kept; a text without a score is not kept once a threshold asks for it."));
  $("chip").hidden = !cut;
  $("chip").textContent = cut ? `Struck through is what ${rule(cut)} drops, not what the run dropped.` : "";
}
