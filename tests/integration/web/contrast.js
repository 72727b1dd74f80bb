// Every text that is seen and every mark, with the contrast of WCAG 2.2 (1.4.3, 1.4.11) to what is behind it: those that
// have too little. The expression's value is a list of complaints.
(() => {
  const rgba = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const over = (top, ground) => top.rgb.map((value, n) => value * top.a + ground[n] * (1 - top.a));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    return layers.reverse().reduce((color, layer) => over(layer, color), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((value) => value / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const complaints = [];
  let looked = 0;
  const check = (what, color, element, least) => {
    looked += 1;
    const behind = ground(element);
    const found = contrast(over(rgba(color), behind), behind);
    if (found < least) complaints.push(`${what}: ${found.toFixed(2)} of ${least}, ${color} on ${behind}`);
  };
  for (const element of document.body.querySelectorAll('*')) {
    if (!element.checkVisibility() || element.closest('.unseen')) continue;
    const style = getComputedStyle(element);
    const text = [...element.childNodes].filter((child) => child.nodeType === 3).map((child) => child.data.trim()).join('');
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (text) check(text.slice(0, 40), style.color, element, isLarge ? 3 : 4.5);
    if (element.matches('.mark')) {
      const mark = getComputedStyle(element, '::before');
      const isHollow = rgba(mark.backgroundColor).a === 0;
      check(element.className, isHollow ? mark.borderTopColor : mark.backgroundColor, element, 3);
    }
    if (element.matches('input, button, progress')) check(element.tagName, style.borderTopColor, element.parentElement, 3);
  }
  return looked < 10 ? [`only ${looked} texts were looked at`] : complaints;
})()
