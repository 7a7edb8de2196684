/**
 * Commits that wait to leave together: those about one aggregate in their order, and no two of them under way at once.
 */
import type { StoredEvent } from "../../../Event.js"

/** The events of one commit. */
export type Commit = ReadonlyArray<StoredEvent>

/** A commit that waits. */
export interface Waiting {
  readonly commit: Commit
  /** In characters. */
  readonly size: number
  readonly aggregates: ReadonlyArray<string>
  queued: boolean
  /** Nobody waits for it any more. */
  gone: boolean
}

/** What may leave together. */
export interface Limits {
  readonly commits: number
  readonly events: number
  readonly size: number
  /** How far into the queue one looks, where much of it waits for the same aggregates. */
  readonly seen: number
}

export class CommitQueue<Entry extends Waiting> {
  // No `Set`: what one that is added to and taken from all the time leaves behind survives until a full garbage collection.
  private queue: Array<Entry> = []
  private gone = 0
  /** The aggregates that those under way are about. */
  private readonly busy = new Set<string>()

  get length(): number {
    return this.queue.length
  }

  push(entry: Entry): void {
    this.queue.push(entry)
  }

  /** Takes out what may leave together. Its aggregates are busy until it is done. */
  take(limits: Limits): ReadonlyArray<Entry> {
    const taken: Array<Entry> = []
    const passed: Array<Entry> = []
    const held = new Set<string>()
    let [seen, events, size] = [0, 0, 0]
    for (const entry of this.queue) {
      if (seen >= limits.seen || taken.length >= limits.commits || events >= limits.events || size >= limits.size) break
      seen++
      if (entry.gone) {
        this.gone--
        continue
      }
      if (entry.aggregates.some((id) => this.busy.has(id) || held.has(id))) {
        // Those behind it that are about the same aggregates must not overtake it.
        for (const id of entry.aggregates) held.add(id)
        passed.push(entry)
        continue
      }
      taken.push(entry)
      entry.queued = false
      for (const id of entry.aggregates) this.busy.add(id)
      events += entry.commit.length
      size += entry.size
    }
    this.queue = seen === this.queue.length ? passed : [...passed, ...this.queue.slice(seen)]
    return taken
  }

  /** Nothing of it is under way any more. */
  done(entry: Entry): void {
    for (const id of entry.aggregates) this.busy.delete(id)
  }

  /** Nobody waits any more for one that is still here. */
  withdraw(entry: Entry): void {
    entry.gone = true
    this.gone++
    // So that those who give up while nothing leaves do not fill the memory.
    if (this.gone > maxGone && this.gone > this.queue.length / 2) {
      this.queue = this.queue.filter(({ gone }) => !gone)
      this.gone = 0
    }
  }
}

/** Whether a commit is to travel alone: it would keep the others waiting, and gains nothing by company. */
export const isLarge = (commit: Commit, size: number): boolean => commit.length > largeEvents || size > largeSize

export const aggregatesOf = (commit: Commit): ReadonlyArray<string> => {
  const [first] = commit
  return commit.length === 1 && first !== undefined
    ? [first.aggregateId]
    : [...new Set(commit.map(({ aggregateId }) => aggregateId))]
}

// --- internal ---

/** So many that nobody waits for any more may stay in the queue until their turn comes. */
const maxGone = 64

/** From here on a commit travels alone. */
const largeEvents = 500
const largeSize = 250_000
