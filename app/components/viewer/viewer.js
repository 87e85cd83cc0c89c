// The controls of the viewer: playing, moving, findings, and what the page is told.

const AHEAD_S = 2.5;
const THUMBNAILS = 12;
const REST_MS = 350; // the page is told where the reader is after so long without another move
const SETTINGS = "endofm_lab viewer"; // of this tab, kept while other pages are shown

class Viewer {
  constructor(root, facts, data, tell) {
    Object.assign(this, { root, facts, tell, video: data.video, message: data.message, known: data.frame });
    const { findings, thresholds } = data;
    Object.assign(this, { findings, thresholds });
    this.at = (selector) => root.querySelector(selector);
    this.frames = new Frames(data.address, facts, thresholds.mask, (sentence) => this.problem(sentence));
    this.picture = new Picture(this.at("canvas"), facts, this.frames);
    this.picture.boxesFrom = thresholds.box;
    this.shown = -1; // the frame on the canvas
    this.wanted = 0; // the frame that the reader asked for
    this.playing = false;
    this.speed = 1;
    this.loop = false;
    this.drawn = 0; // frames since playing began
    this.stop = new AbortController(); // removes every listener
    this.restore();
    this.build();
    this.listen();
    this.goTo(data.frame);
    this.thumbnails();
  }

  on(target, kind, act, options = {}) {
    target.addEventListener(kind, act, { signal: this.stop.signal, ...options });
  }

  problem(sentence) {
    this.pause(false);
    this.at(".problem").textContent = sentence;
    this.at(".problem").hidden = false;
  }

  // What the reader had set before another page was shown.
  restore() {
    let kept = {};
    try {
      kept = JSON.parse(sessionStorage.getItem(SETTINGS)) || {};
    } catch {} // a browser without storage
    const { picture } = this;
    this.speed = [0.25, 0.5, 1, 1.5, 2].includes(kept.speed) ? kept.speed : 1;
    this.loop = kept.loop === true;
    picture.beside = kept.beside === true;
    picture.opacity = kept.opacity >= 0 && kept.opacity <= 1 ? kept.opacity : 0.4;
    for (const name of kept.hidden || []) picture.shown.delete(this.facts.overlays[name]);
    if (kept.video === this.video && kept.zoom) picture.zoom = kept.zoom;
  }

  store() {
    const { picture, speed, loop, video } = this;
    const { zoom, beside, opacity, shown } = picture;
    const hidden = Object.entries(this.facts.overlays).filter(([, head]) => !shown.has(head)).map(([name]) => name);
    try {
      sessionStorage.setItem(SETTINGS, JSON.stringify({ video, zoom, beside, opacity, hidden, speed, loop }));
    } catch {} // a browser without storage
  }

  build() {
    const { facts, picture } = this;
    const last = facts.frames - 1;
    this.at(".seek").max = last;
    this.at(".speed").value = String(this.speed);
    this.at(".opacity").value = picture.opacity;
    this.pressed();
    for (const name of ["first", "back", "play", "forward", "last", "loop"]) this.button(name).disabled = last === 0;
    this.at(".if-overlays").hidden = !Object.keys(facts.overlays).length;
    this.at(".overlays").replaceChildren(
      ...Object.entries(facts.overlays).map(([name, head]) => {
        const label = document.createElement("label");
        const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: picture.shown.has(head) });
        this.on(box, "change", () => {
          picture.shown[box.checked ? "add" : "delete"](head);
          this.redraw();
        });
        label.append(box, name);
        return label;
      }),
    );
    this.mark();
  }

  // The findings above the slider, and whether there are any to go to.
  mark() {
    const { facts, findings } = this;
    for (const name of ["previous", "next"]) this.button(name).disabled = !findings.length;
    this.at(".marks").replaceChildren(
      ...findings.map((finding) => {
        const mark = document.createElement("button");
        mark.title = mark.ariaLabel = this.words(finding);
        mark.tabIndex = -1; // the buttons for findings lead there with the keyboard
        const [from, to] = [finding.first, finding.last + 1].map((frame) => (100 * frame) / facts.frames);
        Object.assign(mark.style, { left: `${from}%`, width: `${to - from}%`, background: finding.colour });
        this.on(mark, "click", () => this.show(finding));
        return mark;
      }),
      ...facts.unfamiliar.map(([first, last]) => {
        const mark = Object.assign(document.createElement("span"), { className: "unfamiliar" });
        mark.title = `Unlike what the model learned, frames ${first} to ${last}`;
        const [from, to] = [first, last + 1].map((frame) => (100 * frame) / facts.frames);
        Object.assign(mark.style, { left: `${from}%`, width: `${to - from}%` });
        return mark;
      }),
    );
  }

  button(name) {
    return this.at(`[data-do="${name}"]`);
  }

  pressed() {
    this.button("loop").ariaPressed = String(this.loop);
    this.button("beside").ariaPressed = String(this.picture.beside);
  }

  words({ label, score, first, last }) {
    return `${label}${score === null ? "" : ` ${score.toFixed(2)}`}, frames ${first} to ${last}`;
  }

  listen() {
    const { root } = this;
    const seek = this.at(".seek");
    const canvas = this.at("canvas");
    const speed = this.at(".speed");
    for (const button of root.querySelectorAll(".row [data-do]")) {
      this.on(button, "click", () => this.act(button.dataset.do));
    }
    this.on(seek, "input", () => this.scrub(Number(seek.value)));
    this.on(seek, "change", () => this.report(0));
    this.on(speed, "change", () => this.setSpeed(Number(speed.value)));
    this.on(this.at(".opacity"), "input", (event) => {
      this.picture.opacity = Number(event.target.value);
      this.redraw();
    });
    this.on(root, "keydown", (event) => this.key(event));
    this.on(root, "focusout", (event) => root.contains(event.relatedTarget) || this.reportNow());
    this.on(document, "pointerdown", (event) => event.composedPath().includes(root) || this.reportNow(), { capture: true });
    this.on(canvas, "wheel", (event) => this.wheel(event), { passive: false });
    this.on(canvas, "pointerdown", (event) => this.grab(event));
    this.on(this.at(".strip"), "click", (event) => {
      const { left, width } = this.at(".strip").getBoundingClientRect();
      this.goTo(Math.floor(((event.clientX - left) / width) * this.facts.frames));
      this.report(0);
    });
    this.observer = new ResizeObserver(() => this.layout());
    this.observer.observe(this.at(".stage"));
    this.on(window, "resize", () => this.layout());
    this.on(document, "fullscreenchange", () => this.layout());
  }

  // What a button or a key does.
  act(name) {
    const last = this.facts.frames - 1;
    const { picture } = this;
    const moves = { first: 0, last, back: this.wanted - 1, forward: this.wanted + 1 };
    if (name in moves) {
      this.scrub(moves[name]);
      this.report(REST_MS);
    } else if (name === "play") {
      if (this.playing) this.pause();
      else this.play();
    } else if (name === "next" || name === "previous") {
      this.find(name === "next" ? 1 : -1);
    } else if (name === "full") {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.root.requestFullscreen();
    } else {
      if (name === "loop") this.loop = !this.loop;
      if (name === "beside") picture.beside = !picture.beside;
      if (name === "in" || name === "out") picture.zoomBy(name === "in" ? 1.5 : 1 / 1.5);
      if (name === "fit") picture.zoom = { scale: 1, x: 0.5, y: 0.5 };
      this.pressed();
      this.layout();
      this.redraw();
    }
  }

  key(event) {
    const focused = event.composedPath()[0];
    if (event.ctrlKey || event.metaKey || event.altKey || focused.tagName === "SELECT") return;
    const onSlider = focused.type === "range";
    const onButton = focused.tagName === "BUTTON" || focused.type === "checkbox";
    const second = Math.round(this.facts.frames / this.facts.duration_s) || 1;
    const arrows = { ArrowLeft: -1, ArrowRight: 1 };
    const names = { Home: "first", End: "last", n: "next", p: "previous", f: "full", l: "loop", b: "beside" };
    const zooms = { "+": "in", "-": "out", 0: "fit" };
    const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (pressed === " " && !onButton) this.act("play");
    else if (pressed in arrows && !(onSlider && !event.shiftKey)) {
      this.scrub(this.wanted + arrows[pressed] * (event.shiftKey ? second : 1));
      this.report(REST_MS);
    } else if (pressed in names && !(onSlider && pressed.length > 1)) this.act(names[pressed]);
    else if (pressed in zooms) this.act(zooms[pressed]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // The wheel enlarges only after a click into the viewer, so that the page can still be scrolled.
  wheel(event) {
    if (!event.ctrlKey && !this.root.matches(":focus-within")) return;
    event.preventDefault();
    this.picture.zoomBy(Math.exp(-event.deltaY / 400), { x: event.offsetX, y: event.offsetY });
    this.redraw();
  }

  // A click plays or pauses; dragging moves the enlarged picture.
  grab(event) {
    if (event.button !== 0) return;
    const canvas = this.at("canvas");
    let moved = 0;
    let [x, y] = [event.clientX, event.clientY];
    this.root.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    const letGo = new AbortController();
    const drag = (next) => {
      moved += Math.abs(next.clientX - x) + Math.abs(next.clientY - y);
      if (this.picture.zoom.scale > 1) {
        this.picture.pan(next.clientX - x, next.clientY - y);
        this.redraw();
      }
      [x, y] = [next.clientX, next.clientY];
    };
    canvas.addEventListener("pointermove", drag, { signal: letGo.signal });
    canvas.addEventListener("pointercancel", () => letGo.abort(), { signal: letGo.signal });
    canvas.addEventListener("pointerup", () => {
      letGo.abort();
      if (moved < 5 && this.facts.frames > 1) this.act("play");
    }, { signal: letGo.signal });
  }

  layout() {
    const stage = this.at(".stage");
    const full = document.fullscreenElement !== null;
    this.picture.resize(stage.clientWidth, full ? stage.clientHeight : Math.max(240, 0.62 * window.innerHeight));
    if (this.shown >= 0) this.draw(this.shown);
  }

  redraw() {
    if (this.shown >= 0) this.draw(this.shown);
    this.store();
  }

  draw(number) {
    const { facts } = this;
    if (!this.frames.pictures.has(number)) return void this.goTo(number);
    this.picture.draw(number);
    this.shown = number;
    const seen = this.frames.seen(number);
    const nearest = seen === number || !Object.keys(facts.overlays).length ? "" : ` · overlay of frame ${seen}`;
    const words = `Frame ${number} of ${facts.frames - 1} · ${facts.times_s[number].toFixed(3)} s`;
    const strange = facts.unfamiliar.some(([first, last]) => first <= seen && seen <= last);
    const remarks = [strange ? "unlike what the model learned" : "", facts.faults[seen] || ""].filter(Boolean).join(" · ");
    this.at(".strange").hidden = !remarks;
    this.at(".strange").textContent = remarks;
    this.at(".status").textContent = words + nearest;
    const seek = this.at(".seek");
    seek.value = this.playing ? number : this.wanted;
    seek.ariaValueText = words;
    Object.assign(this.root.dataset, { frame: number, drawn: this.drawn, zoom: this.picture.zoom.scale.toFixed(3) });
  }

  // Move to a frame as soon as it is here; of several moves only the last counts.
  async goTo(number) {
    this.wanted = Math.min(this.facts.frames - 1, Math.max(0, number));
    this.root.dataset.wanted = this.wanted;
    if (this.moving) return;
    this.moving = true;
    try {
      while (this.shown !== this.wanted || !this.frames.pictures.has(this.shown)) {
        const target = this.wanted;
        if (!this.frames.ready(target)) await this.frames.fetch(target);
        if (this.frames.closed) return;
        if (this.frames.pictures.has(target)) this.draw(target);
        this.restart();
      }
      this.at(".problem").hidden = true;
      clearTimeout(this.resting);
      this.resting = setTimeout(() => this.frames.around(this.shown), REST_MS / 2);
    } catch {} // the sentence is shown
    finally {
      this.moving = false;
    }
  }

  // Show frames while the reader moves.
  scrub(number) {
    if (this.playing) this.pause(false);
    this.goTo(number);
  }

  // Tell the page where the reader is.
  report(after) {
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.send(), after);
  }

  // Before the reader does something else on the page: a message that is sent while Streamlit changes to another page
  // would bring the old page back.
  reportNow() {
    if (this.telling || this.playing) this.send();
  }

  send() {
    clearTimeout(this.telling);
    this.telling = null;
    this.message += 1;
    this.known = this.playing ? this.shown : this.wanted;
    this.tell({ frame: this.known, message: this.message });
  }

  // The page has moved the viewer, unless it has not heard the last message yet.
  update(data, tell) {
    this.tell = tell;
    this.take(data);
    if (data.message !== this.message || data.frame === this.known) return;
    this.known = data.frame;
    this.goTo(data.frame);
  }

  // Other findings and thresholds of the same video.
  take({ findings, thresholds }) {
    if (JSON.stringify(findings) !== JSON.stringify(this.findings)) {
      this.findings = findings;
      this.mark();
    }
    if (thresholds.mask === this.thresholds.mask && thresholds.box === this.thresholds.box) return;
    this.picture.boxesFrom = thresholds.box;
    if (thresholds.mask !== this.thresholds.mask) {
      this.frames.setThreshold(thresholds.mask);
      this.picture.masks.clear();
    }
    this.thresholds = thresholds;
    if (this.shown < 0) return;
    const shown = this.shown;
    this.frames.fetch(shown).then(() => this.shown === shown && this.redraw()).catch(() => {});
  }

  play() {
    const last = this.facts.frames - 1;
    if (this.wanted >= last) this.goTo(0);
    this.playing = true;
    this.drawn = 0;
    this.at(".main span").textContent = this.button("play").ariaLabel = "Pause";
    this.root.dataset.playing = "yes";
    this.restart();
    requestAnimationFrame((now) => this.tick(now));
  }

  pause(report = true) {
    if (!this.playing) return;
    this.playing = false;
    this.wanted = Math.max(0, this.shown);
    this.at(".main span").textContent = this.button("play").ariaLabel = "Play";
    this.root.dataset.playing = "no";
    if (report) this.report(0);
  }

  setSpeed(speed) {
    this.speed = speed;
    this.restart();
    this.store();
  }

  // The clock of the video begins at the frame that is shown.
  restart() {
    this.clock = { wall: performance.now(), video_s: this.facts.times_s[Math.max(0, this.shown)] };
  }

  // The frame that is on show at a time of the video: the last one that began before.
  frameAt(time_s) {
    const { times_s } = this.facts;
    let low = 0, high = times_s.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (times_s[middle] <= time_s + 1e-6) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  tick(now) {
    if (!this.playing || this.frames.closed) return;
    requestAnimationFrame((next) => this.tick(next));
    if (this.moving) return this.restart();
    const { facts, frames } = this;
    const time_s = this.clock.video_s + (Math.max(0, now - this.clock.wall) / 1000) * this.speed;
    if (this.shown === facts.frames - 1 && time_s >= facts.duration_s) {
      if (!this.loop) return this.pause();
      return void this.goTo(0);
    }
    let target = this.frameAt(time_s);
    while (target > this.shown && !frames.ready(target)) target -= 1;
    if (target > this.shown) {
      this.drawn += 1;
      this.wanted = target;
      this.draw(target);
    } else if (this.frameAt(time_s) > this.shown) this.restart(); // the next frame is not here yet: wait for it
    frames.ahead(this.shown, Math.ceil((AHEAD_S * this.speed * facts.frames) / facts.duration_s));
  }

  // The next finding after the shown frame, or the previous one before it; round at the ends.
  find(direction) {
    const found = [...this.findings].sort((one, other) => one.frame - other.frame);
    const later = direction > 0
      ? found.find(({ frame }) => frame > this.wanted) || found[0]
      : found.findLast(({ frame }) => frame < this.wanted) || found.at(-1);
    this.show(later);
  }

  show(finding) {
    this.scrub(finding.frame);
    this.report(REST_MS);
    const number = this.findings.indexOf(finding) + 1;
    this.at(".said").textContent = `Finding ${number} of ${this.findings.length}: ${this.words(finding)}.`;
  }

  // Small pictures of the whole video, one after the other, so that the frames come first.
  async thumbnails() {
    const count = Math.min(THUMBNAILS, this.facts.frames);
    const places = Array.from({ length: count }, () => document.createElement("span"));
    this.at(".strip").replaceChildren(...places);
    this.at(".strip").hidden = count < 2;
    for (const [index, place] of count < 2 ? [] : places.entries()) {
      while (this.shown < 0 && !this.frames.closed) await new Promise((go) => setTimeout(go, 100));
      if (this.frames.closed) return;
      const number = Math.floor(((index + 0.5) * this.facts.frames) / count);
      const image = Object.assign(new Image(), { alt: "", title: `Frame ${number}`, draggable: false });
      image.src = `${this.frames.address}/thumbnails/${number}`;
      await image.decode().catch(() => {});
      place.replaceWith(image);
    }
  }

  close() {
    this.pause(false);
    for (const timer of [this.telling, this.resting]) clearTimeout(timer);
    this.observer.disconnect();
    this.stop.abort();
    this.frames.close();
  }
}

const viewers = new WeakMap(); // parent element -> the viewer in it

async function open(parent, data, tell) {
  const root = parent.querySelector(".viewer");
  const problem = root.querySelector(".problem");
  const entry = { video: data.video, data, tell, viewer: null };
  viewers.get(parent)?.viewer?.close();
  viewers.set(parent, entry);
  try {
    const reply = await fetch(`${data.address}/video`);
    if (!reply.ok) throw new Error(await reply.text());
    const facts = await reply.json();
    if (viewers.get(parent) !== entry) return;
    problem.hidden = true;
    entry.viewer = new Viewer(root, facts, entry.data, entry.tell);
  } catch (error) {
    problem.textContent = error instanceof TypeError ? "The app does not answer. Check that it is still running." : error.message;
    problem.hidden = false;
  }
}

export default function ({ data, parentElement, setStateValue }) {
  const tell = (value) => setStateValue("at", value);
  const entry = viewers.get(parentElement);
  if (entry?.video === data.video) {
    Object.assign(entry, { data, tell });
    entry.viewer?.update(data, tell);
  } else open(parentElement, data, tell);
  return () => {
    // Streamlit may call this before it shows new data in the same place.
    setTimeout(() => {
      if (parentElement.isConnected ?? parentElement.host?.isConnected) return;
      viewers.get(parentElement)?.viewer?.close();
      viewers.delete(parentElement);
    }, 0);
  };
}
