// What all live figures share. Each module is this text and its own: one file, which imports nothing.
const STYLE = `
.ll-live { color: var(--jp-content-font-color1, var(--vscode-foreground, inherit)); line-height: 1.45; max-width: 45rem; margin: .5rem 0 1.5rem;
  overflow-wrap: anywhere; --frozen: #6e6e6e; --a: #1f77c4; --b: #bd560b; --good: #12805c; --bad: #b3261e;
  --pink: #b0468c; --gold: #8a6d00; --soft: #5c5c5c; --line: #8a8a8a; --panel: #8881; --paper: #fff; }
.ll-live[data-dark] { --frozen: #a8a8a8; --a: #6cb2f2; --b: #f0965a; --good: #5ec9a0; --bad: #ff8a80; --pink: #e58fc8;
  --gold: #d9b94a; --soft: #b8b8b8; --line: #808080; --panel: #fff1;
  --paper: #14181e; }
.ll-live * { box-sizing: border-box; }
.ll-live .ll-title { font-weight: bold; margin: 0 0 .5rem; }
.ll-live p { margin: .4rem 0; }
.ll-live .ll-controls { display: grid; gap: .5rem 1.25rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
  margin: .25rem 0 .5rem; }
.ll-live label { display: flex; flex-wrap: wrap; align-items: center; gap: 0 .6rem; min-height: 2rem; }
.ll-live label > span { min-width: 6.6rem; }
.ll-live input[type=range] { flex: 1 1 8rem; height: 2rem; margin: 0; accent-color: var(--a); touch-action: pan-y; }
.ll-live select { flex: 1 1 auto; field-sizing: content; min-width: 0; max-width: 100%; min-height: 2rem; font: inherit;
  color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: 4px; }
.ll-live select option { color: #222; background: #fff; }
.ll-live[data-dark] select option { color: #eee; background: #222; }
.ll-live :is(input, select, button, summary):focus-visible { outline: 2px solid var(--a); outline-offset: 2px; }
.ll-live label > b { min-width: 3.5em; font-variant-numeric: tabular-nums; }
.ll-live svg { display: block; width: 100%; height: auto; }
.ll-live svg text { fill: currentColor; font-family: system-ui, sans-serif; font-size: 12px; }
.ll-live svg text.soft, .ll-live .ll-soft { fill: var(--soft); color: var(--soft); }
.ll-live .ll-soft { font-size: .9em; }
.ll-live ul { list-style: none; margin: .5rem 0; padding: 0; }
.ll-live li { border-left: 3px solid var(--line); margin: .4rem 0; padding: .1rem .6rem; }
.ll-live li[data-right=true] { border-color: var(--good); }
.ll-live li[data-right=false] { border-color: var(--bad); }
.ll-live fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.1rem; grid-column: 1 / -1; }
.ll-live legend { font-size: inherit; margin: 0; padding: 0; }
.ll-live fieldset input { width: 1.2rem; height: 1.2rem; margin: 0; accent-color: var(--a); }
.ll-live button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: 4px;
  min-height: 1.75rem; padding: 0 .7rem; cursor: pointer; }
.ll-live .ll-legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; }
.ll-live .ll-legend li { border: 0; margin: 0; padding: 0; }
.ll-live .ll-legend svg { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.ll-live summary { min-height: 1.6rem; cursor: pointer; }
.ll-live code { background: var(--panel); color: inherit; padding: .05em .25em; white-space: pre-wrap; }
@media print { .ll-live .ll-controls { display: none; } }`;

function made(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}
const h = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  made(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

// Dark is where the text is light, whichever of the places it is shown in decides that, and when it changes.
function followTheme(box, changed) {
  const look = () => {
    const [r, g, b] = (getComputedStyle(box).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    const before = box.hasAttribute('data-dark');
    if (box.toggleAttribute('data-dark', 0.299 * r + 0.587 * g + 0.114 * b > 128) !== before) changed();
  };
  const soon = () => requestAnimationFrame(look);
  const watch = new MutationObserver(soon), system = matchMedia('(prefers-color-scheme: dark)');
  for (const element of [document.documentElement, document.body]) watch.observe(element, { attributes: true });
  system.addEventListener('change', soon);
  soon();
  return () => { watch.disconnect(); system.removeEventListener('change', soon); };
}

/* The figure's box: a heading, `parts`, a line that is read out when it changes, and a picture that `draw(width)` gives
   as SVG, again at each new width. Returns what updates both, and what ends it. */
function figure(el, title, { controls, draw, below = [], note }) {
  const picture = h('div', {}), said = h('p', { 'aria-live': 'polite' });
  const box = h('section', { class: 'll-live', 'aria-label': title, 'data-lm-suppress-shortcuts': 'true' },
    h('style', {}, STYLE), h('p', { class: 'll-title' }, title), h('div', { class: 'll-controls' }, controls), said, picture, below,
    note ? h('p', { class: 'll-soft' }, note) : null);
  for (const part of box.querySelectorAll('input, select, button')) part.setAttribute('data-lm-suppress-shortcuts', 'true');
  el.append(box);
  const update = words => {
    if (words !== undefined) said.textContent = words;
    picture.replaceChildren(draw(Math.max(260, Math.min(720, picture.clientWidth || 600))));
  };
  let width = 0;
  const sized = new ResizeObserver(() => {
    if (picture.clientWidth && picture.clientWidth !== width) { width = picture.clientWidth; update(); }
  });
  sized.observe(picture);
  const unfollow = followTheme(box, () => update());
  return { update, end: () => { sized.disconnect(); unfollow(); } };
}

// A slider over stops that have names, and nothing between them.
function slider(name, stops, start, moved) {
  const shown = h('b', { 'aria-hidden': 'true' });
  const input = h('input', { type: 'range', min: 0, max: stops.length - 1, step: 1, value: start,
    oninput: () => { tell(); moved(Number(input.value)); } });
  const tell = () => {
    shown.textContent = stops[input.value];
    input.setAttribute('aria-valuetext', stops[input.value]);
  };
  input.value = start;
  tell();
  const label = h('label', {}, h('span', {}, name), input, shown);
  return Object.assign(label, { set: place => { input.value = place; tell(); } });
}

function menu(name, options, start, chosen) {
  const list = h('select', { onchange: () => chosen(list.selectedIndex) }, options.map(option => h('option', {}, option)));
  list.selectedIndex = start;
  return h('label', {}, h('span', {}, name), list);
}

const count = number => Number(number).toLocaleString('en-US', { maximumFractionDigits: 0 });
// Stops of a slider, with one that it starts at.
const withOwn = (stops, own) => [...new Set([...stops, own])].sort((a, b) => a - b);
