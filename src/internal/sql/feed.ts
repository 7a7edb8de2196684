/**
 * The feed of the SQL store: all events in an order that does not change, though transactions commit in any order.
 * `SqlStore.layer` makes it. A log may have a counter for its order (`feedCounter.ts`); the rest of this page is about the usual order.
 *
 * Positions are assigned before their transaction commits, so the transaction that commits last may have the lowest. A
 * reader that follows positions would skip its events. The order of the feed is therefore `(feed_key, position)`. The
 * key of an event is the highest of
 *
 * - the id of the transaction that wrote it,
 * - the key of the event before it in its stream,
 * - the highest key that its transaction has used before,
 * - if projections handle it on a server, the id of the newest transaction that had ended when they had run.
 *
 * The feed shows only events with a key below the oldest open transaction.
 *
 * - **No event is skipped.** An event that a snapshot can't see was written by a transaction that is open in it, or
 *   that begins later. Its key is therefore not below the oldest open transaction of that snapshot, and the reader's
 *   position is before it.
 * - **Each aggregate keeps its order.** A transaction gets its id at its first write, and may write to a stream long
 *   after transactions with higher ids. The second part of the key accounts for that. Where two keys are equal the
 *   position decides. It rises along a stream, because an event is inserted only when the one before it can be seen,
 *   and gets its position then.
 * - **Each transaction keeps its order**, by the third part: a cause comes before its effect on another aggregate.
 * - **Strong projections keep their order**, by the fourth part. A projection may have waited for a transaction that got
 *   its id later, such as one that frees a unique value. So its events move behind the events of that transaction, by a
 *   new key and new positions, before COMMIT (`place_in_feed` in `functions.ts`). A rebuild then projects them in an
 *   order that succeeds.
 * - **The feed goes on.** Every key is the id of a transaction that has begun, so the oldest open transaction will be
 *   above it.
 *
 * A writer never waits for the feed, and a transaction that is rolled back leaves no gap to wait for. An open
 * transaction holds back the events that are committed after its first write, until it ends (`heldBack.ts`).
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { EventFeedService, Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import { withSpanIfTraced } from "../runtime/tracing.js"
import type { LogTable } from "../store/pageBytes.js"
import { validateFeedRead } from "../store/readOptions.js"
import { validateStreamPosition } from "../store/storedRecord.js"
import { andMatches, isAfter, isShown } from "./feedConditions.js"
import { makeHeadReads } from "./feedHead.js"
import { makePageReader } from "./feedPage.js"
import { type HeadChange, makeHeadWatcher } from "./headWatcher.js"
import { heldBackOf, selectHeldBack } from "./heldBack.js"
import type { Notifications } from "./notifications.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import { execute } from "./pg/execute.js"
import { eventPosition, type PositionRow, positionOf } from "./position.js"
import type { Replica } from "./replica.js"
import { makeReplicaFeed } from "./replicaFeed.js"
import { samplesOf } from "./typeSamples.js"

export const makeSqlFeed = (
  log: LogTable,
  runner: CommandRunner,
  notifications: Notifications,
  pollInterval: number,
  replica?: Replica
): Effect.Effect<EventFeedService, never, Scope.Scope> => {
  const { schema, sql } = log

  /** Runs a statement on a connection of its own, or in the current transaction after a savepoint. */
  const query = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
    execute(sql, { operation, phase: "reading" }, statement)

  const { changeSince, head } = makeHeadReads(log, runner)
  const readPrimary = makePageReader(log, runner, query)

  /**
   * Fails on a log that a repair has to number first: it would look shorter than it is, and a rebuild would make empty tables of it. The first
   * read looks, because a log in use needs no repair later. A server that can't be asked does not keep a replica from answering.
   */
  let isNumbered = false
  const whenNumbered = <A, E>(reading: Effect.Effect<A, E>): Effect.Effect<A, E | StoreError> =>
    Effect.suspend(() => {
      if (isNumbered) return reading
      const looking = Effect.map(head, () => {
        isNumbered = true
      })
      return Effect.zipRight(
        Effect.catchAll(looking, (error) => (error.reason === "Misconfigured" ? Effect.fail(error) : Effect.void)),
        reading
      )
    })

  const replicaFeed = replica && makeReplicaFeed(replica, readPrimary, head)
  const readPage = replicaFeed?.readPage ?? readPrimary

  const pollPrimary = (since: Position | undefined): Effect.Effect<HeadChange, StoreError> =>
    since === undefined
      ? Effect.map(head, (position): HeadChange => ({ head: position, contents: undefined, more: false }))
      : changeSince(since)
  const poll =
    replicaFeed === undefined
      ? pollPrimary
      : (since: Position | undefined) =>
          Effect.map(pollPrimary(since), (change) => {
            replicaFeed.noteHead(change.head)
            return change
          })

  return Effect.map(
    makeHeadWatcher(poll, notifications, pollInterval),
    (watcher): EventFeedService => ({
      read: (options) =>
        Effect.flatMap(validateFeedRead(options), (options) => {
          const signals = watcher.signals()
          return whenNumbered(readPage(options)).pipe(
            Effect.tap(({ more, position }) => {
              if (!more) watcher.endRead(position, signals)
              return Effect.void
            }),
            withSpanIfTraced("EventFeed.read", { attributes: { after: options.after, limit: options.limit } })
          )
        }),
      head: head.pipe(withSpanIfTraced("EventFeed.head", {})),
      count: (options) =>
        Effect.flatMap(validateFeedRead(options), ({ after, filter }) =>
          Effect.map(
            whenNumbered(
              query(
                sql<{ count: string }>`select count(*)::text as count from ${schema}.event_log
              where ${isAfter(log, after)} and ${isShown(log)} ${andMatches(sql, filter)}`
              )
            ),
            ([row]) => Number(row?.count ?? 0)
          )
        ),
      heldBack: (filter) =>
        Effect.flatMap(validateFeedRead({ filter }), (valid) =>
          log.feedOrder === "counter"
            ? Effect.succeedNone
            : Effect.map(whenNumbered(query(selectHeldBack(log, andMatches(sql, valid.filter)))), ([row]) =>
                heldBackOf(row)
              )
        ),
      positionOf: (streamPosition) =>
        Effect.flatMap(validateStreamPosition("EventFeed.positionOf", streamPosition), ({ aggregateId, minSequence }) =>
          Effect.map(
            whenNumbered(
              query(
                sql<PositionRow>`select ${eventPosition(sql)} from ${schema}.event_log
                where aggregate_id = ${aggregateId} and sequence = ${minSequence}`
              )
            ),
            ([row]) => Option.map(Option.fromNullable(row), positionOf)
          )
        ),
      samples: (asked) =>
        Stream.unwrap(
          Effect.map(validateFeedRead({ filter: asked }), ({ filter }) => samplesOf(log, query, filter?.kinds))
        ).pipe(Stream.withSpan("EventFeed.samples")),
      awaitAppend: (after, filter) =>
        Effect.zipRight(validateFeedRead({ after, filter }), watcher.awaitAppend(after, filter))
    })
  )
}

// --- internal ---

const operation = "EventFeed"
