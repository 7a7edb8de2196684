/**
 * The reads of one query that the replica may answer. `SqlStore.ts` adds them to the store, and the queries of aggregates use them.
 *
 * A query is made on the replica until a read fails there, and then on the primary to its end. The primary has all events of the replica, so a
 * state that was begun on the replica can be folded on from the primary, and never the other way.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { ReplicaQuery, SequenceRange } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import { liveSleep, withLiveClock } from "../runtime/clock.js"
import { validateStreamPosition } from "../store/storedRecord.js"
import { executeAlone } from "./pg/execute.js"
import { makeReads, type PortReads } from "./readStream.js"
import { type Replica, unread } from "./replica.js"
import type { ReadableLog } from "./replicaIdentity.js"

/** Finds the reads of a query: on the replica if it gets the events that the query expects in time, else on the primary. */
export const makeReplicaReads = (
  replica: Replica,
  primary: PortReads
): ((query: ReplicaQuery) => Effect.Effect<PortReads, ValidationError>) => {
  let made: { readonly of: ReadableLog; readonly reads: PortReads } | undefined
  const readsOf = (of: ReadableLog): PortReads => {
    if (made?.of !== of) made = { of, reads: makeReads(of.log, of.runner) }
    return made.reads
  }
  return ({ after, maxWait }) =>
    Effect.flatMap(
      // Callers that circumvent the types may give anything.
      Effect.forEach(after, (event) => validateStreamPosition("SqlStore.fromReplica", Object(event))),
      (expected) =>
        Effect.map(
          // For a replica that does not reply. Otherwise `awaitEvents` ends between two statements, so none is cancelled.
          withLiveClock(
            Effect.timeoutTo(Effect.disconnect(awaitEvents(replica, expected, performance.now() + maxWait)), {
              duration: maxWait,
              onSuccess: (found) => found,
              onTimeout: () => undefined
            })
          ),
          (found) => (found === undefined ? primary : readsWhileFound(replica, readsOf(found), primary))
        )
    )
}

// --- internal ---

// In milliseconds.
const firstDelay = 1
const longestDelay = 50

/** Waits until the replica has the events, and returns it. Returns undefined where it may not be read, or the time is over. */
const awaitEvents = (
  replica: Replica,
  expected: ReadonlyArray<SequenceRange>,
  until: number,
  delay = firstDelay
): Effect.Effect<ReadableLog | undefined> =>
  Effect.flatMap(replica.find, (found) => {
    const [event, ...others] = expected
    if (found === undefined || event === undefined) return Effect.succeed(found)
    return Effect.flatMap(replica.attempt(hasEvent(found, event)), (result) => {
      if (Either.isLeft(result)) return unread
      if (result.right) return awaitEvents(replica, others, until)
      if (performance.now() + delay > until) return unread
      return Effect.zipRight(liveSleep(delay), awaitEvents(replica, expected, until, Math.min(delay * 2, longestDelay)))
    })
  })

/** Whether the log has an event. An aggregate without events is at sequence 0. */
const hasEvent = (
  { log: { schema, sql }, runner }: ReadableLog,
  { aggregateId, minSequence }: SequenceRange
): Effect.Effect<boolean, StoreError> => {
  if (minSequence === 0) return Effect.succeed(true)
  const [text] = sql`select '1' from ${schema}.event_log where aggregate_id = ${""} and sequence = ${""}`.compile()
  const command = { ...runner.prepare(text), values: [aggregateId, String(minSequence)] }
  return Effect.map(executeAlone(runner, "getEvents", "reading", command), ({ length }) => length > 0)
}

/** Reads that go to the primary from the moment when the replica may not be read, or a read has failed there. */
const readsWhileFound = (replica: Replica, reads: PortReads, primary: PortReads): PortReads => {
  let isGone = false
  const choose = <A>(read: (from: PortReads) => Effect.Effect<A, StoreError>): Effect.Effect<A, StoreError> => {
    const fromPrimary = Effect.suspend(() => {
      isGone = true
      return read(primary)
    })
    return Effect.suspend(() =>
      isGone
        ? fromPrimary
        : Effect.flatMap(replica.find, (found) =>
            found === undefined
              ? fromPrimary
              : Effect.flatMap(replica.attempt(read(reads)), (result) =>
                  Either.isLeft(result) ? fromPrimary : Effect.succeed(result.right)
                )
          )
    )
  }
  return {
    readEvents: (range) => choose((from) => from.readEvents(range)),
    readSnapshot: (range) => choose((from) => from.readSnapshot(range)),
    readStream: {
      exists: (aggregateId) => choose((from) => from.readStream.exists(aggregateId)),
      page: (...page) => choose((from) => from.readStream.page(...page)),
      fromSnapshot: (...page) => choose((from) => from.readStream.fromSnapshot(...page))
    }
  }
}
