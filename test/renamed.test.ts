/** A renamed aggregate goes on reading and writing the streams of its former name, by the option `kind`. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import {
  Aggregate,
  EventFeed,
  MemoryStore,
  Projection,
  ProjectionTables,
  Rebuild,
  SqlStore,
  StoreAdapter,
  Subscription
} from "effect-maestro"
import { layerPg, makeDatabase } from "./database.js"
import { nodeAt } from "./projectionTables.js"
import { collectSpans } from "./spans.js"
import { caughtUp, eventually, start } from "./subscribers.js"

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Int }) {}

const folded = { events: 0 }

const definition = {
  state: Schema.Number,
  initialState: 0,
  events: Deposited,
  commands: Deposited,
  decide: { Deposited: (command: Deposited) => Effect.succeed([command]) },
  evolve: {
    Deposited: (balance: number, { amount }: Deposited) => {
      folded.events++
      return balance + amount
    }
  }
}

const Before = Aggregate.make("Account", definition)
const After = Aggregate.make("Konto", { ...definition, kind: "Account" })

/** The aggregate that another program would have under the new name. */
const Other = Aggregate.make("Konto", definition)

const deposit = new Deposited({ amount: 1 })

const layerAggregates = Layer.mergeAll(Before.layer, After.layer)

const handlers = (seen: Array<string>) => ({
  Deposited: (_: Deposited, { aggregateId, id, kind, sequence }: EventFeed.FeedEvent) =>
    Effect.sync(() => seen.push(`${kind} ${id} ${sequence} ${aggregateId}`))
})

for (const [name, store] of Object.entries({
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
})) {
  layer(Layer.provideMerge(layerAggregates, store), { timeout: 60_000, excludeTestServices: true })(
    `a renamed aggregate on ${name}`,
    (it) => {
      it.effect("it reads the streams of its former name, and writes to them", () =>
        Effect.gen(function* () {
          yield* Before.evaluate("ann", deposit)
          expect(yield* After.exists("ann")).toBe(true)
          expect(yield* After.root("ann")).toEqual({ id: "ann", sequence: 1, state: 1 })
          expect(yield* After.evaluate("ann", deposit)).toMatchObject({
            sequence: 2,
            state: 2,
            position: { aggregateId: "Account/ann", sequence: 2 }
          })
          expect(yield* Before.fetch("ann")).toBe(2)
          expect(yield* After.replay("ann", 1)).toBe(1)
          expect([After.name, After.kind, After.streamId("ann")]).toEqual(["Konto", "Account", "Account/ann"])
          expect(Before.kind).toBe("Account")
        })
      )

      it.effect(
        "a command id that was handled under the former name is a duplicate, and its other content is refused",
        () =>
          Effect.gen(function* () {
            const once = Aggregate.withCommandId("one request")
            yield* once(Before.evaluate("bob", deposit))
            expect(yield* once(After.evaluate("bob", deposit))).toMatchObject({
              duplicate: true,
              sequence: 1,
              state: 1
            })
            expect(yield* Effect.flip(once(After.evaluate("bob", new Deposited({ amount: 2 }))))).toMatchObject({
              _tag: "CommandIdReused",
              kind: "Account",
              id: "bob"
            })
          })
      )

      it.effect("a snapshot that was stored under the former name is used", () =>
        Effect.gen(function* () {
          for (const _ of [1, 2, 3]) yield* Before.evaluate("cat", deposit)
          yield* Before.snapshot("cat")
          const store = yield* StoreAdapter.StoreAdapter
          folded.events = 0
          expect(yield* After.fetch("cat")).toBe(3)
          expect(folded.events).toBe(0)
          yield* After.evaluate("cat", deposit)
          yield* After.snapshot("cat")
          expect(yield* store.getSnapshot("Account/cat", 1)).toMatchObject({ value: { sequence: 4 } })
        })
      )

      it.effect("failures have the stored kind, and spans and messages the name", () =>
        Effect.gen(function* () {
          expect(yield* Effect.flip(Aggregate.withExpectedSequence(7)(After.evaluate("dan", deposit)))).toMatchObject({
            _tag: "UnexpectedSequence",
            kind: "Account",
            id: "dan"
          })
          expect(yield* Effect.flip(After.evaluate("", deposit))).toMatchObject({ operation: "Konto.evaluate" })
          const { spans, tracer } = yield* collectSpans
          yield* Effect.withTracer(After.fetch("dan"), tracer)
          expect(spans.map(({ attributes }) => attributes.get("aggregate.name"))).toContain("Konto")
        })
      )

      it.effect("the feed shows its events under the stored kind, and a filter by its kind finds them", () =>
        Effect.gen(function* () {
          const after = yield* EventFeed.head
          yield* Before.evaluate("eve", deposit)
          yield* After.evaluate("eve", deposit)
          const { events } = yield* eventually(
            EventFeed.read({ after, filter: { kinds: [After.kind] } }),
            (page) => page.events.length >= 2
          )
          expect(events.map(({ id, kind, sequence }) => [kind, id, sequence])).toEqual([
            ["Account", "eve", 1],
            ["Account", "eve", 2]
          ])
        })
      )

      it.effect("a subscription goes on under the new name, and gets the events of both names once", () =>
        Effect.gen(function* () {
          const [first, second] = [[] as string[], [] as string[]]
          const following = (seen: Array<string>, aggregate: typeof Before | typeof After) => {
            const subscription = Subscription.make("follower", {
              from: "now",
              on: Subscription.on(aggregate, handlers(seen))
            })
            return [subscription, Effect.zipRight(start(subscription), Effect.void)] as const
          }
          const [before, runBefore] = following(first, Before)
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* runBefore
              yield* caughtUp(before)
              yield* Before.evaluate("fay", deposit)
              yield* caughtUp(before)
            })
          )
          const [after, runAfter] = following(second, After)
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* After.evaluate("fay", deposit)
              yield* runAfter
              yield* caughtUp(after)
            })
          )
          expect(first).toEqual(["Account fay 1 Account/fay"])
          expect(second).toEqual(["Account fay 2 Account/fay"])
        })
      )

      it.effect(
        "a subscription of two aggregates of one kind gives each event to the handlers of both, as of one name",
        () =>
          Effect.gen(function* () {
            const seen: Array<string> = []
            const Twin = Aggregate.make("Account", definition)
            for (const [index, pair] of (
              [
                [Before, After],
                [Before, Twin]
              ] as const
            ).entries()) {
              const subscription = Subscription.make(`twins ${index}`, {
                from: "now",
                on: pair.map((aggregate) => Subscription.on(aggregate, handlers(seen)))
              })
              expect(subscription.filter).toEqual({ types: ["Deposited"], kinds: ["Account"], slice: undefined })
              yield* Effect.scoped(
                Effect.gen(function* () {
                  yield* start(subscription)
                  yield* caughtUp(subscription)
                  yield* After.evaluate(`gus${index}`, deposit)
                  yield* caughtUp(subscription)
                })
              )
            }
            expect(seen).toEqual([0, 0, 1, 1].map((index) => `Account gus${index} 1 Account/gus${index}`))
          })
      )

      it.effect("commands of both names on one stream lose none, also concurrently", () =>
        Effect.gen(function* () {
          const [before, after] = [Before.evaluate("hal", deposit), After.evaluate("hal", deposit)]
          yield* Effect.all([before, after, before, after, before, after], { concurrency: "unbounded" })
          expect(yield* Before.fetch("hal")).toBe(6)
          expect(yield* After.root("hal")).toMatchObject({ sequence: 6, state: 6 })
        })
      )
    }
  )
}

it.effect("with plain ids, snapshots and command ids of the former name are known", () =>
  Effect.gen(function* () {
    const PlainBefore = Aggregate.make("Account", { ...definition, streams: "plain" })
    const PlainAfter = Aggregate.make("Konto", { ...definition, kind: "Account", streams: "plain" })
    const running = Effect.gen(function* () {
      const once = Aggregate.withCommandId("one request")
      yield* once(PlainBefore.evaluate("ann", deposit))
      yield* PlainBefore.snapshot("ann")
      folded.events = 0
      expect(yield* PlainAfter.fetch("ann")).toBe(1)
      expect(folded.events).toBe(0)
      expect(yield* once(PlainAfter.evaluate("ann", deposit))).toMatchObject({ duplicate: true })
    })
    yield* Effect.provide(running, Layer.merge(PlainBefore.layer, PlainAfter.layer))
  }).pipe(Effect.provide(MemoryStore.layer))
)

it("a projection of the former name is one of the new name, and none of another aggregate of that name", () => {
  const OfBefore = Projection.make({ name: "seen", of: Before, project: { Deposited: () => Effect.void } })
  const Projecting = Aggregate.make("Konto", { ...definition, kind: "Account", projections: [OfBefore] })
  expect(Projecting.projections.map(({ of }) => of)).toEqual([{ name: "Account", kind: "Account", streams: "byKind" }])
  expect(() => Projection.of(Other, OfBefore)).toThrow(
    'projection "seen" is of aggregate Account, and can\'t be of Konto'
  )
  expect(() => Aggregate.make("Konto", { ...definition, projections: [OfBefore] })).toThrow("can't be of Konto")
})

it("an invalid kind is refused when the aggregate is made", () => {
  const kinds: ReadonlyArray<readonly [kind: unknown, message: string]> = [
    ["", "kind of Konto must not be empty"],
    ["a/b", 'kind of Konto must not contain "/"'],
    ["effect-maestro:Receipt", "kind of Konto must not begin with effect-maestro"],
    ["x".repeat(254), "kind of Konto must be at most 253 characters long"],
    [7, "kind of Konto must be a text"]
  ]
  for (const [kind, message] of kinds) {
    expect(() => Aggregate.make("Konto", { ...definition, kind: kind as string }), String(kind)).toThrow(message)
  }
})

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("tables of a renamed aggregate", (it) => {
  it.effect(
    "the record of its tables fits under the new name, and a rebuild and a next version project all events",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const url = yield* makeDatabase
          const balances = (version: number) =>
            Projection.makeSql({
              name: "balances",
              events: Deposited,
              version,
              tables: { balances: (sql) => sql`create table balances (account text primary key, amount int not null)` },
              project: {
                Deposited: ({ amount }, { id }, sql) =>
                  sql`insert into balances as b values (${id}, ${amount})
                  on conflict (account) do update set amount = b.amount + excluded.amount`
              }
            })
          const rows = Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`select account, amount from balances order by 1`
          )
          const Old = Aggregate.make("Account", { ...definition, projections: [balances(1)] })
          const Same = Aggregate.make("Konto", { ...definition, kind: "Account", projections: [balances(1)] })
          const Next = Aggregate.make("Konto", { ...definition, kind: "Account", projections: [balances(2)] })
          const Stranger = Aggregate.make("Konto", { ...definition, projections: [balances(1)] })
          const running = Effect.gen(function* () {
            yield* Effect.provide(
              Old.evaluate("ann", deposit),
              Old.layer.pipe(Layer.provide(ProjectionTables.layer(Old.projections)))
            )
            yield* Effect.provide(
              Same.evaluate("ann", deposit),
              Same.layer.pipe(Layer.provide(ProjectionTables.layer(Same.projections)))
            )
            expect(yield* rows).toEqual([{ account: "ann", amount: 2 }])
            const refused = yield* Effect.flip(Layer.build(ProjectionTables.layer(Stranger.projections)))
            expect(`${refused}`).toContain("hold events of Account, and here the projection is of Konto")
            const twice = yield* Effect.flip(
              Layer.build(ProjectionTables.layer([...Old.projections, ...Same.projections]))
            )
            expect(`${twice}`).toContain('two projections have the name "balances", and both are of Account')
            expect(yield* Rebuild.run({ name: "again", projections: Same.projections, tables: ["balances"] })).toBe(2)
            expect(yield* rows).toEqual([{ account: "ann", amount: 2 }])
            yield* Effect.provide(
              Next.evaluate("ann", deposit),
              Next.layer.pipe(Layer.provide(ProjectionTables.layer(Next.projections)))
            )
            expect(yield* rows).toEqual([{ account: "ann", amount: 3 }])
          })
          yield* Effect.provide(running, nodeAt(url))
        })
      )
  )
})
