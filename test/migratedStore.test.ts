/** A store that was written before events had versions: the layer migrates it, and everything stored stays as it was. */
import { readFileSync } from "node:fs"
import * as SqlClient from "@effect/sql/SqlClient"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, SqlStore, StoreAdapter, Subscription, SubscriptionStore } from "effect-maestro"
import { layerEmptyPg, layerPglite } from "./database.js"
import { aNode } from "./nodes.js"

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
class Closed extends Schema.TaggedClass<Closed>()("Closed", {}) {}
class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Number }) {}

const Account = Aggregate.make("Account", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Schema.Union(Deposited, Closed),
  commands: Deposit,
  decide: { Deposit: ({ amount }) => Effect.succeed([new Deposited({ amount })]) },
  evolve: {
    Deposited: ({ balance }, { amount }) => ({ balance: balance + amount }),
    Closed: (state) => state
  }
})

// Only the texts of functions are indented.
const statements = readFileSync(new URL("schemaBeforeVersions.sql", import.meta.url), "utf8").split(/;\n\n(?=\S)/)

const accounts = 40
const deposits = 30

/** The tables as they were, with events of accounts, a receipt, and a subscription that has handled some of them. */
const written = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  for (const statement of statements) yield* sql.unsafe(statement)
  // In the order of the log, one transaction for each event.
  for (let sequence = 1; sequence <= deposits; sequence++) {
    yield* sql`insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
      select 'Account/' || account, ${sequence}::int, 'Deposited', '{"amount":1}', '{"user":"Ann"}',
        ('0192' || substring(md5(account::text || '-' || ${sequence}) from 1 for 8) || '7' || substring(md5(account::text || '-' || ${sequence}) from 10 for 3) || '8' || substring(md5(account::text || '-' || ${sequence}) from 14 for 15))::uuid
      from generate_series(1, ${accounts}::int) account`
  }
  yield* sql`insert into maestro.snapshots (aggregate_id, sequence, timestamp, body, metadata)
    select aggregate_id, sequence, timestamp, '{"state":{"balance":10}}', '{}' from maestro.event_log
    where aggregate_id = 'Account/7' and sequence = 10`
  yield* sql`insert into maestro.subscriptions (name, partition, partitions, feed_key, position)
    select 'following', 0, 1, feed_key, position from maestro.event_log
    where aggregate_id = 'Account/3' and sequence = ${deposits}`
  yield* sql`insert into maestro.parked_events
    (subscription, aggregate_id, sequence, partition, feed_key, position, type, error, attempts)
    select 'following', aggregate_id, sequence, 0, feed_key, position, type, 'no', 3 from maestro.event_log
    where aggregate_id = 'Account/5' and sequence = 2`
})

const eventsOf = Effect.flatMap(EventFeed.EventFeed, () => Stream.runCollect(EventFeed.streamStored()))

for (const [name, database] of [
  ["Postgres", Layer.suspend(() => layerEmptyPg())],
  ["PGlite", layerPglite]
] as const) {
  describe(`a store without versions on ${name}`, () => {
    it.scopedLive(
      "is migrated by the layer, and read, appended to, followed and checked",
      () =>
        Effect.gen(function* () {
          yield* written
          const sql = yield* SqlClient.SqlClient
          const before = yield* sql`select aggregate_id, sequence, position::text, feed_key::text, type, body::text,
            metadata::text, timestamp::text from maestro.event_log order by aggregate_id, sequence`
          const context = yield* Layer.build(SqlStore.layer)
          yield* Effect.gen(function* () {
            // Nothing stored has changed.
            expect(
              yield* sql`select aggregate_id, sequence, position::text, feed_key::text, type, body::text,
                metadata::text, timestamp::text from maestro.event_log order by aggregate_id, sequence`
            ).toEqual(before)
            const { getEvents } = yield* StoreAdapter.StoreAdapter
            const events = yield* getEvents("Account/7", 1)
            expect(events).toHaveLength(deposits)
            for (const event of events) {
              expect(event).toMatchObject({ type: "Deposited", version: 1, body: { amount: 1 } })
              expect("correlationId" in event || "causationId" in event || "traceparent" in event).toBe(false)
            }
            const feed = [...(yield* eventsOf)]
            expect(feed).toHaveLength(accounts * deposits)
            expect(new Set(feed.map(({ version }) => version))).toEqual(new Set([1]))

            // Commands go on from the stored state.
            const node = yield* aNode(Account.layer)
            yield* Effect.gen(function* () {
              for (const id of ["1", "7", "40"]) expect(yield* Account.fetch(id)).toEqual({ balance: deposits })
              const { sequence, state } = yield* Account.evaluate("7", new Deposit({ amount: 5 }))
              expect([sequence, state]).toEqual([deposits + 1, { balance: deposits + 5 }])
              yield* Account.evaluate("new", new Deposit({ amount: 5 }))
              expect(yield* Account.replay("7", 12)).toEqual({ balance: 12 })
            }).pipe(Effect.provide(node))

            // The subscription goes on from its checkpoint.
            const handled: Array<string> = []
            const end = yield* Deferred.make<void>()
            const following = Subscription.make("following", {
              on: Subscription.on(Account, {
                Deposited: (_, { aggregateId, sequence }) =>
                  Effect.gen(function* () {
                    handled.push(`${aggregateId} ${sequence}`)
                    if (aggregateId === "Account/new") yield* Deferred.succeed(end, undefined)
                  })
              }),
              delivery: "at-least-once"
            })
            yield* Layer.build(following.layer)
            yield* Deferred.await(end)
            const checkpoint = feed.findIndex((one) => one.aggregateId === "Account/3" && one.sequence === deposits)
            expect(handled).toEqual([
              ...feed.slice(checkpoint + 1).map(({ aggregateId, sequence }) => `${aggregateId} ${sequence}`),
              `Account/7 ${deposits + 1}`,
              "Account/new 1"
            ])
            const subscriptions = yield* SubscriptionStore.SubscriptionStore
            expect((yield* subscriptions.parked("following")).map(({ aggregateId }) => aggregateId)).toEqual([
              "Account/5"
            ])
            const retried: Array<number> = []
            yield* subscriptions.retryParked("following", { aggregateId: "Account/5", sequence: 2 }, ({ version }) =>
              Effect.sync(() => retried.push(version))
            )
            expect(retried).toEqual([1])

            expect(yield* Aggregate.check([Account])).toEqual({
              readable: [{ aggregate: "Account", kind: "Account", type: "Deposited", version: 1 }],
              others: []
            })
            const { positionOf } = yield* EventFeed.EventFeed
            expect(yield* positionOf({ aggregateId: "Account/5", sequence: 2 })).toEqual(
              Option.fromNullable(feed.find((one) => one.aggregateId === "Account/5" && one.sequence === 2)?.position)
            )
          }).pipe(Effect.provide(context))

          // A second layer finds the work done.
          yield* Effect.scoped(Layer.build(Layer.fresh(SqlStore.layer)))
          expect(yield* sql`select id from maestro.migrations order by id`).toHaveLength(9)
        }).pipe(Effect.provide(Layer.fresh(database))),
      120_000
    )
  })
}

it.scopedLive("two nodes that start on a store without versions at the same time migrate it once", () =>
  Effect.gen(function* () {
    yield* written
    yield* Effect.all(
      [1, 2, 3].map(() => Layer.build(Layer.fresh(SqlStore.layer))),
      { concurrency: "unbounded" }
    )
    const sql = yield* SqlClient.SqlClient
    expect(yield* sql`select id from maestro.migrations`).toHaveLength(9)
  }).pipe(Effect.provide(layerEmptyPg()))
)

it.scopedLive("a layer that may not migrate fails on a store without versions, and says what to run", () =>
  Effect.gen(function* () {
    yield* written
    const error = yield* Effect.flip(Layer.build(SqlStore.layerWith({ migrate: false })))
    expect(error).toMatchObject({ reason: "Misconfigured" })
    expect(error.description).toContain("SqlStore.migrate")
    yield* SqlStore.migrate()
    yield* Layer.build(SqlStore.layerWith({ migrate: false }))
  }).pipe(Effect.provide(layerEmptyPg()))
)
