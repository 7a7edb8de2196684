/**
 * The queue of the append batcher. It takes out commits that may share a statement: no two of them, and none that is in flight, concern
 * the same aggregate. Commits about one aggregate leave in the order in which they came.
 */
import type { StoredEvent } from "../../../Event.js"

/** The events of one commit. */
export type Commit = ReadonlyArray<StoredEvent>

/** A commit in the queue. */
export interface QueuedCommit {
  readonly commit: Commit
  /** In characters. */
  readonly size: number
  readonly aggregates: ReadonlyArray<string>
  /** The queue drops a commit that is `Withdrawn`. The batcher changes the state. */
  readonly state: { readonly _tag: string }
}

/** What one statement takes. */
export interface Limits {
  readonly commits: number
  readonly events: number
  readonly size: number
  /** How many commits of the queue are looked at, where many wait for the same aggregates. */
  readonly lookahead: number
}

export class CommitQueue<Entry extends QueuedCommit> {
  // An array, because the buckets of a `Set` that is filled and emptied survive until a full garbage collection.
  private queue: Array<Entry> = []
  private withdrawn = 0
  private readonly inFlightAggregates = new Set<string>()

  get length(): number {
    return this.queue.length
  }

  push(entry: Entry): void {
    this.queue.push(entry)
  }

  /** Takes out the commits of one statement. Their aggregates are in flight until `done`. */
  take(limits: Limits): ReadonlyArray<Entry> {
    const taken: Array<Entry> = []
    const waiting: Array<Entry> = []
    const held = new Set<string>()
    let [seen, events, size] = [0, 0, 0]
    for (const entry of this.queue) {
      if (seen >= limits.lookahead || taken.length >= limits.commits || events >= limits.events || size >= limits.size)
        break
      seen++
      if (entry.state._tag === "Withdrawn") {
        this.withdrawn--
        continue
      }
      if (entry.aggregates.some((id) => this.inFlightAggregates.has(id) || held.has(id))) {
        // Later commits about its aggregates must not overtake it.
        for (const id of entry.aggregates) held.add(id)
        waiting.push(entry)
        continue
      }
      taken.push(entry)
      for (const id of entry.aggregates) this.inFlightAggregates.add(id)
      events += entry.commit.length
      size += entry.size
    }
    this.queue = seen === this.queue.length ? waiting : [...waiting, ...this.queue.slice(seen)]
    return taken
  }

  /** The commit is not in flight any more. */
  done(entry: Entry): void {
    for (const id of entry.aggregates) this.inFlightAggregates.delete(id)
  }

  /** A commit in the queue was withdrawn. The queue drops many of them before their turn, so that they do not fill the memory. */
  dropWithdrawn(): void {
    this.withdrawn++
    if (this.withdrawn > maxWithdrawn && this.withdrawn > this.queue.length / 2) {
      this.queue = this.queue.filter(({ state }) => state._tag !== "Withdrawn")
      this.withdrawn = 0
    }
  }
}

/** Whether a commit has a statement of its own, because it would delay the others and gains nothing by sharing. */
export const isLarge = (commit: Commit, size: number): boolean => commit.length > largeEvents || size > largeSize

export const aggregatesOf = (commit: Commit): ReadonlyArray<string> => {
  const [first] = commit
  return commit.length === 1 && first !== undefined
    ? [first.aggregateId]
    : [...new Set(commit.map(({ aggregateId }) => aggregateId))]
}

// --- internal ---

/** How many withdrawn commits may stay in the queue until they are taken. */
const maxWithdrawn = 64

const largeEvents = 500
const largeSize = 250_000
