// The mask tuner of questlib.widgets. Python masks the plane, this module draws. A move
// of a slider is one state update; ipywidgets keeps a single update under way and merges
// what comes meanwhile, so that a drag never queues up stale work.

const STAGES = ["original", "threshold", "cleaned", "regions", "mask", "applied"];
const COLORS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66],
  [0, 114, 178], [213, 94, 0], [204, 121, 167]];
const TRUTH = [255, 176, 0];
const ROWS = 8; // longest verdict table

// A slider for every rule of questlib.plane: [what it says, lowest, highest, step, unit]
const SLIDERS = {
  height: ["height less than", 0.1, 1, 0.01, "of the rows"],
  width: ["width less than", 0.1, 1, 0.01, "of the columns"],
  top: ["top not above", 0, 0.6, 0.01, "of the rows"],
  bottom: ["bottom not below", 0.4, 1, 0.01, "of the columns, counted down"],
  erosion: ["erosion", 1, 15, 1, "voxels"],
  dilation: ["dilation", 1, 25, 1, "voxels"],
  final_dilation: ["final dilation", 1, 25, 1, "voxels"],
  level: ["threshold", 0.1, 0.9, 0.01, "(air 0, soft tissue 1)"],
  pure: ["pure air below", 0, 0.3, 0.01, "(air 0, soft tissue 1)"],
  wall_mm: ["thinnest body wall", 0, 12, 0.5, "mm"],
  closing_mm: ["closing radius", 0, 12, 0.5, "mm"],
  hole_mm2: ["hole to fill up to", 0, 4000, 50, "mm²"],
  lung_mm2: ["smallest lung", 0, 1000, 10, "mm²"],
  airway_mm2: ["largest airway", 0, 2000, 50, "mm²"],
};

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

async function copy(area) {
  area.select();
  try {
    await navigator.clipboard.writeText(area.value);
  } catch { // a page that is not served securely has no clipboard
    document.execCommand("copy");
  }
}

async function render({ model, el }) {
  const { planes, shape: [rows, columns], spacing } = model.get("grid");
  const presets = model.get("presets");

  // ---- the controls
  const methods = make("span", { className: "quest-buttons", role: "group", aria: "Preset" },
    ...Object.keys(presets).map((name) => make("button", { type: "button", textContent: name,
      onclick: () => put({ method: name, rules: {} }) })));
  const plane = make("input", { type: "range", min: 0, max: planes - 1, step: 1,
    aria: "Plane", disabled: planes < 2, oninput: () => put({ index: Number(plane.value) }) });
  const planeText = make("output");
  const controls = make("div", { className: "quest-sliders" });
  const panels = STAGES.map((name, number) => {
    const canvas = make("canvas", { width: columns, height: rows, role: "img", aria: name });
    canvas.style.aspectRatio = `${columns * spacing[1]} / ${rows * spacing[0]}`;
    return make("figure", {}, make("figcaption", { textContent: `${number + 1} ${name}` }), canvas);
  });
  const verdict = make("output", { className: "quest-verdict" });
  const table = make("tbody");
  const heads = ["region", "verdict", "why", "missed by", "height × width", "area"];
  const code = make("textarea", { readOnly: true, rows: 4, aria: "The chosen rules as code" });
  const copied = make("output");
  const copyButton = make("button", { type: "button", textContent: "Copy as code",
    onclick: async () => {
      await copy(code);
      copied.textContent = "copied";
      setTimeout(() => { copied.textContent = ""; }, 2000);
    } });
  const root = make("div", { className: "quest quest-tuner", role: "group", aria: "Mask tuner" },
    make("div", { className: "quest-row" }, make("span", { textContent: "preset" }), methods,
      make("label", {}, "plane ", plane, planeText)),
    controls,
    make("div", { className: "quest-panels" }, ...panels),
    make("div", { className: "quest-row" }, verdict),
    make("table", {}, make("thead", {}, make("tr", {},
      ...heads.map((text) => make("th", { textContent: text, scope: "col" })))), table),
    make("div", { className: "quest-row" }, code, copyButton, copied),
    make("small", { textContent: "Python computes each picture: the sliders need a running " +
      "kernel. Not for diagnosis." }));
  el.replaceChildren(root);

  function put(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
  }

  const value = (name) => model.get("rules")[name] ?? presets[model.get("method")][name];
  function say(name) { // the value with its unit, and fractions also in mm
    const mm = { height: rows * spacing[0], width: columns * spacing[1],
      top: rows * spacing[0], bottom: columns * spacing[0] }[name];
    const also = mm ? `, ${Math.round(value(name) * mm)} mm` : "";
    return `${value(name)} ${SLIDERS[name][4]}${also}`;
  }

  let shown = null; // the method whose sliders stand there
  function drawControls() {
    const method = model.get("method");
    [...methods.children].forEach((button) =>
      button.setAttribute("aria-pressed", button.textContent === method));
    if (shown !== method) {
      shown = method;
      controls.replaceChildren(...Object.keys(presets[method]).map((name) => {
        const [label, min, max, step] = SLIDERS[name];
        const input = make("input", { type: "range", min, max, step, name,
          oninput: () => put({ rules: { ...model.get("rules"), [name]: Number(input.value) } }) });
        return make("label", {}, make("span", { textContent: label }), input, make("output"));
      }));
    }
    for (const label of controls.children) {
      const [, input, output] = label.children;
      input.value = value(input.name);
      output.textContent = say(input.name);
      input.setAttribute("aria-valuetext", output.textContent);
    }
    plane.value = model.get("index");
    planeText.textContent = `${model.get("index")} (0–${planes - 1})`;
  }

  // ---- the six stages and the verdicts
  const brushes = panels.map((panel) =>
    panel.querySelector("canvas").getContext("2d", { willReadFrequently: true }));
  const images = brushes.map((brush) => brush.createImageData(columns, rows));
  const opaque = ([red, green, blue]) => (0xff000000 | red | (green << 8) | (blue << 16)) >>> 0;
  const [black, white, truth] = [[0, 0, 0], [255, 255, 255], TRUTH].map(opaque);
  const palette = COLORS.map(opaque);
  function drawPanels(original, pixels, regions) {
    const [first, below, cleaned, colored, mask, applied] =
      images.map((image) => new Uint32Array(image.data.buffer));
    const labels = pixels.subarray(rows * columns);
    for (let at = 0; at < rows * columns; at++) {
      const bits = pixels[at];
      const gray = (0xff000000 | (original[at] * 0x010101)) >>> 0;
      first[at] = gray;
      below[at] = bits & 1 ? white : black;
      cleaned[at] = bits & 2 ? white : black;
      colored[at] = labels[at] ? palette[labels[at] % 7] : black;
      mask[at] = bits & 4 ? white : black;
      const border = bits & 8 && !(pixels[at - 1] & pixels[at + 1] &
        pixels[at - columns] & pixels[at + columns] & 8);
      applied[at] = border ? truth : bits & 4 ? gray : black;
    }
    images.forEach((image, number) => brushes[number].putImageData(image, 0, 0));
    drawBoxes(brushes[3], regions);
  }

  function drawBoxes(brush, regions) {
    brush.lineWidth = columns / 200;
    brush.font = `${columns / 16}px sans-serif`;
    brush.fillStyle = brush.strokeStyle = "#fff";
    for (const region of regions.slice(0, ROWS)) {
      const { label, kept, top, bottom, left, right } = region;
      brush.setLineDash(kept ? [] : [columns / 60]);
      brush.strokeRect(left, top, right - left, bottom - top);
      brush.fillText(label, left + columns / 80, top + columns / 16);
    }
    if (model.get("method") !== "2017") return;
    brush.strokeStyle = "#f0e442"; // the lines of the rules "top" and "bottom"
    brush.setLineDash([columns / 60, columns / 120]);
    for (const y of [value("top") * rows, value("bottom") * columns]) {
      brush.beginPath();
      brush.moveTo(0, y);
      brush.lineTo(columns, y);
      brush.stroke();
    }
  }

  function drawVerdict({ dice, code: text }, regions) {
    const kept = regions.filter((region) => region.kept).length;
    const score = dice === undefined ? "" : ` · Dice ${dice.toFixed(3)} against the truth (orange line)`;
    const rest = regions.length > ROWS ? ` · the ${ROWS} largest below` : "";
    verdict.textContent = `${kept} of ${regions.length} regions kept${score}${rest}`;
    table.replaceChildren(...regions.slice(0, ROWS).map((region) => {
      const number = make("td", { textContent: region.label });
      number.style.borderLeft = `10px solid rgb(${COLORS[(region.label % 251) % 7]})`;
      number.style.paddingLeft = "6px";
      return make("tr", { className: region.kept ? "quest-kept" : "" }, number, ...[
        region.kept ? "kept" : "dropped",
        region.kept ? "" : region.reason,
        region.missed_by_mm > 0 ? `${region.missed_by_mm.toFixed(1)} mm` : "",
        `${region.height_mm.toFixed(0)} × ${region.width_mm.toFixed(0)} mm`,
        `${region.area_mm2.toFixed(0)} mm²`,
      ].map((cell) => make("td", { textContent: cell })));
    }));
    code.value = text;
  }

  let turn = 0;
  async function draw() {
    const mine = ++turn;
    const answer = model.get("answer");
    const [original, pixels] = await Promise.all(
      [model.get("original"), model.get("stages")].map(inflate));
    if (mine !== turn) return; // a newer answer came while this one was unpacked
    const regions = [...answer.regions].sort((a, b) => b.area_mm2 - a.area_mm2);
    drawPanels(original, pixels, regions);
    drawVerdict(answer, regions);
  }

  const watched = { "change:answer": draw, "change:rules": drawControls,
    "change:method": drawControls, "change:index": drawControls };
  for (const [event, listener] of Object.entries(watched)) model.on(event, listener);
  drawControls();
  await draw();
  return () => {
    for (const [event, listener] of Object.entries(watched)) model.off(event, listener);
  };
}

export default { render };
