// The ridge of alpha and learning rate: the loss of every training on the grid, the best rates, and both laws.
function render({ model, el }) {
  const { found, seeds } = model.get('values'), names = Object.keys(found), chosen = { name: names[0] };
  const power = value => value >= 1 ? count(value) : value >= .01 ? `${+value.toPrecision(2)}` : value.toExponential(0);
  const across = h('div', { class: 'll-controls' });
  const spread = ({ losses }) => {
    const all = losses.flat().filter(loss => loss !== null);
    return [Math.min(...all), Math.max(...all)].map(Math.log);
  };

  function draw(width) {
    const { alphas, rates, losses, best, laws } = found[chosen.name], [low, high] = spread(found[chosen.name]);
    const left = 58, right = width - 4, top = 22, cell = (right - left) / rates.length, row = 34;
    const x = rate => left + cell * (.5 + Math.log(rate / rates[0]) / Math.log(rates[1] / rates[0]));
    const y = alpha => top + row * (alphas.length - .5 - Math.log(alpha / alphas[0]) / Math.log(alphas[1] / alphas[0]));
    const floor = top + row * alphas.length, every = Math.ceil(rates.length * 42 / (right - left)), id = `ll-clip-${chosen.name}`;
    const lines = laws.map(({ name, slope, at }, i) => {
      const through = best[at], ends = [alphas[0], alphas[alphas.length - 1]];
      return through === null ? null : svg('line', { 'data-law': name, 'clip-path': `url(#${id})`, y1: y(ends[0]), y2: y(ends[1]),
        x1: x(through * (ends[0] / alphas[at]) ** slope), x2: x(through * (ends[1] / alphas[at]) ** slope),
        stroke: `var(${['--b', '--gold'][i]})`, 'stroke-width': 2.5, 'stroke-dasharray': ['6 3', '2 3'][i] });
    });
    return svg('svg', { viewBox: `0 0 ${width} ${floor + 46}`, role: 'img', 'aria-label': `Loss by alpha and learning rate under ` +
        `${chosen.name}, stronger colour is better, with the best rate of each alpha and ${laws.length} laws as lines.` },
      svg('defs', {}, svg('clipPath', { id }, svg('rect', { x: left, y: top, width: right - left, height: floor - top }))),
      svg('text', { x: 0, y: 12, class: 'soft' }, 'alpha'),
      losses.map((list, i) => list.map((loss, j) => svg('rect', { x: left + j * cell, y: y(alphas[i]) - row / 2, width: cell - 1,
        height: row - 1, fill: loss === null ? 'var(--line)' : 'var(--a)', onclick: () => choose(i, j),
        opacity: loss === null ? .35 : (.08 + .92 * (high - Math.log(loss)) / (high - low || 1)).toFixed(3) }))).flat(),
      alphas.map(alpha => svg('text', { x: left - 6, y: y(alpha) + 4, 'text-anchor': 'end', class: 'soft' }, power(alpha))),
      rates.map((rate, j) => j % every ? null : svg('text', { x: Math.min(x(rate), right - 18), y: floor + 16, 'text-anchor': 'middle',
        class: 'soft' }, power(rate))).filter(Boolean),
      svg('text', { x: right, y: floor + 36, 'text-anchor': 'end', class: 'soft' }, 'learning rate'),
      lines.filter(Boolean),
      best.map((rate, i) => rate === null ? null : svg('circle', { cx: x(rate), cy: y(alphas[i]), r: 5, fill: 'var(--paper)',
        stroke: 'currentColor', 'stroke-width': 2 })).filter(Boolean),
      svg('rect', { x: left + chosen.rate * cell, y: y(alphas[chosen.alpha]) - row / 2, width: cell - 1, height: row - 1, fill: 'none',
        stroke: 'currentColor', 'stroke-width': 3 }));
  }
  function moved() {
    const { alphas, rates, losses, best } = found[chosen.name], loss = losses[chosen.alpha][chosen.rate], at = best[chosen.alpha];
    live.update(`${chosen.name}, alpha ${power(alphas[chosen.alpha])}, rate ${power(rates[chosen.rate])}: ` +
      (loss === null ? 'at least one seed diverged.' : `held-out loss ${loss.toPrecision(2)}, the mean of ${seeds} seeds.`) +
      (at === null ? ' The best rate lies at the edge of the grid.' : ` The best rate at this alpha is about ${power(at)}.`));
  }
  function choose(...places) {  // by a click; the sliders are the way by keys
    [chosen.alpha, chosen.rate] = places;
    [...across.children].forEach((label, i) => label.set(places[i]));
    moved();
  }
  function start(place) {
    chosen.name = names[place];
    const { alphas, rates, losses } = found[chosen.name];
    chosen.alpha = Math.floor(alphas.length / 2);
    const row = losses[chosen.alpha].map(loss => loss ?? Infinity);
    chosen.rate = row.indexOf(Math.min(...row));
    across.replaceChildren(...[['alpha', alphas], ['rate', rates]].map(([name, list]) => slider(name === 'rate' ? 'learning rate' : name,
      list.map(power), chosen[name], at => { chosen[name] = at; moved(); })));
    for (const input of across.querySelectorAll('input')) input.setAttribute('data-lm-suppress-shortcuts', 'true');
    moved();
  }
  const key = h('p', { class: 'll-soft' });
  const live = figure(el, 'Where is the best rate of each alpha?', {
    controls: [names.length > 1 ? menu('optimizer', names, 0, start) : null].filter(Boolean), draw: width => {
      key.textContent = 'The stronger the colour, the lower the loss; grey diverged. Circles: the best rate of each alpha, ' +
        'between the points of the grid. Lines: where it would go by a law, from one measured end: ' +
        found[chosen.name].laws.map(({ name }, i) => `${name} (${['dashes', 'dots'][i]})`).join(', ') + '.';
      return draw(width);
    }, below: [across, key], note: `Every cell is a training that was measured, ${seeds} seeds each; the sliders stop at these.` });
  start(0);
  return live.end;
}
export default { render };
