// Everything works without this file. With it: keys, copying, choices that apply at once, and the end of a live run.
(() => {
  'use strict';
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const typing = (target) => target.matches('input, textarea, select, [contenteditable]');

  // single letters are in the way of who dictates or uses a screen reader: they can be turned off
  const keys = () => { try { return localStorage.getItem('keys') !== 'off'; } catch { return true; } };
  all('[data-keys]').forEach((button) => {
    const say = () => { button.textContent = keys() ? 'turn keys off' : 'turn keys on'; };
    button.hidden = false;
    button.addEventListener('click', () => {
      try { localStorage.setItem('keys', keys() ? 'off' : 'on'); } catch { /* kept for no longer than this page */ }
      say();
    });
    say();
  });

  // keys: j k between cards, u vote, s save, enter open, / search
  let at = -1;
  const cards = () => all('.cards > li');
  const go = (to) => {
    const list = cards();
    if (!list.length) return;
    list[at]?.classList.remove('now');
    at = Math.max(0, Math.min(list.length - 1, to));
    list[at].classList.add('now');
    list[at].querySelector('h2 a')?.focus({preventScroll: true});
    list[at].scrollIntoView({block: 'nearest'});
  };
  const press = (selector) => cards()[at]?.querySelector(selector)?.click();
  document.addEventListener('keydown', (event) => {
    if (!keys() || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const act = {
      '/': () => document.querySelector('#q')?.focus(),
      j: () => go(at + 1),
      k: () => go(at - 1),
      u: () => press('.vote button'),
      s: () => press('.save button'),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  document.addEventListener('focusin', (event) => {
    const card = event.target.closest?.('.cards > li');
    if (!card) return;
    cards()[at]?.classList.remove('now');
    at = cards().indexOf(card);
    card.classList.add('now');
  });

  // a choice made with the pointer applies at once. With arrow keys every choice on the way would: there the button applies it
  all('[data-submits]').forEach((select) => {
    const button = select.form.querySelector('[data-without-script]');
    let typed = false;
    button.hidden = true;
    select.addEventListener('keydown', () => { typed = true; });
    select.addEventListener('pointerdown', () => { typed = false; });
    select.addEventListener('change', () => {
      if (typed) button.hidden = false;
      else select.form.requestSubmit();
    });
  });

  // what is typed beside a choice is that choice
  all('[data-picks]').forEach((field) => field.addEventListener('input', () => {
    const choice = field.parentElement.querySelector('[type=radio]');
    if (choice) choice.checked = true;
  }));

  // what a press did is said aloud: its button is replaced, or only changes its words
  const presses = '.vote button, .save button';
  let line;
  if (document.querySelector(`[data-copy], ${presses}`)) {
    line = document.createElement('p');
    line.className = 'hidden';
    line.setAttribute('role', 'status');
    document.querySelector('main').append(line);
  }
  const aloud = (text) => { if (line) line.textContent = text; };
  let pressed = '';
  document.addEventListener('click', (event) => { pressed = event.target.closest?.(presses)?.id || ''; });

  // a button that is replaced by its new self keeps the focus
  let held = '';
  document.addEventListener('htmx:before:swap', () => { held = document.activeElement?.id || ''; });
  document.addEventListener('htmx:after:swap', () => {
    if (held && document.activeElement === document.body) document.getElementById(held)?.focus();
    const now = pressed && document.getElementById(pressed);
    if (!now) return;
    const on = now.getAttribute('aria-pressed') === 'true';
    if (pressed.startsWith('vote')) aloud(on ? 'Voted' : 'Vote taken back');
    else aloud(on ? 'Saved' : 'Saved no more');
    pressed = '';
  });

  // copy a command
  all('[data-copy]').forEach((button) => {
    button.hidden = false;
    button.addEventListener('click', async () => {
      const text = document.getElementById(button.dataset.copy).textContent.replace(/^\$ /, '');
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = 'copied';
        aloud('Copied');
      } catch {
        const range = document.createRange();
        range.selectNodeContents(document.getElementById(button.dataset.copy));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = 'selected';
        aloud('Selected: copy it with the keyboard');
      }
    });
  });

  // figures to explore: loaded on click only
  all('[data-frame]').forEach((link) => link.addEventListener('click', (event) => {
    event.preventDefault();
    const frame = document.createElement('iframe');
    frame.setAttribute('sandbox', 'allow-scripts');
    frame.title = link.dataset.title || 'interactive figure';
    frame.src = link.href;
    link.closest('figure').querySelector('.scroll, img')?.replaceWith(frame);
    frame.focus();
    link.remove();
  }));

  // a server that cannot be reached is said, and said no more once it answers
  const tell = (text) => {
    let line = document.querySelector('#unreachable');
    if (!text) { line?.remove(); return; }
    if (!line) {
      line = document.createElement('p');
      line.id = 'unreachable';
      line.className = 'say bad';
      line.setAttribute('role', 'alert');
      document.querySelector('main').prepend(line);
    }
    line.textContent = text;
  };
  const lost = 'This server cannot be reached: what you see is as it was.';
  addEventListener('offline', () => tell(lost));
  document.addEventListener('htmx:error', (event) => {
    if (event.detail?.error?.name !== 'AbortError' && !document.querySelector('#progress')) tell(lost);
  });
  // where events do not get through, the page of a run that goes on is asked for again every 2 seconds
  let again = 0;
  const retry = () => {
    clearTimeout(again);
    again = setTimeout(async () => {
      const answer = await fetch(location.href, {headers: {Accept: 'text/html'}}).catch(() => null);
      if (answer?.ok) { location.reload(); return; }
      tell(lost);
      retry();
    }, 2000);
  };
  if (document.querySelector('#progress')) {
    for (const name of ['htmx:error', 'htmx:sse:error']) document.addEventListener(name, retry);
    document.addEventListener('htmx:sse:after:connection', () => clearTimeout(again));
  }
  addEventListener('online', () => tell(''));
  for (const name of ['htmx:after:request', 'htmx:sse:after:connection']) document.addEventListener(name, () => tell(''));

  // on a phone the menu scrolls: where one is should be in sight
  const here = document.querySelector('.nav [aria-current]');
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 16;

  // progress changes twice a second: what is said aloud changes with each part of the run and each tenth of it
  all('[data-tells]').forEach((line) => {
    const shown = document.getElementById(line.dataset.tells);
    const say = () => {
      const bar = shown.querySelector('progress');
      const tenth = bar?.hasAttribute('value') ? `, ${Math.floor(bar.value * 10) * 10} %` : '';
      const text = `${shown.querySelector('strong')?.textContent || ''}${tenth}`;
      if (line.textContent !== text) line.textContent = text;
    };
    new MutationObserver(say).observe(shown, {childList: true, subtree: true});
    say();
  });

  // a live run that has ended: the permanent page
  document.addEventListener('ended', () => location.reload());
  const zone = document.querySelector('[data-time-zone]');
  if (zone && !zone.value) zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone || 'UTC';
})();
