// Frames and overlays of a video by number: asked for over loopback, kept for a while.

const CHUNK = 25; // frames per request while playing
const MOST_PICTURES = 40; // decoded frames that are kept
const MOST_BYTES = 192 * 2 ** 20; // of JPEG

class Frames {
  constructor(address, facts, threshold, onProblem) {
    Object.assign(this, { address, facts, threshold, onProblem });
    this.jpegs = new Map(); // number -> Blob
    this.bytes = 0;
    this.pictures = new Map(); // number -> ImageBitmap
    this.overlays = new Map(); // number of a seen frame -> masks and boxes
    this.waiting = new Map(); // what is asked for -> its promise
    this.closed = false;
  }

  // The answer of the app; a sentence of the app is shown where there is none.
  async ask(path) {
    let reply;
    try {
      reply = await fetch(`${this.address}/${path}`);
    } catch {
      throw new Error("The app does not answer. Check that it is still running.");
    }
    if (!reply.ok) throw new Error(await reply.text());
    return reply;
  }

  // Do something once at a time, and tell the reader why if it fails.
  once(what, work) {
    if (!this.waiting.has(what)) {
      const done = work()
        .catch((error) => {
          if (!this.closed) this.onProblem(error.message);
          throw error;
        })
        .finally(() => this.waiting.delete(what));
      done.catch(() => {});
      this.waiting.set(what, done);
    }
    return this.waiting.get(what);
  }

  // The seen frame whose overlays belong to a frame: the nearest, the earlier of two.
  seen(number) {
    const seen = this.facts.seen;
    let low = 0, high = seen.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (seen[middle] < number) low = middle + 1;
      else high = middle;
    }
    return low > 0 && number - seen[low - 1] <= Math.abs(seen[low] - number) ? seen[low - 1] : seen[low];
  }

  loadFrames(first, stop) {
    return this.once(`frames/${first}/${stop}`, async () => {
      const bytes = await (await this.ask(`frames/${first}/${stop}`)).arrayBuffer();
      const view = new DataView(bytes);
      for (let at = 0; at < bytes.byteLength; ) {
        const [number, length] = [view.getUint32(at, true), view.getUint32(at + 4, true)];
        this.keep(number, new Blob([new Uint8Array(bytes, at + 8, length)], { type: "image/jpeg" }));
        at += 8 + length;
      }
    });
  }

  keep(number, jpeg) {
    if (!this.jpegs.has(number)) this.bytes += jpeg.size;
    this.jpegs.delete(number);
    this.jpegs.set(number, jpeg);
    for (const [oldest, { size }] of this.jpegs) {
      if (this.bytes <= MOST_BYTES || oldest === number) break;
      this.jpegs.delete(oldest);
      this.bytes -= size;
    }
  }

  loadOverlays(number) {
    const first = number - (number % CHUNK);
    const threshold = this.threshold;
    return this.once(`overlays/${first}/${threshold}`, async () => {
      const stop = Math.min(first + CHUNK, this.facts.frames);
      const found = await (await this.ask(`overlays/${first}/${stop}/${threshold.toFixed(2)}`)).json();
      if (threshold !== this.threshold) return;
      for (const [frame, overlay] of Object.entries(found)) this.overlays.set(Number(frame), overlay);
    });
  }

  // Masks contain the pixels from this probability on.
  setThreshold(threshold) {
    this.threshold = threshold;
    this.overlays.clear();
  }

  // Whether a frame and its overlays can be drawn at once.
  ready(number) {
    return this.pictures.has(number) && this.overlays.has(this.seen(number));
  }

  // Decode a frame that is here; frames far from it are forgotten.
  decode(number) {
    return this.once(`decode/${number}`, async () => {
      const picture = await createImageBitmap(this.jpegs.get(number));
      if (this.closed || this.pictures.has(number)) return picture.close();
      this.pictures.set(number, picture);
      for (const [oldest, old] of this.pictures) {
        if (this.pictures.size <= MOST_PICTURES) break;
        if (oldest === number) continue;
        this.pictures.delete(oldest);
        old.close();
      }
    });
  }

  // Load one frame with its overlays, so that it is ready.
  async fetch(number) {
    const overlay = this.overlays.has(this.seen(number)) ? null : this.loadOverlays(this.seen(number));
    while (!this.pictures.has(number)) {
      if (!this.jpegs.has(number)) await this.loadFrames(number, number + 1);
      await this.decode(number);
    }
    await overlay;
  }

  // Load and decode frames after one that is shown; at most one request runs at a time.
  ahead(number, count) {
    const stop = Math.min(number + count, this.facts.frames);
    for (let next = number; next < Math.min(number + 10, stop); next++) {
      if (this.jpegs.has(next) && !this.pictures.has(next)) this.decode(next);
    }
    const loading = [...this.waiting.keys()];
    if (loading.some((what) => what.startsWith("frames/") || what.startsWith("overlays/"))) return;
    for (let next = number; next < stop; next++) {
      if (!this.overlays.has(this.seen(next))) return this.loadOverlays(this.seen(next));
      if (!this.jpegs.has(next)) return this.loadFrames(next, Math.min(next + CHUNK, this.facts.frames));
    }
  }

  // Load the frames around one at which the reader rests.
  around(number) {
    const first = Math.max(0, number - Math.floor(CHUNK / 2));
    const stop = Math.min(first + CHUNK, this.facts.frames);
    const missing = Array.from({ length: stop - first }, (_, index) => first + index).filter((n) => !this.jpegs.has(n));
    if (missing.length && !this.closed) this.loadFrames(missing[0], missing.at(-1) + 1);
  }

  close() {
    this.closed = true;
    for (const picture of this.pictures.values()) picture.close();
    this.pictures.clear();
  }
}
