/** A handler and a projection have their caller's services and references, wherever the layer was built; the store's own are the layer's. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, type Projection, SqlStore } from "effect-maestro"
import { layerPglite } from "./database.js"

class Said extends Schema.TaggedClass<Said>()("Said", {}) {}

class Tenant extends Context.Reference<Tenant>()("test/callersContext/Tenant", { defaultValue: () => "none" }) {}

class Greeting extends Context.Tag("test/callersContext/Greeting")<Greeting, string>() {}

const seen: Array<string> = []

const look = (where: string) =>
  Effect.map(Effect.all([Tenant, Greeting]), ([tenant, greeting]) => {
    seen.push(`${where}: ${tenant}, ${greeting}`)
  })

const looking: Projection.Projection<never, Greeting> = { name: "looking", project: () => look("project") }

const Talk = Aggregate.make("Talk", {
  state: Schema.Number,
  initialState: 0,
  events: Said,
  commands: Said,
  decide: { Said: (command) => Effect.as(Effect.zipRight(Effect.yieldNow(), look("decide")), [command]) },
  evolve: { Said: (said: number) => said + 1 },
  projections: [looking]
})

const live = Talk.layer.pipe(Layer.provide(Layer.succeed(Greeting, "of the layer")), Layer.provide(MemoryStore.layer))

const asCaller = Talk.evaluate(crypto.randomUUID(), new Said()).pipe(Effect.provideService(Tenant, "caller"))

const expectCaller = (greeting: string) => {
  expect(seen.splice(0)).toEqual([`decide: caller, ${greeting}`, `project: caller, ${greeting}`])
}

it.effect("a reference is the caller's where the layer is built inside of another value", () =>
  Effect.gen(function* () {
    yield* asCaller.pipe(Effect.provide(live), Effect.provideService(Tenant, "main"))
    expectCaller("of the layer")
  })
)

it.live("a reference is the caller's where a runtime provides another value", () =>
  Effect.promise(async () => {
    const runtime = ManagedRuntime.make(Layer.provideMerge(live, Layer.succeed(Tenant, "runtime")))
    await runtime.runPromise(asCaller)
    expectCaller("of the layer")
    await runtime.dispose()
  })
)

it.effect("a service that the caller provides wins over that of the layer", () =>
  Effect.gen(function* () {
    yield* asCaller.pipe(Effect.provideService(Greeting, "of the caller"), Effect.provide(live))
    expectCaller("of the caller")
  })
)

it.scopedLive(
  "the client of SQL is that of the layer, whatever client the caller has",
  () =>
    Effect.gen(function* () {
      const databases: Array<unknown> = []
      const Client = Aggregate.make("Client", {
        state: Schema.Number,
        initialState: 0,
        events: Said,
        commands: Said,
        decide: {
          Said: (command) =>
            Effect.map(Effect.zipRight(Effect.yieldNow(), SqlClient.SqlClient), (sql) => {
              databases.push(sql)
              return [command]
            })
        },
        evolve: { Said: (said: number) => said + 1 }
      })
      const [own, other] = [yield* Layer.build(Layer.fresh(layerPglite)), yield* Layer.build(Layer.fresh(layerPglite))]
      const services = yield* Layer.build(Client.layer.pipe(Layer.provide(SqlStore.layer))).pipe(Effect.provide(own))
      yield* Client.evaluate(crypto.randomUUID(), new Said()).pipe(Effect.provide(services), Effect.provide(other))
      expect(databases).toHaveLength(1)
      expect(databases[0] === Context.get(own, SqlClient.SqlClient)).toBe(true)
    }),
  60_000
)

it.scopedLive(
  "on PGlite timers have their turn while statements follow each other",
  () =>
    Effect.gen(function* () {
      const sql = Context.get(yield* Layer.build(layerPglite), SqlClient.SqlClient)
      const outcome = yield* Effect.timeoutOption(Effect.forever(sql`select 1`), "20 millis")
      expect(outcome._tag).toBe("None")
    }),
  60_000
)
