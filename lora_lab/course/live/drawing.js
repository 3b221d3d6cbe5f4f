// How LoRA works, drawn: x goes through the frozen W, and around it through A and B; matrices to scale.
function render({ model, el }) {
  const { name, d_in, d_out, r: own, alpha, entries } = model.get('values');
  const powers = [1, 2, 4, 8, 16, 32, 64, 128, 256].filter(stop => stop <= Math.min(d_in, d_out));
  const equal = Math.floor(d_in * d_out / (d_in + d_out));  // from here on A and B are no smaller than W
  const ranks = withOwn(withOwn([...powers, equal], Math.min(d_in, d_out)), own);
  const alphas = withOwn([1, 2, 4, 8, 16, 32, 64, 128], alpha);
  const chosen = { r: own, alpha };
  const short = value => +value.toPrecision(3);

  // A matrix's own entries: the stronger, the more of the matrix's colour; below zero, of the ink. `keep` of its rows.
  function image(matrix, colour, rows, columns) {
    const { bytes, rows: high, columns: wide } = entries[matrix], all = atob(bytes);
    const style = getComputedStyle(el.querySelector('.ll-live'));
    const dab = text => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = text; c.fillRect(0, 0, 1, 1);
      return c.getImageData(0, 0, 1, 1).data; };
    const plus = dab(style.getPropertyValue(colour)), paper = dab(style.getPropertyValue('--paper')), minus = dab(style.color);
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [Math.min(columns, wide), Math.min(rows, high)];
    const pen = canvas.getContext('2d'), data = pen.createImageData(canvas.width, canvas.height);
    for (let row = 0; row < canvas.height; row++) for (let column = 0; column < canvas.width; column++) {
      const value = (all.charCodeAt(row * wide + column) << 24 >> 24) / 127, ink = value < 0 ? minus : plus;
      const strength = Math.min(1, 2.5 * Math.abs(value));  // most are far from the largest
      for (let part = 0; part < 3; part++)
        data.data[4 * (row * canvas.width + column) + part] = paper[part] + strength * (ink[part] - paper[part]);
      data.data[4 * (row * canvas.width + column) + 3] = 255;
    }
    pen.putImageData(data, 0, 0);
    return canvas.toDataURL();
  }
  function block(matrix, colour, x, y, width, height, share, tall) {
    const filled = entries[matrix] ? [svg('image', { x, y, width: width * (tall ? share : 1), height: height * (tall ? 1 : share),
      href: image(matrix, colour, tall || matrix === 'W' ? 1e9 : chosen.r, tall ? chosen.r : 1e9), preserveAspectRatio: 'none',
      style: 'image-rendering: pixelated' })] : [];
    return [svg('rect', { x, y, width, height, fill: `var(${colour})`, opacity: entries[matrix] ? .35 : 1 }), ...filled,
      svg('rect', { x, y, width, height, fill: 'none', stroke: `var(${colour})`, 'stroke-width': 1.5 })];
  }
  function draw(width) {
    const { r } = chosen, scale = Math.min(.3 * width, .45 * width - 53, 150) / Math.max(d_in, d_out), thin = Math.max(2, r * scale);
    const wide = d_in * scale, high = d_out * scale, share = Math.min(1, own / r), half = Math.max(high, thin) / 2;
    const upper = high / 2 + 34, lower = upper + high / 2 + Math.max(high, thin) / 2 + 66, tall = lower + half + 44;
    const enters = 26, joins = width - 52, aLeft = 40, bLeft = aLeft + wide + .1 * width, times = upper + Math.max(high / 2 + 24, 44);
    const wLeft = (enters + joins) / 2 - wide / 2;
    const line = (...points) => svg('polyline', { points: points.join(' '), fill: 'none', stroke: 'var(--soft)', 'stroke-width': 1.5,
      'marker-end': 'url(#ll-tip)' });
    const text = (x, y, words, options) => svg('text', { x, y, 'text-anchor': 'middle', ...options }, words);
    const sign = (x, y, words) => [svg('circle', { cx: x, cy: y, r: 12, fill: 'var(--paper)', stroke: 'currentColor' }),
      text(x, y + 5, words, { style: 'font-size: 15px' })];
    return svg('svg', { viewBox: `0 0 ${width} ${tall}`, role: 'img', 'aria-label': `A linear layer with LoRA, to scale. x, of ` +
        `${d_in} numbers, goes through the frozen W, ${d_out} by ${d_in}, and around it through A, ${r} by ${d_in}, then B, ` +
        `${d_out} by ${r}, times alpha over r, ${short(chosen.alpha / r)}; both are added to y.` },
      svg('defs', {}, svg('marker', { id: 'll-tip', viewBox: '0 0 8 8', refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: 'auto' },
        svg('path', { d: 'M0 0L8 4L0 8z', fill: 'var(--soft)' }))),
      line(`16,${upper}`, `${wLeft - 3},${upper}`), line(`${wLeft + wide + 3},${upper}`, `${joins - 13},${upper}`),
      line(`${enters},${upper}`, `${enters},${lower}`, `${aLeft - 3},${lower}`),
      line(`${aLeft + wide + 3},${lower}`, `${bLeft - 3},${lower}`),
      line(`${bLeft + thin + 3},${lower}`, `${joins},${lower}`, `${joins},${times + 13}`),
      line(`${joins},${times - 12}`, `${joins},${upper + 13}`), line(`${joins + 12},${upper}`, `${width - 18},${upper}`),
      text(7, upper + 4, 'x', { style: 'font-style: italic; font-size: 15px' }),
      text(width - 8, upper + 4, 'y', { style: 'font-style: italic; font-size: 15px' }),
      block('W', '--frozen', wLeft, upper - high / 2, wide, high, 1),
      text(wLeft + wide / 2, upper - high / 2 - 20, 'W, frozen', { style: 'font-weight: bold' }),
      text(wLeft + wide / 2, upper - high / 2 - 6, `${d_out} × ${d_in}`, { class: 'soft' }),
      block('A', '--a', aLeft, lower - thin / 2, wide, thin, share),
      text(aLeft + wide / 2, lower - thin / 2 - 8, 'A trains', { style: 'fill: var(--a); font-weight: bold' }),
      text(aLeft + wide / 2, lower + thin / 2 + 16, `${r} × ${d_in}`, { class: 'soft' }),
      block('B', '--b', bLeft, lower - high / 2, thin, high, share, true),
      text(bLeft + thin / 2, lower - high / 2 - 8, 'B trains', { style: 'fill: var(--b); font-weight: bold' }),
      text(bLeft + thin / 2, lower + high / 2 + 16, `${d_out} × ${r}`, { class: 'soft' }),
      sign(joins, times, '×'), sign(joins, upper, '+'),
      text(joins - 18, times + 4, `α/r = ${short(chosen.alpha / r)}`, { 'text-anchor': 'end' }));
  }
  const numbers = h('p', { class: 'll-soft' });
  function moved() {
    const { r } = chosen, trains = r * (d_in + d_out), whole = d_in * d_out, first = matrix =>
      `${matrix} begins ${entries[matrix].first.map(value => value.toFixed(4)).join(', ')}`;
    const more = entries.A && r !== own ? ` The adapter that is there has rank ${own}: ` +
      (r > own ? 'what is plain has no entries yet.' : `of its entries you see ${r} of ${own} rows and columns.`) : '';
    numbers.textContent = `Entries of ${name}: ${Object.keys(entries).map(first).join('; ')}.${more}`;
    live.update(`Rank ${r}: ${count(trains)} numbers train, ${(100 * trains / whole).toFixed(1)} % of W's ${count(whole)}. ` +
      `Their product is multiplied by α/r = ${short(chosen.alpha)}/${r} = ${short(chosen.alpha / r)}.`);
  }
  const live = figure(el, 'A linear layer with LoRA, to scale', {
    controls: [slider('rank', ranks.map(count), ranks.indexOf(own), place => { chosen.r = ranks[place]; moved(); }),
      slider('alpha', alphas.map(String), alphas.indexOf(alpha), place => { chosen.alpha = alphas[place]; moved(); })],
    draw, below: [numbers], note: `Shapes and counts are exact at every rank. Dots are entries of ${name}, evenly picked from ` +
      'all of it: above zero in the matrix’s colour, below zero in that of the text.' });
  moved();
  return live.end;
}
export default { render };
