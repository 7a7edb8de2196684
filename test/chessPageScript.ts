/** Runs the script of the chess page without a browser: on elements that keep texts and listeners, and a real server. */

interface PageEvent {
  readonly data?: string | undefined
  readonly target?: FakeElement | undefined
}

/** What the script uses of an element. */
export class FakeElement {
  children: ReadonlyArray<FakeElement> = []
  readonly dataset: Record<string, string> = {}
  readonly marks = new Set<string>()
  textContent = ""
  value = ""
  private readonly listeners = new Map<string, (event: object) => void>()

  addEventListener(name: string, listener: (event: object) => void): void {
    this.listeners.set(name, listener)
  }

  fire(name: string, event: PageEvent = {}): void {
    this.listeners.get(name)?.({ preventDefault: () => {}, ...event })
  }

  append(child: FakeElement): void {
    this.children = [...this.children, child]
  }

  replaceChildren(...children: ReadonlyArray<FakeElement>): void {
    this.children = children
  }

  toggleAttribute(name: string, on: boolean): void {
    if (on) this.marks.add(name)
    else this.marks.delete(name)
  }
}

/** Runs the script, and returns the elements of its page by their ids. The signal ends its event stream. */
export const openPage = async (url: string, signal: AbortSignal): Promise<(id: string) => FakeElement> => {
  const page = await fetch(url).then((response) => response.text())
  const [, script = ""] = /<script type="module">(.*)<\/script>/s.exec(page) ?? []
  const elements = new Map(
    [...page.matchAll(/<\w+ [^>]*?id="(\w+)"[^>]*>/g)].map(([tag, id = ""]) => {
      const element = new FakeElement()
      element.value = /value="(\w+)"/.exec(tag)?.[1] ?? ""
      return [id, element] as const
    })
  )
  const getElementById = (id: string): FakeElement => {
    const element = elements.get(id)
    if (element === undefined) throw new Error(`the page has no element ${id}`)
    return element
  }
  class FakeEventSource extends FakeElement {
    constructor(path: string) {
      super()
      listen(`${url}${path}`, this, signal).catch(() => this.fire("error"))
    }
  }
  new Function("document", "fetch", "EventSource", script)(
    { getElementById, createElement: () => new FakeElement() },
    (path: string, init: RequestInit) => fetch(`${url}${path}`, { ...init, signal }),
    FakeEventSource
  )
  return getElementById
}

// --- internal ---

/** Fires an event for each message of the stream. */
const listen = async (url: string, source: FakeElement, signal: AbortSignal): Promise<void> => {
  const { body } = await fetch(url, { signal })
  const reader = body?.pipeThrough(new TextDecoderStream()).getReader()
  let text = ""
  for (;;) {
    const { done = true, value } = (await reader?.read()) ?? {}
    if (done) return
    const messages = `${text}${value}`.split("\n\n")
    text = messages.pop() ?? ""
    for (const message of messages) {
      const [, data] = /^data: (.*)$/m.exec(message) ?? []
      if (data !== undefined) source.fire(/^event: (.*)$/m.exec(message)?.[1] ?? "message", { data })
    }
  }
}
