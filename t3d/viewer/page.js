"use strict";
// Texts of models reach the page through textContent alone.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const two = data.sources.length > 1;
const special = new Set(data.special);
const ROW = 46; // height of a line of the list, as in the style

function make(kind, name, text) {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

// ---- what is known of a response ----

function textOf(response) {
  return response && response.t ? response.t.map((piece) => data.pieces[piece]).join("") : "";
}

/** Block of each token, and its step within that block, from 1. */
function layout(response, size) {
  if (response.layout) return response.layout;
  const first = new Map();
  const block = response.s.map((_, place) => Math.floor((response.p + place) / size));
  response.s.forEach((step, place) => first.set(block[place], Math.min(step, first.get(block[place]) ?? Infinity)));
  const inner = response.s.map((step, place) => step - first.get(block[place]) + 1);
  return (response.layout = { block, inner });
}

function verdict(response) {
  if (!response) return ["absent", "quiet"];
  if (response.x !== undefined) return ["failed", "wrong"];
  if (response.v === undefined) return ["not graded", "quiet"];
  return response.v ? ["right", "right"] : ["wrong", "wrong"];
}

const same = (entry) => two && entry.r[0] && entry.r[1] && textOf(entry.r[0]) === textOf(entry.r[1]);
const length = (entry) => Math.max(...entry.r.map((response) => (response && response.t ? response.t.length : 0)));

// ---- the list ----

const FILTERS = {
  all: ["all responses", () => true],
  wrong: ["wrong", (entry) => entry.r.some((response) => response && response.v === false)],
  right: ["right", (entry) => entry.r.every((response) => response && response.v === true)],
  ...(two && {
    lost: ["only the first is right", (entry) => entry.r[0]?.v === true && entry.r[1]?.v === false],
    won: ["only the second is right", (entry) => entry.r[0]?.v === false && entry.r[1]?.v === true],
    differ: ["differing", (entry) => !same(entry)],
  }),
  cut: ["cut off or failed", (entry) => entry.r.some((response) => response && (response.r === "length" || response.x !== undefined))],
};
const SORTS = {
  file: ["in the file's order", null],
  longest: ["longest first", (a, b) => length(b) - length(a)],
  steps: ["most steps first", (a, b) => (b.r[0]?.n ?? 0) - (a.r[0]?.n ?? 0)],
};

let shown = data.entries; // entries that pass the filter, in order
let chosen = data.entries[0];

function searchable(entry) {
  entry.found ??= [data.problems[entry.q], ...entry.r.map(textOf)].join("\n").toLowerCase();
  return entry.found;
}

function refilter() {
  const words = at("search").value.toLowerCase();
  const passes = FILTERS[at("filter").value][1];
  shown = data.entries.filter((entry) => passes(entry) && (!words || searchable(entry).includes(words)));
  const order = SORTS[at("sort").value][1];
  if (order) shown.sort(order);
  at("count").textContent = `${shown.length} of ${data.entries.length}`;
  at("space").style.height = `${shown.length * ROW}px`;
  at("list").scrollTop = 0;
  drawList();
  if (shown.length && !shown.includes(chosen)) choose(shown[0]);
}

function drawList() {
  const list = at("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 8);
  const space = at("space");
  space.replaceChildren(
    ...shown.slice(first, last).map((entry, offset) => {
      const item = make("div", entry === chosen ? "item chosen" : "item");
      item.style.top = `${(first + offset) * ROW}px`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", entry === chosen);
      item.append(make("div", "", `${entry.q + 1}${entry.n ? "." + entry.n : ""}  ${data.problems[entry.q].slice(0, 120)}`));
      const line = make("div", "quiet");
      entry.r.forEach((response, side) => {
        const [word, kind] = verdict(response);
        if (side) line.append(" / ");
        line.append(make("span", kind, word), response && response.t ? `, ${response.t.length} tokens, ${response.n} steps` : "");
      });
      item.append(line);
      item.onclick = () => choose(entry);
      return item;
    }),
  );
}

function move(by) {
  const place = shown.indexOf(chosen) + by;
  if (place < 0 || place >= shown.length) return;
  choose(shown[place]);
  const list = at("list"), top = place * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

// ---- the replay ----

let panes = []; // {response, tokens: [element], blocks: [[element, first step, last step]]}
let step = 0, lastStep = 0, timer = null;

/** Dark blue to yellow, by stops; `share` from 0 to 1. */
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function hue(share, alpha = 0.45) {
  const place = Math.min(0.9999, Math.max(0, share)) * (STOPS.length - 1), low = Math.floor(place);
  const mixed = STOPS[low].map((value, channel) => Math.round(value + (STOPS[low + 1][channel] - value) * (place - low)));
  return `rgb(${mixed.join(" ")} / ${alpha})`;
}

const COLOURS = {
  inner: ["step in the block", (response, place, size) => (layout(response, size).inner[place] - 1) / Math.max(1, size - 1)],
  global: ["step in the response", (response, place) => response.s[place] / response.n],
  logprob: ["log-probability", (response, place) => (response.l ? 1 + response.l[place] / 5 : null)],
  entropy: ["entropy", (response, place) => (response.y ? response.y[place] / 3 : null)],
  none: ["none", () => null],
};

function choose(entry) {
  chosen = entry;
  at("tip").hidden = true; // the token under the pointer goes away without a word
  at("question").textContent = data.problems[entry.q];
  at("truth").textContent = entry.t === null ? "" : `right answer: ${entry.t}`;
  panes = entry.r.map((response, side) => pane(response, entry, side));
  at("panes").replaceChildren(...panes.map((one) => one.element));
  lastStep = Math.max(0, ...panes.map((one) => one.response?.n ?? 0));
  at("step").max = lastStep;
  paint();
  show(lastStep);
  drawList();
}

function pane(response, entry, side) {
  const source = data.sources[side];
  const element = make("div", "pane"), text = make("div", "text");
  element.append(make("h2", "", source.title));
  element.append(make("p", "about quiet", source.about.map(([name, value]) => `${name} ${value}`).join(" · ")));
  const line = make("p", "");
  const [word, kind] = verdict(response);
  line.append(make("span", kind, word));
  if (response?.e !== undefined) line.append(` (${response.e})`);
  if (response?.t) {
    const ratio = response.f ? ` · ${(response.t.length / response.f).toFixed(2)} tokens per forward` : "";
    line.append(` · ${response.t.length} tokens · ${response.n} steps` + (response.f ? ` · ${response.f} forwards` : "") + ratio + ` · ended by ${response.r}`);
  }
  element.append(line, text);
  const made = { element, response: response?.t ? response : null, tokens: [], blocks: [], source };
  if (response?.x !== undefined) text.textContent = response.x;
  if (made.response) fill(made, text, entry.r[1 - side]);
  return made;
}

function fill(made, text, other) {
  const { response, source } = made;
  const { block } = layout(response, source.block);
  let open = null;
  const begin = (number) => {
    open = { number, element: make("span", "block"), first: Infinity, last: 0 };
    made.blocks.push(open);
    text.append(open.element, "\u200b"); // where a line may break
  };
  begin(block[0]);
  for (const piece of response.h) open.element.append(spell(make("span", "token prompt"), data.pieces[piece]));
  response.t.forEach((piece, place) => {
    if (block[place] !== open.number) begin(block[place]);
    open.first = Math.min(open.first, response.s[place]);
    open.last = Math.max(open.last, response.s[place]);
    const token = make("span", special.has(piece) ? "token special" : "token");
    spell(token, data.pieces[piece]);
    if (other?.t && other.t[place] !== piece) token.classList.add("other");
    token.onmousemove = (event) => tip(event, made, place);
    token.onmouseleave = () => (at("tip").hidden = true);
    made.tokens.push(token);
    open.element.append(token);
  });
}

/** A token's text, with a sign where nothing would be seen. */
function spell(token, text) {
  if (text === "") token.append(make("span", "sign", "·"));
  for (const part of text.split(/(\n)/)) {
    if (part === "\n") token.append(make("span", "sign", "↵"), "\n");
    else if (part) token.append(part);
  }
  return token;
}

function paint() {
  const share = COLOURS[at("colour").value][1];
  for (const { response, tokens, source } of panes) {
    tokens.forEach((token, place) => {
      const value = share(response, place, source.block);
      token.dataset.hue = value === null ? "" : hue(value);
    });
  }
}

function show(number) {
  step = Math.min(lastStep, Math.max(0, number));
  at("step").value = step;
  at("at").textContent = `step ${step} of ${lastStep}`;
  for (const { response, tokens, blocks } of panes) {
    tokens.forEach((token, place) => {
      const revealed = response.s[place] <= step;
      token.classList.toggle("masked", !revealed);
      token.classList.toggle("fresh", response.s[place] === step && step < lastStep);
      token.style.background = revealed ? token.dataset.hue : "";
    });
    for (const { element, first, last } of blocks) element.classList.toggle("working", first <= step + 1 && step < last);
  }
}

function play() {
  if (timer) return pause();
  if (step >= lastStep) show(0);
  at("play").textContent = "⏸";
  timer = setInterval(() => (step < lastStep ? show(step + 1) : pause()), Number(at("speed").value));
}

function pause() {
  clearInterval(timer);
  timer = null;
  at("play").textContent = "▶";
}

function tip(event, { response, source }, place) {
  const { block, inner } = layout(response, source.block);
  const lines = [
    `"${data.pieces[response.t[place]]}"`,
    `position ${response.p + place} (token ${place + 1} of the response)`,
    `step ${response.s[place]} of the response, ${inner[place]} of block ${block[place]}`,
  ];
  if (response.l) lines.push(`log-prob ${response.l[place]} nats (p = ${Math.exp(response.l[place]).toFixed(3)})`);
  if (response.y) lines.push(`entropy ${response.y[place]} nats`);
  const box = at("tip");
  box.textContent = lines.join("\n");
  box.hidden = false;
  box.style.left = `${Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${Math.min(event.clientY + 16, innerHeight - box.offsetHeight - 8)}px`;
}

// ---- figures ----

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);

function drawFigures() {
  const columns = make("div", "columns");
  for (const source of data.sources) columns.append(orderFigures(source));
  at("figures").replaceChildren(columns);
  if (data.agreement) at("figures").append(agreementFigures());
}

function row(kind, cells) {
  const line = make("tr");
  cells.forEach((cell, place) => line.append(cell instanceof Node ? cell : make(place && kind === "td" ? "td" : "th", "", cell)));
  return line;
}

function orderFigures(source) {
  const box = make("div"), order = source.order;
  box.append(make("h2", "", source.title), make("p", "quiet", source.about.map(([name, value]) => `${name} ${value}`).join(" · ")));
  box.append(make("p", "", `${order.tokens} tokens in ${order.steps} steps: ${(order.tokens / Math.max(1, order.steps)).toFixed(2)} tokens per step. ` +
    `${percent(order.left)} of the tokens were revealed with nothing hidden before them in their block.`));
  box.append(make("h3", "", "Reveal order against position: of the tokens at a place of a block, the share revealed in each of its steps"));
  const table = make("table");
  table.append(row("th", ["place \\ step", ...source.order.place.map((_, column) => String(column + 1))]));
  order.place.forEach((shares, place) => {
    const cells = shares.map((share) => {
      const cell = make("td", "", (100 * share).toFixed(1));
      cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(70 * share)}%, transparent)`;
      return cell;
    });
    table.append(row("td", [String(place + 1), ...cells]));
  });
  box.append(table, make("h3", "", "Tokens revealed in a step"));
  const bars = make("table"), most = Math.max(1, ...order.perStep);
  order.perStep.forEach((count, place) => {
    const cell = make("td"), bar = make("span", "bar");
    bar.style.width = `${Math.round((160 * count) / most)}px`;
    cell.style.textAlign = "left";
    cell.append(bar);
    bars.append(row("td", [String(place + 1), cell, `${count} (${percent(count / Math.max(1, order.steps))})`]));
  });
  box.append(bars);
  return box;
}

function agreementFigures() {
  const box = make("div"), { share, count, same, first, pairs } = data.agreement;
  box.append(make("h3", "", "Agreement: of the tokens that the first file revealed in a step of their block, the share that the second has at the same position"));
  const table = make("table");
  table.append(row("th", ["step in the block", ...share.map((_, place) => String(place + 1))]));
  table.append(row("td", ["the same token", ...share.map(percent)]), row("td", ["tokens", ...count.map(String)]));
  const median = first === null ? "" : ` The others first differ at token ${first + 1} (median).`;
  box.append(table, make("p", "", `${percent(same)} of ${pairs} responses are the same token for token.${median}`));
  return box;
}

// ---- controls ----

function options(id, named, render) {
  at(id).append(...Object.entries(named).map(([value, entry]) => {
    const option = make("option", "", render(entry));
    option.value = value;
    return option;
  }));
}

function tab(name) {
  at("tip").hidden = true;
  for (const one of ["replay", "figures"]) {
    at(one).hidden = one !== name;
    at(`tab-${one}`).classList.toggle("chosen", one === name);
  }
  if (name === "figures" && !at("figures").hasChildNodes()) drawFigures();
}

function theme() {
  const root = document.documentElement.style;
  const dark = root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = dark ? "light" : "dark";
}

const KEYS = {
  " ": ["space", "play or pause", play],
  ArrowRight: ["→", "next step", () => { pause(); show(step + 1); }],
  ArrowLeft: ["←", "step before", () => { pause(); show(step - 1); }],
  Home: ["Home", "nothing revealed", () => { pause(); show(0); }],
  End: ["End", "everything revealed", () => { pause(); show(lastStep); }],
  ArrowDown: ["↓", "next response", () => move(1)],
  ArrowUp: ["↑", "response before", () => move(-1)],
  "/": ["/", "find", () => at("search").focus()],
  f: ["f", "replay or figures", () => tab(at("figures").hidden ? "figures" : "replay")],
  t: ["t", "light or dark", theme],
  "?": ["?", "this list", () => at("keys").showModal()],
};

function controls() {
  options("filter", FILTERS, ([name]) => name);
  options("sort", SORTS, ([name]) => name);
  const recorded = (letter) => data.entries.some((entry) => entry.r.some((response) => response && response[letter]));
  const colours = { ...COLOURS };
  if (!recorded("l")) delete colours.logprob;
  if (!recorded("y")) delete colours.entropy;
  options("colour", colours, ([name]) => name);
  options("speed", { 60: "fast", 200: "medium", 600: "slow" }, (name) => name);
  at("speed").value = "200";
  let waiting = null;
  at("search").oninput = () => { clearTimeout(waiting); waiting = setTimeout(refilter, 150); };
  at("filter").onchange = at("sort").onchange = refilter;
  at("colour").onchange = () => { paint(); show(step); };
  at("speed").onchange = () => { if (timer) { pause(); play(); } };
  at("step").oninput = () => { pause(); show(Number(at("step").value)); };
  at("play").onclick = play;
  at("theme").onclick = theme;
  at("help").onclick = () => at("keys").showModal();
  at("tab-replay").onclick = () => tab("replay");
  at("tab-figures").onclick = () => tab("figures");
  at("list").onscroll = drawList;
  addEventListener("resize", drawList);
  const table = make("table");
  for (const [sign, meaning] of Object.values(KEYS)) table.append(row("td", [sign, meaning]));
  at("keys").append(table);
  at("keys").onclick = () => at("keys").close();
  addEventListener("keydown", (event) => {
    const typing = event.target === at("search"), inSelect = event.target instanceof HTMLSelectElement;
    if (event.key === "Escape" && typing) return at("search").blur();
    if (typing || inSelect || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key][2]();
  });
}

controls();
tab("replay");
refilter();
choose(chosen);
document.documentElement.dataset.ready = "yes";
