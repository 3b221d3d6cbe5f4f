// On a page without a kernel: shows a figure's module in the place of its still, with the values that stand beside it.
function mount(figure, render) {
  const values = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const el = document.createElement('div'), still = figure.querySelector('.lora-lab-still');
  figure.append(el);
  try {
    render({ model: { get: name => ({ values })[name] }, el });
    still.style.display = 'none';
  } catch (error) {  // the still stays
    el.remove();
    console.error(error);
  }
}
