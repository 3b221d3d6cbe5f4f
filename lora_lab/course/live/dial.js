// The dial on an adapter's scaling: score and perplexity at each measured factor, and what the model then says.
function render({ model, el }) {
  const { points, asked } = model.get('values');
  const named = points.map(point => `${point.factor}`);
  let at = Math.max(0, points.findIndex(point => point.factor === 1));
  const answers = h('ul', {}), told = value => value === null ? 'not a number' : count(value);

  const panels = [
    { title: 'answers that are exactly right', of: point => 100 * point.exact, low: 0, high: 100, ticks: [0, 50, 100],
      colour: 'var(--a)', words: value => `${value.toFixed(0)} %` },
    { title: 'perplexity of ordinary prose', of: point => point.perplexity, log: true, colour: 'var(--b)',
      words: told },
  ];
  function panel({ title, of, low, high, ticks, colour, words, log }, width, top, height) {
    const values = points.map(of), known = points.map((_, i) => i).filter(i => values[i] !== null), left = 62, right = width - 14, last = points[points.length - 1].factor;
    if (log) {
      low = 10 ** Math.floor(Math.log10(Math.min(...known.map(i => values[i]))));
      high = 10 ** Math.ceil(Math.log10(Math.max(...known.map(i => values[i]))));
      for (ticks = []; (ticks[ticks.length - 1] ?? 0) < high;) ticks.push(low * 10 ** ticks.length);
    }
    const by = log ? Math.log : value => value, x = factor => left + (right - left) * factor / last;
    const floor = top + 24 + height, y = value => floor - height * (by(value) - by(low)) / (by(high) - by(low));
    const every = Math.ceil(ticks.length / 6), here = x(points[at].factor);
    return [
      svg('text', { x: 0, y: top + 10, style: `fill: ${colour}; font-weight: bold` }, `${title}: ${words(values[at])}`),
      ticks.filter((_, i) => i % every === 0).map(tick => [
        svg('line', { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: 'var(--line)', 'stroke-width': .5 }),
        svg('text', { x: left - 8, y: y(tick) + 4, 'text-anchor': 'end', class: 'soft' }, count(tick))]),
      svg('line', { x1: here, x2: here, y1: top + 24, y2: floor, stroke: 'currentColor' }),
      svg('polyline', { points: known.map(i => `${x(points[i].factor)},${y(values[i])}`).join(' '), fill: 'none',
        stroke: colour, 'stroke-width': 1.5, 'stroke-dasharray': '2 3' }),
      known.map(i => svg('circle', { cx: x(points[i].factor), cy: y(values[i]), r: i === at ? 7 : 4, fill: colour })),
      points.map((point, i) => svg('text', { x: x(point.factor), y: floor + 20, 'text-anchor': 'middle',
        class: i === at ? null : 'soft', style: i === at ? 'font-weight: bold' : null }, `${point.factor}`)),
    ].flat(2);
  }
  function draw(width) {
    return svg('svg', { viewBox: `0 0 ${width} 318`, role: 'img', 'aria-label': 'Score and perplexity by factor, as ' +
        `points. Marked: factor ${points[at].factor}.` },
      panel(panels[0], width, 4, 84), panel(panels[1], width, 152, 104),
      svg('text', { x: width - 14, y: 314, 'text-anchor': 'end', class: 'soft' }, 'factor on the scaling; 1 is as trained'));
  }
  function moved(place) {
    at = place;
    const point = points[at];
    answers.replaceChildren(...asked.map(({ prompt, answer }, i) => {
      const right = point.answers[i].trim() === answer.trim();
      return h('li', { 'data-right': `${right}` }, h('div', {}, `“${prompt}”`),
        h('div', {}, 'the model says ', h('code', {}, point.answers[i].trim() || ' '), right ? ' right' : ' wrong'),
        right ? null : h('div', { class: 'll-soft' }, 'right is ', h('code', {}, answer)));
    }));
    const state = point.factor === 0 ? ' (the base alone)' : point.factor === 1 ? ' (as trained)' : '';
    live.update(`Factor ${point.factor}${state}: ${(100 * point.exact).toFixed(0)} % of ${point.n} answers are exactly right, ` +
      `perplexity ${told(point.perplexity)}.`);
  }
  const live = figure(el, 'Turn the adapter: what the model then says', {
    controls: [slider('factor', named, at, moved)], draw, below: [answers],
    note: `Measured at ${points.length} factors: the dial stops at these and nowhere between. A dotted line only joins its points.`,
  });
  moved(at);
  return live.end;
}
export default { render };
