// Search without a server: browsers start no worker from a file, so that its script runs in a hidden frame instead.
window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement("iframe")
    frame.hidden = true
    document.body.append(frame)
    this.frame = frame.contentWindow
    this.waiting = []
    this.frame.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
    this.frame.importScripts = (...urls) => Promise.all(urls.map(each => this.load(each)))
    this.load(url).then(() => {
      const waiting = this.waiting
      this.waiting = null
      waiting.forEach(data => this.postMessage(data))
    })
  }
  load(url) {
    return new Promise(done => {
      const script = this.frame.document.createElement("script")
      script.src = url
      script.onload = done
      this.frame.document.body.append(script)
    })
  }
  postMessage(data) {
    if (this.waiting) this.waiting.push(data)
    else this.frame.dispatchEvent(new MessageEvent("message", { data }))
  }
  set onmessage(heard) {
    this.addEventListener("message", heard)
  }
  terminate() {
    this.frame.frameElement.remove()
  }
}
