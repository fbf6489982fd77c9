"""Checks that a page works with a keyboard, a screen reader, a phone and in dark mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.browser import Browser

__all__ = ["faults_of"]

# Contrast as in WCAG 2.2: of each visible text, against the first opaque background behind it.
_FAULTS = """
const faults = [];
const seen = (each) => each.checkVisibility({opacityProperty: true, visibilityProperty: true});
const channels = (color) => {
  const found = color.match(/[\\d.]+/g).map(Number);
  return found.length < 4 ? [...found, 1] : found;
};
const luminance = (color) => {
  const [r, g, b] = channels(color).slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const groundOf = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const ground = getComputedStyle(each).backgroundColor;
    if (channels(ground)[3] === 1) return ground;
  }
  return matchMedia('(prefers-color-scheme: dark)').matches ? 'rgb(18, 18, 18)' : 'rgb(255, 255, 255)';
};
const contrast = (...colors) => {
  const [dark, light] = colors.map(luminance).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !seen(element) || element.closest('script, style, .hidden')) continue;
  const found = contrast(getComputedStyle(element).color, groundOf(element));
  if (found < 4.5) faults.push(`contrast ${found.toFixed(2)}: ${texts.currentNode.data.trim().slice(0, 40)}`);
}
const name = (each) => (each.getAttribute('aria-label') || each.labels?.[0]?.innerText || each.labels?.[0]?.textContent
  || each.textContent || '').trim();
const controls = 'a, button, input:not([type=hidden]), select, textarea, summary, svg[role=img]';
for (const each of document.querySelectorAll(controls)) {
  if (seen(each) && !name(each)) faults.push(`no name: ${each.outerHTML.slice(0, 80)}`);
}
for (const each of document.querySelectorAll('th')) {
  if (each.scope !== 'col') faults.push(`no scope: ${each.outerHTML}`);
  if (!each.textContent.trim() && !each.querySelector('[aria-label]')) faults.push('an empty th');
}
const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
if (new Set(ids).size !== ids.length) faults.push(`an id twice: ${ids}`);
const levels = [...document.querySelectorAll('h1, h2, h3, h4')].map((each) => Number(each.tagName[1]));
if (levels[0] !== 1 || levels.filter((level) => level === 1).length !== 1) faults.push(`headings: ${levels}`);
levels.forEach((level, index) => { if (index && level > levels[index - 1] + 1) faults.push(`headings: ${levels}`); });
if (!document.documentElement.lang) faults.push('no lang');
if (!document.title.trim()) faults.push('no title');
for (const kind of ['header', 'main']) {
  if (document.querySelectorAll(`body > ${kind}`).length !== 1) faults.push(`not one ${kind}`);
}
if (document.documentElement.scrollWidth > innerWidth) {
  const wide = [...document.querySelectorAll('body *')].filter((each) => !each.closest('.table, pre, svg'))
    .filter((each) => each.getBoundingClientRect().right > innerWidth + 1);
  faults.push(`wider than ${innerWidth}: ${wide.slice(0, 3).map((each) => each.outerHTML.slice(0, 80))}`);
}
return faults;
"""


def faults_of(browser: Browser) -> list[str]:
    """Return the faults of the open page."""
    found: list[str] = browser.run(_FAULTS)
    return found
