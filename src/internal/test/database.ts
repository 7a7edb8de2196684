/**
 * The embedded Postgres on which projections are tested: one for the process, started by the first test that needs it.
 *
 * It is never closed, because another test may need it. The store has no feed, whose fibers would keep the process alive.
 * PGlite itself has a timer, by which a process ends up to ten seconds later. PGlite is an optional dependency, so it is
 * loaded when it is started.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as SqlStore from "../../SqlStore.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { type AssertionFailed, asPromise, impossible } from "./failure.js"

/** The database, and the store on it. */
export type DatabaseServices = Context.Context<SqlClient.SqlClient | StoreAdapter>

/** The database, when it has started. It fails if it does not start within two minutes. */
export const sharedDatabase: Effect.Effect<DatabaseServices, AssertionFailed> = Effect.suspend(() => {
  starting ??= Effect.runPromise(open)
  const started = starting
  return Effect.tryPromise({
    try: () => started,
    catch: (cause) => {
      // The next test tries again.
      if (starting === started) starting = undefined
      return impossible("the embedded Postgres of the test kit did not start", [], [messageOf(cause)])
    }
  })
})

/** Lets the next test start a new database, because this one has what a test has left. */
export const discard = (database: DatabaseServices): Effect.Effect<void> =>
  Effect.promise(async () => {
    if (starting !== undefined && (await starting) === database) starting = undefined
  })

/** Starts the database, unless it has started. */
export const start = (): Promise<void> => asPromise(Effect.asVoid(sharedDatabase))

// --- internal ---

let starting: Promise<DatabaseServices> | undefined

/** Above what PGlite needs on a machine with all processors busy. */
const longestStart = "2 minutes"

const open: Effect.Effect<DatabaseServices, unknown> = Effect.gen(function* () {
  const { layerMemory } = yield* Effect.tryPromise(() => import("../../PgliteClient.js"))
  // The scope of the process.
  const scope = yield* Scope.make()
  const database = yield* Layer.buildWithScope(layerMemory, scope)
  const store = yield* SqlStore.make().pipe(Scope.extend(scope), Effect.provide(database))
  return Context.pick(SqlClient.SqlClient)(database).pipe(Context.add(StoreAdapter, store))
}).pipe(Effect.timeout(longestStart))

const messageOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))
