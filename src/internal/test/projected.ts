/**
 * Projections of given events, for `project` and its assertions.
 *
 * The store on the embedded Postgres commits the events with the projections, one after the other, in a transaction that
 * is rolled back. So a test sees no table and no row of another one, and tables may have one name in all tests.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Statement } from "@effect/sql/Statement"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Event } from "../../Event.js"
import * as Projection from "../../Projection.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { HybridClock } from "../../Timestamp.js"
import { scoped } from "../runtime/interruption.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { tableStatements } from "../store/declaredTables.js"
import { atCommit } from "../store/runProjections.js"
import { expectSame, isExpected, type Run, showCause, showExpected } from "./assertions.js"
import { checkProjections } from "./checkInput.js"
import { type DatabaseServices, discard, sharedDatabase } from "./database.js"
import { type AssertionFailed, asPromise, failed, impossible, type Section } from "./failure.js"
import { type AnyAggregate, recordGiven, sectionsOf } from "./given.js"
import type { Projected, ProjectedChecks, ProjectOptions } from "./scenarioTypes.js"
import { show } from "./show.js"
import { buildLayers, hybridClock, type Plan, stepClock } from "./world.js"

/** The services of the database that a projection may use. */
export type Database = SqlClient.SqlClient

/** SQL, or statements of the `sql` that the function is given. */
export type Statements = string | ((sql: SqlClient.SqlClient) => Statement<unknown> | ReadonlyArray<Statement<unknown>>)

/** Runs the projections at each assertion. One that says not whose events it handles is of the aggregate. */
export const projecting = <E>(
  plan: Plan,
  aggregate: AnyAggregate,
  projections: Projection.Projection.Any | ReadonlyArray<Projection.Projection.Any>,
  options: ProjectOptions
): Projected<E> => {
  const list = Arr.ensure(projections)
  checkProjections(list)
  const bound = list.map((projection) =>
    projection.of === undefined ? Projection.of(aggregate, projection) : projection
  )
  const test: Test = { plan, projections: bound, options }
  return { ...checksOn<E, Promise<void>>(test, asPromise), effect: checksOn(test, (assertion) => assertion) }
}

// --- internal ---

interface Test {
  readonly plan: Plan
  readonly projections: ReadonlyArray<Projection.Projection.Any>
  readonly options: ProjectOptions
}

const checksOn = <E, Out>(test: Test, run: Run<Out>): ProjectedChecks<E, Out> => {
  const sections = sectionsOfTest(test)
  return {
    thenRows: (query, rows) =>
      run(
        Effect.flatMap(projected(test, query), (exit) =>
          Exit.isSuccess(exit)
            ? expectSame(rows, exit.value, () => ({
                title: "the query returns other rows than expected",
                sections,
                expected: { value: rows, lines: showRows(rows) },
                got: { value: exit.value, lines: showRows(exit.value) }
              }))
            : failed({
                title: "the projection fails",
                sections,
                expected: { value: rows, lines: showRows(rows) },
                got: { value: Cause.squash(exit.cause), lines: showCause(exit.cause) }
              })
        )
      ),
    thenFails: (expected) =>
      run(
        Effect.flatMap(projected(test, undefined), (exit) =>
          Exit.isFailure(exit) && isExpected(expected, exit.cause)
            ? Effect.void
            : failed({
                title: "the projection does not fail as expected",
                sections,
                expected: { value: expected, lines: [showExpected(expected)] },
                got: Exit.isSuccess(exit)
                  ? { value: undefined, lines: ["succeeds"] }
                  : { value: Cause.squash(exit.cause), lines: showCause(exit.cause) }
              })
        )
      )
  }
}

/** The rows of the query after the projections, or their failure. Mistakes of the test itself fail. */
const projected = (
  { options, plan, projections }: Test,
  query: Statements | undefined
): Effect.Effect<Exit.Exit<ReadonlyArray<object>, unknown>, AssertionFailed> =>
  scoped(
    Effect.gen(function* () {
      const sections = sectionsOf(plan.given)
      const hybrid = hybridClock()
      const clock = stepClock(yield* Effect.clock)
      const events = yield* recordGiven(plan.given, hybrid, clock)
      clock.setMillis(plan.millis)
      const database = yield* sharedDatabase
      const context = yield* Effect.mapError(
        buildLayers([plan.layer], Context.add(database, HybridClock, hybrid)),
        (error) => impossible("the layer of the test can't be built", sections, [messageOf(error)])
      )
      const sql = Context.get(database, SqlClient.SqlClient)
      const step = <A>(title: string, effect: Effect.Effect<A, SqlError>) =>
        Effect.mapError(effect, (error) => impossible(title, sections, [messageOf(error.cause ?? error)]))
      return yield* rolledBack(
        database,
        sections,
        Effect.gen(function* () {
          yield* step("the statements of `setup` fail", runStatements(sql, options.setup))
          yield* step("the tables of the projection can't be created", createTables(sql, projections))
          const exit = yield* limited(
            Effect.provide(commitAll(database, events, projections), Context.merge(context, database)),
            sections
          )
          if (Exit.isFailure(exit)) return Exit.failCause(exit.cause)
          return Exit.succeed(yield* step("the query of the assertion fails", runStatements(sql, query)))
        })
      ).pipe(Effect.withClock(clock))
    })
  )

/** The exit of projections, which must end within a time: the transaction is that of one test after the other. */
const limited = <E>(
  projections: Effect.Effect<void, E>,
  sections: ReadonlyArray<Section>
): Effect.Effect<Exit.Exit<void, E>, AssertionFailed> => {
  // A timer of the platform, because the clock of a test may stand still.
  const limit = Effect.async<never, AssertionFailed>((resume) => {
    const problem = [`they have not ended within ${longestMillis / 1000} seconds`]
    const timer = setTimeout(() => resume(impossible("the projections do not end", sections, problem)), longestMillis)
    return Effect.sync(() => clearTimeout(timer))
  })
  return Effect.raceFirst(Effect.disconnect(Effect.exit(projections)), limit)
}

/** Below the time that test runners give to a test by default, so that the test fails by this limit. */
const longestMillis = 4000

/** Runs the effect in a transaction, which is rolled back in each case. SQL of the test that has ended it fails. */
const rolledBack = <A>(
  database: DatabaseServices,
  sections: ReadonlyArray<Section>,
  effect: Effect.Effect<A, AssertionFailed>
): Effect.Effect<A, AssertionFailed> => {
  const sql = Context.get(database, SqlClient.SqlClient)
  const withResult = Effect.gen(function* () {
    const [begun] = yield* sql<{ readonly id: string }>`select pg_current_xact_id()::text as id`
    const exit = yield* Effect.exit(effect)
    // A transaction with a failed statement runs no other one. It has not ended.
    const [current] = yield* Effect.orElseSucceed(
      sql<{ readonly id: string | null }>`select pg_current_xact_id_if_assigned()::text as id`,
      () => [begun]
    )
    if (current?.id === begun?.id) return yield* Effect.fail(new Result(exit))
    yield* discard(database)
    return yield* Effect.fail(
      new Result(Exit.fail(impossible("the SQL of the test ends its transaction", sections, endsIt)))
    )
  })
  return Effect.catchAll(sql.withTransaction(withResult), (error) =>
    error instanceof Result
      ? (error.exit as Exit.Exit<A, AssertionFailed>)
      : impossible("the database of the test kit fails", [], [messageOf(error)])
  )
}

const endsIt = [
  "`setup`, the projection or the query has `commit`, `rollback` or `begin`: leave them out",
  "what was committed is left behind, so the next test starts a new database"
]

/** Leaves the transaction with a result. */
class Result {
  constructor(readonly exit: Exit.Exit<unknown, AssertionFailed>) {}
}

/**
 * Commits event by event, as commands would. Deferred constraints are checked after each, within a savepoint, which
 * restores what is deferred.
 */
const commitAll = (
  database: DatabaseServices,
  events: ReadonlyArray<Event>,
  projections: ReadonlyArray<Projection.Projection.Any>
): Effect.Effect<void, unknown, unknown> => {
  const sql = Context.get(database, SqlClient.SqlClient)
  const store = Context.get(database, StoreAdapter)
  return Effect.forEach(
    events,
    (event) =>
      Effect.zipRight(
        store.commitAll<unknown, unknown>([event], projections),
        Effect.mapError(sql.unsafe(checkConstraints), (error) =>
          atCommit(projections, () => [event], fromSqlError("commitAll", "committing", error))
        )
      ),
    { discard: true }
  )
}

const checkConstraints =
  "savepoint test_kit; set constraints all immediate; rollback to savepoint test_kit; release savepoint test_kit"

const createTables = (
  sql: SqlClient.SqlClient,
  projections: ReadonlyArray<Projection.Projection.Any>
): Effect.Effect<void, SqlError> =>
  Effect.forEach(
    projections.flatMap(({ tables }) => (tables === undefined ? [] : tableStatements(tables, sql))),
    ({ statement }) => statement,
    { discard: true }
  )

/** The rows of the last statement. */
const runStatements = (
  sql: SqlClient.SqlClient,
  statements: Statements | undefined
): Effect.Effect<ReadonlyArray<object>, SqlError> => {
  if (statements === undefined) return Effect.succeed([])
  const made = typeof statements === "string" ? sql.unsafe<object>(statements) : statements(sql)
  const all = (Array.isArray(made) ? made : [made]) as ReadonlyArray<Statement<object>>
  return Effect.map(
    Effect.forEach(all, (statement) => statement),
    (results) => results.at(-1) ?? []
  )
}

const sectionsOfTest = ({ plan, projections }: Test): ReadonlyArray<Section> => [
  ...sectionsOf(plan.given),
  ["projected by", projections.map(({ name }) => name)]
]

const showRows = (rows: ReadonlyArray<object>): ReadonlyArray<string> =>
  rows.length === 0 ? ["(no rows)"] : rows.map(show)

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))
