// Replays how texts were generated: every piece of a text knows the step at which it appeared.
'use strict';
(() => {
  const replay = document.getElementById('replay');
  if (!replay) return;
  const SECONDS = 9; // that the longest text takes
  const slider = document.getElementById('step');
  const play = document.getElementById('play');
  const output = replay.querySelector('output');

  const lanes = [...replay.querySelectorAll('.lane')];
  const texts = [...replay.querySelectorAll('.generated')].map((element) => {
    const pieces = [...element.querySelectorAll('span')].map((span) => ({
      span,
      step: Number(span.dataset.step),
      tokens: Number(span.dataset.tokens || 1),
      color: getComputedStyle(span).getPropertyValue('--c'),
    }));
    const lane = lanes.find((one) => one.dataset.name === element.dataset.name);
    return { element, lane, pieces, canvas: lane.querySelector('canvas'), steps: Number(element.dataset.steps) };
  });
  const longest = Math.max(...texts.map((text) => text.steps));
  let chosen = texts[0];
  let step = 0; // the beginning

  // A lane is the text from its first token to its last, coloured as far as it is there.
  function drawLane(text) {
    const scale = window.devicePixelRatio || 1;
    const { canvas } = text;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    const all = text.pieces.reduce((sum, piece) => sum + piece.tokens, 0);
    const brush = canvas.getContext('2d');
    let first = 0;
    for (const { step: appeared, tokens, color } of text.pieces) {
      if (appeared <= step) {
        const left = Math.floor((first / all) * canvas.width);
        const right = Math.floor(((first + tokens) / all) * canvas.width);
        brush.fillStyle = color;
        brush.fillRect(left, 0, right - left, canvas.height);
      }
      first += tokens;
    }
  }

  function draw() {
    const now = Math.min(step, chosen.steps);
    let there = 0;
    let all = 0;
    for (const piece of chosen.pieces) {
      piece.span.classList.toggle('off', piece.step > now);
      piece.span.classList.toggle('new', piece.step === now && now > 0 && now < chosen.steps);
      all += piece.tokens;
      if (piece.step <= now) there += piece.tokens;
    }
    for (const text of texts) {
      text.element.hidden = text !== chosen;
      text.lane.setAttribute('aria-pressed', String(text === chosen));
      drawLane(text);
    }
    document.getElementById('which').textContent = chosen.element.dataset.name;
    document.getElementById('command').textContent = chosen.element.dataset.command;
    slider.value = String(step);
    output.textContent = `step ${now} of ${chosen.steps}, ${there} of ${all} tokens`;
    slider.setAttribute('aria-valuetext', output.textContent);
  }

  let started = null; // when playing began, as if from step 0
  function frame(time) {
    if (started === null) return;
    if (started === undefined) started = time - (step / longest) * SECONDS * 1000;
    const next = Math.min(longest, Math.floor(((time - started) / 1000 / SECONDS) * longest));
    if (next !== step) {
      step = Math.max(0, next);
      draw();
    }
    if (step < longest) requestAnimationFrame(frame);
    else stop();
  }
  function stop() {
    started = null;
    play.textContent = 'Play';
  }
  play.addEventListener('click', () => {
    if (started !== null) return stop();
    if (step >= longest) step = 0;
    draw();
    started = undefined;
    play.textContent = 'Pause';
    requestAnimationFrame(frame);
  });
  slider.addEventListener('input', () => {
    stop();
    step = Number(slider.value);
    draw();
  });
  for (const text of texts) {
    text.lane.addEventListener('click', () => {
      chosen = text;
      draw();
    });
  }
  window.addEventListener('resize', draw);

  // report.html#S=4,step=20 opens there; so does #K=64 where the steps of a diffusion are told apart.
  for (const part of location.hash.slice(1).split(',')) {
    const [name, value] = part.split('=');
    chosen = texts.find((text) => text.element.dataset.name === `${name} = ${value}`) || chosen;
    if (name === 'step') step = Math.max(0, Math.min(longest, Number(value) || 0));
  }
  slider.max = String(longest);
  replay.classList.add('ready');
  draw();
})();
