"use strict";
(() => {
  const run = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const bytes = (text) => {
    const letters = atob(text), found = new Uint8Array(letters.length);
    for (let at = 0; at < letters.length; at++) found[at] = letters.charCodeAt(at);
    return found;
  };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const { rows, bands, codes } = run;
  const count = rows * bands;
  if (!count) return;

  // --- what is known of a tile ---------------------------------------------------------

  const status = bytes(run.status);
  const remark = run.remark && bytes(run.remark);
  const layers = Object.fromEntries(
    Object.entries(run.layers).map(([name, layer]) => [name, { ...layer, data: bytes(layer.data) }]));
  const startOf = (row) => run.start + Math.round(row * run.rowMs) + run.late[row];
  const names = [];
  for (const told of run.files.rows) {
    names.push(typeof told === "string" ? told : names[names.length - 1].slice(0, told[0]) + told[1]);
  }
  const isDelivered = (tile) => codes[status[tile]] === "ok" || codes[status[tile]] === "edge";

  function fileOf(tile) {
    if (!isDelivered(tile)) return null;
    const row = Math.floor(tile / bands);
    const odd = run.files.odd[tile];
    if (odd === null) return null;
    return run.files.above + (odd === undefined ? names[row] + run.files.bands[tile % bands] : odd);
  }

  const addressOf = (key) => key.split("/").map(encodeURIComponent).join("/");
  const iso = (ms) => new Date(ms).toISOString();
  const dayOf = (ms) => iso(ms).slice(0, 10);
  const clockOf = (ms) => iso(ms).slice(11, 19);
  const km = (value) => value.toFixed(2);
  // Where bands overlap, one ends behind the next one's beginning, all as wide as the last.
  const kmStop = (band) => run.channels[3] < run.channels[1] ? run.km[band] + run.km[bands] - run.km[bands - 1] : run.km[band + 1];
  const kmTick = (band) => run.km[band].toFixed(Math.abs(run.km[bands]) < 100 ? 2 : 1);
  const level = (layer, tile) => {
    const step = layer.data[tile];
    return step ? layer.least + ((step - 1) / 253) * (layer.most - layer.least) : null;
  };
  const levelIn = (name, tile) => (layers[name] ? level(layers[name], tile) : null);

  function told(tile) {
    const row = Math.floor(tile / bands), band = tile % bands, start = startOf(row);
    return `${dayOf(start)} ${clockOf(start)} UTC, ${km(run.km[band])} to ${km(kmStop(band))} km: ${codes[status[tile]]}`;
  }

  // --- colours -------------------------------------------------------------------------

  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const GROUPS = [[117, 112, 179], [27, 158, 119], [217, 95, 2], [231, 41, 138], [102, 166, 30], [230, 171, 2], [166, 118, 29], [102, 102, 102]];
  const QUANTITIES = {
    status: "status",
    low: "low end of the grey scale, dB",
    high: "high end of the grey scale, dB",
    dead: "dead channels",
    quality: "quality flags",
  };
  let quantity = "status";
  let ink = {};

  function styled(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function parts(colour) {
    const hex = colour.length === 4 ? colour.replace(/[^#]/g, "$&$&") : colour;
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  }

  function ramp(share) {
    const at = clamp(share, 0, 1) * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
    return RAMP[low].map((part, i) => Math.round(part + (RAMP[low + 1][i] - part) * (at - low)));
  }

  function colours() {
    if (quantity === "status") return codes.map((name) => parts(styled(name.replace(" ", "-"))));
    const none = parts(styled("to-do"));
    if (quantity === "quality") {
      return Array.from({ length: 256 }, (_, step) => (step ? GROUPS[(step - 1) % GROUPS.length] : none));
    }
    return Array.from({ length: 256 }, (_, step) => (step ? ramp((step - 1) / 253) : none));
  }

  function theme() {
    ink = { paper: styled("paper"), text: styled("ink"), soft: styled("soft"), focus: styled("focus"), rule: styled("rule") };
  }

  // --- the map -------------------------------------------------------------------------

  const cells = by("cells"), overview = by("overview");
  const LEFT = 64, BOTTOM = 40, TOP = 4, RIGHT = 10;
  const LEAST = 9, WIDEST = 96, HIGHEST = 250, NARROWEST = 160, COARSE = 3;
  const view = { row0: 0, shown: rows, chosen: 0, width: 0, cell: 1, height: 0 };

  // Tiles of rows [row0, row1) on so many points: of several the gravest status, else the most.
  function picture(row0, row1, width, height) {
    const image = new ImageData(width, height), points = new Uint32Array(image.data.buffer);
    const table = Uint32Array.from(colours(), ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
    const byStatus = quantity === "status", data = byStatus ? status : layers[quantity].data;
    const span = row1 - row0;
    for (let x = 0; x < width; x++) {
      const first = row0 + Math.floor((x * span) / width);
      const end = Math.max(first + 1, row0 + Math.floor(((x + 1) * span) / width));
      for (let y = 0; y < height; y++) {
        const top = Math.floor((y * bands) / height);
        const below = Math.max(top + 1, Math.floor(((y + 1) * bands) / height));
        let found = byStatus ? 255 : 0;
        for (let row = first; row < end; row++) {
          for (let at = row * bands + top; at < row * bands + below; at++) {
            if (byStatus ? data[at] < found : data[at] > found) found = data[at];
          }
        }
        points[y * width + x] = table[found];
      }
    }
    const canvas = document.createElement("canvas");
    canvas.width = width; canvas.height = height;
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  function prepare(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(view.width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, view.width, height);
    pen.imageSmoothingEnabled = false;
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = ink.soft;
    pen.strokeStyle = ink.soft;
    return pen;
  }

  const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000];

  // Times at which round ones fall, as points along the axis.
  function timeTicks(row0, row1, width) {
    const apart = ((row1 - row0) * run.rowMs * 84) / width;
    const step = 1000 * (STEPS_S.find((one) => one * 1000 >= apart) || STEPS_S[STEPS_S.length - 1]);
    const found = [];
    let before = Math.floor((startOf(row0) - 1) / step);
    for (let row = row0; row < row1; row++) {
      const start = startOf(row), end = row + 1 < rows ? startOf(row + 1) : start + run.tileMs;
      const last = Math.floor((Math.min(end, start + run.tileMs) - 1) / step);
      for (let number = Math.max(before + 1, Math.ceil(start / step)); number <= last; number++) {
        const at = row + (number * step - start) / run.rowMs;
        found.push([((at - row0) / (row1 - row0)) * width, number * step]);
      }
      before = Math.max(before, last);
    }
    return found.length ? found : [[0, startOf(row0)]];
  }

  function drawTimes(pen, row0, row1, width, base) {
    let day = "", free = -Infinity, freeDay = -Infinity;
    pen.textBaseline = "top";
    for (const [at, time] of timeTicks(row0, row1, width)) {
      const clock = clockOf(time), date = dayOf(time), x = LEFT + at;
      pen.beginPath(); pen.moveTo(x, base); pen.lineTo(x, base + 5); pen.stroke();
      const half = pen.measureText(clock).width / 2;
      const centre = clamp(x, LEFT - 10 + half, view.width - half);
      if (centre - half < free) continue;
      free = centre + half + 8;
      pen.textAlign = "center";
      pen.fillText(clock.endsWith(":00") ? clock.slice(0, 5) : clock, centre, base + 8);
      const text = `${date} UTC`, wide = pen.measureText(text).width;
      const left = clamp(centre - wide / 2, LEFT - 10, view.width - wide);
      if (date === day || left < freeDay) continue;
      day = date;
      freeDay = left + wide + 8;
      pen.textAlign = "left";
      pen.fillText(text, left, base + 23);
    }
  }

  function drawDistances(pen, height) {
    const every = Math.max(1, Math.ceil((bands * 17) / height));
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let band = 0; band <= bands; band += every) {
      const y = TOP + (band / bands) * height;
      pen.beginPath(); pen.moveTo(LEFT - 5, y); pen.lineTo(LEFT, y); pen.stroke();
      pen.fillText(kmTick(band), LEFT - 8, clamp(y, 8, TOP + height));
    }
    pen.save();
    pen.translate(9, TOP + height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText("km", 0, 0);
    pen.restore();
  }

  function drawCells() {
    const { row0, shown, cell, height } = view, width = shown * cell;
    const pen = prepare(cells, TOP + height + BOTTOM);
    pen.drawImage(picture(row0, row0 + shown, shown, Math.min(bands, height)), LEFT, TOP, width, height);
    const tall = height / bands;
    if (tall >= 7) {
      pen.strokeStyle = ink.paper;
      pen.lineWidth = 1;
      pen.beginPath();
      for (let i = 1; i < shown; i++) { pen.moveTo(LEFT + i * cell, TOP); pen.lineTo(LEFT + i * cell, TOP + height); }
      for (let i = 1; i < bands; i++) { pen.moveTo(LEFT, TOP + i * tall); pen.lineTo(LEFT + width, TOP + i * tall); }
      pen.stroke();
    }
    pen.strokeStyle = ink.soft;
    pen.strokeRect(LEFT - 0.5, TOP - 0.5, width + 1, height + 1);
    drawTimes(pen, row0, row0 + shown, width, TOP + height);
    drawDistances(pen, height);
    const row = Math.floor(view.chosen / bands) - row0, band = view.chosen % bands;
    if (row >= 0 && row < shown) {
      pen.lineWidth = 4; pen.strokeStyle = ink.paper;
      pen.strokeRect(LEFT + row * cell, TOP + band * tall, cell, Math.max(tall, 3));
      pen.lineWidth = 2; pen.strokeStyle = ink.text;
      pen.strokeRect(LEFT + row * cell, TOP + band * tall, cell, Math.max(tall, 3));
    }
  }

  let whole = null;

  function drawOverview() {
    overview.hidden = view.shown >= rows;
    if (overview.hidden) return;
    const height = 60, width = Math.floor(view.width - LEFT - RIGHT);
    const pen = prepare(overview, TOP + height + BOTTOM);
    // Coarse, so that a single loss is not too thin to be seen.
    whole = whole || picture(0, rows, Math.min(rows, Math.floor(width / COARSE)), Math.min(bands, height));
    pen.drawImage(whole, LEFT, TOP, width, height);
    pen.strokeRect(LEFT - 0.5, TOP - 0.5, width + 1, height + 1);
    drawTimes(pen, 0, rows, width, TOP + height);
    const x = LEFT + (view.row0 / rows) * width, wide = Math.max(4, (view.shown / rows) * width);
    pen.lineWidth = 5; pen.strokeStyle = ink.paper; pen.strokeRect(x, TOP, wide, height);
    pen.lineWidth = 2.5; pen.strokeStyle = ink.text; pen.strokeRect(x, TOP, wide, height);
    pen.fillStyle = ink.soft;
    pen.textAlign = "right"; pen.textBaseline = "middle";
    pen.fillText("all", LEFT - 4, TOP + height / 2);
  }

  function arrange() {
    view.width = Math.max(cells.parentElement.clientWidth, NARROWEST);
    const wide = view.width - LEFT - RIGHT;
    view.shown = clamp(Math.floor(wide / LEAST), 1, rows);
    view.cell = Math.min(WIDEST, wide / view.shown);
    view.height = Math.round(Math.min(HIGHEST, bands * Math.max(1, Math.min(24, HIGHEST / bands))));
    view.row0 = clamp(view.row0, 0, rows - view.shown);
    whole = null;
    draw();
  }

  function draw() {
    drawOverview();
    drawCells();
  }

  function legend() {
    const list = by("legend"), layer = layers[quantity];
    list.replaceChildren();
    const add = ([r, g, b], text) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.backgroundColor = `rgb(${r} ${g} ${b})`;
      item.append(swatch, text);
      list.append(item);
    };
    const table = colours();
    if (quantity === "status") {
      codes.map((name, code) => [name, code]).reverse().forEach(([name, code]) => {
        if (status.includes(code)) add(table[code], name);
      });
      return;
    }
    if (quantity === "quality") {
      layer.values.forEach((value, i) => add(table[i + 1], `GpsStatus ${value & 255}, GpBits ${value >> 8}`));
      add(table[0], "not finished");
      return;
    }
    const unit = quantity === "dead" ? ` of ${layer.of} channels` : " dB";
    const ticks = quantity === "dead" ? [1, 128, 254] : [1, 64, 127, 190, 254];
    if (quantity === "dead") add(table[0], "none");
    for (const step of ticks) {
      const value = quantity === "dead" ? Math.max(1, Math.round(((step - 1) / 253) * layer.most)) : layer.least + ((step - 1) / 253) * (layer.most - layer.least);
      add(table[step], `${quantity === "dead" ? value : value.toFixed(1)}${unit}`);
    }
    if (quantity !== "dead") add(table[0], "no image");
  }

  function reveal(row) {
    if (row < view.row0) view.row0 = row;
    if (row >= view.row0 + view.shown) view.row0 = row - view.shown + 1;
  }

  function choose(tile) {
    view.chosen = clamp(tile, 0, count - 1);
    reveal(Math.floor(view.chosen / bands));
    by("pointed").textContent = told(view.chosen);
    draw();
  }

  function tileAt(event) {
    const box = cells.getBoundingClientRect();
    const row = Math.floor((event.clientX - box.left - LEFT) / view.cell);
    const band = Math.floor(((event.clientY - box.top - TOP) / view.height) * bands);
    if (row < 0 || row >= view.shown || band < 0 || band >= bands) return null;
    return (view.row0 + row) * bands + band;
  }

  const MOVES = {
    ArrowLeft: () => -bands, ArrowRight: () => bands, ArrowUp: () => -1, ArrowDown: () => 1,
    PageUp: () => -view.shown * bands, PageDown: () => view.shown * bands,
    Home: () => -Math.floor(view.chosen / bands) * bands,
    End: () => (rows - 1 - Math.floor(view.chosen / bands)) * bands,
  };

  function moved(tile, key) {
    if (key === "ArrowUp" && tile % bands === 0) return tile;
    if (key === "ArrowDown" && tile % bands === bands - 1) return tile;
    const band = tile % bands, to = tile + MOVES[key]();
    if (to < 0) return band;
    return to >= count ? count - bands + band : to;
  }

  cells.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in MOVES) choose(moved(view.chosen, event.key));
    else if (event.key === "Enter" || event.key === " ") open(view.chosen, true);
    else return;
    event.preventDefault();
  });
  cells.addEventListener("focus", () => { by("pointed").textContent = told(view.chosen); });
  cells.addEventListener("pointermove", (event) => {
    const tile = tileAt(event);
    by("pointed").textContent = told(tile === null ? view.chosen : tile);
  });
  cells.addEventListener("click", (event) => {
    const tile = tileAt(event);
    if (tile !== null) open(tile, false);
  });

  function scroll(event) {
    const box = overview.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.floor(view.width - LEFT - RIGHT);
    view.row0 = clamp(Math.round(share * rows - view.shown / 2), 0, rows - view.shown);
    draw();
  }
  overview.addEventListener("pointerdown", (event) => { overview.setPointerCapture(event.pointerId); scroll(event); });
  overview.addEventListener("pointermove", (event) => { if (event.buttons) scroll(event); });

  function nextWithout() {
    for (let step = 1; step <= count; step++) {
      const tile = (view.chosen + step) % count;
      if (!isDelivered(tile)) return tile;
    }
    return null;
  }
  by("next-without").addEventListener("click", () => open(nextWithout(), false));

  // --- one tile ------------------------------------------------------------------------

  function fact(list, name, value) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.append(value);
    list.append(term, text);
  }

  function link(text, address) {
    const found = document.createElement("a");
    found.href = address;
    found.textContent = text;
    return found;
  }

  function show(tile) {
    const row = Math.floor(tile / bands), band = tile % bands, start = startOf(row), list = by("tile-facts");
    const [channel, spanned, step, stride] = run.channels, key = fileOf(tile), image = by("tile-image");
    by("tile").hidden = false;
    by("tile-title").textContent = `Tile of ${dayOf(start)} ${clockOf(start)} UTC, ${km(run.km[band])} to ${km(kmStop(band))} km`;
    image.parentElement.hidden = !(key && run.pictures);
    image.alt = `Image of the tile: ${told(tile)}`;
    if (key && run.pictures) image.src = addressOf(key); else image.removeAttribute("src");
    list.replaceChildren();
    fact(list, "Status", codes[status[tile]]);
    if (remark && remark[tile]) {
      const [reason, alike] = run.remarks[remark[tile]];
      fact(list, alike ? "Reason" : "Reason, of this kind", reason);
    }
    fact(list, "Time", `${iso(start).replace("T", " ").replace("Z", " UTC")}, ${run.tileMs / 1000} s`);
    const first = channel + band * stride, sample = run.samples[0] + row * run.samples[2];
    fact(list, "Channels", `${first} to ${first + spanned - 1}${step > 1 ? `, one in ${step}` : ""}`);
    fact(list, "Samples", `${sample} to ${sample + run.samples[1] - 1}`);
    const low = levelIn("low", tile), high = levelIn("high", tile);
    if (low !== null && high !== null) fact(list, "Grey scale", `about ${low.toFixed(1)} to ${high.toFixed(1)} dB re ${run.reference}`);
    if (layers.dead && layers.dead.data[tile]) {
      fact(list, "Dead channels", `about ${Math.max(1, Math.round(((layers.dead.data[tile] - 1) / 254) * layers.dead.most))} of ${layers.dead.of}`);
    }
    if (layers.quality && layers.quality.data[tile]) {
      const value = layers.quality.values[layers.quality.data[tile] - 1];
      fact(list, "Quality", `GpsStatus ${value & 255}, GpBits ${value >> 8}`);
    }
    fact(list, "Segment", String(Math.floor(row / run.rowsPerSegment)));
    if (key) fact(list, "File", link(key, addressOf(key)));
    if (shots) {
      const back = link("show it on the contact sheet", "#sheet");
      back.addEventListener("click", (event) => { event.preventDefault(); find(tile); });
      fact(list, "Neighbours", back);
    }
  }

  function open(tile, takesFocus) {
    choose(tile);
    show(view.chosen);
    const target = `#tile-${view.chosen}`;
    if (location.hash !== target) history.replaceState(null, "", target);
    by("tile").scrollIntoView({ block: "nearest" });
    if (takesFocus) by("tile").focus();
  }

  by("tile-image").addEventListener("error", () => {
    by("tile-image").parentElement.hidden = true;
    fact(by("tile-facts"), "Image", "not there: keep this page in the folder of its run");
  });

  function follow() {
    const found = /^#tile-(\d+)$/.exec(location.hash);
    if (found && Number(found[1]) < count) open(Number(found[1]), true);
  }

  // --- the contact sheet ---------------------------------------------------------------

  const shots = by("shots"), sheets = run.sheets, pages = sheets.keys.length;
  let page = -1, inView = false, rule = null, lines = [];

  function styleRule() {
    const sheet = document.styleSheets[0];
    sheet.insertRule(".shot { background-image: none; }", sheet.cssRules.length);
    return sheet.cssRules[sheet.cssRules.length - 1].style;
  }

  function sheetAddress(number) {
    if (sheets.embedded[number]) return `data:image/jpeg;base64,${sheets.embedded[number]}`;
    return sheets.keys[number] ? addressOf(sheets.keys[number]) : null;
  }

  // Thumbnails come when they are looked at: a large run's are in hundreds of files.
  function load() {
    if (!inView) return;
    const wanted = page, address = sheetAddress(page);
    rule.backgroundImage = "none";
    if (!address) return;
    const image = new Image();
    image.addEventListener("load", () => {
      if (page !== wanted) return;
      const tall = Math.round(image.naturalHeight / sheets.height);
      lines.forEach((shot, i) => {
        const down = Math.floor(i / sheets.columns), right = i % sheets.columns;
        const across = sheets.columns > 1 ? (right / (sheets.columns - 1)) * 100 : 0;
        shot.style.backgroundSize = `${sheets.columns * 100}% ${tall * 100}%`;
        shot.style.backgroundPosition = `${across}% ${tall > 1 ? (down / (tall - 1)) * 100 : 0}%`;
      });
      rule.backgroundImage = `url("${address}")`;
      shots.dataset.loaded = String(wanted);
    });
    image.addEventListener("error", () => {
      if (page === wanted) by("span").textContent += " Its thumbnails are not there: keep report/ beside this page.";
    });
    image.src = address;
  }

  function tileShot(tile) {
    const shot = link("", `#tile-${tile}`);
    shot.className = "shot";
    shot.dataset.tile = tile;
    shot.tabIndex = -1;
    shot.setAttribute("aria-label", told(tile));
    shot.title = told(tile);
    shot.style.aspectRatio = `${sheets.width} / ${sheets.height}`;
    if (!isDelivered(tile)) {
      const swatch = document.createElement("span"), name = codes[status[tile]];
      swatch.className = `swatch status-${name.replace(" ", "-")}`;
      shot.classList.add("blank");
      shot.append(swatch, name);
    }
    return shot;
  }

  function strip(row) {
    const when = document.createElement("time"), line = document.createElement("div"), start = startOf(row);
    when.dateTime = iso(start);
    when.textContent = clockOf(start);
    line.className = "strip";
    if (bands > 12) line.classList.add("narrow");
    else line.style.gridTemplateColumns = `repeat(${bands}, minmax(0, 6rem))`;
    shots.append(when, line);
    return line;
  }

  function scales() {
    if (bands > 12) return;
    const corner = document.createElement("span"), line = document.createElement("div");
    corner.className = "scale corner";
    corner.textContent = "UTC \\ km";
    line.className = "strip scales";
    line.style.gridTemplateColumns = `repeat(${bands}, minmax(0, 6rem))`;
    for (let band = 0; band < bands; band++) {
      const label = document.createElement("span");
      label.className = "scale";
      label.textContent = kmTick(band);
      line.append(label);
    }
    shots.append(corner, line);
  }

  function turn(number) {
    const to = clamp(number, 0, pages - 1);
    by("page").value = to + 1;
    if (to === page) return;
    page = to;
    const first = page * sheets.tiles, end = Math.min(first + sheets.tiles, count);
    shots.replaceChildren();
    delete shots.dataset.loaded;
    scales();
    lines = [];
    let row = -1, line = null;
    for (let tile = first; tile < end; tile++) {
      if (Math.floor(tile / bands) !== row) {
        row = Math.floor(tile / bands);
        line = strip(row);
      }
      const shot = tileShot(tile);
      lines.push(shot);
      line.append(shot);
    }
    lines[0].tabIndex = 0;
    const start = startOf(Math.floor(first / bands)), last = startOf(row);
    by("span").textContent = `Tiles ${(first + 1).toLocaleString("en")} to ${end.toLocaleString("en")} of ${count.toLocaleString("en")}: ${dayOf(start)} ${clockOf(start)} to ${dayOf(last)} ${clockOf(last + run.tileMs)} UTC${bands > 12 ? "" : "; above each column, where its band begins, in km"}.`;
    by("first").disabled = by("previous").disabled = page === 0;
    by("last").disabled = by("next").disabled = page === pages - 1;
    load();
  }

  function focusShot(shot) {
    for (const one of lines) one.tabIndex = -1;
    shot.tabIndex = 0;
    shot.focus();
  }

  function find(tile) {
    turn(Math.floor(tile / sheets.tiles));
    const shot = lines[tile - page * sheets.tiles];
    for (const one of lines) one.classList.toggle("chosen", one === shot);
    focusShot(shot);
  }

  function startSheets() {
    rule = styleRule();
    by("pages").textContent = pages.toLocaleString("en");
    by("page").max = pages;
    by("first").addEventListener("click", () => turn(0));
    by("previous").addEventListener("click", () => turn(page - 1));
    by("next").addEventListener("click", () => turn(page + 1));
    by("last").addEventListener("click", () => turn(pages - 1));
    by("page").addEventListener("change", (event) => turn(Math.round(Number(event.target.value) || 1) - 1));
    shots.addEventListener("keydown", (event) => {
      const shot = event.target.closest(".shot");
      if (!shot || event.ctrlKey || event.altKey || event.metaKey) return;
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -bands, ArrowDown: bands, Home: -count, End: count }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      focusShot(lines[clamp(lines.indexOf(shot) + move, 0, lines.length - 1)]);
    });
    // The address may be the tile's already; a click on it is to open it all the same.
    shots.addEventListener("click", (event) => {
      const shot = event.target.closest(".shot");
      if (!shot || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open(Number(shot.dataset.tile), true);
    });
    new IntersectionObserver((entries) => {
      const before = inView;
      inView = inView || entries.some((entry) => entry.isIntersecting);
      if (inView && !before) load();
    }, { rootMargin: "300px" }).observe(by("sheet"));
    turn(0);
  }

  // --- begin ---------------------------------------------------------------------------

  theme();
  for (const [name, text] of Object.entries(QUANTITIES)) {
    if (name === "status" || layers[name]) by("quantity").add(new Option(text, name));
  }
  by("quantity").addEventListener("change", (event) => { quantity = event.target.value; whole = null; legend(); draw(); });
  by("map-tool").hidden = false;
  by("next-without").hidden = nextWithout() === null;
  if (shots) {
    by("sheet-tool").hidden = false;
    startSheets();
  }
  legend();
  arrange();
  by("pointed").textContent = told(0);
  new ResizeObserver(() => { if (cells.parentElement.clientWidth !== view.width) arrange(); }).observe(cells.parentElement);
  const repaint = () => { theme(); whole = null; legend(); draw(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  // The rules for paper hold only after this event, when canvases are drawn already.
  window.addEventListener("beforeprint", () => { document.documentElement.classList.add("paper"); repaint(); });
  window.addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); repaint(); });
  window.addEventListener("hashchange", follow);
  follow();
})();
