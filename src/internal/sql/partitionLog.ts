/**
 * Changes the number of partitions of an existing event log, in one transaction. `SqlStore.ts` offers it.
 *
 * - It copies the log into a new table, and drops the old one. So it is done as a whole or not at all, also where the process or the
 *   server ends meanwhile.
 * - The log is locked from the beginning. A lock that lets readers in would have to be raised at the end. A transaction that had read the
 *   log and waits to write would then be a deadlock, and the whole copy would be lost.
 * - Statements that wait for the lock find the new table by its name. Their snapshots are taken when they have the lock, so they see the
 *   copied events. `readStream.ts` cares for the statements that read by a function.
 * - What belongs to the log stays (`logDefinition.ts`). A log with a part that can't be carried over is refused before the copy. To know it,
 *   the change is made without the events first, and the definitions of both logs are compared.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment, Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { fromSqlError, serverMessage } from "../runtime/sqlError.js"
import type { FeedOrder } from "../store/pageBytes.js"
import {
  definitionOfLog,
  privilegeChanges,
  selectDefinitions,
  selectDetached,
  selectObstacles,
  selectPrivileges
} from "./logDefinition.js"
import { createPartitions, numberPositions, numbersOf, partitionedBy, relation } from "./logPartitions.js"
import { checkSchema, lockSchema } from "./migrations.js"
import { boundedOutside } from "./pg/execute.js"
import { withTransaction } from "./pg/transaction.js"
import { differencesBetween } from "./tableDefinition.js"

/** Gives the log so many partitions, and returns whether it had another number. */
export const partitionLog = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  partitions: number
): Effect.Effect<boolean, StoreError> =>
  boundedOutside(
    withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        yield* checkIsolation(sql)
        yield* run(lockSchema(sql, name))
        const { feedOrder, partitions: found } = yield* checkSchema(sql, name, schema, {}, operation)
        if (found === undefined)
          return yield* misconfigured(`the schema ${JSON.stringify(name)} has no event log: run SqlStore.migrate`)
        const [detached] = yield* run(selectDetached(sql, name))
        if (detached !== undefined)
          return yield* misconfigured("a partition of the event log is detached: attach it before the change")
        if (found === partitions) return false
        yield* run(sql`lock table ${schema}.event_log in access exclusive mode`)
        const change = { sql, name, schema, feedOrder, found, partitions }
        yield* rehearse(change)
        yield* replaceLog(change, true)
        return true
      })
    )
  ).pipe(Effect.withSpan("SqlStore.partitionLog", { attributes: { schema: name, partitions } }))

// --- internal ---

const operation = "partitionLog"

/** Fails with `Misconfigured` where the log or its schema has something that is in the way of the change. */
const run = <A>(statement: Effect.Effect<A, SqlError>) =>
  Effect.mapError(statement, (error) => {
    const failure = fromSqlError(operation, "writing", error)
    return isInTheWay.test(failure.code ?? "")
      ? new StoreError({
          ...failure,
          reason: "Misconfigured",
          description: `something is in the way of the change of the event log, so remove it before, and create it again afterwards: ${serverMessage(error)}`
        })
      : failure
  })

/** A dependent object, what partitioned tables can't have, and a name that is taken or missing. */
const isInTheWay = /^(2BP01|0A...|42(?!501)...|428..)$/

const misconfigured = (description: string): StoreError =>
  new StoreError({ reason: "Misconfigured", operation, description })

/**
 * Fails in a transaction of the caller above READ COMMITTED. Its snapshot may be older than the lock, and the copy would lack the events that
 * were committed between the two.
 */
const checkIsolation = (sql: SqlClient.SqlClient): Effect.Effect<void, StoreError> =>
  Effect.flatMap(
    run(sql<{ isolation: string }>`select current_setting('transaction_isolation') as isolation`),
    ([row]) =>
      row?.isolation === "read committed"
        ? Effect.void
        : misconfigured("a transaction that changes the event log has to be READ COMMITTED")
  )

interface Change {
  readonly sql: SqlClient.SqlClient
  readonly name: string
  readonly schema: Fragment
  readonly feedOrder: FeedOrder
  /** The number of partitions that the log has. */
  readonly found: number
  readonly partitions: number
}

/**
 * Fails if the change would fail, or if the new log would lack something or have something new. It makes the change without the events, and
 * compares the definitions of both logs. Then it goes back to a savepoint.
 */
const rehearse = (change: Change): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { name, partitions, sql } = change
    const [found] = yield* run(selectObstacles(sql, name, partitions))
    if (found !== undefined) return yield* misconfigured(found.obstacle)
    yield* run(sql`savepoint rehearsal`)
    const before = yield* run(definitionOfLog(sql, name))
    yield* replaceLog(change, false)
    const differences = differencesBetween(before, yield* run(definitionOfLog(sql, name)))
    if (differences.length > 0) {
      return yield* misconfigured(
        `the change of the event log can't keep all that it has: ${differences.join("; ")}. Remove it before the change, and create it again afterwards`
      )
    }
    yield* run(sql`rollback to savepoint rehearsal`)
    yield* run(sql`release savepoint rehearsal`)
  })

/**
 * Copies the log into a new table, which takes its place. The indexes are made after the copy, because this takes less time. In a rehearsal no
 * event is copied.
 */
const replaceLog = (change: Change, withEvents: boolean): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { name, partitions, schema, sql } = change
    const leaves = numbersOf(partitions).map((number) => `event_log_${number}`)
    const definitions = yield* run(selectDefinitions(sql, name, ["event_log", ...leaves]))
    const privileges = yield* run(selectPrivileges(sql, name, []))
    const [before] = yield* run(selectBefore(change))
    const statements = [
      ...copyStatements(change, withEvents),
      // It may be a transaction of the caller, which goes on with its own setting.
      sql`select set_config('synchronize_seqscans', ${before?.scans ?? "on"}, true)`,
      ...replaceStatements(change),
      ...(before?.last === undefined ? [] : numberAgain(change, before.last, before.is_called === true))
    ]
    for (const statement of statements) yield* run(statement)
    yield* runTexts(
      sql,
      definitions.map(({ statement }) => statement)
    )
    yield* runTexts(sql, privilegeChanges(privileges, yield* run(selectPrivileges(sql, name, leaves))))
    // Else the planner would know nothing of the new tables until autovacuum has looked at them.
    if (withEvents) yield* run(sql`analyze ${schema}.event_log`)
  })

/** Runs statements that the server has put together. A failure has the statement, because the server may not name the object. */
const runTexts = (sql: SqlClient.SqlClient, texts: ReadonlyArray<string>) =>
  Effect.forEach(
    texts,
    (statement) =>
      Effect.mapError(
        run(sql.unsafe(statement)),
        (error) => new StoreError({ ...error, description: `${error.description}: ${statement}` })
      ),
    { discard: true }
  )

/** What is set again after the change: a setting of the transaction, and where the sequence of the positions is. A counter needs none. */
const selectBefore = ({ feedOrder, schema, sql }: Change) =>
  feedOrder === "counter"
    ? sql<Before>`select current_setting('synchronize_seqscans') as scans`
    : sql<Before>`select last_value::text as last, is_called,
        current_setting('synchronize_seqscans') as scans from ${schema}.event_log_position_seq`

interface Before {
  readonly scans: string
  readonly last?: string
  readonly is_called?: boolean
}

/** The statements that give the new table a sequence, which goes on where that of the old one was. */
const numberAgain = ({ partitions, schema, sql }: Change, last: string, isCalled: boolean) => [
  ...(partitions === 1
    ? [sql`alter table ${schema}.event_log alter column position add generated by default as identity`]
    : numberPositions(sql, schema)),
  sql`select setval(${relation(sql, schema, "event_log_position_seq")}, ${last}::bigint, ${isCalled}::boolean)`
]

/** Makes the new table under another name, with all events or none. */
const copyStatements = (
  { found, partitions, schema, sql }: Change,
  withEvents: boolean
): ReadonlyArray<Statement<unknown>> => {
  const copy = sql`${schema}.event_log_copy`
  const events = withEvents ? (found === 1 ? sql`` : sql`order by feed_key, position`) : sql`where false`
  return [
    sql`create table ${copy} (like ${schema}.event_log including all excluding identity excluding indexes excluding statistics)
      ${partitionedBy(sql, partitions)}`,
    ...createPartitions(sql, schema, partitions, "event_log_copy"),
    // Else the default would need the sequence of the old table.
    sql`alter table ${copy} alter column position drop default`,
    // The events stay in the order in which they were written, as `typeSamples.ts` expects. One table is in that order, and is read
    // from its beginning.
    sql`set local synchronize_seqscans = off`,
    sql`insert into ${copy} select * from ${schema}.event_log ${events}`
  ]
}

/** Drops the old table with its partitions, its indexes and its sequence, and gives the new one their names. */
const replaceStatements = ({ partitions, schema, sql }: Change): ReadonlyArray<Statement<unknown>> => [
  sql`drop table ${schema}.event_log`,
  sql`alter table ${schema}.event_log_copy rename to event_log`,
  ...numbersOf(partitions).map(
    (number) =>
      sql`alter table ${schema}.${sql.literal(`event_log_copy_${number}`)} rename to ${sql.literal(`event_log_${number}`)}`
  )
]
