"use strict";
// Draws the report from the JSON block. Texts of the data reach the page as text nodes only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const PER_PAGE = 30, SVG = "http://www.w3.org/2000/svg";
const SCORES = {
  matching: {short: "match", axis: "matching: P(match)", low: 0, high: 1},
  contrastive: {short: "cos", axis: "contrastive: cosine of the embeddings", low: -1, high: 1},
};

function make(space, name, attributes, children) {
  const node = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}
const h = (name, attributes, ...children) => make(null, name, attributes, children);
const s = (name, attributes, ...children) => make(SVG, name, attributes, children);

const number = new Intl.NumberFormat("en");
const count = n => number.format(n);
const share = (n, of) => !of ? "–" : percent(n / of);
function percent(x) {
  if (x > 0 && x < 0.001) return "<0.1%";
  return x < 1 && x > 0.999 ? ">99.9%" : `${(100 * x).toFixed(x === 0 || x === 1 ? 0 : 1)}%`;
}
const plural = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;
const colour = origin => ["web", "synthetic", "human", "label"].includes(origin) ? origin : "other";
const tag = origin => h("span", {class: `tag ${colour(origin)}`}, origin);

// ---- Counts -------------------------------------------------------------------------------------------------------

const origins = Object.keys(data.origins);
const texts = o => o.kept + o.dropped + o.failed + o.undecided;
const total = key => origins.map(name => key ? data.origins[name][key] : texts(data.origins[name]))
  .reduce((a, b) => a + b, 0);
const threshold = Object.fromEntries(
  Object.entries(data.manifest.threshold || {}).filter(([, least]) => typeof least === "number"));

// A bin as a score at its lower edge, and back; the last bin of each score holds the texts that have none.
const bins = data.bins;
const value = (score, bin) => SCORES[score].low + bin * (SCORES[score].high - SCORES[score].low) / bins[score];
const bin = (score, x) => Math.round((x - SCORES[score].low) / (SCORES[score].high - SCORES[score].low) * bins[score]);

/** Texts in each bin of one score; [score][origin]. */
const marginal = {};
for (const [i, score] of Object.keys(SCORES).entries()) {
  marginal[score] = {};
  for (const name of origins) {
    const sums = marginal[score][name] = new Array(bins[score]).fill(0);
    for (const entry of data.origins[name].joint) if (entry[i] < bins[score]) sums[entry[i]] += entry[2];
  }
}
const scored = Object.keys(SCORES).filter(score => origins.some(name => marginal[score][name].some(n => n)));

/** What is drawn of a score: [low, high], where there are texts. */
function range(score) {
  if (score === "matching") return [0, 1];
  const used = [...Array(bins[score]).keys()].filter(b => origins.some(name => marginal[score][name][b]));
  return [value(score, Math.max(0, used[0] - 2)), value(score, Math.min(bins[score], used.at(-1) + 3))];
}

/** Texts of an origin that thresholds {matching, contrastive} (null: none) keep. */
function keeps(name, cut) {
  const least = Object.keys(SCORES).map(score => cut[score] === null ? null : bin(score, cut[score]));
  let sum = 0;
  for (const entry of data.origins[name].joint) {
    const kept = Object.keys(SCORES).every((score, i) =>
      least[i] === null || (entry[i] >= least[i] && entry[i] < bins[score]));
    if (kept || name === "human") sum += entry[2];
  }
  return sum;
}

/** Share of the texts with a lower score, of all origins: makes the two scores comparable. */
const ranks = {};
for (const score of scored) {
  const sums = [...Array(bins[score]).keys()]
    .map(b => origins.reduce((sum, name) => sum + marginal[score][name][b], 0));
  const all = sums.reduce((a, b) => a + b, 0);
  let below = 0;
  ranks[score] = sums.map(n => { below += n; return (below - n / 2) / all; });
}
function disagreement(text) {
  if (text.matching === null || text.contrastive === null) return null;
  const [a, b] = Object.keys(SCORES).map(score => {
    const {low, high} = SCORES[score], at = Math.floor((text[score] - low) / (high - low) * bins[score]);
    return ranks[score][Math.max(0, Math.min(bins[score] - 1, at))];
  });
  return Math.abs(a - b);
}

// ---- The view, which the address holds ----------------------------------------------------------------------------

const VIEW = ["origin", "kept", "score", "min", "max", "q", "sort", "page", "min_matching", "min_contrastive", "log"];
let view = {};
function readView() {
  const given = new URLSearchParams(location.hash.slice(1));
  view = Object.fromEntries(VIEW.map(key => [key, given.get(key) || ""]));
  for (const key of ["min", "max", "page", "min_matching", "min_contrastive"]) {
    if (view[key] !== "" && view[key] !== "any" && !Number.isFinite(Number(view[key]))) view[key] = "";
  }
  if (!scored.includes(view.score)) view.score = scored[0] || "matching";
}
function setView(changes) {
  view = {...view, page: "", ...changes};
  const kept = VIEW.filter(key => view[key] !== "" && !(key === "score" && view.min === "" && view.max === ""));
  history.replaceState(null, "", "#" + new URLSearchParams(kept.map(key => [key, view[key]])));
  show();
}

/** The thresholds of the sliders; null: none moved, and what was decided in the run counts. */
function cutNow() {
  if (view.min_matching === "" && view.min_contrastive === "") return null;
  const cut = Object.fromEntries(Object.keys(SCORES).map(score => {
    const set = view["min_" + score];
    return [score, set === "any" ? null : set !== "" ? Number(set) : threshold[score] ?? null];
  }));
  // A reader has to ask for something, or what was decided in the run counts.
  if (Object.values(cut).every(least => least === null) && scored.length) cut[scored[0]] = SCORES[scored[0]].low;
  return cut;
}
const rule = cut => scored.filter(score => (cut[score] ?? null) !== null)
  .map(score => `${score} ≥ ${+cut[score].toFixed(4)}`).join(" and ") || "no threshold";

/** Of a text: 'kept', 'dropped', 'failed' (there is no score to decide by), 'undecided'. */
function stateOf(text, cut) {
  const kept = !cut || text.origin === "human" || text.text === null ? text.kept : Object.keys(SCORES).every(score =>
    cut[score] === null || (text[score] !== null && text[score] >= cut[score]));
  return kept ? "kept" : text.problem ? "failed" : kept === null ? "undecided" : "dropped";
}

// ---- Upper part ---------------------------------------------------------------------------------------------------

function drawHead() {
  const {manifest, shards, identities} = data;
  $("name").textContent = data.name;
  const images = data.images.reduce((a, b) => a + b, 0);
  $("lede").textContent = shards.finished ?
    `${plural(images, "image")} and ${plural(total(), "text")} in ` +
      `${count(shards.finished)} of ${plural(shards.all, "shard")}` :
    `None of ${plural(shards.all, "shard")} is finished yet.`;
  $("progress").hidden = shards.finished === shards.all;
  $("progress").firstChild.style.width = `${100 * shards.finished / shards.all}%`;
  const one = (name, short = x => x) => {
    const found = identities[name].map(pair => pair[0]);
    const list = found.length ? found : manifest[name] ? [String(manifest[name])] : ["–"];
    return list.map((x, i) => h("span", {title: x}, (i ? ", " : "") + short(x)));
  };
  const brief = id => id.startsWith("sha256:") ? id.slice(0, 15) + "…" : id;
  const decoding = text => {
    try {
      return Object.entries(JSON.parse(text)).map(([k, v]) => `${k} ${v}`).join(", ");
    } catch { return text; }
  };
  const source = manifest.source || {};
  const parts = {
    "Captioner": one("captioner", brief), "Filter": one("filter", brief),
    "Captions written with": one("decoding", decoding), "A text is kept where": [rule(threshold)],
    "Source": [[source.kind, source.path, source.split].filter(x => x).join(" ") || "–"],
    "Version": one("version"),
  };
  for (const [name, value] of Object.entries(parts)) {
    $("run").append(h("div", {}, h("dt", {}, name), h("dd", {}, ...value)));
  }
  $("settings").textContent = JSON.stringify(manifest, null, 2);

  drawTiles(images);
  drawOrigins();
  $("images").append(h("div", {class: "stack"}, ...["none", "one", "two or more"].flatMap((name, i) => [
    h("span", {}, name),
    h("div", {class: "bar"}, h("i", {style: {width: `${images ? 100 * data.images[i] / images : 0}%`}})),
    h("span", {}, count(data.images[i]) + " ", h("small", {}, share(data.images[i], images)))])));
}

function drawTiles(images) {
  const tile = (figure, name, more) => h("div", {class: "tile"}, h("b", {}, figure), name, h("small", {}, more));
  const noise = name => {
    const o = data.origins[name];
    return o ? tile(share(o.dropped, o.kept + o.dropped), `of ${name} texts rejected`,
      `noise ratio: ${count(o.dropped)} of ${count(o.kept + o.dropped)} scored`) : null;
  };
  const failed = data.failures.reduce((sum, f) => sum + f[1], 0);
  $("tiles").append(...[
    tile(share(total("kept"), total()), "of all texts kept", `${count(total("kept"))} of ${count(total())}`),
    noise("synthetic"), noise("web"),
    tile(share(data.images[1] + data.images[2], images), "of images keep a text",
      `${count(data.images[0])} have none left`),
    tile(share(failed, images), "of images failed",
      failed ? `${count(failed)}, with reasons below` : "all could be read and scored"),
  ].filter(x => x));
}

function drawOrigins() {
  const states = ["kept", "dropped", "failed", "undecided"];
  const shown = states.filter(k => k === "kept" || k === "dropped" || total(k))
    .concat(total("repeating") ? ["repeating", "repeating_kept"] : []);
  const bar = o => states.filter(k => o[k])
    .map(k => h("i", {class: k, title: `${k}: ${count(o[k])}`, style: {width: `${100 * o[k] / texts(o)}%`}}));
  $("origins").append(table(["Origin", "Texts", "", ...shown.map(k => k.replace("_", ", "))], origins.map(name => {
    const o = data.origins[name];
    return [tag(name), count(texts(o)), h("div", {class: `bar ${colour(name)}`}, ...bar(o)),
      ...shown.map(k => h("span", {}, count(o[k]), h("br"), h("small", {}, share(o[k], texts(o)))))];
  })));
  if (total("repeating")) {
    $("origins").append(h("p", {class: "say"}, `Repeating: a word, or a phrase of up to ${data.phrase} words, stands ` +
      "three times in a row (\u201c2 2 2\u201d). Captions are written without with decoding.no_repeat_ngram_size."));
  }
  if (total("undecided")) {
    $("origins").append(h("p", {class: "say"}, `${plural(total("undecided"), "text")} not decided yet.`));
  }
}

function table(head, rows) {
  const cell = (name, x) => h(name, typeof x === "string" || !x.classList.contains("text") ? {} : {class: "text"}, x);
  return h("div", {class: "scroll"}, h("table", {}, h("thead", {}, h("tr", {}, ...head.map(x => h("th", {}, x)))),
    h("tbody", {}, ...rows.map(row => h("tr", {}, ...row.map(x => cell("td", x)))))));
}

// ---- Lower part ---------------------------------------------------------------------------------------------------

function drawMore() {
  if (data.agreement.length) {
    $("agreement").append(h("h2", {}, "Do the two scores agree?"),
      h("p", {class: "say"}, "For each threshold of matching, the one of contrastive that keeps as many of the " +
        `${count(data.agreement[0].of)} texts with both scores (human ones aside), and on what share of them the two ` +
        "decide alike."),
      table(["matching ≥", "keeps", "contrastive ≥", "keeps", "alike", "by chance"], data.agreement.map(a => [
        h("b", {}, String(a.matching)), count(a.matching_keeps), a.contrastive.toFixed(3), count(a.contrastive_keeps),
        h("b", {}, percent(a.agree)), percent(a.chance)])),
      h("p", {class: "say"}, h("button", {class: "link", type: "button", onclick: () => {
        setView({sort: "disagreement"});
        $("browse").scrollIntoView({behavior: "smooth"});
      }}, "Look at the images on which they differ most")));
  } else $("agreement").hidden = true;
  if (data.failures.length) {
    $("failures").append(h("h2", {}, "Failures"), table(["Reason", "Images", "Texts"],
      data.failures.map(([reason, images, n, example]) => [h("span", {class: "text"}, reason,
        reason === example ? null : h("small", {}, `such as: ${example}`)), count(images), count(n)])));
  } else $("failures").hidden = true;
  if ($("failures").hidden || $("agreement").hidden) $("more").classList.remove("pair");
}
