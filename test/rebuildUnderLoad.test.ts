/** Rebuilds while writers are faster than the rebuild, and never stop. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { type Event, type Projection, Rebuild, SqlStore, StoreAdapter, Subscription, Timestamp } from "effect-maestro"
import { inject } from "vitest"
import { layerPg } from "./database.js"
import { eventually, shortly } from "./subscribers.js"

const makeTable = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`create table counts (id text primary key, n int not null)`
)

const onPostgres = () =>
  Layer.effectDiscard(makeTable).pipe(
    Layer.provideMerge(SqlStore.layer),
    Layer.provideMerge(layerPg()),
    Layer.provideMerge(Logger.remove(Logger.defaultLogger))
  )

const inCommit = 5

/** By how many events writers are ahead at first: more than a batch. */
const lead = 100

/** Counts all events of a commit at its last one, so that a commit is cheap. */
const cheap: Projection.Projection.Bound<unknown, SqlClient.SqlClient> = {
  name: "counting",
  of: "all",
  project: ({ aggregateId, sequence }) =>
    sequence % inCommit === 0
      ? Effect.flatMap(
          SqlClient.SqlClient,
          (sql) => sql`insert into counts as c values (${aggregateId}, ${inCommit})
            on conflict (id) do update set n = c.n + excluded.n`
        )
      : Effect.void
}

/** Counts each event by itself, and takes some time in the database. `projected` counts the events, too. */
const makeCostly = () => {
  const projected = { events: 0 }
  const projection: typeof cheap = {
    name: "counting",
    of: "all",
    project: ({ aggregateId }) =>
      Effect.flatMap(SqlClient.SqlClient, (sql) =>
        Effect.tap(
          sql`insert into counts as c select ${aggregateId}, 1 from pg_sleep(0.002)
            on conflict (id) do update set n = c.n + 1`,
          () => {
            projected.events++
          }
        )
      )
  }
  return { projection, projected }
}

const commitTo = (aggregateId: string, first: number, projections: ReadonlyArray<typeof cheap>) =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const events = yield* Effect.forEach(Arr.range(first, first + inCommit - 1), (sequence) =>
      Effect.map(
        now,
        (timestamp): Event.Event => ({
          timestamp,
          aggregateId,
          sequence,
          type: "Counted",
          version: 1,
          body: {},
          metadata: {}
        })
      )
    )
    yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll(events, projections))
  })

/** Writers that commit more events than the rebuild projects, as long as the database lets them. */
const outpacing = (
  projected: { readonly events: number },
  projections: ReadonlyArray<typeof cheap>,
  going: { on: boolean; written: number }
) =>
  Effect.forEach(
    Arr.range(1, 2),
    (writer) =>
      Effect.iterate(1, {
        while: () => going.on,
        body: (first) =>
          going.written > 1.1 * projected.events + lead
            ? Effect.as(shortly, first)
            : Effect.as(
                Effect.tap(commitTo(`writer-${writer}`, first, projections), () => {
                  going.written += inCommit
                }),
                first + inCommit
              )
      }),
    { concurrency: "unbounded", discard: true }
  )

/** Starts the writers, and waits until they are ahead, because otherwise the first attempt to swap is too early. */
const startOutpacing = (...args: Parameters<typeof outpacing>) =>
  Effect.zipLeft(
    Effect.fork(outpacing(...args)),
    eventually(
      Effect.sync(() => args[2].written),
      (written) => written >= lead
    )
  )

const counts = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select id, n from counts order by id`)
const folded = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`select aggregate_id as id, count(*)::int as n from maestro.event_log group by 1 order by 1`
)

/** The cases wait for the database most of their time, each for one of its own. */
const options = { timeout: 240_000, concurrent: true }

it.scopedLive(
  "a rebuild ends while writers that are faster never stop, and reports how long they were held",
  () =>
    Effect.gen(function* () {
      const { projected, projection } = makeCostly()
      const going = { on: true, written: 0 }
      const storm = yield* startOutpacing(projected, [cheap], going)
      const reports: Array<Rebuild.Progress> = []
      const events = yield* Rebuild.run({
        name: "outpaced",
        projections: [projection],
        tables: ["counts"],
        onProgress: (progress) => Effect.sync(() => reports.push(progress))
      })
      expect(storm.unsafePoll()).toBe(null)
      going.on = false
      yield* Fiber.join(storm)
      expect(projected.events).toBeGreaterThanOrEqual(events)
      expect(reports.at(-1)?.longestHoldMillis).toBeGreaterThan(0)
      const sums = yield* Effect.all([counts, folded])
      expect(sums[0]).toEqual(sums[1])
    }).pipe(Effect.provide(onPostgres())),
  options
)

it.scopedLive(
  "a rebuild ends while commits without the projection are faster and never stop",
  () =>
    Effect.gen(function* () {
      const { projected, projection } = makeCostly()
      const going = { on: true, written: 0 }
      const storm = yield* startOutpacing(projected, [], going)
      const events = yield* Rebuild.run({
        name: "outpaced",
        projections: [projection],
        tables: ["counts"]
      })
      expect(storm.unsafePoll()).toBe(null)
      going.on = false
      yield* Fiber.join(storm)
      const [row] = yield* Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql<{ n: number }>`select sum(n)::int as n from counts`
      )
      expect(row?.n).toBe(events)
    }).pipe(Effect.provide(onPostgres())),
  options
)

it.scopedLive(
  "the rebuild of a subscription ends while writers never stop, and the subscription continues behind it",
  () =>
    Effect.gen(function* () {
      const { projected, projection } = makeCostly()
      const going = { on: true, written: 0 }
      const Kept = Subscription.fromProjections("kept", [projection])
      const storm = yield* startOutpacing(projected, [], going)
      yield* Rebuild.run({
        name: "outpaced",
        projections: [projection],
        tables: ["counts"],
        subscription: Kept
      })
      expect(storm.unsafePoll()).toBe(null)
      going.on = false
      yield* Fiber.join(storm)
      const lasts = yield* Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql<{ id: string; last: number }>`select aggregate_id as id, max(sequence) as last
          from maestro.event_log group by 1`
      )
      yield* Effect.forEach(lasts, ({ id, last }) =>
        Subscription.waitFor("kept", { aggregateId: id, sequence: last }, "60 seconds")
      ).pipe(Effect.provide(Kept.layer))
      const [counted, inLog] = yield* Effect.all([counts, folded])
      expect(counted).toEqual(inLog)
    }).pipe(Effect.provide(onPostgres())),
  options
)

// It lets an open transaction hold events back, which a counter does not.
it.scopedLive.skipIf(inject("feedOrder") === "counter")(
  "a projection that does not end in the swap holds writers for maxHold at most, and the swap is tried again",
  () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { projection } = makeCostly()
      const reached = yield* Deferred.make<void>()
      let isStuck = true
      const stuck: typeof projection = {
        ...projection,
        project: (event) => {
          if (event.aggregateId !== "tail" || !isStuck) return projection.project(event)
          isStuck = false
          return Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never)
        }
      }
      yield* commitTo("first", 1, [cheap])
      const begun = yield* Deferred.make<void>()
      const end = yield* Deferred.make<void>()
      // The feed does not show the next events as long as this transaction is open, so they are left for the swap.
      const holding = yield* sql`select pg_current_xact_id()`.pipe(
        Effect.zipRight(Deferred.succeed(begun, undefined)),
        Effect.zipRight(Deferred.await(end)),
        sql.withTransaction,
        Effect.fork
      )
      yield* Deferred.await(begun)
      yield* commitTo("tail", 1, [cheap])
      const running = yield* Effect.fork(
        Rebuild.run({ name: "stuck", projections: [stuck], tables: ["counts"], maxHold: "500 millis" })
      )
      yield* Deferred.await(reached)
      yield* commitTo("tail", 1 + inCommit, [cheap])
      expect(yield* Fiber.join(running)).toBe(3 * inCommit)
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.join(holding)
      const [counted, inLog] = yield* Effect.all([counts, folded])
      expect(counted).toEqual(inLog)
    }).pipe(Effect.provide(onPostgres())),
  options
)

it.scopedLive("a maxHold of less than 100 ms or more than a minute is refused", () =>
  Effect.gen(function* () {
    for (const maxHold of ["99 millis", "61 seconds", "Infinity", -1] as const) {
      const running = Rebuild.run({
        name: "hold",
        projections: [cheap],
        tables: ["counts"],
        maxHold: maxHold as "1 second"
      })
      expect(yield* Effect.flip(running)).toMatchObject({ _tag: "ValidationError", issues: [{ path: ["maxHold"] }] })
    }
  }).pipe(Effect.provide(onPostgres()))
)
