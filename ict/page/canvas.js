// The photo, what is painted over it, and its completions. This is the body of a function that Gradio calls with
// (element, trigger, props, server, upload, watch).
//
// Python sets props.value, with another `answer` every time: {photo: {url, width, height} or null, masks: [url, ...],
// results: [{url, priors: [url, ...], caption}, ...], message, download: url or '', answer}. This side adds `marks`, in the photo's
// own pixels (see marks.py), which Python reads at Complete.
const LONGEST_SIDE = 1600;  // of the painted layer on the page
const COLOUR = '#e5484d';

const find = (selector) => element.querySelector(selector);
const studio = find('.studio'), frame = find('.frame'), canvas = find('canvas'), strip = find('.strip');
const tip = find('.tip'), message = find('.message'), size = find('.size input'), slider = find('.slider');
const context = canvas.getContext('2d');
let shown = {photo: null, results: []};  // what the page shows of props.value
let marks = [], layers = [];             // layers: pictures of the mask files
let stroke = null;                       // the one being painted
let chosen = -1;                         // the completion that is compared

// ---- the painted layer ----

function setMarks(changed) {
  marks = changed;
  props.value = {...props.value, marks};
  draw();
}

function fill(operation) {
  context.globalCompositeOperation = operation;
  context.fillRect(0, 0, canvas.width, canvas.height);
}

function drawStroke(mark, from = 0) {
  const scale = canvas.width / shown.photo.width, p = mark.points;
  context.globalCompositeOperation = mark.tool === 'brush' ? 'source-over' : 'destination-out';
  context.lineCap = context.lineJoin = 'round';
  context.lineWidth = 2 * mark.radius * scale;
  context.beginPath();
  context.moveTo(p[from] * scale, p[from + 1] * scale);
  context.lineTo(p[from] * scale + 0.01, p[from + 1] * scale);  // without any length there would be no dot
  for (let i = from + 2; i < p.length; i += 2) context.lineTo(p[i] * scale, p[i + 1] * scale);
  context.stroke();
}

function draw() {
  context.strokeStyle = context.fillStyle = COLOUR;
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const mark of marks) {
    if (mark.tool === 'invert') {
      fill('source-out');
    } else if (mark.tool === 'mask') {
      context.globalCompositeOperation = 'copy';
      context.drawImage(layers[mark.number], 0, 0, canvas.width, canvas.height);
      fill('source-in');
    } else {
      drawStroke(mark);
    }
  }
}

// ---- what Python sent ----

async function show() {
  const value = props.value;
  message.textContent = value.message;
  if (value.photo && value.photo.url !== shown.photo?.url) showPhoto(value.photo);
  for (const url of value.masks.slice(layers.length)) {
    const layer = new Image();
    layer.src = url;
    layers.push(layer);
    await layer.decode();
    marks = [...marks, {tool: 'mask', number: layers.length - 1}];
  }
  if (value.photo) setMarks(marks);
  if (JSON.stringify(value.results) !== JSON.stringify(shown.results)) showResults(value.results);
  if (value.download) save(value.download);
  studio.classList.remove('busy');
}

function showPhoto(photo) {
  shown.photo = photo;
  marks = [];
  layers = [];
  const scale = LONGEST_SIDE / Math.max(photo.width, photo.height);
  canvas.width = Math.max(1, Math.round(photo.width * scale));
  canvas.height = Math.max(1, Math.round(photo.height * scale));
  frame.style.setProperty('--proportions', photo.width / photo.height);
  find('.photo').src = photo.url;
  studio.classList.remove('empty');
}

function picture(url) {
  const image = new Image();
  image.src = url;
  image.alt = '';
  return image;
}

function thumbnail(number, {url, priors, caption}) {
  const button = document.createElement('button'), below = document.createElement('span');
  button.type = 'button';
  button.dataset.number = number;
  below.className = 'priors';
  below.append(...priors.map(picture));
  button.append(picture(url), below, caption);
  return button;
}

function showResults(results) {
  shown.results = results;
  const photo = {url: shown.photo?.url, priors: [], caption: 'Photo'};
  strip.replaceChildren(...results.length ? [thumbnail(-1, photo)] : [],
                        ...results.map((result, i) => thumbnail(i, result)));
  choose(results.length ? 0 : -1);
}

function choose(number) {
  chosen = number;
  studio.classList.toggle('comparing', number >= 0);
  if (number >= 0) find('.completion').src = shown.results[number].url;
  for (const button of strip.children) button.setAttribute('aria-pressed', Number(button.dataset.number) === number);
}

function save(url) {
  const link = document.createElement('a');
  link.href = url;
  link.download = '';
  link.click();
}

// ---- painting ----

function position(event) {
  const box = canvas.getBoundingClientRect(), photo = shown.photo;
  return [(event.clientX - box.left) * photo.width / box.width, (event.clientY - box.top) * photo.height / box.height]
    .map((c) => Math.round(c * 100) / 100);
}

function extend(event, smallestStep) {
  const [x, y] = position(event), p = stroke.points, last = p.length - 2;
  if (Math.hypot(x - p[last], y - p[last + 1]) <= smallestStep) return;
  p.push(x, y);
  drawStroke(stroke, last);
}

canvas.addEventListener('pointerdown', (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  const radius = size.value / 2 * shown.photo.width / canvas.getBoundingClientRect().width;
  stroke = {tool: find('[data-tool][aria-pressed=true]').dataset.tool, radius, points: position(event)};
  drawStroke(stroke);
});

canvas.addEventListener('pointermove', (event) => {
  const box = frame.getBoundingClientRect();
  tip.style.width = tip.style.height = `${size.value}px`;
  tip.style.left = `${event.clientX - box.left}px`;
  tip.style.top = `${event.clientY - box.top}px`;
  if (!stroke || !event.isPrimary) return;
  for (const one of event.getCoalescedEvents()) extend(one, stroke.radius / 8);  // smaller steps change next to nothing
});

for (const end of ['pointerup', 'pointercancel']) {
  canvas.addEventListener(end, (event) => {
    if (!stroke || !event.isPrimary) return;
    if (end === 'pointerup') extend(event, 0);
    setMarks([...marks, stroke]);
    stroke = null;
  });
}

// ---- files ----

function ask(event, data) {
  studio.classList.add('busy');
  trigger(event, data);
}

async function send(file, event) {
  if (!file || studio.classList.contains('busy')) return;
  studio.classList.add('busy');
  message.textContent = `Reading ${file.name} …`;
  try {  // a name of its own, so that two tabs never share a file
    const token = crypto.getRandomValues(new Uint32Array(2)).join('');
    const {path} = await upload(new File([file], `${token}-${file.name}`));
    ask(event, {path});
  } catch (error) {
    studio.classList.remove('busy');
    message.textContent = `${file.name} could not be sent (${error.message ?? error})`;
  }
}

for (const [selector, event] of [['.photo-file', 'photo'], ['.mask-file', 'mask']]) {
  const input = find(selector);
  input.addEventListener('change', () => {
    send(input.files[0], event);
    input.value = '';
  });
}
for (const kind of ['dragover', 'dragleave', 'drop']) {
  studio.addEventListener(kind, (event) => {
    event.preventDefault();
    studio.classList.toggle('over', kind === 'dragover');
    if (kind === 'drop') send(event.dataTransfer.files[0], 'photo');
  });
}
document.addEventListener('paste', (event) => send(event.clipboardData.files[0], 'photo'));

// ---- buttons, keys, slider ----

const actions = {
  undo: () => setMarks(marks.slice(0, -1)),
  clear: () => setMarks([]),
  invert: () => setMarks([...marks, {tool: 'invert'}]),
  otherPhoto: () => studio.classList.add('empty'),
  back: () => studio.classList.remove('empty'),
  choosePhoto: () => find('.photo-file').click(),
  chooseMask: () => find('.mask-file').click(),
  paint: () => choose(-1),
  goOn: () => ask('go_on', {number: chosen}),
  download: () => ask('download', {number: chosen}),
};

studio.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  const {tool, sample, number} = button.dataset;
  if (tool) {
    for (const one of element.querySelectorAll('[data-tool]')) one.setAttribute('aria-pressed', one === button);
  } else if (sample) {
    ask('sample', {name: sample});
  } else if (number) {
    choose(Number(number));
  } else {
    actions[button.dataset.do]();
  }
});
document.addEventListener('keydown', (event) => {
  const typing = event.target.matches('input:not([type=range]), textarea');
  if ((event.ctrlKey || event.metaKey) && event.key === 'z' && !typing && chosen < 0) {
    event.preventDefault();
    actions.undo();
  }
});
slider.addEventListener('input', () => frame.style.setProperty('--cut', `${slider.value}%`));
find('.show-priors').addEventListener('change', (event) => strip.classList.toggle('with-priors', event.target.checked));

watch('value', show);
show();
