// Draws a frame with masks and boxes on a canvas, enlarged and moved as the reader wants.

const MOST_ZOOM = 12;
const GAP_PX = 6; // between the two pictures side by side

class Picture {
  constructor(canvas, facts, frames) {
    Object.assign(this, { canvas, facts, frames });
    this.pen = canvas.getContext("2d");
    this.masks = new Map(); // `frame head` -> { tint, line }
    this.zoom = { scale: 1, x: 0.5, y: 0.5 }; // the point of the video in the middle, 0 to 1
    this.beside = false;
    this.opacity = 0.4;
    this.boxesFrom = 0; // the lowest score of boxes that are drawn
    this.shown = new Set(Object.values(facts.overlays)); // heads
  }

  // Make the canvas as large as the page allows; the heights are in CSS pixels.
  resize(width, height) {
    const { width: w, height: h } = this.facts;
    const across = this.beside ? 2 : 1;
    const gap = (across - 1) * GAP_PX;
    const scale = Math.min((width - gap) / (across * w), height / h);
    const ratio = window.devicePixelRatio || 1;
    const css = [Math.max(1, Math.round(across * w * scale + gap)), Math.max(1, Math.round(h * scale))];
    [this.canvas.style.width, this.canvas.style.height] = css.map((length) => `${length}px`);
    [this.canvas.width, this.canvas.height] = css.map((length) => Math.round(length * ratio));
    this.ratio = ratio;
  }

  // Where a panel is on the canvas: left edge, width and height in pixels of the canvas.
  panel(index) {
    const gap = this.beside ? Math.round(GAP_PX * this.ratio) : 0;
    const width = this.beside ? Math.floor((this.canvas.width - gap) / 2) : this.canvas.width;
    return { left: index * (width + gap), width, height: this.canvas.height };
  }

  draw(number) {
    const picture = this.frames.pictures.get(number);
    const { pen, canvas, facts } = this;
    this.clamp();
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (const index of this.beside ? [0, 1] : [0]) {
      const { left, width, height } = this.panel(index);
      const scale = (width / facts.width) * this.zoom.scale;
      pen.save();
      pen.beginPath();
      pen.rect(left, 0, width, height);
      pen.clip();
      const x = left + width / 2 - this.zoom.x * facts.width * scale;
      const y = height / 2 - this.zoom.y * facts.height * scale;
      pen.setTransform(scale, 0, 0, scale, x, y);
      pen.drawImage(picture, 0, 0, facts.width, facts.height);
      if (index === (this.beside ? 1 : 0)) this.drawOverlays(number, scale);
      pen.restore();
      if (facts.generated && this.zoom.scale > 1) this.drawMark(left + width);
    }
  }

  drawOverlays(number, scale) {
    const seen = this.frames.seen(number);
    const overlay = this.frames.overlays.get(seen);
    if (!overlay) return;
    const { pen, facts } = this;
    for (const [head, runs] of Object.entries(overlay.masks)) {
      if (!this.shown.has(head)) continue;
      const { tint, line } = this.mask(`${seen} ${head}`, runs);
      pen.globalAlpha = this.opacity / 2;
      pen.drawImage(tint, 0, 0, facts.width, facts.height);
      pen.globalAlpha = Math.min(1, 2.5 * this.opacity);
      pen.drawImage(line, 0, 0, facts.width, facts.height);
    }
    pen.globalAlpha = Math.min(1, 2.5 * this.opacity);
    const one = this.ratio / scale; // a CSS pixel in pixels of the video
    for (const { head, text, score, colour, xyxy: [x1, y1, x2, y2] } of overlay.boxes) {
      if (!this.shown.has(head) || score < this.boxesFrom) continue;
      pen.strokeStyle = pen.fillStyle = colour;
      pen.lineWidth = 3 * one;
      pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
      pen.font = `${13 * one}px sans-serif`;
      const bottom = Math.max(y1, 18 * one);
      pen.fillRect(x1, bottom - 18 * one, pen.measureText(text).width + 8 * one, 18 * one);
      pen.fillStyle = "#ffffff";
      pen.fillText(text, x1 + 4 * one, bottom - 5 * one);
    }
    pen.globalAlpha = 1;
  }

  // The mark is in the pixels of the frame, but an enlarged frame may not show that corner.
  drawMark(right) {
    const { pen, ratio } = this;
    pen.font = `${13 * ratio}px sans-serif`;
    const width = pen.measureText("Generated").width + 8 * ratio;
    pen.fillStyle = "#282828";
    pen.fillRect(right - width, 0, width, 18 * ratio);
    pen.fillStyle = "#ffffff";
    pen.fillText("Generated", right - width + 4 * ratio, 13 * ratio);
  }

  // A mask as two pictures, its area and its outline.
  mask(key, { width, height, runs }) {
    if (this.masks.has(key)) return this.masks.get(key);
    const inside = new Uint8Array(width * height);
    let at = 0;
    runs.forEach((length, index) => {
      if (index % 2) inside.fill(1, at, at + length);
      at += length;
    });
    const [tint, line] = [0, 1].map(() => new ImageData(width, height));
    const thick = Math.max(1, Math.round(height / 240));
    const [red, green, blue] = this.facts.mask_rgb;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const here = y * width + x;
        if (!inside[here]) continue;
        const border =
          y < thick || x < thick || y + thick >= height || x + thick >= width ||
          !inside[here - thick * width] || !inside[here + thick * width] ||
          !inside[here - thick] || !inside[here + thick];
        (border ? line : tint).data.set([red, green, blue, 255], 4 * here);
      }
    }
    const layers = {};
    for (const [name, data] of Object.entries({ tint, line })) {
      layers[name] = new OffscreenCanvas(width, height);
      layers[name].getContext("2d").putImageData(data, 0, 0);
    }
    this.masks.set(key, layers);
    if (this.masks.size > 60) this.masks.delete(this.masks.keys().next().value);
    return layers;
  }

  // Keep the enlarged picture over the whole panel.
  clamp() {
    const { zoom } = this;
    zoom.scale = Math.min(MOST_ZOOM, Math.max(1, zoom.scale));
    const half = 0.5 / zoom.scale;
    for (const axis of ["x", "y"]) zoom[axis] = Math.min(1 - half, Math.max(half, zoom[axis]));
    this.canvas.classList.toggle("zoomed", zoom.scale > 1);
  }

  // Enlarge about a point of the canvas in CSS pixels, or about the middle.
  zoomBy(factor, point) {
    const before = this.zoom.scale;
    this.zoom.scale = Math.min(MOST_ZOOM, Math.max(1, before * factor));
    if (!point) return;
    const { left, width, height } = this.panel(this.beside && point.x * this.ratio > this.canvas.width / 2 ? 1 : 0);
    const across = (point.x * this.ratio - left) / width - 0.5;
    const down = (point.y * this.ratio) / height - 0.5;
    this.zoom.x += across / before - across / this.zoom.scale;
    this.zoom.y += down / before - down / this.zoom.scale;
  }

  // Move the enlarged picture by CSS pixels.
  pan(across, down) {
    const { width, height } = this.panel(0);
    this.zoom.x -= (across * this.ratio) / (width * this.zoom.scale);
    this.zoom.y -= (down * this.ratio) / (height * this.zoom.scale);
  }
}
