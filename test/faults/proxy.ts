/** A TCP proxy in front of a Postgres server that makes chosen commits go wrong at a chosen moment. */
import * as net from "node:net"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/**
 * A moment of a commit: before its request has reached the server, before the server has answered, or before the answer
 * has reached the client.
 */
export type Moment = "before" | "during" | "after"

/**
 * What happens to a commit. `Cut` breaks its connection at the moment, `Stall` holds it there for `millis` and then does
 * what `Cut` would, `Delay` holds it there for `millis` and then lets it pass.
 *
 * A request that was cut before it reached the server is never executed. One that was cut later always is: the server
 * keeps its side of the connection until it has answered.
 */
export type Mishap =
  | { readonly _tag: "Cut"; readonly at: Moment }
  | { readonly _tag: "Stall"; readonly at: Moment; readonly millis: number }
  | { readonly _tag: "Delay"; readonly at: Moment; readonly millis: number }

export interface Counts {
  /** The commits that the proxy has seen, with any outcome. */
  readonly commits: number
  /** The connections broken by `Cut` and by `cutAll`. */
  readonly cuts: number
  /** The commits that met `Stall`. */
  readonly stalls: number
  /** The commits that met `Delay`. */
  readonly delays: number
  /** The commits that the server acknowledged, where the client did not get the acknowledgement. */
  readonly swallowed: number
}

export interface Proxy {
  /** The same URL through the proxy. */
  readonly url: (databaseUrl: string) => string
  /**
   * Asks for each commit what is to happen to it; `undefined` lets it pass. Replaceable at any time.
   *
   * A commit is COMMIT in a transaction that has not failed, or a parameterised statement outside of a transaction that
   * writes events or a snapshot.
   */
  readonly onCommit: (f: () => Mishap | undefined) => void
  /** Cuts every connection now, both sides, with a reset; how many. */
  readonly cutAll: () => number
  /** While paused nothing passes in either direction, not even the end of a connection; new connections hang. */
  readonly pause: () => void
  /** Lets all that waited pass. */
  readonly resume: () => void
  /** Whether new connections are reset immediately. */
  readonly refuse: (yes: boolean) => void
  readonly counts: () => Counts
}

export interface Target {
  readonly host: string
  readonly port: number
}

/** A proxy on a free port of the loopback interface; it and its connections are gone with the scope. */
export const makeProxy = (target: Target): Effect.Effect<Proxy, never, Scope.Scope> =>
  Effect.gen(function* () {
    const desk: Desk = {
      target,
      links: new Set(),
      counts: { commits: 0, cuts: 0, stalls: 0, delays: 0, swallowed: 0 },
      onCommit: () => undefined,
      paused: false
    }
    let refusing = false
    const port = yield* listen((client) => {
      if (refusing) client.on("error", () => {}).resetAndDestroy()
      else desk.links.add(new Link(desk, client))
    })
    // Runs before the listener is closed, which waits for its connections.
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        refusing = true
        for (const link of desk.links) link.destroy()
      })
    )
    return {
      url: (databaseUrl) => {
        const url = new URL(databaseUrl)
        url.hostname = "127.0.0.1"
        url.port = String(port)
        return url.href
      },
      onCommit: (f) => {
        desk.onCommit = f
      },
      cutAll: () => [...desk.links].filter((link) => link.cutNow()).length,
      pause: () => {
        desk.paused = true
      },
      resume: () => {
        desk.paused = false
        for (const link of desk.links) link.pump()
      },
      refuse: (yes) => {
        refusing = yes
      },
      counts: () => ({ ...desk.counts })
    }
  })

// --- internal ---

const listen = (onConnection: (client: net.Socket) => void): Effect.Effect<number, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.async<net.Server>((resume) => {
      const listener = net.createServer({ allowHalfOpen: true, noDelay: true }, onConnection)
      listener.once("error", (error) => resume(Effect.die(error)))
      listener.listen(0, "127.0.0.1", () => resume(Effect.succeed(listener)))
    }),
    (listener) => Effect.async<void>((resume) => void listener.close(() => resume(Effect.void)))
  ).pipe(
    Effect.map((listener) => listener.address()),
    Effect.flatMap((address) =>
      address === null || typeof address === "string"
        ? Effect.dieMessage("The proxy listens on no port")
        : Effect.succeed(address.port)
    )
  )

/** What the connections of a proxy share. */
interface Desk {
  readonly target: Target
  readonly links: Set<Link>
  readonly counts: { -readonly [K in keyof Counts]: Counts[K] }
  onCommit: () => Mishap | undefined
  paused: boolean
}

/** One connection of a client, and that to the server on its behalf. */
class Link {
  private readonly fromClient = new Framer(true)
  private readonly fromServer = new Framer(false)
  /** Messages of the client that have not been forwarded. */
  private readonly requests: Array<Buffer> = []
  /** Messages of the server that have not been forwarded. */
  private readonly answers: Array<Buffer> = []
  /** How many acknowledged commits are among the answers. */
  private acknowledged = 0
  /** The forwarded requests that the server has not answered, oldest first: whether each is a commit. */
  private readonly unanswered: Array<boolean> = []
  /** The server's last word on the transaction: I for idle, T for in one, E for in a failed one. */
  private status = "I"
  private failed = false

  /** The commit whose request is being forwarded. */
  private commit: { readonly mishap: Mishap | undefined } | undefined
  /** Whether the request that is being forwarded begins a transaction, so that it commits nothing. */
  private readonly prepared = new Map<string, string>()
  private begins = false
  private holdsRequests = false
  private holdsAnswers = false
  /** The mishap that strikes when the server has answered. */
  private onAnswer: Mishap | undefined
  /** What the next moment that is not paused brings. */
  private due: (() => void) | undefined
  private timer: NodeJS.Timeout | undefined

  private server: net.Socket | undefined
  private clientEnded = false
  private serverEnded: "orderly" | "reset" | undefined
  /** The client was cut off; the server may still be executing its last request. */
  private cut = false
  private over = false

  constructor(
    private readonly desk: Desk,
    private readonly client: net.Socket
  ) {
    const ended = () => {
      this.clientEnded = true
      this.pump()
    }
    client
      .on("data", (chunk) => {
        for (const message of this.fromClient.push(chunk)) {
          // A proxy could not read what is encrypted, so it is the server that has no encryption.
          if (isEncryptionRequest(message)) this.answers.push(Buffer.from("N"))
          else this.requests.push(message)
        }
        this.pump()
      })
      .on("end", ended)
      .on("error", () => {})
      .on("close", ended)
    this.pump()
  }

  /** Moves all bytes on that can move. */
  pump(): void {
    if (this.over || this.desk.paused) return
    if (this.server === undefined) {
      // Who gave up while the proxy was paused never reached the server.
      if (this.client.destroyed) return this.destroy()
      this.server = this.dial()
    }
    const due = this.due
    this.due = undefined
    due?.()
    this.pumpAnswers()
    this.pumpRequests()
  }

  /** Resets both sides, if the client has not been cut off before. */
  cutNow(): boolean {
    if (this.cut) return false
    this.desk.counts.cuts++
    this.destroy()
    return true
  }

  destroy(): void {
    this.leave()
    this.drop()
    this.client.resetAndDestroy()
    // A reset could take from the server what it has not read yet, which is its own to execute once the client is cut off.
    if (this.cut) this.server?.end()
    // A reset of a socket that is still connecting would wait for the connection.
    else if (this.server?.connecting) this.server.destroy()
    else this.server?.resetAndDestroy()
  }

  private dial(): net.Socket {
    const server = net.connect({ ...this.desk.target, allowHalfOpen: true, noDelay: true })
    const ended = (how: "orderly" | "reset") => {
      if (this.serverEnded !== undefined) return
      this.serverEnded = how
      const rest = this.fromServer.rest()
      if (rest.length > 0) this.answers.push(rest)
      if (this.onAnswer !== undefined) this.release()
      this.pump()
    }
    return server
      .on("data", (chunk) => {
        for (const message of this.fromServer.push(chunk)) this.hear(message)
        this.pump()
      })
      .on("end", () => ended("orderly"))
      .on("error", () => ended("reset"))
      .on("close", () => ended("reset"))
  }

  private hear(message: Buffer): void {
    this.answers.push(message)
    const type = typeOf(message)
    if (type === "E") this.failed = true
    if (type !== "Z") return
    this.status = message.toString("latin1", 5, 6)
    if (this.unanswered.shift() === true && !this.failed) this.acknowledged++
    this.failed = false
    const mishap = this.onAnswer
    if (mishap === undefined) return
    this.onAnswer = undefined
    this.due = () => this.strike(mishap)
  }

  private pumpAnswers(): void {
    if (this.over || this.holdsAnswers) return
    if (this.cut || this.client.destroyed) this.drop()
    else if (this.answers.length > 0) {
      this.client.write(Buffer.concat(this.answers.splice(0)))
      this.acknowledged = 0
    }
    if (this.serverEnded !== undefined) this.finish(this.serverEnded)
    else if (this.cut && this.unanswered.length === 0) this.server?.end()
  }

  private pumpRequests(): void {
    const server = this.server
    if (server === undefined || this.over || this.cut) return
    const batch: Array<Buffer> = []
    let flushed: (() => void) | undefined
    while (!this.holdsRequests) {
      const message = this.requests[0]
      if (message === undefined) break
      if (beginsTransaction(message)) this.begins = true
      if (typeOf(message) === "P") {
        const { name, text } = parsedOf(message)
        if (name !== "") this.prepared.set(name, text)
      }
      if (this.commit === undefined && !this.begins && mayCommit(message, this.prepared)) {
        // The status is that in which the request finds the session only when all before it is answered.
        if (this.unanswered.length > 0) break
        if (commits(message, this.status, this.prepared)) {
          this.desk.counts.commits++
          const mishap = this.desk.onCommit()
          this.commit = { mishap }
          if (mishap?.at === "before") {
            this.holdsRequests = true
            flushed = () => this.strike(mishap)
            break
          }
        }
      }
      batch.push(message)
      this.requests.shift()
      if (!endsRequest(message)) continue
      this.begins = false
      this.unanswered.push(this.commit !== undefined)
      const mishap = this.commit?.mishap
      this.commit = undefined
      if (mishap === undefined || mishap.at === "before") continue
      this.holdsRequests = true
      this.holdsAnswers = true
      if (mishap.at === "after") this.onAnswer = mishap
      else flushed = () => this.strike(mishap)
    }
    const moment = () => {
      this.due = flushed
      this.pump()
    }
    if (batch.length > 0) server.write(Buffer.concat(batch), flushed && moment)
    else if (flushed !== undefined) moment()
    if (this.clientEnded && this.requests.length === 0 && server.writable) server.end()
  }

  private strike(mishap: Mishap): void {
    if (mishap._tag === "Cut") {
      this.desk.counts.cuts++
      return this.cutAt(mishap.at)
    }
    this.desk.counts[mishap._tag === "Stall" ? "stalls" : "delays"]++
    this.timer = setTimeout(() => {
      this.due = mishap._tag === "Stall" ? () => this.cutAt(mishap.at) : () => this.release()
      this.pump()
    }, mishap.millis)
  }

  private cutAt(moment: Moment): void {
    if (moment !== "during") return this.destroy()
    this.cut = true
    this.release()
    this.client.resetAndDestroy()
  }

  private release(): void {
    this.onAnswer = undefined
    this.holdsRequests = false
    this.holdsAnswers = false
  }

  /** The rest of the answers has no reader. */
  private drop(): void {
    this.answers.length = 0
    this.desk.counts.swallowed += this.acknowledged
    this.acknowledged = 0
  }

  /** The server has ended, and the client has all of its answers. */
  private finish(how: "orderly" | "reset"): void {
    this.leave()
    this.server?.destroy()
    if (how === "orderly") this.client.destroySoon()
    else this.client.resetAndDestroy()
  }

  private leave(): void {
    this.over = true
    clearTimeout(this.timer)
    this.desk.links.delete(this)
  }
}

// https://www.postgresql.org/docs/current/protocol-message-formats.html

/** Cuts a stream of bytes into whole messages: a type byte, which the first message of a connection lacks, a length, the rest. */
class Framer {
  private chunks: Array<Buffer> = []
  private size = 0
  private wanted = 1

  constructor(private opening: boolean) {}

  push(chunk: Buffer): ReadonlyArray<Buffer> {
    this.chunks.push(chunk)
    this.size += chunk.length
    if (this.size < this.wanted) return []
    const messages: Array<Buffer> = []
    let buffer = this.rest()
    while (buffer.length >= this.wanted) {
      const lengthAt = this.opening ? 0 : 1
      if (buffer.length < lengthAt + 4) this.wanted = lengthAt + 4
      else {
        this.wanted = lengthAt + buffer.readInt32BE(lengthAt)
        if (buffer.length < this.wanted) break
        const message = buffer.subarray(0, this.wanted)
        messages.push(message)
        buffer = buffer.subarray(this.wanted)
        this.wanted = 1
        // After a request for encryption the connection opens anew.
        if (!isEncryptionRequest(message)) this.opening = false
      }
    }
    this.chunks = [buffer]
    this.size = buffer.length
    return messages
  }

  /** Takes out the bytes that are no whole message. */
  rest(): Buffer {
    const rest = this.chunks.length === 1 && this.chunks[0] !== undefined ? this.chunks[0] : Buffer.concat(this.chunks)
    this.chunks = []
    this.size = 0
    return rest
  }
}

const typeOf = (message: Buffer): string => message.toString("latin1", 0, 1)

/** Messages that open a connection have no type, and begin by a byte of their length that is zero. */
const isOpening = (message: Buffer): boolean => message[0] === 0

const isEncryptionRequest = (message: Buffer): boolean =>
  isOpening(message) && message.length === 8 && [80877103, 80877104].includes(message.readInt32BE(4))

/** Whether the server says that it is ready when it has done with this message: startup, Query, Sync, FunctionCall. */
const endsRequest = (message: Buffer): boolean => isOpening(message) || "QSF".includes(typeOf(message))

const isCommit = (text: string): boolean => /(?:^|;)\s*commit\s*;?\s*$/i.test(text)

const isDurableStatement = (text: string): boolean =>
  text.includes(".commit_events(") || /insert\s+into\s[\s\S]*\."?(snapshots|event_log)\b/i.test(text)

const beginsTransaction = (message: Buffer): boolean =>
  typeOf(message) === "P" && /^begin\b/i.test(message.toString("utf8", 6, Math.min(message.length, 32)))

/** The texts of the prepared statements of a session. */
type Prepared = ReadonlyMap<string, string>

/** Whether the message is a commit in some state of the session. */
const mayCommit = (message: Buffer, prepared: Prepared): boolean =>
  commits(message, "T", prepared) || commits(message, "I", prepared)

const commits = (message: Buffer, status: string, prepared: Prepared): boolean => {
  const type = typeOf(message)
  if (type === "Q") return status === "T" && isCommit(message.toString("utf8", 5, message.length - 1))
  const text = type === "P" ? unnamedText(message) : type === "B" ? prepared.get(statementOf(message)) : undefined
  if (text === undefined) return false
  return status === "T" ? isCommit(text) : status === "I" && isDurableStatement(text)
}

/** The text of a Parse without a name. A statement with a name commits when it is bound. */
const unnamedText = (message: Buffer): string | undefined => {
  const { name, text } = parsedOf(message)
  return name === "" ? text : undefined
}

const parsedOf = (message: Buffer): { readonly name: string; readonly text: string } => {
  const end = message.indexOf(0, 5)
  return {
    name: message.toString("utf8", 5, end),
    text: message.toString("utf8", end + 1, message.indexOf(0, end + 1))
  }
}

/** The name of the statement that a Bind is for. */
const statementOf = (message: Buffer): string => {
  const start = message.indexOf(0, 5) + 1
  return message.toString("utf8", start, message.indexOf(0, start))
}
