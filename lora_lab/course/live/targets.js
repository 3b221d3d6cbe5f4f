// The target explorer: tick layers of a model, and see what a LoraConfig with them trains, with the config to copy.
function render({ model, el }) {
  const { models, ticked, r } = model.get('values'), names = Object.keys(models);
  const ranks = withOwn([1, 2, 4, 8, 16, 32, 64, 128, 256], r), chosen = { model: names[0], r, ticked: new Set(ticked) };
  const groups = () => models[chosen.model].groups, listed = () => [...new Set(groups().map(group => group.name))];
  const known = new Set(names.flatMap(name => models[name].groups.map(group => group.name)));
  const trains = group => chosen.ticked.has(group.name) ? chosen.r * (group.in + group.out) : 0;

  function draw(width) {
    const inside = groups().filter(group => group.where.includes('*'));  // one block; the head is none of it
    const scale = 84 / Math.max(...inside.flatMap(group => [group.in, group.out]));
    let x = 0, y = 0, tall = 0;
    const drawn = inside.map(group => {
      const wide = group.in * scale, high = group.out * scale, thin = Math.max(2, chosen.r * scale), on = trains(group) > 0;
      const cell = Math.max(wide + 34, 104);
      if (x && x + cell > width) [x, y, tall] = [0, y + tall + 12, 0];
      const left = x + 14 + (on ? 0 : 0), top = y + 48;
      const parts = [
        svg('text', { x: left, y: y + 14, style: on ? 'font-weight: bold' : null, class: on ? null : 'soft' }, group.name),
        svg('text', { x: left, y: y + 29, class: 'soft' }, `${group.in} → ${group.out}`),
        on ? svg('text', { x: left, y: y + 43, class: 'soft' }, `trains ${count(trains(group))}`) : null,
        svg('rect', { x: left, y: top, width: wide, height: high, fill: 'var(--frozen)', opacity: .45 }),
        on ? svg('rect', { x: left, y: top + high + 3, width: wide, height: thin, fill: 'var(--a)' }) : null,
        on ? svg('rect', { x: left - 3 - thin, y: top, width: thin, height: high, fill: 'var(--b)' }) : null];
      x += cell;
      tall = Math.max(tall, 60 + high + thin);
      return parts.filter(Boolean);
    });
    return svg('svg', { viewBox: `0 0 ${width} ${y + tall + 8}`, role: 'img', 'aria-label': 'One block’s layers to scale: ' +
      inside.map(group => `${group.name} ${trains(group) ? 'adapted' : 'frozen'}`).join(', ') + '.' }, drawn.flat());
  }
  const boxes = h('fieldset', {}), config = h('code', {}), copied = h('span', { 'aria-live': 'polite', class: 'll-soft' });
  const copy = h('button', { type: 'button', onclick: async () => {
    try {
      await navigator.clipboard.writeText(config.textContent);
      copied.textContent = ' Copied.';
    } catch {  // some pages may not: the text is marked instead, for the keys that copy
      getSelection().selectAllChildren(config);
      copied.textContent = ' Marked: press Ctrl+C.';
    }
  } }, 'Copy');
  function ticks() {
    boxes.replaceChildren(h('legend', {}, `Layers of ${chosen.model}`), ...listed().map(name => {
      const box = h('input', { type: 'checkbox', checked: chosen.ticked.has(name) ? '' : null, 'data-lm-suppress-shortcuts': 'true',
        onchange: () => { chosen.ticked[box.checked ? 'add' : 'delete'](name); moved(); } });
      return h('label', {}, box, name);
    }));
  }
  function moved() {
    const on = listed().filter(name => chosen.ticked.has(name)), { parameters } = models[chosen.model];
    const not = [...chosen.ticked].filter(name => known.has(name) && !on.includes(name));
    const outside = groups().filter(group => trains(group) && !group.where.includes('*'));
    const layers = groups().filter(trains).reduce((sum, group) => sum + group.layers, 0);
    const total = groups().reduce((sum, group) => sum + group.layers * trains(group), 0);
    config.textContent = `LoraConfig(r=${chosen.r}, lora_alpha=16, target_modules=[` +
      on.map(name => `"${name}"`).join(', ') + '], task_type="CAUSAL_LM")';
    copied.textContent = '';
    copy.disabled = !on.length;
    const share = 100 * total / (parameters + total);
    live.update((on.length ? `${count(total)} parameters train, in ${layers} layer${layers > 1 ? 's' : ''}: ` +
      `${share < .01 ? 'less than 0.01' : share.toFixed(2)} % of ${count(parameters + total)}.` : 'Tick a layer.') +
      (not.length ? ` Ticked before and not in ${chosen.model}: ${not.join(', ')}.` : '') +
      (outside.length ? ` Not drawn, being outside the blocks: ${outside.map(group => group.name).join(', ')}.` : ''));
  }
  const change = place => {
    chosen.model = names[place];
    ticks();
    moved();
  };
  const live = figure(el, 'Which layers, and how many parameters?', {
    controls: [menu('model', names, 0, change), slider('rank', ranks.map(count), ranks.indexOf(r), place => {
      chosen.r = ranks[place]; moved(); }), boxes],
    draw, below: [h('p', {}, config, ' ', copy, copied)],
    note: 'Counted, at every rank: r × (in + out) for each ticked layer. Layers are those of the models themselves, in one ' +
      'block to scale: grey is frozen, A (blue) and B (orange) train.' });
  ticks();
  moved();
  return live.end;
}
export default { render };
