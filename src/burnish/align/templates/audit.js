"use strict";
const audit = JSON.parse(document.getElementById("data").textContent);
const pairs = audit.pairs, PAGE = 40, storeKey = "burnish-audit-" + audit.id, CHOICES = ["keep", "flip", "drop"];
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
const span = Math.max(1e-9, ...pairs.map(pair => Math.abs(pair.margin)));
function margins(pair) {
  const place = value => `${50 + 48 * Math.max(-1, Math.min(1, value / span))}%`;
  const dots = audit.margins.map((name, index) => {
    const value = pair["margin_" + name];
    return draw("circle", {cx: place(value), cy: "50%", r: 5 - index, style: `fill: var(--${value < 0 ? "flip" : "keep"})`,
      "fill-opacity": 0.75 - index * 0.15}, draw("title", {}, `${name}: ${value.toFixed(3)}`));
  });
  const told = audit.margins.map(name => `${name} margin ${pair["margin_" + name].toFixed(2)}`).join(", ");
  return make("div", {className: "margins"}, "against the label", draw("svg", {role: "img", "aria-label": told},
    draw("line", {class: "base", x1: 0, x2: "100%", y1: "50%", y2: "50%"}),
    draw("line", {class: "axis", x1: "50%", x2: "50%", y1: "10%", y2: "90%"}), ...dots), "for the label");
}
function answer(kind, title, text) {
  return make("div", {className: `answer ${kind}`}, make("h3", {}, title), make("div", {className: "text"}, text));
}
function card(pair) {
  const numbers = audit.columns.filter(name => pair[name] !== null).map(name => `${name} ${pair[name].toFixed(2)}`).join(" · ");
  const buttons = CHOICES.map((key, index) =>
    make("button", {type: "button", className: key, "aria-pressed": "false", "data-choice": key,
      onclick: () => decide(pair, key, true)}, `${key[0].toUpperCase()}${key.slice(1)} `, make("kbd", {}, index + 1)));
  const note = make("input", {type: "text", placeholder: "note", "aria-label": `note on pair ${pair.rank}`,
    oninput: event => settle(pair, {...madeOf(pair), note: event.target.value})});
  const node = make("article", {tabIndex: 0, id: `pair-${pair.key}`, "aria-label": `pair ${pair.rank}`},
    make("h2", {}, `#${pair.rank} · ${pair.place}`, make("span", {}, numbers)),
    make("ul", {}, ...pair.reasons.map(reason => make("li", {}, reason))),
    ...(pair.prompt ? [make("div", {className: "prompt text", tabIndex: -1}, pair.prompt)] : []),
    make("div", {className: "answers"},
      answer("chosen", "labelled better", pair.chosen), answer("rejected", "labelled worse", pair.rejected)),
    margins(pair), make("div", {className: "decide"}, ...buttons, note));
  node.addEventListener("focusin", () => { current = pair.key; });
  paint(node, pair);
  return node;
}
function paint(node, pair) {
  const made = madeOf(pair), note = node.querySelector("input");
  node.dataset.decision = made.decision || "";
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
    if (show === "contradicted" && pair.margin >= 0 || show === "open" && made || show === "decided" && !made) return false;
    return (!CHOICES.includes(show) || made === show) && words.every(word => pair.haystack.includes(word));
  });
  visible.sort((a, b) => sign * (a[by] - b[by]) || a.rank - b.rank);
  shown = PAGE; list();
}
function list() {
  element("list").replaceChildren(...visible.slice(0, shown).map(card));
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
element("search").oninput = select;
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
  const field = event.target.closest("input, select");
  if (field) { if (event.key === "Escape") { field.blur(); move(0); } return; }
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
for (const pair of pairs) pair.haystack = [pair.prompt, pair.chosen, pair.rejected, pair.place, ...pair.reasons].join("\n").toLowerCase();
select();
