/**
 * What the SQL store writes: commits and snapshots. Values are parameters, always; the schema's name is an identifier.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { StoredSnapshot } from "../../../Snapshot.js"
import { RetryCommand } from "../../../StoreError.js"
import type { Command } from "../pg/driver.js"
import { checkStillOpen } from "../pg/transaction.js"
import type { AppendResult } from "./appendBatcher.js"
import type { Commit } from "./commitQueue.js"

interface CommitOutcome {
  /** A list of those that were not written, in JSON. */
  readonly refused: string | null
}

/** The commit's place among those sent, whether it was stored before, and the event that refuses it if not. */
type Refused = readonly [place: number, wasStored: boolean, aggregateId: string, sequence: number]

/** What became of the commits by their numbers, from what their statement returned: those not written. */
export const verdictsOf = (returned: string | null): ReadonlyArray<AppendResult> => {
  if (returned === null) return allWritten
  const verdicts: Array<AppendResult> = []
  const refused: ReadonlyArray<Refused> = JSON.parse(returned)
  for (const [place, wasStored, aggregateId, sequence] of refused) {
    verdicts[place] = wasStored ? "stored" : new RetryCommand({ aggregateId, sequence })
  }
  return verdicts
}

const allWritten: ReadonlyArray<AppendResult> = []

/**
 * How commits are stored. With `lockTimeout` the statement waits only 100 ms for a lock of another transaction. With `allOrNothing` it
 * raises where it does not write everything, because more statements are sent along with it. With `checksSnapshot` it fails where a rebuild has
 * swapped tables since the transaction took its snapshot, because projections follow.
 */
export interface AppendMode {
  readonly lockTimeout?: boolean
  readonly allOrNothing?: boolean
  readonly checksSnapshot?: boolean
}

/**
 * Makes the statement that stores commits, each for itself; it answers only of those that were not written. Arrays, since
 * parameters are limited to 65 535.
 */
export const makeInsertCommits = (sql: SqlClient.SqlClient, schema: Statement.Fragment, isEmbedded: boolean) => {
  // Put together once: it is the statement that is sent most. The function's signature tells the types.
  const p = ""
  const [text] =
    sql`select ${schema}.commit_events(${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}, ${p}) as refused`.compile()
  // A function in `from` is called before those of the list.
  const [checked] = sql`${sql.literal(text)} from ${schema}.check_snapshot()`.compile()
  const command = (
    commits: ReadonlyArray<Commit>,
    { allOrNothing, checksSnapshot, lockTimeout }: AppendMode
  ): Command => ({
    text: checksSnapshot === true ? checked : text,
    values: [lockTimeout === true ? "100ms" : null, allOrNothing === true, ...columnsOf(commits)]
  })
  const [placement] = sql`${schema}.place_in_feed(${p}, ${p})`.compile()
  const [placementAtEnd] = sql`${schema}.check_constraints(), ${schema}.place_in_feed(${p}, ${p})`.compile()
  return {
    /**
     * Moves the events of a commit to the end of the feed, after its projections. Returns nothing on the embedded database, where
     * transactions exclude each other.
     */
    placement: (events: Commit, { isLast }: { readonly isLast: boolean }): Command | undefined =>
      isEmbedded
        ? undefined
        : {
            text: isLast ? `${checkStillOpen}, ${placementAtEnd}` : `select ${placement}`,
            values: [events.map(({ aggregateId }) => aggregateId), events.map(({ sequence }) => sequence)]
          },
    command,
    statement: (commits: ReadonlyArray<Commit>, mode: AppendMode) => {
      const { text, values } = command(commits, mode)
      return Effect.map(sql.unsafe<CommitOutcome>(text, values), ([row]) => row?.refused ?? null)
    }
  }
}

/** The parameters of `commit_events`. */
const columnsOf = (commits: ReadonlyArray<Commit>): ReadonlyArray<unknown> => {
  const places: Array<number> = []
  const firsts: Array<boolean> = []
  const aggregateIds: Array<string> = []
  const sequences: Array<number> = []
  const types: Array<string> = []
  const bodies: Array<string> = []
  const metadata: Array<string> = []
  const timestamps: Array<string> = []
  for (const [place, events] of commits.entries()) {
    const seen = new Set<string>()
    for (const event of events) {
      places.push(place)
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
  return [places, firsts, aggregateIds, sequences, types, bodies, metadata, timestamps]
}

export const upsertSnapshot = (sql: SqlClient.SqlClient, schema: Statement.Fragment, snapshot: StoredSnapshot) =>
  sql`insert into ${schema}.snapshots as s (aggregate_id, sequence, timestamp, body, metadata)
    values (${snapshot.aggregateId}, ${snapshot.sequence}, ${snapshot.timestamp}, ${snapshot.body}, ${snapshot.metadata})
    on conflict (aggregate_id) do update
    set sequence = excluded.sequence, timestamp = excluded.timestamp, body = excluded.body, metadata = excluded.metadata
    where s.sequence <= excluded.sequence`
