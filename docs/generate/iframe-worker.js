// A browser starts no worker from a file: there, the worker that searches runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      const inner = frame.contentWindow, script = inner.document.createElement("script");
      inner.importScripts = (...urls) => urls.forEach((one) => {
        inner.document.head.append(Object.assign(inner.document.createElement("script"), { src: one, async: false }));
      });
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.started = new Promise((done) => { script.onload = done; });
      script.src = url;
      inner.document.head.append(script);
      this.inner = inner;
    }
    postMessage(data) {
      this.started.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {}
  };
}
