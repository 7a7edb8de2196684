/**
 * Measures a few choices on the embedded store, so that their size is seen. `npm run bench` measures a server.
 *
 * `npx tsx examples/performance/main.ts`
 */
import * as Arr from "effect/Array"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, ProjectionTables, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"

class Counted extends Schema.TaggedClass<Counted>()("Counted", {}) {}
class Count extends Schema.TaggedClass<Count>()("Count", {}) {}

const design = {
  state: Schema.Int,
  initialState: 0,
  events: Counted,
  commands: Count,
  decide: { Count: () => Effect.succeed([new Counted()]) },
  evolve: { Counted: (count: number) => count + 1 }
}

const Totals = Projection.makeSql({
  name: "totals",
  tables: { totals: (sql) => sql`create table totals (id text primary key, total int not null)` },
  events: Counted,
  project: {
    Counted: (_, { id }, sql) =>
      sql`insert into totals as t (id, total) values (${id}, 1) on conflict (id) do update set total = t.total + 1`
  }
})

const Counter = Aggregate.make("Counter", design)
/** Its state is not cached, so each command loads all events. */
const Forgetful = Aggregate.make("Forgetful", { ...design, cache: { capacity: 0 } })
/** It loads the latest snapshot, and the events after it. */
const Snapshotting = Aggregate.make("Snapshotting", { ...design, cache: { capacity: 0 }, snapshotEvery: 50 })
/** Its commits have a projection. */
const Projected = Aggregate.make("Projected", { ...design, projections: [Totals] })

/** Prints how many of these a second are done, one after the other or concurrently. */
const measure = <E, R>(
  what: string,
  times: number,
  concurrency: number,
  effect: (index: number) => Effect.Effect<unknown, E, R>
) =>
  Effect.gen(function* () {
    // V8 compiles what runs often, so the first fifty are not measured.
    yield* Effect.forEach(Arr.range(1, 50), effect, { concurrency, discard: true })
    const [took] = yield* Effect.timed(Effect.forEach(Arr.range(1, times), effect, { concurrency, discard: true }))
    yield* Console.log(`${what.padEnd(58)} ${String(Math.round(times / Duration.toSeconds(took))).padStart(6)} /s`)
  })

const onNew = Effect.flatMap(Counter.newId, (id) => Counter.evaluate(id, new Count()))

const program = Effect.gen(function* () {
  yield* measure("new aggregates, 1 client", 150, 1, () => onNew)
  yield* measure("new aggregates, 64 clients", 1500, 64, () => onNew)
  yield* measure("one aggregate, state cached, 1 client", 150, 1, () => Counter.evaluate("a", new Count()))
  yield* measure("one aggregate, state cached, 64 clients", 1500, 64, () => Counter.evaluate("b", new Count()))
  yield* measure("one aggregate, no cache, 200 events", 150, 1, () => Forgetful.evaluate("a", new Count()))
  yield* measure("the same with a snapshot every 50 events", 150, 1, () => Snapshotting.evaluate("a", new Count()))
  yield* measure("with a strong projection, 1 client", 150, 1, (i) => Projected.evaluate(`${i}`, new Count()))
  yield* measure("with a strong projection, 64 clients", 150, 64, (i) => Projected.evaluate(`${i}`, new Count()))
})

const layer = Layer.mergeAll(Counter.layer, Forgetful.layer, Snapshotting.layer, Projected.layer).pipe(
  Layer.provide(ProjectionTables.layer(Projected.projections)),
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(PgliteClient.layerMemory)
)

Effect.runPromise(Effect.provide(program, layer))
