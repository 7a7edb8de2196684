/**
 * A log of events in memory, in the order in which they were pushed, with the places of each stream in it.
 *
 * `records.ts` keeps the committed events in one, and those of each open transaction in another. The feed and the
 * subscriptions read the log of the committed events.
 */
import * as Effect from "effect/Effect"
import type { StoredEvent } from "../../Event.js"

export class MemoryLog {
  private events: Array<StoredEvent> = []
  /** The indexes of the events of each stream. Sequences have no gaps, so the place of an event follows from the first. */
  private readonly streams = new Map<string, Array<number>>()
  private readonly waiting = new Set<() => void>()

  get length(): number {
    return this.events.length
  }

  at(index: number): StoredEvent | undefined {
    return this.events[index]
  }

  push(event: StoredEvent): void {
    const stream = this.streams.get(event.aggregateId)
    if (stream === undefined) this.streams.set(event.aggregateId, [this.events.length])
    else stream.push(this.events.length)
    this.events.push(event)
    for (const wake of this.waiting) wake()
  }

  /** The last event of a stream. */
  last(aggregateId: string): StoredEvent | undefined {
    const stream = this.streams.get(aggregateId)
    return stream === undefined ? undefined : this.atPlace(stream, stream.length - 1)
  }

  /** The sequence of the first event of a stream, which is 1 in the log of the committed events. */
  firstSequence(aggregateId: string): number | undefined {
    const stream = this.streams.get(aggregateId)
    return stream === undefined ? undefined : this.atPlace(stream, 0)?.sequence
  }

  indexOf(aggregateId: string, sequence: number): number | undefined {
    return this.streams.get(aggregateId)?.[sequence - (this.firstSequence(aggregateId) ?? 1)]
  }

  /** The events of a stream between two sequences, both inclusive. */
  between(aggregateId: string, minSequence: number, maxSequence: number): ReadonlyArray<StoredEvent> {
    const first = this.firstSequence(aggregateId)
    if (first === undefined) return []
    const indexes = this.streams
      .get(aggregateId)
      ?.slice(Math.max(minSequence - first, 0), Math.max(maxSequence - first + 1, 0))
    return (indexes ?? []).flatMap((index) => this.events[index] ?? [])
  }

  all(): ReadonlyArray<StoredEvent> {
    return this.events
  }

  clear(): void {
    this.events = []
    this.streams.clear()
  }

  /** Waits until the log has more events. */
  longerThan(length: number): Effect.Effect<void> {
    return Effect.async((resume) => {
      if (this.events.length > length) return resume(Effect.void)
      const wake = () => {
        this.waiting.delete(wake)
        resume(Effect.void)
      }
      this.waiting.add(wake)
      return Effect.sync(() => this.waiting.delete(wake))
    })
  }

  private atPlace(stream: ReadonlyArray<number>, place: number): StoredEvent | undefined {
    const index = stream[place]
    return index === undefined ? undefined : this.events[index]
  }
}
