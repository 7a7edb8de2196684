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
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { StoredEvent } from "./Event.js"
import type { StoredSnapshot } from "./Snapshot.js"
import { makeEncoded, type SequenceRange, StoreAdapter, type StoreAdapterService } from "./StoreAdapter.js"
import { RetryCommand } from "./StoreError.js"

/**
 * Makes an empty store.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make: Effect.Effect<StoreAdapterService> = Effect.sync(() => {
  const committed = new Records()
  // One transaction at a time: whoever commits meanwhile waits for its end, as it would for the row locks of a database.
  const turn = Effect.unsafeMakeSemaphore(1)

  /** The records that this fiber sees: those of the transaction it is in, or else the committed ones. */
  const visible: Effect.Effect<Records> = Effect.map(Effect.serviceOption(MemoryTransaction), (current) =>
    // A transaction of another memory store is none of this one's.
    Option.isSome(current) && current.value.root === committed ? current.value : committed
  )

  /** Writes in one step, when it is this fiber's turn; inside a transaction it has the turn already. */
  const write = <A, E>(f: (records: Records) => Effect.Effect<A, E>): Effect.Effect<A, E> =>
    Effect.flatMap(visible, (records) => (records === committed ? turn.withPermits(1)(f(records)) : f(records)))

  return makeEncoded({
    name: "MemoryStore",
    append: (events) => write((records) => append(records, events)),
    appendWith: (events, project) =>
      Effect.flatMap(visible, (outer) => {
        const transaction = Effect.suspend(() => {
          // Records of its own, which join those around them when it has succeeded.
          const records = new Records(outer)
          return Effect.flatMap(append(records, events), (outcome) =>
            outcome === "stored" ? Effect.void : Effect.provideService(project, MemoryTransaction, records)
          ).pipe(
            // In `onExit`, since between success and this no interruption can come.
            Effect.onExit((exit) => Effect.sync(() => (Exit.isSuccess(exit) ? records.join(outer) : undefined)))
          )
        })
        return outer === committed ? turn.withPermits(1)(transaction) : transaction
      }),
    putSnapshot: (snapshot) =>
      write((records) =>
        Effect.sync(() => {
          const stored = records.snapshot(snapshot.aggregateId)
          if (stored === undefined || stored.sequence < snapshot.sequence) records.putSnapshot(snapshot)
        })
      ),
    readEvents: (range) => Effect.map(visible, (records) => records.read(range)),
    readSnapshot: ({ aggregateId, maxSequence, minSequence }) =>
      Effect.map(visible, (records) =>
        Option.filter(
          Option.fromNullable(records.snapshot(aggregateId)),
          ({ sequence }) => sequence >= minSequence && sequence <= maxSequence
        )
      )
  })
})

/**
 * An empty store in memory, gone with the scope of the layer.
 *
 * @since 0.1.0
 * @category layers
 */
export const layer: Layer.Layer<StoreAdapter> = Layer.effect(StoreAdapter, make)

// --- internal ---

/** The committed records, or what a transaction adds to those around it. */
class Records {
  readonly root: Records
  private readonly events = new Map<string, Array<StoredEvent>>()
  private readonly snapshots = new Map<string, StoredSnapshot>()

  constructor(private readonly outer?: Records) {
    this.root = outer?.root ?? this
  }

  /** The highest sequence of an aggregate; 0 without events. */
  head(aggregateId: string): number {
    return (this.outer?.head(aggregateId) ?? 0) + (this.events.get(aggregateId)?.length ?? 0)
  }

  event(aggregateId: string, sequence: number): StoredEvent | undefined {
    const offset = this.outer?.head(aggregateId) ?? 0
    return sequence > offset
      ? this.events.get(aggregateId)?.[sequence - offset - 1]
      : this.outer?.event(aggregateId, sequence)
  }

  read({ aggregateId, maxSequence, minSequence }: SequenceRange): ReadonlyArray<StoredEvent> {
    const offset = this.outer?.head(aggregateId) ?? 0
    const own = this.events.get(aggregateId) ?? []
    // The event of sequence n stands at index n - 1 of its stream.
    const found = own.slice(Math.max(minSequence - 1 - offset, 0), Math.max(maxSequence - offset, 0))
    return this.outer === undefined ? found : [...this.outer.read({ aggregateId, minSequence, maxSequence }), ...found]
  }

  push(event: StoredEvent): void {
    const stream = this.events.get(event.aggregateId)
    if (stream === undefined) this.events.set(event.aggregateId, [event])
    else stream.push(event)
  }

  snapshot(aggregateId: string): StoredSnapshot | undefined {
    return this.snapshots.get(aggregateId) ?? this.outer?.snapshot(aggregateId)
  }

  putSnapshot(snapshot: StoredSnapshot): void {
    this.snapshots.set(snapshot.aggregateId, snapshot)
  }

  join(outer: Records): void {
    for (const stream of this.events.values()) for (const event of stream) outer.push(event)
    for (const snapshot of this.snapshots.values()) outer.putSnapshot(snapshot)
  }
}

/** The transaction that a fiber is in. */
class MemoryTransaction extends Context.Tag("effect-maestro/MemoryStore/Transaction")<MemoryTransaction, Records>() {}

/** Adds the events, or finds them there already; where they don't fit, nothing is changed. */
const append = (
  records: Records,
  events: ReadonlyArray<StoredEvent>
): Effect.Effect<"written" | "stored", RetryCommand> =>
  Effect.suspend(() => {
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
  })
