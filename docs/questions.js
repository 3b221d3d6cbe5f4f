// Questions that reply on a page without a kernel. What is said and what is right comes with each question, from
// tools/site_questions.py; answers stay in this browser, as records of the form of lora_lab/course/progress_file.py.

const listed = (data, wrong) => [false, `<ul>\n${wrong.map(place => data.remarks[place]).join('')}</ul>\n`];

// A function for each kind: from a question's data and an answer to [solved, HTML], as `grade` in question_kinds.py.
export const judge = {
  choice: (data, chosen) => data.replies[chosen],
  multiple(data, ticked) {
    const wrong = ticked.filter(place => !data.right[place]);
    if (wrong.length) return listed(data, wrong);
    return ticked.length < data.right.filter(Boolean).length ? data.missing : data.all;
  },
  number(data, written) {
    const found = number(without(written.trim(), data.unit));
    if (found === null) return data.unread;
    const is = value => Math.abs(found - value)
      <= Math.max(data.tolerance * Math.max(Math.abs(found), Math.abs(value)), 1e-12);
    return is(data.value) ? data.all : data.near.find(([value]) => is(value))?.[1] ?? data.otherwise;
  },
  match(data, chosen) {
    const wrong = data.right.flatMap((right, item) => chosen[item] === right ? [] : [item]);
    return wrong.length ? listed(data, wrong) : data.all;
  },
  order(data, places) {
    if (new Set(places).size < places.length) return data.same;
    const wrong = data.right.filter((right, item) => places[item] !== right);
    return wrong.length ? data.replies[Math.min(...wrong)] : data.all;
  },
  predict: (data, band) => [band === data.right, data.outcomes[band]],
};

const without = (text, end) => end && text.endsWith(end) ? text.slice(0, -end.length) : text;

// The number that somebody wrote, or null: Python's reading, digits of other scripts and "1/inf" included.
function number(written) {
  const plain = without(written.trim(), '%').replace(/\p{Nd}/gu, digit)
    .replace(/(?<=\d)[,_ '\u00a0\u202f\u2019](?=\d{3}(?!\d))/g, '');
  const bar = plain.indexOf('/');
  const found = bar < 0 ? float(plain) : float(plain.slice(0, bar)) / (float(plain.slice(bar + 1)) || NaN);
  return Number.isFinite(found) ? found : null;
}

function float(text) {
  const digits = String.raw`\d(?:_?\d)*`;
  const plain = text.trim();
  if (new RegExp(String.raw`^[+-]?(?:${digits}\.?(?:${digits})?|\.${digits})(?:e[+-]?${digits})?$`, 'i').test(plain))
    return Number(plain.replaceAll('_', ''));
  return /^[+-]?inf(inity)?$/i.test(plain) ? Infinity * (plain[0] === '-' ? -1 : 1) : NaN;
}

function digit(sign) {  // digits stand in tens, from 0 to 9
  let place = 0;
  while (/\p{Nd}/u.test(String.fromCodePoint(sign.codePointAt(0) - place - 1))) place++;
  return place % 10;
}

// Records, by the course's version and the question. A browser that keeps nothing has them until the page is left.
const home = `lora-lab ${typeof DOCUMENTATION_OPTIONS === 'undefined' ? '' : DOCUMENTATION_OPTIONS.VERSION} `;
const empty = { attempts: 0, solved: false, shown: false, hints: 0, answer: null, measured: null };
let box;
try {
  box = globalThis.localStorage;
  box.setItem(home, '');
  box.removeItem(home);
} catch {
  const kept = new Map();
  box = { getItem: key => kept.get(key) ?? null, setItem: (key, text) => kept.set(key, text), passing: true,
    removeItem: key => kept.delete(key), key: place => [...kept.keys()][place], get length() { return kept.size; } };
}

function read(id) {
  try {
    const kept = { ...empty, ...JSON.parse(box.getItem(home + id)) };
    const whole = [kept.attempts, kept.hints].every(count => Number.isInteger(count) && count >= 0);
    return whole && [kept.solved, kept.shown].every(flag => typeof flag === 'boolean') ? kept : { ...empty };
  } catch {
    return { ...empty };
  }
}

// As `keep` in cards.py: what solved a question stays, and so does a prediction; no hint and no look is forgotten.
function keep(id, fields, solved = null) {
  const kept = read(id);
  for (const [name, value] of Object.entries(fields))
    if (name !== 'answer' || !kept.solved)
      kept[name] = name === 'hints' ? Math.max(value, kept.hints) : name === 'shown' ? value || kept.shown : value;
  if (solved !== null && !kept.solved) Object.assign(kept, { attempts: kept.attempts + 1, solved });
  try { box.setItem(home + id, JSON.stringify(kept)); } catch { /* full: the answer still has its reply */ }
  return kept;
}

const made = (name, properties, ...parts) => {
  const part = Object.assign(document.createElement(name), properties);
  part.append(...parts);
  return part;
};
const button = (textContent, act) => {
  const part = made('button', { type: 'button', textContent });
  part.addEventListener('click', act);
  return part;
};
const isPlace = lines => place => Number.isInteger(place) && place >= 0 && place < lines.length;
const named = (text, control) => made('label', {}, made('span', { textContent: text }), control);

// A control for each kind: its part of the page, the fields in it, the answer it holds or null, and how to set one. The
// classes are those of Jupyter's controls, so that the style sheet of the notebooks' questions fits.
const controls = {
  choice(data, id) {
    const fields = data.lines.map(() => made('input', { type: 'radio', name: id }));
    const part = made('div', { className: 'widget-radio-box', role: 'radiogroup' },
      ...data.lines.map((line, place) => named(line, fields[place])));
    part.setAttribute('aria-labelledby', `${id} ask`.replaceAll(' ', '-'));
    return { part, fields, holds: isPlace(data.lines),
      get: () => fields.some(field => field.checked) ? fields.findIndex(field => field.checked) : null,
      set: answer => { fields[answer].checked = true; } };
  },
  multiple(data) {
    const fields = data.lines.map(() => made('input', { type: 'checkbox' }));
    const part = made('div', {}, ...data.lines.map((line, place) => made('div', { className: 'widget-checkbox' },
      made('label', {}, fields[place], made('span', { textContent: line })))));
    const ticked = () => data.lines.flatMap((_, place) => fields[place].checked ? [place] : []);
    return { part, fields, holds: answer => Array.isArray(answer) && answer.every(isPlace(data.lines)),
      get: () => ticked().length ? ticked() : null,
      set: answer => answer.forEach(place => { fields[place].checked = true; }) };
  },
  number(data) {
    const field = made('input', { type: 'text', autocomplete: 'off' });
    const part = named(`Answer (${data.unit})`, field);
    part.className = 'widget-text';
    return { part, fields: [field], holds: answer => typeof answer === 'string',
      get: () => field.value.trim().slice(0, 100) || null, set: answer => { field.value = answer; } };
  },
  match(data) {
    const fields = data.items.map(() => made('select', {}, ...['choose ...', ...data.choices].map((text, place) =>
      made('option', { textContent: text, value: place - 1 }))));
    const part = made('div', {}, ...data.items.map((item, place) => {
      const line = named(item, fields[place]);
      line.className = 'widget-dropdown';
      line.firstChild.className = 'widget-label';
      return line;
    }));
    return { part, fields,
      holds: answer => Array.isArray(answer) && answer.length === fields.length && answer.every(isPlace(data.choices)),
      get: () => fields.some(field => field.value < 0) ? null : fields.map(field => Number(field.value)),
      set: answer => answer.forEach((place, item) => { fields[item].value = place; }) };
  },
};
controls.predict = controls.choice;
controls.order = controls.match;

// As `says` in cards.py.
function says([solved, text], { announce = false, attempt = 0, word } = {}) {
  const [kind, usual] = solved === null ? ['', ''] : solved ? ['right', '✓ Right.'] : ['wrong', '✗ Not yet.'];
  const count = solved !== null && attempt ? ` (attempt ${attempt})` : '';
  return `<div class="lora-lab-says ${kind}"${announce ? ' role="alert"' : ''}><b>${word ?? usual}</b>${count}${text}</div>`;
}

const times = count => `<p>${count} attempt${count === 1 ? '' : 's'} so far.</p>`;

function show(part, text) {
  part.innerHTML = text;  // only what the course wrote; what a reader writes stays in its field
}

function card(still) {
  const id = still.dataset.question, data = JSON.parse(atob(still.dataset.card)), predicts = data.kind === 'predict';
  const control = controls[data.kind](data, id);
  const [hints, feedback, answer] = [1, 2, 3].map(() => made('div', {}));
  const checks = button(predicts ? 'Commit prediction' : 'Check answer', check);
  const hint = button('', () => { keep(id, { hints: read(id).hints + 1 }); drawHints(true); });
  const shows = button('Show answer', () => { keep(id, { shown: !read(id).solved }); drawAnswer(true); });

  function check() {
    const given = control.get();
    if (given === null) return show(feedback, says([null, `<p>${data.wanted}</p>`], { announce: true }));
    if (predicts) {
      if (read(id).answer === null)  // an earlier one, elsewhere, stays
        keep(id, 'measured' in data ? { answer: given, measured: data.measured, solved: true } : { answer: given });
      return restore(true);
    }
    const verdict = judge[data.kind](data, given), before = read(id);
    const kept = keep(id, { answer: given }, verdict[0]);
    const attempt = before.solved && !verdict[0] ? 0 : kept.attempts;  // a try that does not count
    show(feedback, says(verdict, { announce: true, attempt }));
    if (verdict[0]) drawAnswer();
    allow();
  }

  function drawHints(announce = false) {
    const count = data.hints.length, seen = Math.min(read(id).hints, count);
    show(hints, data.hints.slice(0, seen).map((text, place) =>
      `<div class="lora-lab-says"${announce && place === seen - 1 ? ' role="alert"' : ''}>${text}</div>`).join(''));
    hint.textContent = seen < count ? `Hint ${seen + 1} of ${count}` : 'No more hints';
    hint.disabled = seen === count;
  }

  function drawAnswer(announce = false) {
    show(answer, `<div class="lora-lab-says"${announce ? ' role="alert"' : ''}>${data.answer}</div>`);
    allow();
  }

  function allow() {  // after an attempt, and once
    shows.disabled = !read(id).attempts || answer.hasChildNodes();
    shows.title = read(id).attempts ? '' : 'after an attempt';
    tell();
  }

  function restore(announce = false) {
    const kept = read(id);
    if (kept.answer !== null) control.set(kept.answer);
    if (predicts && kept.answer !== null) {
      for (const field of [...control.fields, checks]) field.disabled = true;
      show(feedback, says([null, data.committed[kept.answer]], { announce }));
      unfold();
      for (const place of document.querySelectorAll('.lora-lab-measured'))
        if (place.dataset.question === id) show(place, judge.predict(data, kept.answer)[1]);
    } else if (kept.solved) {
      show(feedback, says([true, times(kept.attempts)], { word: '✓ Solved.' }));
      drawAnswer();
    } else if (kept.attempts) {
      show(feedback, says([null, times(kept.attempts)], { word: 'Not solved yet.' }));
    }
    drawHints();
    allow();
  }

  still.querySelectorAll(':scope > ul, :scope > .lora-lab-note:last-child').forEach(part => part.remove());
  still.setAttribute('role', 'group');
  still.setAttribute('aria-label', `Question ${id}`);
  still.querySelector('.lora-lab-ask').id = `${id} ask`.replaceAll(' ', '-');
  for (const field of control.fields)
    field.addEventListener('keydown', event => { if (event.key === 'Enter' && field.type === 'text') check(); });
  still.append(control.part, made('div', { className: 'widget-hbox' }, checks, hint, ...predicts ? [] : [shows]),
    hints, feedback, answer);
  if (read(id).answer !== null && !control.holds(read(id).answer)) box.removeItem(home + id);  // somebody edited it
  restore();
}

// What settles a prediction is folded until it is made, or until the reader opens it: then all that belongs to it opens.
const results = [...globalThis.document?.querySelectorAll('[class*="tag_result-of:"] > details') ?? []].map(fold => ({
  fold, of: [...fold.parentElement.classList].flatMap(name => name.split('tag_result-of:')[1] ?? []) }));

for (const { fold, of } of results)
  fold.addEventListener('toggle', () => {
    for (const other of results) if (fold.open && `${of}` === `${other.of}`) other.fold.open = true;
  });

function unfold() {
  for (const { fold, of } of results)
    if (of.every(id => read(id).answer !== null)) {
      fold.open = true;
      fold.classList.add('lora-lab-settled');
    }
}

function follow() {  // a link to a cell, from the claims board for instance, asks for what the cell shows
  for (const { fold } of results)
    if (fold.matches(':has(:target), .cell-place:target + .cell > details')) fold.open = true;
}

// Where the lesson looks back, or below it: how far the reader is, the file to take along, and a way to forget.
const stills = [...globalThis.document?.querySelectorAll('[data-card]') ?? []];
const tally = stills.length && made('p', {});

function tell() {
  const solved = stills.filter(still => read(still.dataset.question).solved).length;
  const guesses = stills.map(still => [JSON.parse(atob(still.dataset.card)), read(still.dataset.question).answer])
    .filter(([data, answer]) => 'measured' in data && answer !== null);
  const right = guesses.filter(([data, answer]) => judge.predict(data, answer)[0]).length;
  tally.textContent = `${solved} of ${stills.length} questions of this page are done: solved, or for a prediction, made. ` +
    (guesses.length ? `Of your predictions, ${right} of ${guesses.length} came true. ` : '') + (box.passing
    ? 'Your browser keeps nothing for this page: the answers are gone when you leave it.'
    : 'Your answers stay in this browser and are sent nowhere.');
}

const ids = () => Array.from({ length: box.length }, (_, place) => box.key(place))
  .filter(key => key.startsWith(home)).map(key => key.slice(home.length));

function save() {
  const questions = Object.fromEntries(ids().map(id => [id, read(id)]));
  const href = URL.createObjectURL(new Blob([JSON.stringify({ version: 1, questions }, null, 1)]));
  made('a', { href, download: 'lora-lab-progress.json' }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
}

function forget() {
  if (!confirm('Forget every answer that this browser has for the course?')) return;
  ids().forEach(id => box.removeItem(home + id));
  location.reload();
}

if (stills.length) {
  stills.forEach(card);
  for (const event of ['load', 'hashchange']) addEventListener(event, follow);
  const mine = made('div', { className: 'lora-lab-quiz lora-lab-answers' }, made('b', { textContent: 'Your answers' }),
    tally, made('p', {}, 'To go on in the notebooks, save them as a file, and add it there with ',
      made('code', { textContent: 'lora_lab.import_progress("lora-lab-progress.json")' }), '.'),
    made('div', { className: 'widget-hbox' }, button('Save as a file', save), button('Forget them', forget)));
  mine.setAttribute('role', 'group');
  mine.setAttribute('aria-label', 'Your answers');
  const place = document.querySelector('.lora-lab-count');
  if (place) place.replaceWith(mine);
  else (document.querySelector('article') ?? document.body).append(mine);
}
