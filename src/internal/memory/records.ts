/**
 * The events and snapshots of the store in memory, and of its open transactions. `MemoryStore` reads and writes them.
 */
import * as Effect from "effect/Effect"
import type { StoredEvent } from "../../Event.js"
import type { StoredSnapshot } from "../../Snapshot.js"
import type { SequenceRange } from "../../StoreAdapter.js"
import { RetryCommand } from "../../StoreError.js"
import { MemoryLog } from "./log.js"

/** The committed records, or the records that an open transaction adds to the ones around it. */
export class Records {
  /** Held by the transaction directly inside this one, so that these run one after the other. */
  readonly lock = Effect.unsafeMakeSemaphore(1)
  /** How many transactions hold the lock or wait for it. */
  transactions = 0
  closed = false
  private readonly snapshots = new Map<string, StoredSnapshot>()

  constructor(
    private readonly outer?: Records,
    /** The events, in the order in which they were written, which is their order in the feed. */
    private readonly log: MemoryLog = new MemoryLog()
  ) {}

  /** The highest sequence of an aggregate; 0 without events. */
  head(aggregateId: string): number {
    return this.log.last(aggregateId)?.sequence ?? this.outer?.head(aggregateId) ?? 0
  }

  event(aggregateId: string, sequence: number): StoredEvent | undefined {
    const index = this.log.indexOf(aggregateId, sequence)
    return index === undefined ? this.outer?.event(aggregateId, sequence) : this.log.at(index)
  }

  read(range: SequenceRange): ReadonlyArray<StoredEvent> {
    const found = this.log.between(range.aggregateId, range.minSequence, range.maxSequence)
    return this.outer === undefined ? found : [...this.outer.read(range), ...found]
  }

  push(event: StoredEvent): void {
    this.log.push(event)
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
      for (const event of this.log.all()) into.push(event)
      for (const snapshot of this.snapshots.values()) into.putSnapshot(snapshot)
    }
    this.closed = true
    this.log.clear()
    this.snapshots.clear()
  }
}

/** Adds the events, or returns `duplicate` if all of them are stored already. A conflict changes nothing. */
export const append = (
  records: Records,
  events: ReadonlyArray<StoredEvent>
): Effect.Effect<"appended" | "duplicate", RetryCommand> => {
  const conflict = conflictOf(records, events)
  if (conflict === undefined) {
    for (const event of events) records.push(event)
    return appended
  }
  const { aggregateId, sequence } = conflict
  return events.every((event) => records.event(event.aggregateId, event.sequence)?.timestamp === event.timestamp)
    ? duplicate
    : Effect.fail(new RetryCommand({ aggregateId, sequence }))
}

// --- internal ---

const appended = Effect.succeed("appended" as const)

const duplicate = Effect.succeed("duplicate" as const)

/** The first event that does not follow the head of its stream. */
const conflictOf = (records: Records, events: ReadonlyArray<StoredEvent>): StoredEvent | undefined => {
  const [only, ...others] = events
  // The usual commit has one event, and needs no map of heads.
  if (only !== undefined && others.length === 0) return followsHead(records, only) ? undefined : only
  const heads = new Map<string, number>()
  return events.find((event) => {
    const head = heads.get(event.aggregateId)
    heads.set(event.aggregateId, event.sequence)
    return head === undefined ? !followsHead(records, event) : event.sequence !== head + 1
  })
}

const followsHead = (records: Records, { aggregateId, follows, sequence }: StoredEvent): boolean =>
  sequence === records.head(aggregateId) + 1 &&
  (follows === undefined || records.event(aggregateId, sequence - 1)?.timestamp === follows)
