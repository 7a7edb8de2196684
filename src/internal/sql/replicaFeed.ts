/**
 * Pages of the feed from the replica, for readers that are behind. `feed.ts` reads pages by it, if the store has a replica.
 *
 * A page of the replica is returned only if events follow it there, and if it ends before a head of the feed that the primary has given.
 *
 * All other pages are read from the primary: the newest events, and what the replica does not have. So no reader waits for the replica, and
 * the end of the feed is that of the primary.
 *
 * **No event is skipped.** A standby knows as open each transaction id up to the highest in the log that it has replayed. It removes an id
 * when it replays the commit or the abort. The lowest open id is `pg_snapshot_xmin`. So an event that a snapshot of the standby can't see was
 * written by a transaction with that id or a higher one, and its key is not below it. The feed shows keys below it only, as on the primary.
 * `feed.ts` says why their order is that of the feed. On a log with a counter a standby replays the commits in the order of the positions.
 *
 * A page of a standby alone would have that order, too. The head of the primary keeps out events that the primary still holds back, because a
 * synchronous standby has not confirmed them: a failover could lose them.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { beginning, order, type Page, type Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { makePageReader, type PageOptions } from "./feedPage.js"
import { execute } from "./pg/execute.js"
import type { Replica } from "./replica.js"
import type { ReadableLog } from "./replicaIdentity.js"

type ReadPage = (options: PageOptions) => Effect.Effect<Page, StoreError>

export interface ReplicaFeed {
  readonly readPage: ReadPage
  /** Notes a head that the primary has given. */
  readonly noteHead: (head: Position) => void
}

export const makeReplicaFeed = (
  replica: Replica,
  readPrimary: ReadPage,
  readHead: Effect.Effect<Position, StoreError>
): ReplicaFeed => {
  /** A head that the primary has given. What is before it does not change. */
  let head = beginning
  /** The last event that the replica had, and until when it is taken for the last one, by `performance.now`. */
  let end: { readonly position: Position; readonly until: number } | undefined
  let reader: { readonly of: ReadableLog; readonly readPage: ReadPage } | undefined

  const readerOf = (of: ReadableLog): ReadPage => {
    if (reader?.of !== of) {
      const { log, runner } = of
      const readPage = makePageReader(log, runner, (statement) =>
        execute(log.sql, { operation: "EventFeed", phase: "reading" }, statement)
      )
      reader = { of, readPage }
    }
    return reader.readPage
  }

  const noteHead = (given: Position): void => {
    head = given
  }

  const isBefore = (position: Position, last: Position): boolean => order(position, last) < 0

  const mayHaveMore = ({ after }: PageOptions): boolean =>
    isBefore(after, head) && (end === undefined || performance.now() >= end.until || isBefore(after, end.position))

  /** A page that more events follow makes the reader one that is behind, so its next pages need a head. */
  const fromPrimary: ReadPage = (options) =>
    Effect.tap(readPrimary(options), ({ more, position }) =>
      more && !isBefore(position, head) ? Effect.ignore(Effect.map(readHead, noteHead)) : Effect.void
    )

  const fromReplica = (options: PageOptions, found: ReadableLog): Effect.Effect<Page, StoreError> =>
    Effect.flatMap(replica.attempt(readerOf(found)(options)), (result) => {
      if (Either.isLeft(result)) return fromPrimary(options)
      const page = result.right
      if (page.more && isBefore(page.position, head)) return Effect.succeed(page)
      if (!page.more) end = { position: page.position, until: performance.now() + pause }
      return fromPrimary(options)
    })

  return {
    noteHead,
    readPage: (options) =>
      whenInTransaction((inside) => {
        if (inside) return readPrimary(options)
        return mayHaveMore(options)
          ? Effect.flatMap(replica.find, (found) =>
              found === undefined ? fromPrimary(options) : fromReplica(options, found)
            )
          : fromPrimary(options)
      })
  }
}

// --- internal ---

/** For how long a reader at the end of the replica reads from the primary, in milliseconds. */
const pause = 1000
