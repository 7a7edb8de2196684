/**
 * The statements that write: commits, their place in the feed, and snapshots. All values are parameters; the schema's name is an identifier.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { StoredSnapshot } from "../../Snapshot.js"
import { RetryCommand } from "../../StoreError.js"
import type { AppendResult } from "./commit/appendBatcher.js"
import type { Commit } from "./commit/commitQueue.js"
import type { AppendMode, CommitStatements } from "./commit/commitWithStatements.js"
import type { Command } from "./pg/driver.js"
import { checkStillOpen } from "./pg/transaction.js"

/** Makes the statements for one schema. Their texts are put together once, because they are the statements that are sent most. */
export const makeCommitStatements = (
  sql: SqlClient.SqlClient,
  schema: Fragment,
  isEmbedded: boolean
): CommitStatements => {
  const p = ""
  const [text] =
    sql`select ${schema}.commit_events(${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}) as refused`.compile()
  // A function in `from` is called before those of the list.
  const [checked] = sql`${sql.literal(text)} from ${schema}.check_snapshot()`.compile()
  const [place] = sql`${schema}.place_in_feed(${p}, ${p})`.compile()
  const [checkAndPlace] = sql`${schema}.check_constraints(), ${schema}.place_in_feed(${p}, ${p})`.compile()

  const append = (
    commits: ReadonlyArray<Commit>,
    { allOrNothing, checksSnapshot, lockTimeout }: AppendMode
  ): Command => ({
    text: checksSnapshot === true ? checked : text,
    values: [lockTimeout === true ? "100ms" : null, allOrNothing === true, ...columnsOf(commits)]
  })

  return {
    append,
    runAppend: (commits, mode) => {
      const { text, values } = append(commits, mode)
      return Effect.map(sql.unsafe<{ readonly refused: string | null }>(text, values), ([row]) => row?.refused ?? null)
    },
    resultsOf,
    end: (events, { isNested }) => {
      // There transactions exclude each other, so the place is right from the start.
      if (isEmbedded) return undefined
      return {
        text: isNested ? `select ${place}` : `select ${checkStillOpen}, ${checkAndPlace}`,
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

/** The results by the numbers of the commits, from what `commit_events` returned. A commit that was written is left out. */
const resultsOf = (returned: string | null): ReadonlyArray<AppendResult> => {
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
    }
  }
  return [numbers, firsts, aggregateIds, sequences, types, bodies, metadata, timestamps]
}
