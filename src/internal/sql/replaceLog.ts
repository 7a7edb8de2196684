/**
 * Replaces the event log by a copy with other partitions, or with other positions. `partitionLog.ts` and `repair.ts` call it, in a transaction
 * that has locked the log.
 *
 * - The copy is a new table, and the old one is dropped. So it is done as a whole or not at all, also where the process or the server ends
 *   meanwhile.
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
  selectObstacles,
  selectPrivileges
} from "./logDefinition.js"
import { createPartitions, numberPositions, numbersOf, partitionedBy, relation } from "./logPartitions.js"
import { differencesBetween } from "./tableDefinition.js"

/** The new log. */
export interface Replacement {
  readonly sql: SqlClient.SqlClient
  readonly name: string
  readonly schema: Fragment
  readonly feedOrder: FeedOrder
  readonly operation: string
  readonly partitions: number
  /** Selects the events with the columns of the log in their order. They should be in the order in which they were written (`typeSamples.ts`). */
  readonly events: Fragment
}

/** Replaces the log. Fails with `Misconfigured` where the new log would lack something or have something new, and where something is in the way. */
export const replaceLog = (replacement: Replacement): Effect.Effect<void, StoreError> =>
  Effect.zipRight(rehearse(replacement), copyLog(replacement, replacement.events))

/** Whether a transaction sees what others commit meanwhile. The copy of another one would lack the events since its snapshot. */
export const isReadCommitted = (sql: SqlClient.SqlClient): Effect.Effect<boolean, SqlError> =>
  Effect.map(
    sql<{ isolation: string }>`select current_setting('transaction_isolation') as isolation`,
    ([row]) => row?.isolation === "read committed"
  )

// --- internal ---

/** Fails with `Misconfigured` where the log or its schema has something that is in the way of the change. */
const runFor =
  (operation: string) =>
  <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
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

/**
 * Fails if the change would fail, or if the new log would lack something or have something new. It makes the change without the events, and
 * compares the definitions of both logs. Then it goes back to a savepoint.
 */
const rehearse = (replacement: Replacement): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { name, operation, partitions, sql } = replacement
    const run = runFor(operation)
    const misconfigured = (description: string) => new StoreError({ reason: "Misconfigured", operation, description })
    const [found] = yield* run(selectObstacles(sql, name, partitions))
    if (found !== undefined) return yield* misconfigured(found.obstacle)
    yield* run(sql`savepoint rehearsal`)
    const before = yield* run(definitionOfLog(sql, name))
    yield* copyLog(replacement, undefined)
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
const copyLog = (replacement: Replacement, events: Fragment | undefined): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { name, operation, partitions, schema, sql } = replacement
    const run = runFor(operation)
    const leaves = numbersOf(partitions).map((number) => `event_log_${number}`)
    const definitions = yield* run(selectDefinitions(sql, name, ["event_log", ...leaves]))
    const privileges = yield* run(selectPrivileges(sql, name, []))
    const [before] = yield* run(selectBefore(replacement))
    const statements = [
      ...copyStatements(replacement, events),
      // It may be a transaction of the caller, which goes on with its own setting.
      sql`select set_config('synchronize_seqscans', ${before?.scans ?? "on"}, true)`,
      ...replaceStatements(replacement),
      ...(before?.last === undefined ? [] : numberAgain(replacement, before.last, before.is_called === true))
    ]
    for (const statement of statements) yield* run(statement)
    yield* runTexts(
      replacement,
      definitions.map(({ statement }) => statement)
    )
    yield* runTexts(replacement, privilegeChanges(privileges, yield* run(selectPrivileges(sql, name, leaves))))
    // Else the planner would know nothing of the new tables until autovacuum has looked at them.
    if (events !== undefined) yield* run(sql`analyze ${schema}.event_log`)
  })

/** Runs statements that the server has put together. A failure has the statement, because the server may not name the object. */
const runTexts = ({ operation, sql }: Replacement, texts: ReadonlyArray<string>) =>
  Effect.forEach(
    texts,
    (statement) =>
      Effect.mapError(
        runFor(operation)(sql.unsafe(statement)),
        (error) => new StoreError({ ...error, description: `${error.description}: ${statement}` })
      ),
    { discard: true }
  )

/** What is set again after the change: a setting of the transaction, and where the sequence of the positions is. A counter needs none. */
const selectBefore = ({ feedOrder, schema, sql }: Replacement) =>
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
const numberAgain = ({ partitions, schema, sql }: Replacement, last: string, isCalled: boolean) => [
  ...(partitions === 1
    ? [sql`alter table ${schema}.event_log alter column position add generated by default as identity`]
    : numberPositions(sql, schema)),
  sql`select setval(${relation(sql, schema, "event_log_position_seq")}, ${last}::bigint, ${isCalled}::boolean)`
]

/** Makes the new table under another name, with all events or none. */
const copyStatements = (
  { partitions, schema, sql }: Replacement,
  events: Fragment | undefined
): ReadonlyArray<Statement<unknown>> => {
  const copy = sql`${schema}.event_log_copy`
  return [
    sql`create table ${copy} (like ${schema}.event_log including all excluding identity excluding indexes excluding statistics)
      ${partitionedBy(sql, partitions)}`,
    ...createPartitions(sql, schema, partitions, "event_log_copy"),
    // Else the default would need the sequence of the old table.
    sql`alter table ${copy} alter column position drop default`,
    // One table has its events in the order in which they were written, so it is read from its beginning.
    sql`set local synchronize_seqscans = off`,
    ...(events === undefined ? [] : [sql`insert into ${copy} ${events}`])
  ]
}

/** Drops the old table with its partitions, its indexes and its sequence, and gives the new one their names. */
const replaceStatements = ({ partitions, schema, sql }: Replacement): ReadonlyArray<Statement<unknown>> => [
  sql`drop table ${schema}.event_log`,
  sql`alter table ${schema}.event_log_copy rename to event_log`,
  ...numbersOf(partitions).map(
    (number) =>
      sql`alter table ${schema}.${sql.literal(`event_log_copy_${number}`)} rename to ${sql.literal(`event_log_${number}`)}`
  )
]
