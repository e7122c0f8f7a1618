// A worker in a hidden frame, for pages that are opened from a disk: there browsers refuse real ones.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inner = this.frame.contentWindow;
      inner.document.open();
      inner.document.write("<!doctype html><script>postMessage = data => parent.dispatchEvent(" +
        "new parent.MessageEvent('iframe-worker', { data }))</script><script src='" + url + "'></script>");
      inner.document.close();
      addEventListener("iframe-worker", ({ data }) => this.dispatchEvent(new MessageEvent("message", { data })));
      this.loaded = new Promise(done => this.frame.addEventListener("load", done, { once: true }));
    }
    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
