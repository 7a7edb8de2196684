/**
 * The statements that write: commits, their place in the feed, and snapshots. All values are parameters; the schema's name is an identifier.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment, Statement } from "@effect/sql/Statement"
import type { StoredSnapshot } from "../../Snapshot.js"
import { RetryCommand } from "../../StoreError.js"
import type { LogTable } from "../store/pageBytes.js"
import type { AppendResult } from "./commit/appendBatcher.js"
import type { Commit } from "./commit/commitQueue.js"
import { allStored, type CommitStatements, otherIsolation } from "./commit/commitWithStatements.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import type { Rows } from "./pg/driver.js"
import { checkStillOpen } from "./pg/transaction.js"

/** Makes the statements for one schema. Their texts are put together once, because they are the statements that are sent most. */
export const makeCommitStatements = (
  { feedOrder, schema, sql }: LogTable,
  isEmbedded: boolean,
  runner: CommandRunner
): CommitStatements => {
  const prepare = (text: string) => runner.prepare(text)
  const p = ""
  const textOf = (statement: Statement<unknown>): string => statement.compile()[0]
  const text = textOf(
    sql`select ${schema}.commit_events(${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}) as refused`
  )
  const appending = prepare(text)
  // A function in `from` is called before those of the list.
  const checked = prepare(textOf(sql`${sql.literal(text)} from ${schema}.check_snapshot()`))
  const isSerial = feedOrder === "counter"
  const place = textOf(sql`${schema}.place_in_feed(${p}, ${p})`)
  const placing = prepare(`select ${place}`)
  const checkAndPlace = prepare(
    `select ${checkStillOpen}, ${textOf(sql`${schema}.check_constraints(), ${schema}.place_in_feed(${p}, ${p})`)}`
  )
  const checking = prepare(`select ${checkStillOpen}, ${textOf(sql`${schema}.check_constraints()`)}`)
  const [schemaName] = sql`${schema}`.compile()
  const inserts = Array.from({ length: maxInserted }, (_, index) => prepare(insertText(schemaName, index + 1)))
  const insertsOrRaises = Array.from({ length: maxInserted }, (_, index) =>
    prepare(insertOrRaiseText(schemaName, index + 1))
  )

  return {
    isSerial,
    append: (commits, { allOrNothing, checksSnapshot, lockTimeout }) => ({
      ...(checksSnapshot === true ? checked : appending),
      values: [lockTimeout === true ? "100ms" : null, allOrNothing === true, ...columnsOf(commits)]
    }),
    insert: (events, { orRaise }) => {
      // Its snapshot would be taken before the wait for the counter.
      if (isSerial) return undefined
      const [first] = events
      const insert = (orRaise ? insertsOrRaises : inserts)[events.length - 1]
      if (insert === undefined || first === undefined) return undefined
      if (events.some(({ aggregateId }) => aggregateId !== first.aggregateId)) return undefined
      const values: Array<string | null> = [first.aggregateId, String(first.sequence)]
      for (const { body, causationId, correlationId, metadata, timestamp, traceparent, type, version } of events) {
        values.push(type, body, metadata, timestamp, String(version))
        values.push(correlationId ?? null, causationId ?? null, traceparent ?? null)
      }
      values.push(first.follows ?? null)
      return { text: insert.text, name: insert.name, values }
    },
    resultsOf,
    end: (events, { isNested }) => {
      // There transactions exclude each other, so the place is right from the start.
      if (isEmbedded) return undefined
      // A counter has given the place already.
      if (isSerial) return isNested ? undefined : { ...checking, values: [] }
      return {
        ...(isNested ? placing : checkAndPlace),
        values: [events.map(({ aggregateId }) => aggregateId), events.map(({ sequence }) => sequence)]
      }
    }
  }
}

/** Stores a snapshot, unless the stored one has a higher sequence. */
export const upsertSnapshot = (
  sql: SqlClient.SqlClient,
  schema: Fragment,
  { aggregateId, body, metadata, sequence, timestamp }: StoredSnapshot
) =>
  sql`insert into ${schema}.snapshots as s (aggregate_id, sequence, timestamp, body, metadata)
    values (${aggregateId}, ${sequence}, ${timestamp}, ${body}, ${metadata})
    on conflict (aggregate_id) do update
    set sequence = excluded.sequence, timestamp = excluded.timestamp, body = excluded.body, metadata = excluded.metadata
    where s.sequence <= excluded.sequence`

// --- internal ---

/** How many events of one aggregate `insert` takes. */
const maxInserted = 8

/** How many parameters of an insert belong to one event: $3 to $10 to the first. The last parameter is what the first one follows. */
const eventParameters = 8

const insertText = (schema: string, events: number): string =>
  events === 1
    ? insertFirst(schema, events)
    : `with first as (${insertFirst(schema, events)}) ${insertOthers(schema, events - 1)}`

/**
 * Fails if it does not insert all events, or if the isolation is not that of the store's transactions: it casts a text to boolean that is
 * none. It records that the transaction has begun, because more statements follow in the same round trip.
 */
const insertOrRaiseText = (schema: string, events: number): string => {
  const others = events === 1 ? "" : `, others as (${insertOthers(schema, events - 1)})`
  const written = `(select count(*) from first)${events === 1 ? "" : " + (select count(*) from others)"}`
  const timestamps = Array.from({ length: events }, (_, index) => `(${index}, $${6 + eventParameters * index}::uuid)`)
  const stored = `(select count(*) from ${schema}.event_log l join (values ${timestamps.join(", ")}) as e (place, "timestamp")
    on l.aggregate_id = $1 and l.sequence = $2::int + e.place and l."timestamp" = e."timestamp")`
  return `with first as (${insertFirst(schema, events)})${others}
    select set_config('effect_maestro.begun', 'yes', true), (case
      when current_setting('transaction_isolation') <> 'read committed' then 'effect-maestro: ${otherIsolation}'
      when ${written} = ${events} then 'yes'
      when ${stored} = ${events} then 'effect-maestro: ${allStored}'
      else 'effect-maestro: not all of it was written' end)::boolean`
}

/**
 * Inserts the first of so many events, if the one that it follows is stored and it is not.
 *
 * The feed key is right by its default: it is the id of the transaction, which gets it during the insert, after the snapshot of the statement.
 */
const insertFirst = (schema: string, events: number): string =>
  `${insertInto(schema)}
    select $1, $2::int, $3, $4::json, $5::json, $6::uuid, $7::int, $8, $9::uuid, $10
    where $2::int = 1 or ${schema}.has_event($1, $2::int - 1, $${3 + eventParameters * events}::uuid)
    on conflict (aggregate_id, sequence) do nothing returning sequence`

/** The others follow if the first was inserted. Their conflict, which only a stream with a gap can have, fails the statement. */
const insertOthers = (schema: string, events: number): string => {
  const others = Array.from({ length: events }, (_, index) => {
    const parameter = (column: number) => `$${column + eventParameters * (index + 1)}`
    return `(${index + 1}, ${parameter(3)}, ${parameter(4)}::json, ${parameter(5)}::json, ${parameter(6)}::uuid,
      ${parameter(7)}::int, ${parameter(8)}, ${parameter(9)}::uuid, ${parameter(10)})`
  })
  return `${insertInto(schema)}
    select $1, first.sequence + other.place, other.type, other.body, other.metadata, other."timestamp", other.version,
      other.correlation_id, other.causation_id, other.traceparent
    from first, (values ${others.join(", ")})
      as other (place, type, body, metadata, "timestamp", version, correlation_id, causation_id, traceparent)
    order by other.place returning sequence`
}

const insertInto = (schema: string): string =>
  `insert into ${schema}.event_log
    (aggregate_id, sequence, type, body, metadata, "timestamp", version, correlation_id, causation_id, traceparent)`

/** The results by the numbers of the commits, from what `commit_events` returned. A commit that was written is left out. */
const resultsOf = ([row]: Rows): ReadonlyArray<AppendResult> => {
  const returned = row?.[0] ?? null
  if (returned === null) return allAppended
  const results: Array<AppendResult> = []
  const refused: ReadonlyArray<Refused> = JSON.parse(returned)
  for (const [number, isDuplicate, aggregateId, sequence] of refused) {
    results[number] = isDuplicate ? "duplicate" : new RetryCommand({ aggregateId, sequence })
  }
  return results
}

const allAppended: ReadonlyArray<AppendResult> = []

/** The commit's number, whether it is a duplicate, and the event that refuses it if not. */
type Refused = readonly [number: number, isDuplicate: boolean, aggregateId: string, sequence: number]

/** The parameters of `commit_events`. */
const columnsOf = (commits: ReadonlyArray<Commit>): ReadonlyArray<unknown> => {
  const numbers: Array<number> = []
  const firsts: Array<boolean> = []
  const aggregateIds: Array<string> = []
  const sequences: Array<number> = []
  const types: Array<string> = []
  const bodies: Array<string> = []
  const metadata: Array<string> = []
  const timestamps: Array<string> = []
  const versions: Array<number> = []
  const correlationIds: Array<string | null> = []
  const causationIds: Array<string | null> = []
  const traceparents: Array<string | null> = []
  const followed: Array<string | null> = []
  for (const [number, events] of commits.entries()) {
    const seen = new Set<string>()
    for (const event of events) {
      numbers.push(number)
      firsts.push(!seen.has(event.aggregateId))
      seen.add(event.aggregateId)
      aggregateIds.push(event.aggregateId)
      sequences.push(event.sequence)
      types.push(event.type)
      bodies.push(event.body)
      metadata.push(event.metadata)
      timestamps.push(event.timestamp)
      versions.push(event.version)
      correlationIds.push(event.correlationId ?? null)
      causationIds.push(event.causationId ?? null)
      traceparents.push(event.traceparent ?? null)
      followed.push(event.follows ?? null)
    }
  }
  return [
    ...[numbers, firsts, aggregateIds, sequences, types, bodies, metadata, timestamps],
    ...[versions, correlationIds, causationIds, traceparents, followed]
  ]
}
