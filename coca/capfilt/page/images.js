// ---- Images -----------------------------------------------------------------------------------------------------

const KEPT = {1: "kept", 0: "dropped", failed: "failed", undecided: "undecided"};
const cards = new Map();
function card(record) {
  if (!cards.has(record.index)) {
    const image = record.image ? h("img", {src: record.image, alt: "", loading: "lazy"}) :
      h("div", {class: "hole"}, record.problem);
    cards.set(record.index, h("article", {class: "card", "data-index": record.index}, image,
      h("ul", {}, ...record.texts.map(text => line(text, record))),
      h("footer", {}, `${count(record.index)} · ${record.key}`)));
  }
  return cards.get(record.index);
}
function line(text, record) {
  const facts = scored.filter(score => text[score] !== null)
    .map(score => h("span", {}, `${SCORES[score].short} ${text[score].toFixed(2)}`));
  return h("li", {},
    text.text === null ? null : h("div", {class: "words", title: text.text}, text.text || "(empty)"),
    h("div", {class: "facts"}, text.origin ? tag(text.origin) : null, h("span", {}, ...facts)),
    text.problem && text.problem !== record.problem ? h("div", {class: "why"}, text.problem) : null);
}

/** Whether a text fits the filters. */
function fits(text, record, cut) {
  const state = stateOf(text, cut), x = text[view.score], search = view.q.toLowerCase();
  return (view.origin === "" || text.origin === view.origin) &&
    (view.kept === "" || state === KEPT[view.kept] ||
      (view.kept === "changed" && state !== stateOf(text, null))) &&
    ((view.min === "" && view.max === "") || x !== null) &&
    (view.min === "" || x >= Number(view.min)) && (view.max === "" || x <= Number(view.max)) &&
    (search === "" || `${text.text || ""}\n${record.key}`.toLowerCase().includes(search));
}

/** A record's place in the order: the lowest or the highest of the texts that fit; without any it comes last. */
function place(found) {
  const name = view.sort.replace(/^-/, ""), low = !view.sort.startsWith("-") && name !== "disagreement";
  const xs = found.map(text => name === "disagreement" ? disagreement(text) : text[name])
    .filter(x => (x ?? null) !== null);
  return !xs.length ? Infinity : low ? Math.min(...xs) : -Math.max(...xs);
}

let pages = 1;
function drawGrid() {
  const cut = cutNow();
  let found = data.records.map(record => ({record, texts: record.texts.filter(text => fits(text, record, cut))}))
    .filter(each => each.texts.length);
  if (view.sort) {
    for (const each of found) each.place = place(each.texts);
    found.sort((a, b) => a.place === b.place ? a.record.index - b.record.index : a.place < b.place ? -1 : 1);
  }
  pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  const page = Math.min(pages, Math.max(1, Math.round(Number(view.page)) || 1));
  const shown = found.slice((page - 1) * PER_PAGE, page * PER_PAGE);
  $("grid").replaceChildren(...shown.map(({record, texts}) => {
    const node = card(record);
    [...node.querySelectorAll("li")].forEach((item, i) => {
      item.classList.toggle("dropped", stateOf(record.texts[i], cut) === "dropped");
      item.classList.toggle("aside", !texts.includes(record.texts[i]));
    });
    return node;
  }));
  if (!shown.length) {
    const why = data.records.length ? "No image has a text that fits these filters." : "No images yet.";
    $("grid").append(h("p", {}, why));
  }
  const images = data.images.reduce((a, b) => a + b, 0);
  $("found").textContent = `${count(found.length)} of ${count(data.records.length)} images` +
    (data.records.length < images ? `, an even sample of ${count(images)}` : "");
  $("page").textContent = `${page} / ${pages}`;
  $("previous").disabled = page <= 1;
  $("next").disabled = page >= pages;
}
function turn(by) {
  const page = Math.min(pages, Math.max(1, (Number(view.page) || 1) + by));
  if (page === (Number(view.page) || 1)) return;
  setView({page: page > 1 ? String(page) : ""});
  if ($("browse").getBoundingClientRect().top < 0) $("browse").scrollIntoView();
}

// ---- Start --------------------------------------------------------------------------------------------------------

const filters = $("filters");
function fillFilters() {
  const option = (value, text = value) => h("option", {value}, text);
  filters.origin.append(option("", "all"), ...origins.map(name => option(name)));
  filters.score.append(...scored.map(score => option(score)));
  filters.sort.append(option("", "as in the data"), ...scored.flatMap(score => [
    option("-" + score, `${score}, highest first`), option(score, `${score}, lowest first`)]),
  ...(scored.length > 1 ? [option("disagreement", "disagreement of the scores")] : []));
}
function show() {
  for (const key of ["origin", "kept", "score", "min", "max", "q", "sort"]) {
    if (filters[key].value !== view[key]) filters[key].value = view[key];
  }
  drawPlots();
  drawCuts();
  drawGrid();
}

drawHead();
drawMore();
fillFilters();
$("thresholds").hidden = !scored.length;
filters.addEventListener("input", event => setView({[event.target.name]: event.target.value}));
filters.addEventListener("submit", event => event.preventDefault());
$("reset").addEventListener("click", () => setView({origin: "", kept: "", min: "", max: "", q: "", sort: ""}));
$("log").addEventListener("change", event => setView({log: event.target.checked ? "1" : ""}));
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
addEventListener("hashchange", () => { readView(); show(); });
addEventListener("resize", () => drawPlots());
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  if (event.key === "ArrowLeft") turn(-1);
  else if (event.key === "ArrowRight") turn(1);
  else if (event.key === "/") { event.preventDefault(); filters.q.focus(); }
});
readView();
show();
