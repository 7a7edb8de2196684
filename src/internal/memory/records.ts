/**
 * The events and snapshots of the store in memory, and of its open transactions. `MemoryStore` reads and writes them.
 */
import * as Effect from "effect/Effect"
import type { StoredEvent } from "../../Event.js"
import type { StoredSnapshot } from "../../Snapshot.js"
import type { SequenceRange } from "../../StoreAdapter.js"
import { RetryCommand } from "../../StoreError.js"
import type { MemoryLog } from "./feed.js"

/** The committed records, or the records that an open transaction adds to the ones around it. */
export class Records {
  /** Held by the transaction directly inside this one, so that these run one after the other. */
  readonly lock = Effect.unsafeMakeSemaphore(1)
  /** How many transactions hold the lock or wait for it. */
  transactions = 0
  closed = false
  private readonly events = new Map<string, Array<StoredEvent>>()
  /** The events of a transaction in the order in which it wrote them, which is their order in the feed. */
  private readonly written: Array<StoredEvent> = []
  private readonly snapshots = new Map<string, StoredSnapshot>()

  constructor(
    private readonly outer?: Records,
    /** The log of the feed; only the committed records have it. */
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
    // Sequences have no gaps, so the index of an event follows from the first sequence.
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

  /**
   * Ends the transaction: its records move to the ones around it, or are discarded. Fibers that still read in it then
   * see those.
   */
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

/** Adds the events, or returns `duplicate` if all of them are stored already. A conflict changes nothing. */
export const append = (
  records: Records,
  events: ReadonlyArray<StoredEvent>
): Effect.Effect<"appended" | "duplicate", RetryCommand> => {
  if (events.every((event) => records.event(event.aggregateId, event.sequence)?.timestamp === event.timestamp)) {
    return Effect.succeed("duplicate")
  }
  const heads = new Map<string, number>()
  for (const { aggregateId, sequence } of events) {
    if (sequence !== (heads.get(aggregateId) ?? records.head(aggregateId)) + 1) {
      return Effect.fail(new RetryCommand({ aggregateId, sequence }))
    }
    heads.set(aggregateId, sequence)
  }
  for (const event of events) records.push(event)
  return Effect.succeed("appended")
}
