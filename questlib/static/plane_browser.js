// The plane browser of questlib.widgets. The scan arrives once, as one byte a voxel
// in (toward head, toward back, toward left) order; every move of a control is drawn
// here, in the browser, so that it also works in a saved page without a kernel.

// What runs into the picture, down it and across it; head is up, so it is reversed.
const VIEWS = {
  axial: { into: 0, down: 1, across: 2, headUp: false },
  coronal: { into: 1, down: 0, across: 2, headUp: true },
  sagittal: { into: 2, down: 0, across: 1, headUp: true },
};
const BOX = 560; // longest side of the picture in CSS pixels
const IN_MEMORY = { willReadFrequently: true }; // filled by the CPU: keep it there

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function make(tag, properties = {}, ...children) {
  const { role, aria, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  element.dataset.lmSuppressShortcuts = "true"; // JupyterLab: leave our keys alone
  if (role) element.setAttribute("role", role);
  if (aria) element.setAttribute("aria-label", aria);
  element.append(...children);
  return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

async function render({ model, el }) {
  const { shape, spacing, affine, letters, axes } = model.get("geometry");
  const levels = model.get("levels");
  const counts = model.get("counts");
  const strides = [shape[1] * shape[2], shape[2], 1];
  const views = Object.keys(VIEWS).filter(
    (name) => shape[VIEWS[name].down] > 1 && shape[VIEWS[name].across] > 1,
  );
  const many = axes.some((axis, k) => axis.size > 1 && views.some((name) => VIEWS[name].into === k));
  const voxels = await inflate(model.get("voxels"));
  const labels = model.get("labels").byteLength ? await inflate(model.get("labels")) : null;
  const palette = model.get("palette");
  const colors = Object.fromEntries(Object.entries(palette).map(([label, [, color]]) =>
    [label, [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16))]));
  const remembered = {}; // the plane last seen in each view

  // ---- the controls
  const canvas = make("canvas", { tabIndex: 0, role: "img" });
  const context = canvas.getContext("2d", IN_MEMORY);
  const sides = ["left", "right", "bottom", "top"].map((side) =>
    make("span", { className: `quest-letter quest-${side}` }));
  const ruler = make("span", { className: "quest-ruler", textContent: "50 mm" });
  const picture = make("div", { className: "quest-picture" }, canvas, ...sides, ruler);
  const slider = make("input", { type: "range", min: 0, step: 1 });
  const where = make("output", { className: "quest-where" });
  const pointed = make("output", { className: "quest-pointed" });
  const buttons = (names, label, press) =>
    make("span", { className: "quest-buttons", role: "group", aria: label },
      ...names.map((name) => make("button",
        { type: "button", textContent: name, onclick: () => press(name) })));
  const viewButtons = buttons(views, "View", (name) => put({
    view: name, index: remembered[name] ?? Math.floor(stored(name) / 2) }));
  const presets = model.get("windows");
  const windowButtons = buttons(Object.keys(presets), "Window preset", (name) =>
    put({ center: presets[name][0], width: presets[name][1] }));
  const field = (name, label, type, low, high, step) => {
    const input = make("input", { type, min: low, max: high, step, aria: label });
    input.addEventListener("input", () => {
      const value = Number(input.value);
      if (input.value !== "" && Number.isFinite(value)) put({ [name]: Math.max(low, value) });
    });
    return input;
  };
  const kind = counts.length ? "range" : "number";
  const center = field("center", "Window center in HU", kind, -1000, 1000, 10);
  const width = field("width", "Window width in HU", kind, 10, 2600, 10);
  const opacity = field("opacity", "Overlay opacity", "range", 0, 1, 0.05);
  const levelText = make("output", { className: "quest-level" });
  const named = (text, ...inputs) => make("label", {}, `${text} `, ...inputs);
  const histogram = make("canvas", { className: "quest-histogram", width: BOX, height: 130,
    role: "img", aria: "Histogram of the scan in HU, with the window drawn over it" });
  const windowing = make("div", { className: "quest-row" }, named("center", center),
    named("width", width), levelText);
  const root = make("div", { className: "quest", role: "group", aria: "Plane browser" },
    make("div", { className: "quest-row" }, viewButtons, windowButtons),
    picture,
    make("div", { className: "quest-row", hidden: !many }, named("plane", slider), where),
    windowing);
  if (views.length < 2) viewButtons.hidden = true;
  if (labels) windowing.append(named("overlay", opacity));
  if (counts.length) root.append(histogram);
  root.append(make("div", { className: "quest-row" }, pointed),
    make("small", { textContent: (many ? "Mouse wheel or arrow keys: next plane. " : "") +
      `Right button (or shift) and drag: window. ${model.get("note")}` }));
  el.replaceChildren(root);

  // ---- the state lives in the model, so that Python sees it and widgets can be linked
  const state = (name) => model.get(name);
  const stored = (view) => axes[VIEWS[view].into].size;
  let quiet = false; // several values may change at once: draw them once
  function put(changes) {
    quiet = true;
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    quiet = false;
    draw();
    model.save_changes();
  }
  const step = (by) => put({ index: clamp(state("index") + by, 0, stored(state("view")) - 1) });

  // A plane's number in the volume <-> its place among the voxels sent here.
  function placeOf(axis, number) {
    const place = Math.floor(number / axes[axis].factor);
    return axes[axis].reversed ? shape[axis] - 1 - place : place;
  }

  // ---- drawing
  const small = document.createElement("canvas"); // one pixel a voxel
  const brush = small.getContext("2d", IN_MEMORY);
  function resize(surface, wide, high) { // setting a size clears the canvas: only if new
    if (surface.width !== wide || surface.height !== high) {
      [surface.width, surface.height] = [wide, high];
    }
  }

  function grays() {
    const low = state("center") - state("width") / 2;
    return Uint8ClampedArray.from(levels, (hu) => ((hu - low) / (state("width") - 1)) * 255);
  }

  function paint(view, start) {
    const { down, across, headUp } = VIEWS[view];
    const [rows, columns] = [shape[down], shape[across]];
    resize(small, columns, rows);
    const image = brush.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const gray = grays();
    const alpha = state("opacity");
    for (let row = 0, pixel = 0; row < rows; row++) {
      let at = start + (headUp ? rows - 1 - row : row) * strides[down];
      for (let column = 0; column < columns; column++, pixel++, at += strides[across]) {
        const value = gray[voxels[at]];
        pixels[pixel] = 0xff000000 | (value * 0x010101);
        if (labels && labels[at] && alpha > 0) {
          const color = colors[labels[at]];
          const edge = column > 0 && row > 0 && column < columns - 1 && row < rows - 1 &&
            (labels[at - strides[across]] !== labels[at] ||
             labels[at + strides[across]] !== labels[at] ||
             labels[at - strides[down]] !== labels[at] ||
             labels[at + strides[down]] !== labels[at]);
          const share = edge ? Math.min(1, 3 * alpha) : alpha;
          for (let c = 0; c < 3; c++) {
            image.data[4 * pixel + c] = value + share * (color[c] - value);
          }
        }
      }
    }
    brush.putImageData(image, 0, 0);
  }

  function draw() {
    const view = state("view");
    const { into, down, across } = VIEWS[view];
    const index = clamp(state("index"), 0, stored(view) - 1);
    remembered[view] = index;
    const place = placeOf(into, index);
    paint(view, place * strides[into]);
    const [wide, high] = [shape[across] * spacing[across], shape[down] * spacing[down]];
    const scale = BOX / Math.max(wide, high);
    const [cssWidth, cssHeight] = [wide * scale, high * scale].map((size) => Math.max(1, Math.round(size)));
    const dense = window.devicePixelRatio || 1;
    resize(canvas, Math.round(cssWidth * dense), Math.round(cssHeight * dense));
    Object.assign(canvas.style, { width: `${cssWidth}px`, height: `${cssHeight}px` });
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    sides.forEach((side, number) => { side.textContent = letters[view][number]; });
    ruler.style.width = `${50 * scale}px`;
    report(view, index, place);
    drawHistogram();
  }

  function report(view, index, place) {
    const { into } = VIEWS[view];
    const axis = axes[into];
    Object.assign(slider, { max: axis.size - 1, value: index, disabled: axis.size < 2 });
    const along = [0, 1, 2].map((row) => affine[row][into] / spacing[into]);
    const mm = along.reduce((sum, part, row) => sum + part * (affine[row][3] + affine[row][into] * place), 0);
    where.textContent = `${view}, ${axis.name} ${index} (0–${axis.size - 1}), ${"zyx"[into]} = ${mm.toFixed(1)} mm`;
    slider.setAttribute("aria-label", `${view} plane`);
    slider.setAttribute("aria-valuetext", where.textContent);
    canvas.setAttribute("aria-label", `CT, ${where.textContent}; arrow keys move through the planes`);
    for (const [input, name] of [[center, "center"], [width, "width"], [opacity, "opacity"]]) {
      if (Number(input.value) !== state(name)) input.value = state(name);
    }
    const [c, w] = [state("center"), state("width")];
    const values = counts.length ? `${Math.round(c)}, ${Math.round(w)} ` : "";
    levelText.textContent = `${values}HU, black at ${Math.round(c - w / 2)}, white at ${Math.round(c + w / 2 - 1)}`;
    const press = (group, chosen) => [...group.children].forEach((button) =>
      button.setAttribute("aria-pressed", chosen(button.textContent)));
    press(viewButtons, (name) => name === view);
    press(windowButtons, (name) => presets[name][0] === c && presets[name][1] === w);
  }

  function drawHistogram() {
    if (!counts.length) return;
    const brush = histogram.getContext("2d");
    const [wide, high] = [histogram.width, histogram.height - 18];
    const x = (hu) => ((hu + 1100) / 2700) * wide; // counts run from -1100 to 1600 HU
    const [c, w] = [state("center"), state("width")];
    const tallest = Math.max(...counts);
    brush.clearRect(0, 0, wide, histogram.height);
    brush.fillStyle = "#0072b233";
    brush.fillRect(x(c - w / 2), 0, x(c + w / 2) - x(c - w / 2), high);
    brush.fillStyle = "#777";
    counts.forEach((count, bin) => {
      const bar = Math.max(0, 1 + Math.log10(count / tallest) / 3) * (high - 4); // 3 decades
      brush.fillRect((bin / counts.length) * wide, high - bar, wide / counts.length - 0.5, bar);
    });
    brush.strokeStyle = "#d55e00";
    brush.lineWidth = 2;
    brush.beginPath(); // the ramp from black to white
    brush.moveTo(0, high - 1);
    brush.lineTo(x(c - w / 2), high - 1);
    brush.lineTo(x(c + w / 2), 2);
    brush.lineTo(wide, 2);
    brush.stroke();
    brush.fillStyle = getComputedStyle(root).color;
    brush.font = "12px sans-serif";
    brush.textAlign = "center";
    for (let hu = -1000; hu <= 1250; hu += 250) brush.fillText(`${hu}`, x(hu), high + 14);
    brush.textAlign = "right";
    brush.fillText("HU", wide - 2, high + 14);
    brush.fillText("voxels (log scale)", wide - 2, 18);
  }

  // ---- pointer, wheel, keys
  function read(event) {
    const { into, down, across, headUp } = VIEWS[state("view")];
    const bounds = canvas.getBoundingClientRect();
    const voxel = [0, 0, 0];
    voxel[into] = placeOf(into, state("index"));
    voxel[across] = Math.floor(((event.clientX - bounds.left) / bounds.width) * shape[across]);
    const row = Math.floor(((event.clientY - bounds.top) / bounds.height) * shape[down]);
    voxel[down] = headUp ? shape[down] - 1 - row : row;
    if (voxel.some((value, axis) => value < 0 || value >= shape[axis])) return;
    const at = voxel.reduce((sum, value, axis) => sum + value * strides[axis], 0);
    const hu = levels[voxels[at]];
    const sign = voxels[at] === 0 ? "≤ " : voxels[at] === levels.length - 1 ? "≥ " : "";
    const mm = [0, 1, 2].map((row) => affine[row][3] +
      voxel.reduce((sum, value, axis) => sum + affine[row][axis] * value, 0));
    const label = labels && labels[at] ? ` · ${palette[labels[at]][0]}` : "";
    pointed.textContent = `${sign}${hu} HU at LPS ${mm.map((v) => v.toFixed(1)).join(", ")} mm${label}`;
  }

  let grip = null; // where a drag of the window began
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    if (event.button !== 2 && !event.shiftKey) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    grip = { x: event.clientX, y: event.clientY, center: state("center"), width: state("width") };
  });
  canvas.addEventListener("pointermove", (event) => {
    read(event);
    if (!grip) return;
    put({ center: Math.round(grip.center + 2 * (event.clientY - grip.y)),
      width: Math.max(10, Math.round(grip.width + 4 * (event.clientX - grip.x))) });
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => { grip = null; });
  }
  canvas.addEventListener("pointerleave", () => { if (!grip) pointed.textContent = ""; });
  canvas.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    event.stopPropagation();
  });
  let rolled = 0; // a touchpad sends many small turns of the wheel
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    rolled += clamp(event.deltaY, -50, 50);
    if (Math.abs(rolled) < 50) return;
    step(Math.sign(rolled));
    rolled = 0;
    read(event);
  }, { passive: false });
  const KEYS = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10,
    PageDown: -10, Home: -Infinity, End: Infinity };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    step(KEYS[event.key]);
  });
  slider.addEventListener("input", () => put({ index: Number(slider.value) }));

  const watched = ["view", "index", "center", "width", "opacity"].map((name) => `change:${name}`);
  const follow = () => { if (!quiet) draw(); };
  watched.forEach((name) => model.on(name, follow));
  draw();
  return () => watched.forEach((name) => model.off(name, follow));
}

export default { render };
