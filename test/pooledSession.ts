/**
 * A connection of `transactionPooler.ts` to the server: it works for one client after another, and knows which statements are prepared
 * on it. The requests and replies are followed as PgBouncer follows them, so that a reply that no client asked for is left out.
 */
import { type Frame, message, type Session, textAt } from "./postgresProtocol.js"

/** The pool that the connection belongs to. */
export interface Pool {
  readonly maxPreparedStatements: number
  /** The server's name of a statement: its text, and the types of its parameters. */
  readonly nameOf: (statement: Buffer) => string
  readonly giveBack: (session: PooledSession) => void
  /** The connection has ended. */
  readonly lost: (session: PooledSession) => void
}

/** The client that has the connection for the time of a transaction. */
export interface Holder {
  server: PooledSession | undefined
  /** The statements by the client's names. */
  readonly statements: Map<string, Buffer>
  readonly send: (bytes: Buffer) => void
  /** Closes the client's connection with an error. */
  readonly refuse: (text: string) => void
  /** The transaction has ended. */
  readonly ended: (session: PooledSession) => void
}

/** A connection to the server. */
export class PooledSession {
  client: Holder | undefined
  cancels = 0
  private applicationName = ""
  /** The requests that the server has not replied to. */
  private readonly requests: Array<Request> = []
  /** In the order of their last use. */
  private readonly prepared = new Map<string, Buffer>()
  private hasFailed = false
  private isCopying = false
  /** Set while a statement of the pooler runs. */
  private ran: (() => void) | undefined

  constructor(
    private readonly pool: Pool,
    readonly session: Session
  ) {
    session.onFrame = (frame) => this.receive(frame)
    session.socket.on("close", () => {
      pool.lost(this)
      const client = this.client
      this.client = undefined
      if (client !== undefined) {
        client.server = undefined
        client.refuse("server conn crashed?")
      }
      this.ran?.()
    })
  }

  /** Runs a statement of the pooler. Its replies go to no client. */
  run(statement: string): Promise<void> {
    return new Promise((resolve) => {
      this.ran = resolve
      this.session.socket.write(message("Q", `${statement}\0`))
    })
  }

  /** Prepares the connection for a client. */
  use(applicationName: string, ready: () => void): void {
    if (applicationName === this.applicationName) return ready()
    void this.run(`set application_name = '${applicationName.replaceAll("'", "''")}'`).then(ready)
  }

  request(type: string, action: Action, bytes?: Buffer, undo?: () => unknown): void {
    // A Flush and the data of a COPY have no reply.
    if (!"Hd".includes(type)) this.requests.push({ type, action, ...(undo === undefined ? {} : { undo }) })
    if (bytes !== undefined) this.session.socket.write(bytes)
    if (!this.hasFailed) this.sendFakes()
  }

  has(statement: Buffer): boolean {
    const key = statement.toString("latin1")
    const found = this.prepared.get(key)
    if (found === undefined) return false
    this.prepared.delete(key)
    this.prepared.set(key, found)
    return true
  }

  prepare(statement: Buffer, action: Action): void {
    const key = statement.toString("latin1")
    const name = this.pool.nameOf(statement)
    const parse = message("P", Buffer.concat([Buffer.from(`${name}\0`), statement]))
    this.request("P", action, parse, () => this.prepared.delete(key))
    this.prepared.set(key, statement)
    for (const [oldest, old] of this.prepared) {
      if (this.prepared.size <= this.pool.maxPreparedStatements) break
      this.prepared.delete(oldest)
      const close = message("C", `S${this.pool.nameOf(old)}\0`)
      this.request("C", "skip", close, () => this.prepared.set(oldest, old))
    }
  }

  private receive({ body, type }: Frame): void {
    if (type === "S" && textAt(body, 0) === "application_name")
      this.applicationName = textAt(body, "application_name".length + 1)
    if (this.ran !== undefined) {
      if (type === "C") this.forgetDiscarded(body)
      if (type !== "Z") return
      const ran = this.ran
      this.ran = undefined
      return ran()
    }
    let skips = false
    if (type === "E") {
      if (this.isCopying) this.clearThrough("cf")
      this.isCopying = false
      this.hasFailed = true
    } else if (type === "G") this.isCopying = true
    else if (type === "Z") {
      if ("SQF".includes(this.requests[0]?.type ?? " ")) this.requests.shift()
      else this.clearThrough("S")
      this.hasFailed = false
    } else {
      if (type === "C") {
        if (this.isCopying) this.clearThrough("c")
        this.isCopying = false
        this.forgetDiscarded(body)
      }
      const [head] = this.requests
      if (head !== undefined && repliesTo.get(type) === head.type && !this.hasFailed) {
        this.requests.shift()
        skips = head.action === "skip"
      }
    }
    if (!skips) this.client?.send(message(type, body))
    if (!this.hasFailed) this.sendFakes()
    if (type !== "Z" || body.toString() !== "I" || this.requests.length > 0) return
    const client = this.client
    this.client = undefined
    this.pool.giveBack(this)
    client?.ended(this)
  }

  private sendFakes(): void {
    for (let [head] = this.requests; head?.action === "fake"; [head] = this.requests) {
      this.requests.shift()
      this.client?.send(message(head.type === "P" ? "1" : "3", ""))
    }
  }

  /** Removes the requests that the server has skipped, and the one that made it go on. */
  private clearThrough(types: string): void {
    const through = this.requests.findIndex(({ type }) => types.includes(type))
    const cleared = this.requests.splice(0, through < 0 ? this.requests.length : through + 1)
    for (const { undo } of cleared.reverse()) undo?.()
  }

  private forgetDiscarded(tag: Buffer): void {
    if (!/^(DISCARD|DEALLOCATE) ALL/.test(tag.toString())) return
    this.prepared.clear()
    this.client?.statements.clear()
  }
}

// --- internal ---

/** Whether the reply to a request goes to the client, is left out, or is made by the pooler without a request. */
type Action = "forward" | "skip" | "fake"

interface Request {
  readonly type: string
  readonly action: Action
  /** Restores what the request changed here, because the server has skipped or refused it. */
  readonly undo?: () => unknown
}

/** The requests that the messages of the server reply to. */
const repliesTo: ReadonlyMap<string, string> = new Map(
  Object.entries({ 1: "P", 2: "B", 3: "C", T: "D", n: "D", C: "E", I: "E", s: "E" })
)
