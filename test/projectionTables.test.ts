/** Projections own their tables: one process creates them, and a higher version is built beside those in use. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { MemoryStore, Projection, ProjectionTables, SqlStore, Subscription } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { makeDatabase } from "./database.js"
import {
  amounts,
  balances,
  balancesTwo,
  createOne,
  createTwo,
  Deposited,
  deposit,
  folded,
  leftovers,
  makeAccount,
  nodeAt,
  records
} from "./projectionTables.js"
import { eventually, shortly } from "./subscribers.js"

const One = makeAccount([balances(1)])
const Two = makeAccount([balancesTwo()])

/** Runs the effect on a database of its own, with a node to look at it. */
const onDatabase = <A, E, R>(run: (url: string) => Effect.Effect<A, E, R>) =>
  Effect.scoped(Effect.flatMap(makeDatabase, (url) => Effect.provide(run(url), nodeAt(url))))

const failureOf = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.map(Effect.flip(effect), (error) => `${error}`)

/** The messages that are logged meanwhile. */
const logged = <A, E, R>(effect: Effect.Effect<A, E, R>) => {
  const lines: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => lines.push(`${logLevel.label} ${String(message)}`))
  return Effect.as(Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger)), lines)
}

const quiet = Logger.remove(Logger.defaultLogger)

/** A projection of version 2 that waits before an event of the log, once. */
const waiting = (after: number) =>
  Effect.gen(function* () {
    const reached = yield* Deferred.make<void>()
    const goOn = yield* Deferred.make<void>()
    let events = 0
    const projection = {
      ...balancesTwo(),
      project: (event: Parameters<ReturnType<typeof balancesTwo>["project"]>[0]) =>
        Effect.zipRight(
          Effect.suspend(() =>
            ++events === after
              ? Effect.zipRight(Deferred.succeed(reached, undefined), Deferred.await(goOn))
              : Effect.void
          ),
          balancesTwo().project(event)
        )
    }
    return { account: makeAccount([projection]), goOn, reached, events: () => events }
  })

layer(quiet, { excludeTestServices: true, timeout: 60_000 })("tables of projections, on Postgres", (it) => {
  it.effect("of nodes that start together one creates them, and all have them", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const start = Layer.launch(One.layer.pipe(Layer.provide(ProjectionTables.layer(One.projections))))
        const nodes = yield* Effect.forEach(Arr.range(1, 4), () =>
          Effect.forkScoped(
            Effect.provide(
              Layer.build(One.layer.pipe(Layer.provide(ProjectionTables.layer(One.projections)))),
              nodeAt(url)
            )
          )
        )
        expect(start).toBeDefined()
        yield* Effect.forEach(nodes, Fiber.join)
        yield* Effect.provide(deposit(One, "ann", 5), One.layer)
        expect(yield* amounts).toEqual({ ann: 5 })
        expect(yield* records).toEqual([
          { name: "balances", version: 1, tables: '{"balances":"public.balances"}', subscription: null }
        ])
        const sql = yield* SqlClient.SqlClient
        expect(yield* sql`select indexname from pg_indexes where tablename = 'balances' order by 1`).toHaveLength(2)
      })
    )
  )
})
