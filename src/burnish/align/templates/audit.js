"use strict";
const audit = JSON.parse(document.getElementById("data").textContent), TEXTS = ["prompt", "chosen", "rejected"];
const pairs = audit.pairs.map(row => ({...row, ...Object.fromEntries(TEXTS.map(name => [name, audit.texts[row[name]]]))}));
const PAGE = 40, storeKey = "burnish-audit-" + audit.id, CHOICES = ["keep", "flip", "drop"];
const element = id => document.getElementById(id);
const say = text => { element("count").textContent = text; };
const madeOf = pair => decisions[pair.key] || {};
let decisions = {}, visible = [], shown = PAGE, current = null;
recall();

// Another tab may have decided since: what is stored is read before it is changed, and again when it changes.
function recall() {
  try { decisions = JSON.parse(localStorage.getItem(storeKey) || "null") || decisions; }
  catch (error) { decisions = {...decisions}; }
}
window.addEventListener("storage", event => {
  if (event.key !== storeKey && event.key !== null) return;
  decisions = {};
  recall();
  for (const pair of visible.slice(0, shown)) { const node = element(`pair-${pair.key}`); if (node) paint(node, pair); }
  count();
});

function remember() {
  try { localStorage.setItem(storeKey, JSON.stringify(decisions)); }
  catch (error) { say("This browser keeps no storage for local files: export before you leave."); }
}
function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key in node && key !== "list") node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
function draw(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const span = pairs.reduce((most, pair) => Math.max(most, Math.abs(pair.margin)), 1e-9);
function margins(pair) {  // a row and a name for every fit: a dot by itself says nothing
  const place = value => `${56 + 40 * Math.max(-1, Math.min(1, value / span))}%`;
  const rows = Object.entries(audit.margins).flatMap(([name, title], index) => {
    const value = pair["margin_" + name], y = 9 + 15 * index;
    return [draw("text", {x: 0, y: y + 4}, title), draw("line", {class: "base", x1: "16%", x2: "96%", y1: y, y2: y}),
      draw("circle", {cx: place(value), cy: y, r: 4.5, style: `fill: var(--${value < 0 ? "flip" : "keep"})`},
        draw("title", {}, `${title}: ${value.toFixed(3)}`))];
  });
  const told = Object.entries(audit.margins).map(([name, title]) => `${title} margin ${pair["margin_" + name].toFixed(2)}`).join(", ");
  return make("div", {className: "margins"}, "against the label", draw("svg", {role: "img", "aria-label": told},
    draw("line", {class: "axis", x1: "56%", x2: "56%", y1: 0, y2: 48}), ...rows), "for the label");
}

// -- texts: words that only one answer has are marked; code, bold and headings are shown as such, never as markup --------
const MOST_CELLS = 4e6, LEAST_SHARED = 0.3;
const wordsOf = text => [...text.matchAll(/[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu)].map(found => ({text: found[0], at: found.index}));
function differences(first, second) {  // [from, to] of what is not common, in each text: the longest common sequence
  const a = wordsOf(first), b = wordsOf(second);
  let start = 0, end = 0;
  const least = Math.min(a.length, b.length);
  while (start < least && a[start].text === b[start].text) start++;
  while (end < least - start && a[a.length - 1 - end].text === b[b.length - 1 - end].text) end++;
  const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end), width = y.length + 1;
  const only = [x.map(() => true), y.map(() => true)];
  let common = start + end;
  if ((x.length + 1) * width <= MOST_CELLS) {
    const length = new Uint16Array((x.length + 1) * width);
    for (let i = x.length - 1; i >= 0; i--) for (let j = y.length - 1; j >= 0; j--)
      length[i * width + j] = x[i].text === y[j].text ? length[(i + 1) * width + j + 1] + 1
        : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    for (let i = 0, j = 0; i < x.length && j < y.length;) {
      if (x[i].text === y[j].text) { only[0][i++] = false; only[1][j++] = false; common++; }
      else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++; else j++;
    }
  }
  if (2 * common < LEAST_SHARED * (a.length + b.length)) return null;
  return [x, y].map((words, side) => words.flatMap((word, place) => only[side][place] ? [[word.at, word.at + word.text.length]] : []));
}
const PARTS = /```[^\n]*\n([\s\S]*?)(?:```|$(?![^]))|`([^`\n]+)`|\*\*([^*\n]+)\*\*|^#{1,6} +(.+)$/gm;
const TAGS = ["pre", "code", "strong", "strong"];
function written(node, text, marks) {
  let mark = 0, done = 0;
  const plain = (into, from, to) => {
    while (from < to) {
      while (mark < marks.length && marks[mark][1] <= from) mark++;
      const [begin, end] = mark < marks.length && marks[mark][0] < to ? marks[mark] : [to, to];
      if (begin > from) { into.append(text.slice(from, begin)); from = begin; continue; }
      const stop = Math.min(end, to);
      into.append(make("mark", {}, text.slice(from, stop)));
      from = stop;
    }
  };
  for (const found of element("format").checked ? text.matchAll(PARTS) : []) {
    const kind = [1, 2, 3, 4].find(group => found[group] !== undefined), inside = found[kind];
    const from = found.index + found[0].indexOf(inside, kind === 1 ? found[0].indexOf("\n") + 1 : 0), part = make(TAGS[kind - 1]);
    plain(node, done, found.index);
    plain(part, from, from + inside.length);
    node.append(part);
    done = found.index + found[0].length;
  }
  plain(node, done, text.length);
  return node;
}
function answer(kind, title, text, marks) {
  return make("div", {className: `answer ${kind}`}, make("h3", {}, title),
    written(make("div", {className: "text", dir: "auto"}), text, marks));
}
function card(pair) {
  const numbers = audit.columns.filter(name => pair[name] !== null).map(name => `${name} ${pair[name].toFixed(2)}`).join(" · ");
  const buttons = CHOICES.map((key, index) =>
    make("button", {type: "button", className: key, "aria-pressed": "false", "data-choice": key,
      onclick: () => decide(pair, key, true)}, `${key[0].toUpperCase()}${key.slice(1)} `, make("kbd", {}, index + 1)));
  const marks = element("diff").checked ? differences(pair.chosen, pair.rejected) : [[], []];
  const few = marks === null ? [make("p", {className: "few"}, "The answers have few words in common, so none are marked.")] : [];
  const [better, worse] = marks || [[], []];
  const note = make("input", {type: "text", placeholder: "note", dir: "auto", "aria-label": `note on pair ${pair.rank}`,
    oninput: event => settle(pair, {...madeOf(pair), note: event.target.value})});
  const node = make("article", {tabIndex: 0, id: `pair-${pair.key}`, "aria-label": `pair ${pair.rank}`},
    make("h2", {}, `#${pair.rank} · ${pair.place}`, make("span", {}, numbers)),
    make("ul", {}, ...pair.reasons.map(reason => make("li", {}, reason))),
    ...(pair.prompt ? [written(make("div", {className: "prompt text", tabIndex: -1, dir: "auto"}), pair.prompt.trim(), [])] : []),
    make("div", {className: "answers"},
      answer("chosen", "labelled better", pair.chosen, better), answer("rejected", "labelled worse", pair.rejected, worse)),
    ...few,
    margins(pair), make("div", {className: "decide"}, ...buttons, note));
  node.addEventListener("focusin", () => { current = pair.key; });
  paint(node, pair);
  return node;
}
function paint(node, pair) {
  const made = madeOf(pair), note = node.querySelector("input");
  node.dataset.decision = made.decision || "";
  const said = {flip: ["now worse (was labelled better)", "now better (was labelled worse)"],
    drop: ["labelled better, dropped", "labelled worse, dropped"]}[made.decision] || ["labelled better", "labelled worse"];
  node.querySelectorAll(".answer h3").forEach((title, side) => { title.textContent = said[side]; });
  for (const button of node.querySelectorAll("[data-choice]"))
    button.setAttribute("aria-pressed", String(made.decision === button.dataset.choice));
  if (note !== document.activeElement && note.value !== (made.note || "")) note.value = made.note || "";
}
function decide(pair, decision, toggle) {
  const made = {...madeOf(pair)};
  made.decision = toggle && made.decision === decision ? "" : decision;
  settle(pair, made);
  if (made.decision && element("advance").checked) { current = pair.key; move(1); }
}
function settle(pair, {decision, note}) {
  recall();
  if (decision || note) decisions[pair.key] = {...(decision && {decision}), ...(note && {note})};
  else delete decisions[pair.key];
  remember();
  const node = element(`pair-${pair.key}`); if (node) paint(node, pair);
  count();
}
function select() {
  const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const show = element("show").value, by = element("sort").value, sign = by === "row" ? 1 : -1;
  visible = pairs.filter(pair => {
    const made = madeOf(pair).decision;
    if (show === "contradicted" && pair.margin >= 0 || show === "conflict" && !pair.conflict || show === "open" && made || show === "decided" && !made) return false;
    return (!CHOICES.includes(show) || made === show) && words.every(word => haystack(pair).includes(word));
  });
  visible.sort((a, b) => sign * (a[by] - b[by]) || a.rank - b.rank);
  shown = PAGE; list();
  const top = element("list").getBoundingClientRect().top + window.scrollY - element("panel").offsetHeight;
  if (window.scrollY > top) window.scrollTo(0, top);
}
function reset() {
  element("search").value = ""; element("show").value = "all";
  select();
}
function nothing() {
  return make("div", {className: "empty"}, make("p", {}, "No pair matches the search and the filter."),
    make("button", {type: "button", onclick: reset}, "Show all pairs"));
}
function list() {
  element("list").replaceChildren(...(visible.length ? visible.slice(0, shown).map(card) : [nothing()]));
  element("more").hidden = visible.length <= shown;
  count();
}
function count() {
  const made = Object.values(decisions).map(entry => entry.decision).filter(Boolean);
  const of = name => made.filter(decision => decision === name).length;
  say(`${visible.length.toLocaleString("en")} of ${pairs.length.toLocaleString("en")} pairs shown`);
  element("tally").textContent = `${made.length} decided: ${of("keep")} kept, ${of("flip")} flipped, ${of("drop")} dropped`;
  element("progress").value = made.length / pairs.length;
}
function move(step, wanted = () => true) {
  const keys = visible.map(pair => pair.key), at = keys.indexOf(current);
  let next = at < 0 ? 0 : at + step;
  while (next >= 0 && next < keys.length && step && !wanted(visible[next])) next += step;
  if (next < 0 || next >= keys.length) return;
  while (next >= shown) { shown += PAGE; list(); }
  const node = element(`pair-${keys[next]}`);
  node.focus({preventScroll: true}); node.scrollIntoView({block: "nearest", behavior: "auto"});
}
function exported() {
  return pairs.filter(pair => decisions[pair.key]).map(pair => ({
    key: pair.key, row: pair.row, place: pair.place, rank: pair.rank, decision: madeOf(pair).decision || null,
    note: madeOf(pair).note || "", margin: pair.margin}));
}
function download(name, text, type) {
  const link = make("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  document.body.append(link); link.click(); link.remove(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
async function load(file) {
  let entries;
  try {
    const text = await file.text();
    entries = file.name.endsWith(".jsonl") ? text.split("\n").filter(Boolean).map(line => JSON.parse(line)) : JSON.parse(text).decisions;
    entries = entries.map(({key, decision, note}) => [key, {decision, note}]);
  } catch (error) { say(`${file.name} is not an export of this page.`); return; }
  const known = new Map(pairs.map(pair => [pair.key, pair])), usable = entries.filter(([key]) => known.has(key));
  for (const [key, made] of usable) settle(known.get(key), made);
  select();
  say(`${usable.length} of ${entries.length} entries of ${file.name} belong to pairs of this audit.`);
}
element("export-json").onclick = () => download("decisions.json",
  JSON.stringify({audit: audit.id, source: audit.source, decisions: exported()}, null, 2) + "\n", "application/json");
element("export-jsonl").onclick = () => download("decisions.jsonl",
  exported().map(entry => JSON.stringify(entry) + "\n").join(""), "application/x-ndjson");
element("load-open").onclick = () => element("load").click();
element("load").onchange = event => {
  const file = event.target.files[0]; event.target.value = "";
  if (file) load(file);
};
element("help-open").onclick = () => element("help").showModal();
element("veil").onchange = event => document.body.classList.toggle("veiled", event.target.checked);
element("more").onclick = () => { shown += PAGE; list(); };
for (const id of ["sort", "show"]) element(id).onchange = select;
for (const id of ["diff", "format"]) element(id).onchange = list;
element("whole").onchange = event => document.body.classList.toggle("whole", event.target.checked);
element("search").oninput = select;
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
  const field = event.target.closest("input, select");
  if (field) {
    if (event.key === "Escape") {
      if (field.id === "search" && field.value) { field.value = ""; select(); }
      field.blur(); move(0);
      event.preventDefault();  // a browser's own clearing comes too late for the list
    }
    return;
  }
  const pair = pairs.find(candidate => candidate.key === current), choice = "0123".indexOf(event.key);
  if (choice >= 0) { if (pair) decide(pair, ["", ...CHOICES][choice], false); }
  else if (event.key === "j" || event.key === "ArrowDown") move(1);
  else if (event.key === "k" || event.key === "ArrowUp") move(-1);
  else if (event.key === "u") move(1, candidate => !madeOf(candidate).decision);
  else if (event.key === "n" && pair) element(`pair-${pair.key}`).querySelector("input").focus();
  else if (event.key === "/") element("search").focus();
  else if (event.key === "?") element("help").showModal();
  else return;
  event.preventDefault();
});
function haystack(pair) {  // made when it is first searched: of 20,000 pairs this is most of the memory
  return pair.words ??= [pair.prompt, pair.chosen, pair.rejected, pair.place, ...pair.reasons].join("\n").toLowerCase();
}
select();
