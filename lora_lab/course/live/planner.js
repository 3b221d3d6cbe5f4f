// The memory planner, without Python: what `memory.plan` says of a model built as Llama is, by the same sums.
const PARTS = [['weights', 'var(--frozen)'], ['quantization', 'url(#ll-hatch)'], ['adapter', 'var(--a)'],
  ['gradient', 'var(--pink)'], ['optimizer', 'var(--good)'], ['activation', 'var(--b)'], ['logits', 'var(--gold)']];

// A sum of products such as 8BSgd+12rm, with the letters' values.
function added(sum, of) {
  let total = 0;
  for (const [, factor, letters] of sum.matchAll(/([+-]?[\d.]+)([A-Za-z]*)/g))
    total += [...letters].reduce((product, letter) => product * of[letter], Number(factor));
  return total;
}

/* Bytes by part, in the order of PARTS. `sums` and `runs` were read off the rehearsal of `memory.plan`: of two layers
   and of three, what is held when the output head begins, and the fullest moments above that; each further layer adds
   as much as the third. The rest is counted here. */
function plan({ sums, runs }, shape, { targets, precision, checkpointing, r, B, S }) {
  const { d, g, p, m, V, layers, tied } = shape, h = d * g * p, k = d * g;
  const linear = [[h, h], [h, k], [h, k], [h, h], [h, m], [h, m], [m, h]];  // q, k, v, o, gate, up, down
  const adapted = targets === 'all-linear' ? linear : [linear[0], linear[2]];
  const bytes = precision === 'float32' ? 4 : 2, blocks = { float32: null, bfloat16: null, int8: (i, o) => o,
    nf4: (i, o) => Math.ceil(i * o / 64) }[precision];
  const own = ([i, o]) => precision === 'int8' ? i * o : precision === 'nf4' ? Math.floor((i * o + 1) / 2) : bytes * i * o;
  const total = (list, of) => layers * list.reduce((sum, layer) => sum + of(layer), 0);
  const weights = total(linear, own) + bytes * (V * h * (tied ? 1 : 2) + layers * 2 * h + h) + 4 * d;  // 4 d: rotary
  const trained = r * total(adapted, ([i, o]) => i + o);
  const of = { B, S, r, d, g, p, m, V, s: S + 1 };
  const key = [targets, precision, checkpointing, B === 1 ? 'one row' : 'rows', p === 1 ? 'alike' : 'grouped'].join('|');
  const [two, three] = runs[key].map(([held, head, peak]) => {
    const base = added(sums[held], of), most = list => base + Math.max(...list.map(place => added(sums[place], of)));
    return { held: base, head: most(head), peak: most(peak) };
  });
  const whole = part => two[part] + (three[part] - two[part]) * (layers - 2);
  const logits = Math.round(whole('head') - whole('held'));
  return [weights, blocks ? total(linear, ([i, o]) => 4 * blocks(i, o)) : 0, 4 * trained, 4 * trained, 8 * trained,
    Math.round(Math.max(whole('peak'), whole('head'))) - logits, logits];
}

function render({ model, el }) {
  const values = model.get('values'), { models, marks, reserve, start } = values, names = Object.keys(models);
  const stops = { r: [1, 2, 4, 8, 16, 32, 64, 128, 256], B: [1, 2, 4, 8, 16, 32],
    S: [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768], gpu: [4, 6, 8, 12, 16, 24, 32, 40, 48, 80, 141] };
  const choices = { model: names, precision: ['float32', 'bfloat16', 'int8', 'nf4'],
    targets: ['q_proj v_proj', 'all-linear'], checkpointing: ['off', 'on', 'reentrant'] };
  const chosen = { ...start };
  for (const name of Object.keys(stops)) stops[name] = withOwn(stops[name], start[name]);
  const gb = bytes => (bytes / 1e9 >= 100 ? (bytes / 1e9).toFixed(0) : (bytes / 1e9).toFixed(2));
  const size = bytes => bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`;
  const kept = () => reserve[chosen.precision === 'nf4' ? '4-bit' : '16-bit'];
  const parts = setting => plan(values, models[chosen.model], setting);
  const sum = list => list.reduce((total, part) => total + part, 0);
  const legend = h('ul', { class: 'll-legend' }), found = h('div', {});

  function draw(width) {
    const sizes = parts(chosen), total = sum(sizes), left = 44, right = width - 16;
    const own = marks.filter(mark => mark.model === chosen.model), usable = (1 - kept()) * chosen.gpu * 1e9;
    const furthest = 1.06 * Math.max(total, chosen.gpu * 1e9), x = bytes => right * bytes / furthest;
    let from = 0;
    const bar = PARTS.map(([name, colour], i) => {
      const part = svg('rect', { x: x(from), y: 24, width: x(sizes[i]), height: 30, fill: colour });
      from += sizes[i];
      return part;
    });
    // How the whole grows with a row, at these settings, and what others found
    const lengths = stops.S.filter(S => S <= models[chosen.model].positions);
    const curve = lengths.map(S => [chosen.B * S, sum(parts({ ...chosen, S }))]);
    const points = [...curve, ...own.flatMap(mark => [[mark.tokens, mark.gb * 1e9]]), [chosen.B * chosen.S, chosen.gpu * 1e9]];
    const span = axis => [Math.min(...points.map(point => point[axis])), Math.max(...points.map(point => point[axis]))];
    const [[t0, t1], [g0, g1]] = [span(0), span(1)], top = 112, floor = 282;
    const along = tokens => left + (right - left) * Math.log(tokens / t0) / Math.log(t1 / t0);
    const up = bytes => floor - (floor - top) * Math.log(bytes / g0) / Math.log(g1 / g0);
    const ticks = [];
    for (let power = 10 ** Math.floor(Math.log10(g0)); power <= g1; power *= 10)
      for (const times of [1, 2, 5]) if (times * power >= g0 && times * power <= g1) ticks.push(times * power);
    const across = [];
    for (let tokens = 2 ** Math.ceil(Math.log2(t0)); tokens <= t1; tokens *= 2 ** Math.ceil(Math.log2(t1 / t0) * 44 / (right - left)))
      across.push(tokens);
    return svg('svg', { viewBox: `0 0 ${width} 322`, role: 'img', 'aria-label': `A bar of ${size(total)} by part, against ` +
        `${chosen.gpu} GB, and how it grows with the tokens of a step, beside ${own.length} peaks that were found.` },
      svg('defs', {}, svg('pattern', { id: 'll-hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse' },
        svg('rect', { width: 6, height: 6, fill: 'var(--frozen)' }), svg('path', { d: 'M0 6L6 0', stroke: 'var(--paper)' }))),
      svg('text', { x: Math.min(x(chosen.gpu * 1e9), right), y: 12, 'text-anchor': 'end' }, `GPU, ${chosen.gpu} GB`),
      bar, svg('rect', { x: x(usable), y: 20, width: x(chosen.gpu * 1e9 - usable), height: 38, fill: 'currentColor', opacity: .14 }),
      svg('line', { x1: x(chosen.gpu * 1e9), x2: x(chosen.gpu * 1e9), y1: 16, y2: 62, stroke: 'currentColor', 'stroke-width': 2,
        'stroke-dasharray': '5 3' }),
      svg('text', { x: 0, y: 76, class: 'soft' }, `shaded: ${(100 * kept()).toFixed(0)} % of the GPU, kept free`),
      svg('text', { x: 0, y: 100, style: 'font-weight: bold' }, `GB by tokens in a step, rows of ${lengths[0]} and more`),
      ticks.map(tick => [svg('line', { x1: left, x2: right, y1: up(tick), y2: up(tick), stroke: 'var(--line)', 'stroke-width': .5 }),
        svg('text', { x: left - 6, y: up(tick) + 4, 'text-anchor': 'end', class: 'soft' }, `${+(tick / 1e9).toPrecision(1)}`)]).flat(),
      across.map(tokens => svg('text', { x: along(tokens), y: floor + 18, 'text-anchor': 'middle', class: 'soft' },
        tokens >= 1024 ? `${Math.round(tokens / 1024)}k` : tokens)),
      svg('text', { x: right, y: floor + 36, 'text-anchor': 'end', class: 'soft' }, 'line: the plan; circles: found elsewhere'),
      svg('line', { x1: left, x2: right, y1: up(chosen.gpu * 1e9), y2: up(chosen.gpu * 1e9), stroke: 'currentColor',
        'stroke-dasharray': '5 3' }),
      svg('polyline', { points: curve.map(([tokens, bytes]) => `${along(tokens)},${up(bytes)}`).join(' '), fill: 'none',
        stroke: 'var(--b)', 'stroke-width': 2 }),
      svg('circle', { cx: along(chosen.B * chosen.S), cy: up(total), r: 6, fill: 'var(--b)' }),
      own.map(mark => svg('circle', { cx: along(mark.tokens), cy: up(mark.gb * 1e9), r: 4.5, fill: 'none', stroke: 'currentColor',
        'stroke-width': mark.precision === chosen.precision ? 2.5 : 1 })));
  }

  function moved() {
    const { positions, parameters } = models[chosen.model];
    if (chosen.S > positions) {  // the model takes no longer row
      chosen.S = stops.S.findLast(S => S <= positions);
      sliders[Object.keys(stops).indexOf('S')].set(stops.S.indexOf(chosen.S));
    }
    const sizes = parts(chosen), total = sum(sizes), fits = total <= (1 - kept()) * chosen.gpu * 1e9;
    legend.replaceChildren(...PARTS.map(([name, colour], i) => h('li', {},
      svg('svg', { viewBox: '0 0 12 12', 'aria-hidden': 'true' }, svg('rect', { width: 12, height: 12, fill: colour })),
      `${name} `, h('b', {}, size(sizes[i])))));
    const own = marks.filter(mark => mark.model === chosen.model);
    found.replaceChildren(h('details', {}, h('summary', {}, `${own.length || 'No'} peaks of ${chosen.model} found elsewhere`),
      h('ul', {}, own.map(mark => h('li', {}, `${mark.what}: ${mark.said}. Found ${mark.gb} GB, planned ${mark.planned} GB.`)))));
    live.update(`${chosen.model}, ${count(parameters)} parameters: ${size(total)}, which ${fits ? 'fits' : 'does not fit'} ` +
      `${chosen.gpu} GB, of which ${(100 * kept()).toFixed(0)} % (${size(kept() * chosen.gpu * 1e9)}) is kept free.` +
      (chosen.S === positions ? ` Rows are at most ${count(positions)} tokens long here.` : ''));
  }
  const lists = Object.entries(choices).map(([name, list]) => menu(name, list, list.indexOf(chosen[name]),
    place => { chosen[name] = list[place]; moved(); }));
  const words = { r: 'rank', B: 'rows', S: 'tokens a row', gpu: 'GPU, GB' };
  const sliders = Object.entries(stops).map(([name, list]) => slider(words[name], list.map(count), list.indexOf(chosen[name]),
    place => { chosen[name] = list[place]; moved(); }));
  const live = figure(el, 'Will this step fit?', { controls: [...lists, ...sliders], draw, below: [legend, found],
    note: 'Planned, not measured: every number is what memory.plan says of these settings (a test compares 500). AdamW, fused ' +
      'attention, all logits, no double quantisation, nothing padded. The model is not prepared: ' +
      'prepare_model_for_kbit_training would make float32 of what is not quantised, and that takes more than 16 bits. A part of ' +
      'the GPU is kept free for what CUDA and its allocator take, and for what a plan misses. A circle was measured elsewhere, at ' +
      'settings of its own.' });
  moved();
  return live.end;
}
export default { render };
