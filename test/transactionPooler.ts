/**
 * A connection pooler for tests that behaves as PgBouncer does with `pool_mode = transaction`. A client has a connection to the server
 * for the time of one transaction. Its next transaction goes to another connection, in turns.
 *
 * - With `maxPreparedStatements: 0` named statements pass through unchanged. So they are prepared on the connection of one transaction, and
 *   missing, or prepared by another client, in the next one.
 * - With more, names belong to the client, as with PgBouncer 1.21 and later: a statement that the server's connection lacks is prepared before
 *   it is bound. A name that is prepared twice, or bound before, closes the client's connection, as there.
 * - The process id that a client sees is that of no server process. A cancel request through the pooler reaches the right statement.
 * - Of the startup parameters, `application_name` is set on each connection that a client gets. `options` is refused.
 */
import { randomBytes, randomInt } from "node:crypto"
import { connect, createServer, type Socket } from "node:net"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { PooledSession } from "./pooledSession.js"
import { type Frame, int32, login, message, splitter, textAt, textsIn } from "./postgresProtocol.js"

export interface Options {
  /** How many connections to the server there are; 3 by default. */
  readonly size?: number
  /** How many statements are prepared on a connection; 0, the default, hands names through. */
  readonly maxPreparedStatements?: number
}

export interface TransactionPooler {
  /** The given URL with the address of the pooler. */
  readonly url: string
  /** Runs a statement on every connection to the server, each of them between two transactions. */
  readonly onEach: (statement: string) => Effect.Effect<void>
  /** Closes every connection to the server. Clients inside a transaction lose theirs, too. */
  readonly dropServers: Effect.Effect<void>
  readonly counts: () => Counts
  /** The texts of the statements that clients have prepared under a name. */
  readonly named: () => ReadonlySet<string>
}

export interface Counts {
  /** The transactions that have ended. */
  readonly transactions: number
  /** The transactions that were on another connection than the one before of the same client. */
  readonly moves: number
  /** The statements that the pooler prepared itself, because the connection had not seen them. */
  readonly prepared: number
  /** The connections of clients that the pooler closed for a misuse of names. */
  readonly refused: number
}

/** The pooler, on a free port. Its connections are closed with the scope. */
export const makeTransactionPooler = (
  databaseUrl: string,
  options: Options = {}
): Effect.Effect<TransactionPooler, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.promise(() => Pooler.open(databaseUrl, options)),
      (pooler) => Effect.promise(() => pooler.close())
    ),
    (pooler) => {
      const url = new URL(databaseUrl)
      url.hostname = "127.0.0.1"
      url.port = String(pooler.port)
      return {
        url: url.href,
        onEach: (statement) => Effect.promise(() => pooler.onEach(statement)),
        dropServers: Effect.sync(() => pooler.dropServers()),
        counts: () => ({ ...pooler.counts }),
        named: () => pooler.named
      }
    }
  )

// --- internal ---

type Mutable<A> = { -readonly [K in keyof A]: A[K] }

class Pooler {
  readonly counts: Mutable<Counts> = { transactions: 0, moves: 0, prepared: 0, refused: 0 }
  readonly named = new Set<string>()
  readonly clients = new Set<Client>()
  readonly maxPreparedStatements: number
  readonly target: URL
  private readonly size: number
  private readonly servers = new Set<PooledSession>()
  private opening = 0
  private isClosed = false
  private lastSweep: Promise<void> = Promise.resolve()
  /** In the order in which they became free, so that a lone client gets another one each time. */
  private readonly free: Array<PooledSession> = []
  private readonly waiting: Array<Waiter> = []
  private readonly listener = createServer((socket) => this.accept(socket))
  /** Names of the server by the text and the types of a statement. */
  private readonly names = new Map<string, string>()

  private constructor(databaseUrl: string, { maxPreparedStatements = 0, size = 3 }: Options) {
    this.target = new URL(databaseUrl)
    this.maxPreparedStatements = maxPreparedStatements
    this.size = size
  }

  static async open(databaseUrl: string, options: Options): Promise<Pooler> {
    const pooler = new Pooler(databaseUrl, options)
    await new Promise<void>((resolve) => pooler.listener.listen(0, "127.0.0.1", resolve))
    return pooler
  }

  get port(): number {
    const address = this.listener.address()
    if (address === null || typeof address === "string") throw new Error("the pooler has no port")
    return address.port
  }

  close(): Promise<void> {
    this.isClosed = true
    for (const { socket } of this.clients) socket.destroy()
    this.dropServers()
    return new Promise((resolve) => this.listener.close(() => resolve()))
  }

  dropServers(): void {
    for (const { session } of this.servers) session.socket.destroy()
  }

  /** Two at a time would wait for each other's connections. */
  onEach(statement: string): Promise<void> {
    this.lastSweep = this.lastSweep.then(() => this.sweep(statement))
    return this.lastSweep
  }

  /** Hands out a free connection, or the next one that becomes free. */
  take(waiter: Waiter): void {
    this.waiting.push(waiter)
    // All connections are used in turns, so all of them are opened.
    while (this.servers.size + this.opening < this.size) this.openServer()
    this.handOut()
  }

  giveBack(server: PooledSession): void {
    if (!this.servers.has(server)) return
    // A cancel request that is still under way would hit the next transaction.
    if (server.cancels > 0) return
    this.free.push(server)
    this.handOut()
  }

  /** Forgets a connection that has ended. */
  lost(server: PooledSession): void {
    this.servers.delete(server)
    const index = this.free.indexOf(server)
    if (index >= 0) this.free.splice(index, 1)
    if (this.waiting.length > 0 && this.servers.size + this.opening < this.size) this.openServer()
  }

  /** The parameters of the server, if there is a connection to it. */
  get parameters(): ReadonlyMap<string, string> | undefined {
    const [server] = this.servers
    return server?.session.parameters
  }

  nameOf(statement: Buffer): string {
    const key = statement.toString("latin1")
    const name = this.names.get(key) ?? `PGBOUNCER_${this.names.size + 1}`
    this.names.set(key, name)
    return name
  }

  /** Passes a request on to the server's process that works for the client with the key, if there is one. */
  cancel(key: string, done: () => void): void {
    const server = [...this.clients].find((client) => client.key.toString("hex") === key)?.server
    if (server === undefined) return done()
    server.cancels++
    const socket = connect(Number(this.target.port), this.target.hostname)
    socket.on("error", () => {})
    socket.on("close", () => {
      server.cancels--
      if (server.client === undefined) this.giveBack(server)
      done()
    })
    socket.end(Buffer.concat([int32(16), int32(cancelRequest), server.session.key]))
  }

  private async sweep(statement: string): Promise<void> {
    const held: Array<PooledSession> = []
    for (let n = 0; n < this.size; n++) {
      held.push(await new Promise((resolve, reject) => this.take({ got: resolve, failed: () => reject(noServer) })))
    }
    await Promise.all(held.map((server) => server.run(statement)))
    for (const server of held) this.giveBack(server)
  }

  private handOut(): void {
    while (this.waiting.length > 0) {
      const server = this.free.shift()
      if (server === undefined) return
      this.waiting.shift()?.got(server)
    }
  }

  private openServer(): void {
    this.opening++
    login(this.target).then(
      (session) => {
        this.opening--
        const server = new PooledSession(this, session)
        this.servers.add(server)
        if (this.isClosed) session.socket.destroy()
        else this.giveBack(server)
      },
      () => {
        this.opening--
        // As after `server_login_retry`: clients that wait get a failure.
        if (this.servers.size === 0) for (const { failed } of this.waiting.splice(0)) failed()
      }
    )
  }

  private accept(socket: Socket): void {
    socket.setNoDelay(true)
    socket.on("error", () => {})
    let client: Client | undefined
    let head: Buffer = Buffer.alloc(0)
    const greet = (chunk: Buffer): void => {
      head = Buffer.concat([head, chunk])
      if (head.length < 8 || head.length < head.readInt32BE(0)) return
      const length = head.readInt32BE(0)
      const [message, rest] = [head.subarray(4, length), head.subarray(length)]
      head = Buffer.alloc(0)
      const code = message.readInt32BE(0)
      if (code === sslRequest || code === gssRequest) socket.write("N")
      else if (code === cancelRequest) {
        this.cancel(message.subarray(4).toString("hex"), () => void socket.end())
      } else {
        client = new Client(this, socket, textsIn(message.subarray(4)))
        client.welcome()
      }
      if (rest.length > 0) next(rest)
    }
    const next = (chunk: Buffer): void => (client === undefined ? greet(chunk) : client.receive(chunk))
    socket.on("data", next)
    socket.on("close", () => client?.closed())
  }
}

interface Waiter {
  readonly got: (server: PooledSession) => void
  readonly failed: () => void
}

/** A connection of a client. */
class Client {
  /** What the client would send to cancel its statement: a process id that no process has, and a secret. */
  readonly key = Buffer.concat([int32(randomInt(0x4000_0000, 0x7fff_ffff)), randomBytes(4)])
  server: PooledSession | undefined
  /** The statements by the client's names. */
  readonly statements = new Map<string, Buffer>()
  private readonly inbox: Array<Frame> = []
  private isWaiting = false
  private last: PooledSession | undefined
  private readonly split = splitter((frame) => this.accept(frame))

  constructor(
    private readonly pooler: Pooler,
    readonly socket: Socket,
    private readonly parameters: ReadonlyMap<string, string>
  ) {
    pooler.clients.add(this)
  }

  welcome(): void {
    if (this.parameters.has("options")) return this.refuse("unsupported startup parameter: options")
    const known = this.pooler.parameters
    if (known !== undefined) return this.loggedIn(known)
    // The first client waits for a connection, because its login shows the parameters of the server.
    this.isWaiting = true
    this.pooler.take({
      got: (server) => {
        this.isWaiting = false
        this.loggedIn(server.session.parameters)
        this.pooler.giveBack(server)
        this.proceed()
      },
      failed: () => this.refuse(noServer.message)
    })
  }

  receive(chunk: Buffer): void {
    this.split(chunk)
  }

  send(bytes: Buffer): void {
    if (!this.socket.destroyed) this.socket.write(bytes)
  }

  closed(): void {
    this.pooler.clients.delete(this)
    // Its transaction has not ended. The server finishes the statement, and rolls back a transaction that is left open.
    this.server?.session.socket.destroy()
  }

  /** Closes the connection with an error, as PgBouncer does. */
  refuse(text: string): void {
    this.send(message("E", `SFATAL\0VFATAL\0C08P01\0M${text}\0\0`))
    this.socket.end()
    this.closed()
  }

  /** The server is ready and in no transaction. */
  ended(server: PooledSession): void {
    const { counts } = this.pooler
    counts.transactions++
    if (this.last !== undefined && this.last !== server) counts.moves++
    this.last = server
    this.server = undefined
    this.proceed()
  }

  private loggedIn(parameters: ReadonlyMap<string, string>): void {
    const statuses = [...parameters].map(([name, value]) => message("S", `${name}\0${value}\0`))
    this.send(Buffer.concat([message("R", int32(0)), ...statuses, message("K", this.key), message("Z", "I")]))
  }

  private accept(frame: Frame): void {
    if (frame.type === "X") return void this.socket.end()
    this.inbox.push(frame)
    this.proceed()
  }

  private proceed(): void {
    if (this.isWaiting || this.inbox.length === 0) return
    if (this.server !== undefined) return this.forward(this.server)
    this.isWaiting = true
    this.pooler.take({
      got: (server) => {
        if (!this.pooler.clients.has(this)) return this.pooler.giveBack(server)
        this.server = server
        server.client = this
        server.use(this.parameters.get("application_name") ?? "", () => {
          this.isWaiting = false
          this.proceed()
        })
      },
      failed: () => this.refuse(noServer.message)
    })
  }

  private forward(server: PooledSession): void {
    for (const frame of this.inbox.splice(0)) {
      if (!this.pooler.clients.has(this)) return
      const { body, type } = frame
      if (type === "P" && body[0] !== 0) this.pooler.named.add(textAt(body, body.indexOf(0) + 1))
      if (this.pooler.maxPreparedStatements === 0 || !this.forwardNamed(server, frame)) {
        server.request(type, "forward", message(type, body))
      }
    }
  }

  /** Forwards a message about a named statement. Returns whether it was one. */
  private forwardNamed(server: PooledSession, { body, type }: Frame): boolean {
    if (type === "P") {
      const name = textAt(body, 0)
      if (name === "") return false
      const statement = body.subarray(Buffer.byteLength(name) + 1)
      if (this.statements.has(name)) this.misuse("prepared statement name is already in use")
      else {
        this.statements.set(name, statement)
        if (server.has(statement)) server.request("P", "fake")
        else server.prepare(statement, "forward")
      }
      return true
    }
    const isBind = type === "B"
    if (!isBind && !((type === "D" || type === "C") && body[0] === ofStatement)) return false
    const at = isBind ? Buffer.byteLength(textAt(body, 0)) + 1 : 1
    const name = textAt(body, at)
    if (name === "") return false
    if (type === "C") {
      this.statements.delete(name)
      server.request("C", "fake")
      return true
    }
    const statement = this.statements.get(name)
    if (statement === undefined) this.misuse("prepared statement did not exist")
    else {
      if (!server.has(statement)) {
        this.pooler.counts.prepared++
        server.prepare(statement, "skip")
      }
      const rest = body.subarray(at + Buffer.byteLength(name) + 1)
      const renamed = Buffer.concat([body.subarray(0, at), Buffer.from(`${this.pooler.nameOf(statement)}\0`), rest])
      server.request(type, "forward", message(type, renamed))
    }
    return true
  }

  private misuse(text: string): void {
    this.pooler.counts.refused++
    this.refuse(text)
  }
}

const noServer = new Error("no connection to the server")

const [sslRequest, gssRequest, cancelRequest] = [80877103, 80877104, 80877102]
const ofStatement = "S".charCodeAt(0)
