function mend(guarded, label, unique) {
  guarded.setAttribute('role', 'group');
  guarded.setAttribute('aria-label', label);
  for (const part of [guarded, ...guarded.querySelectorAll('input, button, select, [role=slider]')])
    part.setAttribute('data-lm-suppress-shortcuts', 'true');
  const ask = guarded.querySelector('.lora-lab-ask');
  if (ask) ask.id = unique;
  for (const box of guarded.querySelectorAll('.widget-radio-box')) {
    box.setAttribute('role', 'radiogroup');
    box.setAttribute('aria-labelledby', unique);
    box.querySelectorAll('input').forEach(input => { input.name = unique; });  // one group: arrows choose
  }
  for (const slider of guarded.querySelectorAll('.widget-slider, .jupyter-widget-slider'))
    slider.querySelector('[role=slider]')?.setAttribute('aria-label', slider.querySelector('label')?.textContent);
}
function held(guarded) {
  return [...guarded.querySelectorAll('input, select')].map(part =>
    part.matches('[type=radio], [type=checkbox]') ? part.checked : part.matches('select') ? part.selectedIndex
      : part.value);
}
function render({ model, el }) {
  const unique = `lora-lab-${Math.random().toString(36).slice(2)}`;
  // what is chosen goes with the click: a message of its own could arrive after it
  const check = event => { event.stopPropagation(); model.send({ held: held(guarded) }); };
  const click = event => {
    const button = guarded.querySelector('button');
    if (model.get('sends') && !button.disabled && button.contains(event.target)) check(event);
  };
  const enter = event => {
    if (model.get('sends') && event.key === 'Enter' && event.target.matches('input[type=text]')) check(event);
  };
  const watch = new MutationObserver(() => start());
  let waiting, guarded;
  const start = () => {
    guarded ??= el.closest('.lora-lab-guard');
    if (!guarded) { waiting = setTimeout(start, 50); return; }  // not on the page yet
    guarded.addEventListener('click', click, true);
    guarded.addEventListener('keydown', enter, true);
    watch.disconnect();  // what is mended must not be seen as a change
    mend(guarded, model.get('label'), unique);
    watch.observe(guarded, { childList: true, subtree: true });
  };
  start();
  return () => { clearTimeout(waiting); watch.disconnect(); guarded?.removeEventListener('click', click, true);
    guarded?.removeEventListener('keydown', enter, true); };
}
export default { render };
