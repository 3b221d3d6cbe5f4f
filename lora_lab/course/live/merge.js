// What a merge loses, by the weights' precision and the way of merging: each answer's distance from the trained model.
function render({ model, el }) {
  const { rows, reached } = model.get('values'), bases = [...new Set(rows.filter(row => row.way).map(row => row.base))];
  const chosen = { base: bases.includes('bfloat16') ? 'bfloat16' : bases[0], way: 'merged in place' };
  const of = base => rows.filter(row => row.base === base || !row.way);
  const middle = list => {
    const sorted = [...list].sort((a, b) => a - b), half = sorted.length / 2;
    return sorted.length % 2 ? sorted[Math.floor(half)] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const ends = [Math.min(...rows.flatMap(row => row.kl)), Math.max(...rows.flatMap(row => row.kl))].map(Math.log10);
  const first = Math.floor(ends[0]), last = Math.ceil(ends[1]);
  const ways = h('div', {});

  function draw(width) {
    const shown = of(chosen.base), left = 18, right = width - 16, x = kl => left + (right - left) * (Math.log10(kl) - first) / (last - first);
    const floor = shown.length * 56 + 8, powers = [];
    for (let power = first; power <= last; power += Math.ceil((last - first) * 40 / (right - left))) powers.push(power);
    return svg('svg', { viewBox: `0 0 ${width} ${floor + 44}`, role: 'img', 'aria-label': `Distance of each answer from the trained ` +
        `model, on ${chosen.base}, by way of merging, as points.` },
      powers.map(power => [svg('line', { x1: x(10 ** power), x2: x(10 ** power), y1: 8, y2: floor, stroke: 'var(--line)', 'stroke-width': .5 }),
        svg('text', { x: x(10 ** power), y: floor + 18, 'text-anchor': 'middle', class: 'soft' }, power === 0 ? '1' : `1e${power}`)]).flat(),
      svg('text', { x: right, y: floor + 38, 'text-anchor': 'end', class: 'soft' }, 'KL to the trained model, nats a token'),
      shown.map((row, i) => {
        const y = 44 + i * 56, on = row.way === chosen.way, colour = !row.way ? 'var(--frozen)' : on ? 'var(--b)' : 'var(--a)';
        return [svg('text', { x: 0, y: y - 18, style: on ? 'font-weight: bold' : null }, row.way || row.base),
          row.kl.map(kl => svg('circle', { cx: x(kl), cy: y, r: 4.5, fill: colour, opacity: .55 })),
          svg('line', { x1: x(middle(row.kl)), x2: x(middle(row.kl)), y1: y - 11, y2: y + 11, stroke: 'currentColor', 'stroke-width': 2 })].flat();
      }).flat());
  }
  function moved() {
    const row = rows.find(({ base, way }) => base === chosen.base && way === chosen.way), share = reached[chosen.base];
    const told = value => value < .001 ? value.toExponential(0) : `${+value.toPrecision(2)}`;
    live.update(`${chosen.base}, ${chosen.way}: ${row.kept} of ${row.kl.length} answers kept, KL ${told(middle(row.kl))} nats a token ` +
      `in the middle.` + (chosen.way === 'merged in place' && share ? ` ${(100 * share.arrives).toFixed(1)} % of the update arrives, ` +
      `${(100 * share.moves).toFixed(1)} % of the weights move.` : ''));
  }
  function start(place) {
    chosen.base = bases[place];
    const known = rows.filter(row => row.base === chosen.base).map(row => row.way);
    if (!known.includes(chosen.way)) chosen.way = known[0];
    ways.replaceChildren(menu('way', known, known.indexOf(chosen.way), at => { chosen.way = known[at]; moved(); }));
    ways.querySelector('select').setAttribute('data-lm-suppress-shortcuts', 'true');
    moved();
  }
  const live = figure(el, 'What does a merge lose?', {
    controls: [menu('weights in', bases, bases.indexOf(chosen.base), start), ways], draw,
    note: 'Measured: a point for each answer, a bar at the middle one. Compare with the rounded base with the adapter unmerged on it: ' +
      'only what goes beyond that is the merge’s own doing.' });
  start(bases.indexOf(chosen.base));
  return live.end;
}
export default { render };
