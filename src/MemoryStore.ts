/**
 * The store in memory: for tests, and the adapter to read first before you write one.
 *
 * It keeps records as JSON text, as a database does. So it loses what JSON loses, and a caller can't change a stored
 * event through an object that it committed or read.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { maxSequence as lastSequence } from "./Event.js"
import { EventFeed } from "./EventFeed.js"
import { makeMemoryFeed, pageFrom } from "./internal/memory/feed.js"
import { MemoryLog } from "./internal/memory/log.js"
import { append, Records } from "./internal/memory/records.js"
import { makeMemorySubscriptions } from "./internal/memory/subscriptions.js"
import { yieldWhenDue } from "./internal/runtime/macrotask.js"
import { decodeEvent, decodeSnapshot } from "./internal/store/storedRecord.js"
import { eventPage } from "./internal/store/streamReader.js"
import {
  type EventPage,
  makeEncoded,
  type SequenceRange,
  StoreAdapter,
  type StoreAdapterService
} from "./StoreAdapter.js"
import { StoreError } from "./StoreError.js"
import { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * Makes an empty store, without the feed.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: Effect.Effect<StoreAdapterService> = Effect.sync(() => makeOn(new MemoryLog()))

/**
 * An empty store in memory with its feed and its subscriptions. It is gone when the scope of the layer closes.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<StoreAdapter | EventFeed | SubscriptionStore> = Layer.effectContext(
  Effect.sync(() => {
    const log = new MemoryLog()
    return Context.make(StoreAdapter, makeOn(log)).pipe(
      Context.add(EventFeed, makeMemoryFeed(log)),
      Context.add(SubscriptionStore, makeMemorySubscriptions(log))
    )
  })
)

// --- internal ---

const makeOn = (log: MemoryLog): StoreAdapterService => {
  const committed = new Records(undefined, log)

  // The transaction of a fiber. Each store has a tag of its own, because a projection of one store may commit to another.
  // If a projection there commits to the first store again, it must find the transaction of the first.
  const Transaction = Context.GenericTag<Records>(`effect-maestro/MemoryStore/Transaction/${++stores}`)

  /** The records of the fiber's transaction, or the committed ones. */
  const recordsOf = (fiber: Fiber.RuntimeFiber<unknown, unknown>): Records =>
    Option.getOrElse(Context.getOption(fiber.currentContext, Transaction), () => committed)

  /**
   * Reads the records that the fiber sees. Without an open transaction these are the committed ones, also in a fiber
   * that a transaction left running.
   */
  const readVisible = <A>(read: (records: Records) => A): Effect.Effect<A> =>
    Effect.withFiberRuntime((fiber) =>
      yieldWhenDue(fiber, () => Exit.succeed(read(committed.transactions === 0 ? committed : recordsOf(fiber))))
    )

  /**
   * Runs a body that is synchronous, and so needs no records of its own: no other fiber runs between its reads and its
   * writes. It needs a transaction only while another one is open, or inside one.
   */
  const runSync = <A, E>(
    operation: string,
    body: (records: Records) => Effect.Effect<A, E>
  ): Effect.Effect<A, E | StoreError> =>
    Effect.withFiberRuntime((fiber) =>
      yieldWhenDue(fiber, () =>
        committed.transactions === 0 && Option.isNone(Context.getOption(fiber.currentContext, Transaction))
          ? body(committed)
          : transact(operation, body)
      )
    )

  /**
   * Runs the body on records of its own. They move to the records around them when the body succeeds, and are discarded
   * otherwise. No other fiber sees them before.
   */
  const transact = <A, E, R>(
    operation: string,
    body: (records: Records) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | StoreError, R> =>
    Effect.withFiberRuntime((fiber) => yieldWhenDue(fiber, () => transactIn(recordsOf(fiber), operation, body)))

  const transactIn = <A, E, R>(
    outer: Records,
    operation: string,
    body: (records: Records) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | StoreError, R> => {
    const transaction = Effect.suspend(() => {
      const records = new Records(outer)
      return body(records).pipe(
        Effect.tap(() => (outer.closed ? Effect.fail(transactionEnded(operation)) : Effect.void)),
        // In `onExit`, because no interruption can come between the success of the body and its commit.
        Effect.onExit((exit) => Effect.sync(() => records.close(exit._tag === "Success" ? outer : undefined)))
      )
    })
    // One after the other, also the commits of one projection, because a sequence that the body finds free must be
    // free when its records move. Other commits wait meanwhile, as they wait for the row locks of a database.
    return Effect.acquireUseRelease(
      Effect.sync(() => {
        outer.transactions++
      }),
      () => outer.lock.withPermits(1)(transaction),
      () =>
        Effect.sync(() => {
          outer.transactions--
        })
    )
  }

  return makeEncoded({
    name: "MemoryStore",
    append: (events) => runSync("commitEvents", (records) => append(records, events)),
    appendWith: (events, { project }) =>
      transact("commitAll", (records) =>
        Effect.flatMap(append(records, events), (outcome) =>
          outcome === "duplicate" ? Effect.void : Effect.provideService(project, Transaction, records)
        )
      ),
    putSnapshot: (snapshot) =>
      runSync("commitSnapshot", (records) => {
        records.putSnapshot(snapshot)
        return Effect.void
      }),
    readEvents: (range) => readVisible((records) => records.read(range)),
    readSnapshot: ({ aggregateId, maxSequence, minSequence }) =>
      readVisible((records) =>
        Option.filter(
          Option.fromNullable(records.snapshot(aggregateId)),
          ({ sequence }) => sequence >= minSequence && sequence <= maxSequence
        )
      ),
    readStream: {
      exists: (aggregateId) =>
        readVisible((records) => records.read({ aggregateId, minSequence: 1, maxSequence: 1 }).length > 0),
      page: (aggregateId, minSequence, limit) =>
        readVisible((records) => pageOf(records, { aggregateId, minSequence, maxSequence: lastSequence }, limit)),
      fromSnapshot: (aggregateId, maxSequence, limit) =>
        readVisible((records) => {
          const found = records.snapshot(aggregateId)
          const snapshot = found !== undefined && found.sequence <= maxSequence ? found : undefined
          const range = { aggregateId, minSequence: snapshot?.sequence ?? 1, maxSequence }
          return {
            ...pageOf(records, range, limit),
            snapshot: Option.map(Option.fromNullable(snapshot), decodeSnapshot)
          }
        })
    }
  })
}

/** The events within the bounds, up to a limit and to the bytes of a page. */
const pageOf = (records: Records, range: SequenceRange, limit: number): EventPage => {
  const last = Math.min(range.maxSequence, range.minSequence + limit - 1)
  const found = records.read({ ...range, maxSequence: last })
  const page = pageFrom(found)
  const more = page.length < found.length || (found.length === limit && last < range.maxSequence)
  return eventPage(page.map(decodeEvent), more)
}

let stores = 0

/** A commit in a transaction that has ended already would be lost, so it must not succeed. */
const transactionEnded = (operation: string): StoreError =>
  new StoreError({
    reason: "Unknown",
    operation,
    description: "the commit whose projection started this one has ended before it"
  })
