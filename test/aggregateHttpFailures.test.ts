/** Endpoints of an aggregate while the store fails, handlers fail, or the application refuses. */

import { once } from "node:events"
import { connect, createServer, type Server, type Socket } from "node:net"
import * as HttpApi from "@effect/platform/HttpApi"
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import * as AggregateHttp from "effect-maestro/AggregateHttp"
import { makeDatabase } from "./database.js"
import { Account, Api, ask, Deposit, layerAccounts, send, serve } from "./httpServer.js"

type Store = StoreAdapter.StoreAdapterService

const layerApi = HttpApiBuilder.api(Api).pipe(Layer.provide(layerAccounts), Layer.provide(Account.layer))

/** A logger that keeps its lines. */
const makeLog = () => {
  const lines: Array<string> = []
  const logger = Logger.make(({ cause, logLevel, message }) => {
    lines.push([logLevel.label, ...Arr.ensure(message), Cause.pretty(cause)].join(" "))
  })
  return { lines, layer: Logger.replace(Logger.defaultLogger, logger) }
}

/** The API on a wrapped store, and the lines of its log. */
const servedOn = (wrap: (store: Store) => Store) =>
  Effect.gen(function* () {
    const { layer, lines } = makeLog()
    const store = wrap(yield* MemoryStore.make)
    const url = yield* serve(layerApi.pipe(Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, store)))).pipe(
      Effect.provide(layer)
    )
    return { url, logged: lines }
  })

const secret = "password=hunter2 of table accounts"

const failing = (reason: StoreError.StoreErrorReason): Effect.Effect<never, StoreError.StoreError> =>
  new StoreError.StoreError({ reason, operation: "commitAll", description: secret, code: "XX000", table: "secrets" })

const expected: Readonly<Record<StoreError.StoreErrorReason, 500 | 503>> = {
  Unavailable: 503,
  ConnectionLost: 503,
  Contention: 503,
  Exhausted: 503,
  Cancelled: 503,
  CommitUnknown: 500,
  ClusterUnavailable: 500,
  Constraint: 500,
  Misconfigured: 500,
  UnreadableEvent: 500,
  ClockDrift: 500,
  Unknown: 500
}

/** After these a command may have taken effect. */
const unknown: ReadonlySet<StoreError.StoreErrorReason> = new Set(["CommitUnknown", "ClusterUnavailable"])

for (const reason of StoreError.StoreErrorReason.literals) {
  it.scopedLive(`a store that fails by ${reason} is ${expected[reason]}, and only the log has the details`, () =>
    Effect.gen(function* () {
      const { logged, url } = yield* servedOn((store) => ({
        ...store,
        getEvents: () => failing(reason),
        commitAll: () => failing(reason)
      }))
      const answers = [
        // A read may be sent again, whatever became of it.
        [unknown.has(reason) ? 503 : expected[reason], yield* ask(url, "/accounts/a")],
        [expected[reason], yield* send(url, "/accounts/a/freeze", {})]
      ] as const
      for (const [status, answer] of answers) {
        const body = status === 503 ? { _tag: "Unavailable", what: "Store", retryAfter: 3 } : undefined
        expect([answer.status, answer.body]).toEqual([status, body])
        expect(answer.headers.get("retry-after")).toBe(body === undefined ? null : "3")
        expect(JSON.stringify([answer.body, ...answer.headers])).not.toContain("hunter2")
      }
      expect(logged.filter((line) => line.startsWith("ERROR") && line.includes(secret))).toHaveLength(2)
      expect(logged.join("\n")).toContain("Account.Freeze failed")
    })
  )
}

for (const reason of unknown)
  it.scopedLive(
    `a command of unknown outcome (${reason}) may be repeated with an Idempotency-Key, so then it is 503`,
    () =>
      Effect.gen(function* () {
        const { url } = yield* servedOn((store) => ({ ...store, commitAll: () => failing(reason) }))
        const statusWith = (headers: Record<string, string>) =>
          Effect.map(send(url, "/accounts/a/freeze", {}, headers), ({ headers, status }) => [
            status,
            headers.get("retry-after")
          ])
        expect(yield* statusWith({})).toEqual([500, null])
        expect(yield* statusWith({ "idempotency-key": "k" })).toEqual([503, "3"])
      })
  )

it.scopedLive("a command that loses all its races is 409 with Retry-After", () =>
  Effect.gen(function* () {
    const { url } = yield* servedOn((store) => ({
      ...store,
      commitAll: () => new StoreError.RetryCommand({ aggregateId: "Account/a", sequence: 1 })
    }))
    const { body, headers, status } = yield* send(url, "/accounts/a/freeze", {})
    expect([status, body]).toEqual([409, { _tag: "RetryCommand", aggregateId: "Account/a", sequence: 1 }])
    expect(headers.get("retry-after")).toBe("3")
  })
)

it.scopedLive("a client that hangs up and sends its request again has its command take effect once", () =>
  Effect.gen(function* () {
    const [began, gate] = [yield* Deferred.make<void>(), yield* Effect.makeLatch(false)]
    const store = yield* MemoryStore.make
    const { url } = yield* servedOn(() => ({
      ...store,
      commitAll: (events, projections) =>
        Deferred.succeed(began, undefined).pipe(
          Effect.zipRight(gate.await),
          Effect.zipRight(store.commitAll(events, projections))
        )
    }))
    const freeze = send(url, "/accounts/a/freeze", {}, { "idempotency-key": "k" })
    const first = yield* Effect.fork(freeze)
    yield* Deferred.await(began)
    // The client closes its connection while the commit is under way.
    yield* Fiber.interrupt(first)
    const second = yield* Effect.fork(freeze)
    yield* gate.open
    const { body, status } = yield* Fiber.join(second)
    expect([status, body.position.sequence]).toEqual([200, 1])
    expect(yield* store.getEvents(Account.streamId("a"), 1)).toHaveLength(1)
    expect((yield* freeze).body.duplicate).toBe(true)
  })
)

/** A port of this machine that leads to a server, and can be closed and opened. */
const makeGate = (target: URL) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const sockets = new Set<Socket>()
      let server: Server
      let port = 0
      const open = async () => {
        server = createServer((client) => {
          const upstream = connect(Number(target.port), target.hostname)
          for (const socket of [client, upstream]) {
            sockets.add(socket)
            socket.on("error", () => socket.destroy())
          }
          client.pipe(upstream)
          upstream.pipe(client)
        }).listen(port, "127.0.0.1")
        await once(server, "listening")
        const address = server.address()
        if (typeof address === "object" && address !== null) port = address.port
      }
      const close = () => {
        server.close()
        for (const socket of sockets) socket.destroy()
        sockets.clear()
      }
      await open()
      const url = new URL(target)
      url.host = `127.0.0.1:${port}`
      return { url: url.href, open: Effect.promise(open), close: Effect.sync(close) }
    }),
    ({ close }) => close
  )

it.scopedLive("while Postgres is gone requests are 503, and none is lost that was answered", () =>
  Effect.gen(function* () {
    const gate = yield* makeGate(new URL(yield* makeDatabase))
    const url = yield* serve(
      layerApi.pipe(
        Layer.provide(SqlStore.layer),
        Layer.provide(PgClient.layer({ url: Redacted.make(gate.url), maxConnections: 3 }))
      )
    )
    const deposit = (key: string) => send(url, "/accounts/a/deposits", { amount: 1 }, { "idempotency-key": key })
    yield* send(url, "/accounts/a/open-account", { owner: "Ann" })
    expect((yield* deposit("before")).status).toBe(200)
    yield* gate.close
    const gone = [yield* deposit("during"), yield* ask(url, "/accounts/b")]
    for (const { body, headers, status } of gone) {
      expect([status, body]).toEqual([503, { _tag: "Unavailable", what: "Store", retryAfter: 3 }])
      expect(headers.get("retry-after")).toBe("3")
    }
    yield* gate.open
    const again = yield* Effect.repeat(deposit("during"), { until: ({ status }) => status === 200 })
    expect(again.body.state.balance).toBe(2)
    expect((yield* deposit("before")).body).toMatchObject({ duplicate: true, state: { balance: 2 } })
  })
)

// --- handlers that fail ---

class Done extends Schema.TaggedClass<Done>()("Done", {}) {}
class Break extends Schema.TaggedClass<Break>()("Break", {}) {}
class Nest extends Schema.TaggedClass<Nest>()("Nest", { how: Schema.Literal("match", "key") }) {}

const Job = Aggregate.make("Job", {
  state: Schema.Struct({}),
  initialState: {},
  events: Done,
  commands: Schema.Union(Break, Nest),
  refusals: {},
  decide: {
    Break: () => Effect.die(new Error(secret)),
    Nest: ({
      how
    }): Effect.Effect<
      ReadonlyArray<Done>,
      Aggregate.Failure | StoreError.UnexpectedSequence | StoreError.CommandIdReused,
      Aggregate.Instance<"Account">
    > => {
      const nested = Account.evaluate("nested", new Deposit({ amount: 1 })).pipe(
        Effect.catchTag("NotOpen", () => Effect.void),
        Effect.as([new Done()])
      )
      return how === "match"
        ? Aggregate.withExpectedSequence(7)(nested)
        : new StoreError.CommandIdReused({ kind: "Account", id: "nested", commandId: "k" })
    }
  },
  evolve: { Done: (state) => state }
})

it.scopedLive("a defect, and a failure of a nested command that is not the client's, are 500 without details", () =>
  Effect.gen(function* () {
    const { layer, lines } = makeLog()
    const Jobs = AggregateHttp.make(Job)
    const JobApi = HttpApi.make("jobs").add(Jobs.group)
    const layerJobs = HttpApiBuilder.group(JobApi, "job", (handlers) => Jobs.handle(handlers)).pipe(
      Layer.provide(Job.layer),
      Layer.provide(Account.layer),
      Layer.provide(MemoryStore.layer)
    )
    const url = yield* serve(HttpApiBuilder.api(JobApi).pipe(Layer.provide(layerJobs))).pipe(Effect.provide(layer))
    const headers = { "if-match": '"0"', "idempotency-key": "k" }
    for (const [path, body, why] of [
      ["break", {}, secret],
      ["nest", { how: "match" }, "was expected to be at sequence 7"],
      ["nest", { how: "key" }, "belongs to another command"]
    ] as const) {
      const answer = yield* send(url, `/job/1/${path}`, body, headers)
      expect([answer.status, answer.body]).toEqual([500, undefined])
      expect(lines.at(-1)).toMatch(/^ERROR Job\.(Break|Nest) failed/)
      expect(lines.at(-1)).toContain(why)
    }
    expect(lines).toHaveLength(3)
  })
)

// --- hostile and mistaken bodies ---

class Labeled extends Schema.TaggedClass<Labeled>()("Labeled", { labels: Schema.Array(Schema.String) }) {}
class Label extends Schema.TaggedClass<Label>()("Label", { labels: Schema.Array(Schema.String) }) {}

const Tags = Aggregate.make("Tags", {
  state: Schema.Struct({}),
  initialState: {},
  events: Labeled,
  commands: Label,
  refusals: {},
  decide: { Label: ({ labels }) => Effect.succeed([new Labeled({ labels })]) },
  evolve: { Labeled: (state) => state }
})

const TagsHttp = AggregateHttp.make(Tags)
const TagsApi = HttpApi.make("tags").add(TagsHttp.group)
const layerTags = HttpApiBuilder.group(TagsApi, "tags", (handlers) => TagsHttp.handle(handlers)).pipe(
  Layer.provide(Tags.layer),
  Layer.provide(MemoryStore.layer)
)

it.scopedLive("a response to a wrong body is small, whatever the body has", () =>
  Effect.gen(function* () {
    const url = yield* serve(HttpApiBuilder.api(TagsApi).pipe(Layer.provide(layerTags)))
    const label = (body: unknown) => send(url, "/tags/1/label", body)
    const some = yield* label({ labels: Array.from({ length: 50 }, (_, index) => index) })
    expect([some.status, some.body.issues.length]).toEqual([400, 20])
    expect(some.body.message).toMatch(/^labels\.0: Expected string, actual 0\n.*\nand 30 more$/s)
    const many = yield* label({ labels: Array<number>(400_000).fill(1) })
    expect([many.status, many.body.issues]).toEqual([
      400,
      [{ _tag: "Type", path: ["labels", 0], message: "Expected string, actual 1" }]
    ])
    for (const labels of ["x".repeat(900_000), [{ a: "x".repeat(900_000) }]]) {
      const long = yield* label({ labels })
      expect(long.status).toBe(400)
      expect(JSON.stringify(long.body).length).toBeLessThan(2000)
    }
    for (const depth of [4000, 200_000]) {
      const deep = yield* label(`{"labels":${"[".repeat(depth)}${"]".repeat(depth)}}`)
      expect([deep.status, deep.body.issues.length]).toEqual([400, 1])
      expect(deep.body.message).not.toContain("call stack")
    }
    const within = yield* label({ labels: [{ a: "x".repeat(3000) }] })
    expect(JSON.stringify(within.body).length).toBeLessThan(2000)
  })
)

class Written extends Schema.TaggedClass<Written>()("Written", { value: Schema.Number }) {}
class Write extends Schema.TaggedClass<Write>()("Write", {
  how: Schema.Literal("plain", "class", "nested", "value"),
  value: Schema.optional(Schema.Number)
}) {}

/** Its handler makes events of values that their schema refuses. */
const Notes = Aggregate.make("Notes", {
  state: Schema.Struct({}),
  initialState: {},
  events: Schema.typeSchema(Schema.Struct({ _tag: Schema.Literal("Written"), value: Schema.Number })),
  commands: Write,
  refusals: {},
  decide: {
    Write: ({ how, value = 1 }) => {
      const wrong: unknown = secret
      if (how === "value") return Effect.succeed([{ _tag: "Written" as const, value }])
      if (how === "plain") return Effect.succeed([{ _tag: "Written" as const, value: wrong as number }])
      if (how === "class") return Effect.sync(() => [new Written({ value: wrong as number })])
      return Effect.as(Account.evaluate("", new Deposit({ amount: 1 })).pipe(Effect.catchTag("NotOpen", Effect.die)), [
        { _tag: "Written" as const, value: 1 }
      ])
    }
  },
  evolve: { Written: (state) => state }
})

it.scopedLive(
  "an event that its schema refuses is the mistake of the program: 500, and only the log has its values",
  () =>
    Effect.gen(function* () {
      const { layer, lines } = makeLog()
      const NotesHttp = AggregateHttp.make(Notes, { correlationHeader: "x-request-id" })
      const NotesApi = HttpApi.make("notes").add(NotesHttp.group)
      const layerNotes = HttpApiBuilder.group(NotesApi, "notes", (handlers) => NotesHttp.handle(handlers)).pipe(
        Layer.provide(Notes.layer),
        Layer.provide(Account.layer),
        Layer.provide(MemoryStore.layer)
      )
      const url = yield* serve(HttpApiBuilder.api(NotesApi).pipe(Layer.provide(layerNotes))).pipe(Effect.provide(layer))
      const write = (body: unknown, headers: Record<string, string> = {}) => send(url, "/notes/1/write", body, headers)
      for (const how of ["plain", "class", "nested"]) {
        for (const headers of [{}, { "idempotency-key": how }]) {
          const { body, status } = yield* write({ how }, headers)
          expect([how, status, body]).toEqual([how, 500, undefined])
          expect(lines.at(-1)).toMatch(/^ERROR Notes\.Write failed/)
          if (how !== "nested") expect(lines.at(-1)).toContain("hunter2")
        }
      }
      expect(lines).toHaveLength(6)
      // Mistakes of the request stay what they are.
      const endless = '{"how":"value","value":1e400}'
      for (const [body, headers] of [
        [endless, {}],
        [endless, { "idempotency-key": "k" }],
        ["{}", {}],
        ['{"how":"value"}', { "x-request-id": "r".repeat(256) }],
        ['{"how":"value"}', { "idempotency-key": "k".repeat(1001) }]
      ] as const) {
        const answer = yield* write(body, headers)
        expect([lines.slice(6), answer.status, answer.body?._tag]).toEqual([[], 400, "HttpApiDecodeError"])
      }
      expect(lines).toHaveLength(6)
    })
)

it.scopedLive("a command that interrupts itself is 503 with an Idempotency-Key, and 500 without", () =>
  Effect.gen(function* () {
    const { logged, url } = yield* servedOn((store) => ({
      ...store,
      getEvents: () => Effect.interrupt,
      commitAll: () => Effect.interrupt
    }))
    const unavailable = { _tag: "Unavailable", what: "Store", retryAfter: 3 }
    const freeze = (headers: Record<string, string>) => send(url, "/accounts/a/freeze", {}, headers)
    for (const [answer, status] of [
      [yield* freeze({ "idempotency-key": "k" }), 503],
      [yield* ask(url, "/accounts/a"), 503],
      [yield* freeze({}), 500]
    ] as const) {
      expect([answer.status, answer.body]).toEqual([status, status === 503 ? unavailable : undefined])
      expect(answer.headers.get("retry-after")).toBe(status === 503 ? "3" : null)
    }
    expect(logged.filter((line) => line.startsWith("ERROR Account."))).toHaveLength(3)
  })
)
