/**
 * The store in memory: for tests, and the one to read first when writing an adapter.
 *
 * It keeps records as the text that a database would keep, so it can't pass what JSON would lose, and nobody can change a
 * stored event by keeping a hand on it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { maxSequence as lastSequence, type StoredEvent } from "./Event.js"
import { EventFeed } from "./EventFeed.js"
import { MemoryLog, makeMemoryFeed, pageFrom } from "./internal/memory/feed.js"
import { makeMemorySubscriptions } from "./internal/memory/subscriptions.js"
import { yieldWhenDue } from "./internal/runtime/macrotask.js"
import { flatMapSync } from "./internal/runtime/syncEffect.js"
import { withSpanIfTracedIn } from "./internal/runtime/tracing.js"
import { decodeEvent, decodeSnapshot, type Range, validateRange } from "./internal/store/storedRecord.js"
import { provideStreamReader, type Stream, streamOf } from "./internal/store/streamReader.js"
import type { StoredSnapshot } from "./Snapshot.js"
import { makeEncoded, type SequenceRange, StoreAdapter, type StoreAdapterService } from "./StoreAdapter.js"
import { RetryCommand, StoreError, type ValidationError } from "./StoreError.js"
import { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * Makes an empty store, without the feed.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: Effect.Effect<StoreAdapterService> = Effect.sync(() => makeOn(new MemoryLog()))

/**
 * An empty store in memory with its feed, gone with the scope of the layer.
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

  // The transaction that a fiber is in. Told by the store, not by the tag's type alone: a projection here may commit to a second
  // memory store, and a projection there to this one again, which then has to know its own transaction.
  const Transaction = Context.GenericTag<Records>(`effect-maestro/MemoryStore/Transaction/${++stores}`)
  const visible: Effect.Effect<Records> = Effect.map(
    Effect.serviceOption(Transaction),
    Option.getOrElse(() => committed)
  )

  /**
   * A transaction that is over at once, and waits for nobody, needs no records of its own. The body has done its work when it
   * returns: between seeing that nobody is in the way and writing no other fiber may come.
   */
  const atOnce = <A, E>(
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
   * Runs the body on records of its own, which join those around them once it has succeeded; however else it ends they are
   * dropped, and nobody has seen them.
   */
  const transact = <A, E, R>(
    operation: string,
    body: (records: Records) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | StoreError, R> =>
    Effect.flatMap(visible, (outer) => {
      const transaction = Effect.suspend(() => {
        const records = new Records(outer)
        return body(records).pipe(
          Effect.tap(() => (outer.closed ? Effect.fail(transactionEnded(operation)) : Effect.void)),
          // In `onExit`, since between success and this no interruption can come.
          Effect.onExit((exit) => Effect.sync(() => records.close(exit._tag === "Success" ? outer : undefined)))
        )
      })
      // One at a time, those that a projection starts too: what a body finds free must still be free when it joins. Whoever
      // commits meanwhile waits for its end, as it would for the row locks of a database.
      return Effect.acquireUseRelease(
        Effect.sync(() => {
          outer.transactions++
        }),
        () => outer.turn.withPermits(1)(transaction),
        () =>
          Effect.sync(() => {
            outer.transactions--
          })
      )
    })

  const service = makeEncoded({
    name: "MemoryStore",
    append: (events) => atOnce("commitEvents", (records) => append(records, events)),
    appendWith: (events, project) =>
      Effect.withFiberRuntime((fiber) =>
        yieldWhenDue(fiber, () =>
          transact("commitAll", (records) =>
            Effect.flatMap(append(records, events), (outcome) =>
              outcome === "stored" ? Effect.void : Effect.provideService(project, Transaction, records)
            )
          )
        )
      ),
    putSnapshot: (snapshot) =>
      atOnce("commitSnapshot", (records) => {
        records.putSnapshot(snapshot)
        return Effect.void
      }),
    readEvents: (range) =>
      Effect.withFiberRuntime((fiber) =>
        yieldWhenDue(fiber, () => Effect.map(visible, (records) => records.read(range)))
      ),
    readSnapshot: ({ aggregateId, maxSequence, minSequence }) =>
      Effect.map(visible, (records) =>
        Option.filter(
          Option.fromNullable(records.snapshot(aggregateId)),
          ({ sequence }) => sequence >= minSequence && sequence <= maxSequence
        )
      )
  })

  /** One look at a stream, for an aggregate that loads. */
  const look = <A>(
    id: string,
    minSequence: number,
    maxSequence: number,
    at: (records: Records, range: Range) => A
  ): Effect.Effect<A, ValidationError> =>
    Effect.withFiberRuntime((fiber) =>
      yieldWhenDue(fiber, () =>
        flatMapSync(validateRange("getEvents", id, minSequence, { maxSequence }), (range) =>
          withSpanIfTracedIn(
            fiber,
            "MemoryStore.getEvents",
            () => ({ attributes: { "aggregate.id": id } }),
            Effect.succeed(
              at(
                Option.getOrElse(Context.getOption(fiber.currentContext, Transaction), () => committed),
                range
              )
            )
          )
        )
      )
    )

  provideStreamReader(service, {
    events: (id, minSequence, limit) =>
      look(id, minSequence, lastSequence, (records, range) => pageOf(records, range, limit)),
    fromSnapshot: (id, maxSequence, limit) =>
      look(id, 1, maxSequence, (records, range) => {
        const found = records.snapshot(id)
        const snapshot = found !== undefined && found.sequence <= maxSequence ? found : undefined
        return {
          ...pageOf(records, { ...range, minSequence: snapshot?.sequence ?? 1 }, limit),
          snapshot: Option.map(Option.fromNullable(snapshot), decodeSnapshot)
        }
      })
  })
  return service
}

/** The events within the bounds, as many as a page can have, up to a limit. */
const pageOf = (records: Records, range: Range, limit: number): Stream => {
  const last = Math.min(range.maxSequence, range.minSequence + limit - 1)
  const found = records.read({ ...range, maxSequence: last })
  const page = pageFrom(found)
  const more = page.length < found.length || (found.length === limit && last < range.maxSequence)
  return streamOf(page.map(decodeEvent), more)
}

let stores = 0

/** The committed records, or what an open transaction adds to those around it. */
class Records {
  /** One transaction at a time directly inside of this one. */
  readonly turn = Effect.unsafeMakeSemaphore(1)
  /** How many are open there, or wait for their turn. */
  transactions = 0
  closed = false
  private readonly events = new Map<string, Array<StoredEvent>>()
  /** The events of a transaction in the order in which it wrote them: they keep it in the feed. */
  private readonly written: Array<StoredEvent> = []
  private readonly snapshots = new Map<string, StoredSnapshot>()

  constructor(
    private readonly outer?: Records,
    /** Where all that is committed comes to stand in its order. */
    private readonly log?: MemoryLog
  ) {}

  /** The highest sequence of an aggregate; 0 without events. */
  head(aggregateId: string): number {
    return this.events.get(aggregateId)?.at(-1)?.sequence ?? this.outer?.head(aggregateId) ?? 0
  }

  event(aggregateId: string, sequence: number): StoredEvent | undefined {
    const own = this.events.get(aggregateId)
    const first = own?.[0]?.sequence ?? 1
    return own !== undefined && sequence >= first ? own[sequence - first] : this.outer?.event(aggregateId, sequence)
  }

  read(range: SequenceRange): ReadonlyArray<StoredEvent> {
    const own = this.events.get(range.aggregateId) ?? []
    // Sequences have no gaps, so an event's place follows from that of the first.
    const first = own[0]?.sequence ?? 1
    const found = own.slice(Math.max(range.minSequence - first, 0), Math.max(range.maxSequence - first + 1, 0))
    return this.outer === undefined ? found : [...this.outer.read(range), ...found]
  }

  push(event: StoredEvent): void {
    const stream = this.events.get(event.aggregateId)
    if (stream === undefined) this.events.set(event.aggregateId, [event])
    else stream.push(event)
    if (this.outer === undefined) this.log?.push(event)
    else this.written.push(event)
  }

  snapshot(aggregateId: string): StoredSnapshot | undefined {
    return this.snapshots.get(aggregateId) ?? this.outer?.snapshot(aggregateId)
  }

  putSnapshot(snapshot: StoredSnapshot): void {
    const stored = this.snapshot(snapshot.aggregateId)
    if (stored === undefined || stored.sequence <= snapshot.sequence) {
      this.snapshots.set(snapshot.aggregateId, snapshot)
    }
  }

  /** Ends the transaction. Its records join those around it, or are dropped; who still reads in it sees those around it. */
  close(into: Records | undefined): void {
    if (into !== undefined) {
      for (const event of this.written) into.push(event)
      for (const snapshot of this.snapshots.values()) into.putSnapshot(snapshot)
    }
    this.closed = true
    this.events.clear()
    this.written.length = 0
    this.snapshots.clear()
  }
}

/** Adds the events, or finds them there already; where they don't fit, nothing is changed. */
const append = (
  records: Records,
  events: ReadonlyArray<StoredEvent>
): Effect.Effect<"written" | "stored", RetryCommand> => {
  if (events.every((event) => records.event(event.aggregateId, event.sequence)?.timestamp === event.timestamp)) {
    return Effect.succeed("stored")
  }
  const heads = new Map<string, number>()
  for (const { aggregateId, sequence } of events) {
    if (sequence !== (heads.get(aggregateId) ?? records.head(aggregateId)) + 1) {
      return Effect.fail(new RetryCommand({ aggregateId, sequence }))
    }
    heads.set(aggregateId, sequence)
  }
  for (const event of events) records.push(event)
  return Effect.succeed("written")
}

/** Success would be a lie: nobody keeps any more what that transaction gets. */
const transactionEnded = (operation: string): StoreError =>
  new StoreError({
    reason: "Unknown",
    operation,
    description: "the commit whose projection started this one has ended before it"
  })
