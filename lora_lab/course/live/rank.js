// What the strongest pairs of directions leave of a matrix: an error and a corner at each rank that was computed.
function render({ model, el }) {
  const { ranks, matrices, side } = model.get('values');
  const colours = ['var(--a)', 'var(--b)'], chosen = { at: Math.max(0, ranks.indexOf(8)) };
  const percent = error => `${(100 * error).toFixed(error < .1 ? 1 : 0)} %`;

  function corner(bytes, x, y, size, colour, key) {
    const all = atob(bytes), cell = size / side, cells = [];
    for (let i = 0; i < all.length; i++) {
      const value = (all.charCodeAt(i) << 24 >> 24) / 127;
      cells.push(svg('rect', { x: x + i % side * cell, y: y + Math.floor(i / side) * cell, width: cell + .3, height: cell + .3,
        fill: value < 0 ? 'currentColor' : colour, opacity: Math.min(1, Math.abs(value)).toFixed(2) }));
    }
    return svg('g', { 'data-corner': key }, cells,
      svg('rect', { x, y, width: size, height: size, fill: 'none', stroke: 'var(--line)' }));
  }
  function draw(width) {
    const size = Math.min(150, (width - 24) / 3), row = size + 40, floor = matrices.length * row + 152, top = floor - 110;
    const left = 48, right = width - 14, last = ranks[ranks.length - 1];
    const x = rank => left + (right - left) * Math.log(rank) / Math.log(last), y = error => floor - (floor - top) * error;
    const now = ranks[chosen.at];
    const shown = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].filter(rank => rank <= last);
    return svg('svg', { viewBox: `0 0 ${width} ${floor + 42}`, role: 'img', 'aria-label': `Corners of ${matrices.length} matrices, ` +
        `of what rank ${now} keeps of each and of what is missing; below, the error by rank.` },
      matrices.map((matrix, i) => ['whole', 'kept', 'missing'].map((part, j) => [
        svg('text', { x: j * (size + 12), y: i * row + 13, style: j ? null : `fill: ${colours[i]}; font-weight: bold` },
          j === 0 ? matrix.name : j === 1 ? `rank ${now}` : `missing, ${percent(matrix.errors[chosen.at])}`),
        corner(j ? matrix[part][chosen.at] : matrix.whole, j * (size + 12), i * row + 20, size, colours[i], part)])).flat(3),
      svg('text', { x: 0, y: top - 12, style: 'font-weight: bold' }, 'error by rank'),
      [0, .5, 1].map(tick => [svg('line', { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: 'var(--line)', 'stroke-width': .5 }),
        svg('text', { x: left - 6, y: y(tick) + 4, 'text-anchor': 'end', class: 'soft' }, `${100 * tick} %`)]).flat(),
      shown.filter((_, i) => width > 420 || i % 2 === 0).map(rank => svg('text', { x: x(rank), y: floor + 18, 'text-anchor': 'middle',
        class: 'soft' }, rank)),
      svg('text', { x: right, y: floor + 36, 'text-anchor': 'end', class: 'soft' }, 'rank kept'),
      svg('line', { x1: x(now), x2: x(now), y1: top, y2: floor, stroke: 'currentColor' }),
      matrices.map((matrix, i) => [svg('polyline', { points: ranks.map((rank, j) => `${x(rank)},${y(matrix.errors[j])}`).join(' '),
        fill: 'none', stroke: colours[i], 'stroke-dasharray': '2 3', 'stroke-width': 1.5 }),
        ranks.map((rank, j) => svg('circle', { cx: x(rank), cy: y(matrix.errors[j]), r: j === chosen.at ? 6 : 3, fill: colours[i] }))]).flat(2));
  }
  function moved() {
    const rank = ranks[chosen.at];
    live.update(`Rank ${rank}: ` + matrices.map(({ name, shape, errors }) => `of ${name}, ${percent(errors[chosen.at])} is missing, with ` +
      `${count(rank * (shape[0] + shape[1]))} numbers instead of ${count(shape[0] * shape[1])}`).join('; ') + '.');
  }
  const live = figure(el, 'How much does a low rank keep?', {
    controls: [slider('rank', ranks.map(count), chosen.at, place => { chosen.at = place; moved(); })], draw,
    note: `Computed at ${ranks.length} ranks, between which nothing is drawn but a dotted line: the best approximation of each. Error: ` +
      `length of what is missing, by that of the matrix. You see ${side} × ${side} of its entries; the error is of all.` });
  moved();
  return live.end;
}
export default { render };
