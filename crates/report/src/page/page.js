'use strict';
(() => {
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));
  const by = (id) => document.getElementById(id);
  const steps = all('.step');

  // Colours: as the system has them, light, dark.
  const theme = by('theme');
  const themes = ['', 'light', 'dark'];
  const names = { '': 'as the system has them', light: 'light', dark: 'dark' };
  theme.addEventListener('click', () => {
    const root = document.documentElement;
    const next = themes[(themes.indexOf(root.dataset.theme || '') + 1) % themes.length];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    theme.textContent = next === 'light' ? '☀' : next === 'dark' ? '☾' : '◐';
    theme.setAttribute('aria-label', 'Colours: ' + names[next]);
  });

  // A graph that is larger than its window begins at what was built.
  for (const frame of all('.scroll')) {
    const target = frame.querySelector('.stage.target');
    if (!target) continue;
    const [inside, around] = [target.getBoundingClientRect(), frame.getBoundingClientRect()];
    // In the middle, or from its beginning where it is larger itself.
    const way = (start, size, from, room) => (size < room ? start + size / 2 - from - room / 2 : start - from - 12);
    frame.scrollLeft += way(inside.left, inside.width, around.left, around.width);
    frame.scrollTop += way(inside.top, inside.height, around.top, around.height);
  }

  // A link to a step opens it, even if a filter hides it.
  const reveal = (focus) => {
    const id = decodeURIComponent(location.hash.slice(1));
    const step = id.startsWith('step-') ? by(id) : null;
    if (!step) return;
    if (step.hidden || step.closest('.group').hidden) { search.value = ''; show('all'); }
    step.open = true;
    step.scrollIntoView({ block: 'start' });
    if (focus) step.querySelector('summary').focus({ preventScroll: true });
  };
  addEventListener('hashchange', () => reveal(true));
  // The same link once more is no change of the address.
  document.addEventListener('click', (event) => {
    const link = event.target.closest('a');
    const href = link && link.getAttribute('href');
    if (href && href.startsWith('#step-') && href === location.hash) reveal(true);
  });

  // Search: names and logs; steps without a match are hidden.
  const search = by('search');
  const found = by('found');
  const buttons = all('[data-show]');
  const MOST_MARKS = 2000;
  let kind = 'all';
  // Of each match the elements that mark it: it may begin in one element of the page and end in the next.
  let marks = [];
  let now = -1;
  let applied = '';
  // What a search may mark, with its text as it was.
  const places = new Map(steps.map((step) => [step, all('summary code, .log', step)]));

  const unmark = () => {
    for (const mark of marks.flat()) {
      const parent = mark.parentNode;
      mark.replaceWith(mark.firstChild);
      parent.normalize();
    }
    marks = [];
    now = -1;
  };

  const markIn = (place, wanted) => {
    const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
    const nodes = [];
    let text = '';
    while (walker.nextNode()) {
      const node = walker.currentNode;
      nodes.push({ node, start: text.length, end: text.length + node.data.length });
      text += node.data;
    }
    const lower = text.toLowerCase();
    // Where lower case has another length, positions are not those of the text.
    const haystack = lower.length === text.length ? lower : text;
    const matches = [];
    for (let at = haystack.indexOf(wanted); at >= 0 && marks.length + matches.length < MOST_MARKS; at = haystack.indexOf(wanted, at + wanted.length)) matches.push(at);
    // From the end, so that what is still to be marked stays where it is.
    let last = nodes.length - 1;
    const found = matches.reverse().map((at) => {
      const end = at + wanted.length;
      while (nodes[last].start >= end) last -= 1;
      const pieces = [];
      for (let number = last; number >= 0 && nodes[number].end > at; number -= 1) {
        const { node, start } = nodes[number];
        const match = node.splitText(Math.max(at - start, 0));
        match.splitText(Math.min(end, nodes[number].end) - Math.max(at, start));
        const mark = document.createElement('mark');
        match.replaceWith(mark);
        mark.append(match);
        pieces.unshift(mark);
      }
      return pieces;
    });
    marks.push(...found.reverse());
  };

  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    applied = search.value;
    unmark();
    let shown = 0;
    for (const step of steps) {
      const fits = kind === 'all' || step.classList.contains(kind) || (kind === 'failed' && step.classList.contains('canceled'));
      const text = wanted && places.get(step).some((place) => place.textContent.toLowerCase().includes(wanted));
      step.hidden = !fits || (wanted !== '' && !text);
      if (!step.hidden) {
        shown += 1;
        if (wanted) places.get(step).forEach((place) => markIn(place, wanted));
      }
    }
    for (const group of all('.group')) group.hidden = all('.step', group).every((step) => step.hidden);
    by('none').hidden = shown > 0;
    const more = marks.length >= MOST_MARKS ? '+' : '';
    found.textContent = wanted ? marks.length + more + (marks.length === 1 ? ' match' : ' matches') : '';
    by('next').disabled = by('previous').disabled = marks.length === 0;
  };

  const go = (step) => {
    if (marks.length === 0) return;
    if (now >= 0) marks[now].forEach((mark) => mark.classList.remove('now'));
    now = (now + step + marks.length + (now < 0 && step < 0 ? 1 : 0)) % marks.length;
    marks[now].forEach((mark) => mark.classList.add('now'));
    const mark = marks[now][0];
    mark.closest('.step').open = true;
    mark.scrollIntoView({ block: 'center' });
    found.textContent = (now + 1) + ' of ' + marks.length;
  };

  const show = (wanted) => {
    kind = wanted;
    for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.show === kind));
    apply();
  };
  buttons.forEach((button) => button.addEventListener('click', () => show(button.dataset.show)));
  let waiting = 0;
  search.addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(apply, 90); });
  search.addEventListener('keydown', (event) => {
    if (event.key === 'Enter') { clearTimeout(waiting); if (search.value !== applied) apply(); go(event.shiftKey ? -1 : 1); event.preventDefault(); }
    if (event.key === 'Escape') { search.value = ''; apply(); }
  });
  by('next').addEventListener('click', () => go(1));
  by('previous').addEventListener('click', () => go(-1));
  by('open').addEventListener('click', (event) => {
    const open = event.target.getAttribute('aria-pressed') !== 'true';
    event.target.setAttribute('aria-pressed', String(open));
    steps.forEach((step) => { step.open = open; });
  });
  document.addEventListener('keydown', (event) => {
    const writes = event.target.closest('input, textarea');
    if (event.key === '/' && !writes && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  });

  // Which section is read.
  const links = new Map(all('.sections a').map((link) => [by(link.getAttribute('href').slice(1)), link]));
  const seen = new Map();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) seen.set(entry.target, entry.isIntersecting);
    const first = Array.from(links.keys()).find((section) => seen.get(section));
    for (const [section, link] of links) {
      if (section === first) link.setAttribute('aria-current', 'true'); else link.removeAttribute('aria-current');
    }
  }, { rootMargin: '-70px 0px -55% 0px' });
  for (const section of links.keys()) observer.observe(section);

  reveal(false);
})();
