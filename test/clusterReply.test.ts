/** The answers of runners to commands with `reply: "position"`: what is encoded, what is sent, and repeated messages. */
import * as ClusterError from "@effect/cluster/ClusterError"
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, SqlStore, StoreError } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import * as Messages from "../src/internal/cluster/messages.js"
import { makeCluster } from "./cluster.js"
import { Account, Accounts, Deposit, id } from "./clusterBank.js"
import { ambiguous, eventsOf, faulty, losing, runner } from "./clusterFaults.js"
import { layerPg } from "./database.js"

const short = { reply: "position" } as const
const a = id("a")
const first = { sequence: 1, position: { aggregateId: "Account/a", sequence: 1 }, duplicate: false }

const encoded = { states: 0, events: 0 }

/** A number whose encodings are counted. */
const Counted = (what: keyof typeof encoded) =>
  Schema.transform(Schema.Number, Schema.Number, {
    strict: true,
    decode: (n) => n,
    encode: (n) => {
      encoded[what]++
      return n
    }
  })

class Added extends Schema.TaggedClass<Added>()("Added", { by: Counted("events") }) {}
class Add extends Schema.TaggedClass<Add>()("Add", { by: Schema.Number }) {}

const definition = {
  initialState: 0,
  events: Added,
  commands: Add,
  refusals: {},
  decide: { Add: ({ by }: Add) => Effect.succeed([new Added({ by })]) },
  evolve: { Added: (sum: number, { by }: Added) => sum + by }
}
const Sum = Aggregate.make("Sum", { ...definition, state: Counted("states") })
const Sums = ClusterAggregate.make(Sum)

/** The number 0 alone can be encoded: `Aggregate.make` encodes the initial state. */
const Zero: Schema.Schema<number> = Schema.transformOrFail(Schema.Number, Schema.Number, {
  strict: true,
  decode: (n) => ParseResult.succeed(n),
  encode: (n, _, ast) =>
    n === 0 ? ParseResult.succeed(n) : ParseResult.fail(new ParseResult.Type(ast, n, "can't be written"))
})
const Unwritable = Aggregate.make("Unwritable", { ...definition, state: Zero })
const Unwritables = ClusterAggregate.make(Unwritable)

/** A number whose schema throws where `encode` or `decode` meets a certain one, as a schema may by mistake. */
const Throwing = (on: { readonly encode: number; readonly decode: number }): Schema.Schema<number> => {
  const checked = (direction: keyof typeof on) => (n: number) => {
    if (n === on[direction]) throw new TypeError(`can't ${direction} ${n}`)
    return n
  }
  return Schema.transform(Schema.Number, Schema.Number, {
    strict: true,
    decode: checked("decode"),
    encode: checked("encode")
  })
}

class Rejected extends Schema.TaggedError<Rejected>()("Rejected", { by: Throwing({ encode: 5, decode: 6 }) }) {}
class AddThrowing extends Schema.TaggedClass<AddThrowing>()("AddThrowing", {
  by: Throwing({ encode: 7, decode: 8 })
}) {}

const Thrower = Aggregate.make("Thrower", {
  initialState: 0,
  state: Throwing({ encode: 3, decode: 4 }),
  events: Added,
  commands: AddThrowing,
  refusals: { AddThrowing: [Rejected] },
  decide: {
    AddThrowing: ({ by }) => (by === 5 || by === 6 ? new Rejected({ by }) : Effect.succeed([new Added({ by })]))
  },
  evolve: { Added: (sum, { by }) => sum + by }
})
const Throwers = ClusterAggregate.make(Thrower)

/** The failure of an answer whose encoding throws. */
const unsent = (by: number) => `the runner can't send its answer: the schema throws: can't encode ${by}`

for (const serialization of ["msgpack", "ndjson"] as const) {
  it.scopedLive(`with ${serialization} neither the state nor the events are encoded for the answer`, () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster(serialization)
      yield* cluster.startRunner(
        Layer.merge(Sums.layerRunner, Unwritables.layerRunner).pipe(
          Layer.provide([Sum.layer, Unwritable.layer]),
          Layer.provide(MemoryStore.layer)
        )
      )
      const clients = Layer.merge(Sums.layerClient, Unwritables.layerClient).pipe(Layer.provide(cluster.layerClient))
      yield* Effect.gen(function* () {
        const before = { ...encoded }
        yield* Sum.evaluate("a", new Add({ by: 1 }), short)
        // The store encodes the event once.
        expect(encoded).toEqual({ states: before.states, events: before.events + 1 })
        expect(yield* Sum.evaluate("a", new Add({ by: 1 }))).toMatchObject({ state: 2 })
        expect(encoded.states).toBeGreaterThan(before.states)
        expect(encoded.events).toBeGreaterThan(before.events + 2)

        expect(yield* Unwritable.evaluate("a", new Add({ by: 1 }), short)).toMatchObject({ sequence: 1 })
        // An answer that can't be encoded: the command has taken effect, and its caller gets a typed failure.
        const failures = [
          yield* Effect.flip(Unwritable.evaluate("a", new Add({ by: 1 }))),
          yield* Effect.flip(Unwritable.get("a")),
          yield* Effect.flip(Unwritable.root("a"))
        ]
        for (const failure of failures) {
          expect(failure).toMatchObject({ _tag: "StoreError", reason: "ClusterUnavailable" })
          expect(failure.message).toContain("the runner can't send its answer: state: can't be written")
        }
        expect(yield* Unwritable.evaluate("a", new Add({ by: 1 }), short)).toMatchObject({ sequence: 3 })
      }).pipe(Effect.provide(clients))
    })
  )
}

for (const serialization of ["msgpack", "ndjson"] as const) {
  it.scopedLive(`with ${serialization} a schema that throws is a typed failure before the timeout of the call`, () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster(serialization)
      yield* cluster.startRunner(
        Throwers.layerRunner.pipe(Layer.provide(Thrower.layer), Layer.provide(MemoryStore.layer))
      )
      const failureOf = (by: number) => Effect.flip(Thrower.evaluate(`of ${by}`, new AddThrowing({ by })))
      yield* Effect.gen(function* () {
        expect(yield* Thrower.evaluate("a", new AddThrowing({ by: 1 }))).toMatchObject({ state: 1 })
        // A state, a refusal and a command, each by the encoding side and the decoding side.
        for (const by of [3, 4, 5, 6, 8]) {
          const failure = yield* failureOf(by)
          expect(failure).toMatchObject({ _tag: "StoreError", reason: "ClusterUnavailable" })
          expect(failure.message).toContain(by === 3 || by === 5 ? unsent(by) : "could not be encoded or decoded")
        }
        expect(yield* failureOf(7)).toMatchObject({
          _tag: "ValidationError",
          issues: [{ message: "the schema throws: can't encode 7" }]
        })
        for (const [id, why] of [
          ["of 3", unsent(3)],
          ["of 4", "could not be encoded or decoded"]
        ] as const) {
          for (const failure of [yield* Effect.flip(Thrower.get(id)), yield* Effect.flip(Thrower.root(id))]) {
            expect(failure.message).toContain(why)
          }
        }
        expect(yield* Thrower.get("a")).toBe(1)
      }).pipe(Effect.provide(Throwers.layerClient.pipe(Layer.provide(cluster.layerClient))))
    })
  )
}

const wire = <A, I>(schema: Schema.Schema<A, I>): Messages.Wire<A> => Schema.make(schema.ast)

it("the size of a short answer does not depend on the state, and either form is decoded as it was encoded", () => {
  const state = Array.from({ length: 10_000 }, (_, index) => index)
  const answer = Messages.answer(wire(Schema.Array(Schema.Number)), wire(Added))
  const position = { aggregateId: "Listed/a", sequence: 1 }
  const acknowledged = { sequence: 1, position, duplicate: false, correlationId: "chain" }
  const whole = { ...acknowledged, state, events: [new Added({ by: 1 })] }
  const sent = [acknowledged, whole].map((value) => JSON.stringify(Schema.encodeSync(answer)(value)))
  expect(sent[0]).toBe(
    '{"sequence":1,"position":{"aggregateId":"Listed/a","sequence":1},"duplicate":false,"correlationId":"chain"}'
  )
  expect(sent[1]?.length).toBeGreaterThan(40_000)
  const received = sent.map((text) => Schema.decodeUnknownSync(answer)(JSON.parse(text)))
  expect(received).toEqual([acknowledged, whole])
})

it("a whole answer without its state, because that is undefined, stays whole, and a broken one is no short answer", () => {
  const answer = Messages.answer(wire(Schema.UndefinedOr(Schema.String)), wire(Added))
  const whole = { sequence: 1, position: { aggregateId: "Listed/a", sequence: 1 }, duplicate: false, events: [] }
  const text = JSON.stringify(Schema.encodeSync(answer)({ ...whole, state: undefined }))
  expect(text).not.toContain("state")
  expect(Schema.decodeUnknownSync(answer)(JSON.parse(text))).toMatchObject({ state: undefined, events: [] })
  expect(() => Schema.decodeUnknownSync(answer)({ ...whole, state: 3 })).toThrow("state")
})

for (const [name, failure] of Object.entries(ambiguous)) {
  const { calls, fault } = losing(failure)
  it.live(
    `a command whose answer is lost by ${name} takes effect once, and has the short form of its first result`,
    () =>
      Effect.gen(function* () {
        const made = yield* Account.evaluate(a, new Deposit({ amount: 3 }), short)
        expect(calls.count).toBe(4)
        expect(Object.keys(made).sort()).toEqual(["duplicate", "position", "sequence"])
        expect(made).toEqual(first)
        expect(yield* eventsOf("Account/a")).toHaveLength(1)
      }).pipe(Effect.provide(faulty(fault)))
  )
}

it.live("on Postgres, too, a repeated command has the short form of its first result", () =>
  Effect.gen(function* () {
    expect(yield* Account.evaluate(a, new Deposit({ amount: 3 }), short)).toEqual(first)
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
  }).pipe(
    Effect.provide(
      faulty(
        losing(new ClusterError.RunnerUnavailable({ address: runner })).fault,
        Accounts.layerClient,
        SqlStore.layer.pipe(Layer.provide(layerPg()), Layer.orDie)
      )
    )
  )
)

it.scopedLive(
  "an own client gets the form that its message asks for, also where the call has taken effect before",
  () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster()
      yield* cluster.startRunner(
        Accounts.layerRunner.pipe(Layer.provide(Account.layer), Layer.provide(MemoryStore.layer))
      )
      yield* Effect.gen(function* () {
        const client = (yield* Accounts.entity.client)("a")
        const message = { id: "a", attempt: "1", command: new Deposit({ amount: 3 }) }
        expect(yield* client.Deposit({ ...message, ...short })).toEqual(first)
        expect(yield* client.Deposit({ ...message, ...short })).toEqual(first)
        const whole = yield* client.Deposit(message)
        expect(whole).toMatchObject({ ...first, state: { balance: 3 } })
        expect("events" in whole && whole.events).toHaveLength(1)
      }).pipe(Effect.provide(cluster.layerClient))
    })
)

it.live(
  "a runner of an older release, which does not know the option, answers the whole, and the result is short",
  () => {
    const ignoring = (call: Effect.Effect<unknown, unknown>) =>
      Effect.map(call, (answer) => ({ ...(answer as object), state: { balance: 3 }, events: [] }))
    return Effect.gen(function* () {
      const made = yield* Account.evaluate(a, new Deposit({ amount: 3 }), short)
      expect(Object.keys(made).sort()).toEqual(["duplicate", "position", "sequence"])
      expect(made).toEqual(first)
    }).pipe(Effect.provide(faulty(ignoring)))
  }
)

it.live("in a transaction of the caller it is refused, as without the option", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const inTransaction = sql.withTransaction(Account.evaluate(a, new Deposit({ amount: 3 }), short))
    expect(yield* Effect.flip(inTransaction)).toBeInstanceOf(StoreError.ValidationError)
    expect(yield* eventsOf("Account/a")).toEqual([])
  }).pipe(
    Effect.provide(
      Layer.provideMerge(
        faulty((call) => call),
        Layer.orDie(layerPg())
      )
    )
  )
)
