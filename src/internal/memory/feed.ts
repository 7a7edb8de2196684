/**
 * The feed of the store in memory. Commits happen one after the other, so the feed has the order of the commits.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { identityOf, type StoredEvent } from "../../Event.js"
import {
  beginning,
  type EventFeedService,
  type FeedEvent,
  type Page,
  type Position,
  type ReadOptions
} from "../../EventFeed.js"
import type { ValidationError } from "../../StoreError.js"
import { yieldWhenDue } from "../runtime/macrotask.js"
import { maxPageBytes } from "../store/pageBytes.js"
import { type ReadFilter, validateFeedRead } from "../store/readOptions.js"
import { decodeEvent, sizeOf, validateStreamPosition } from "../store/storedRecord.js"
import type { MemoryLog } from "./log.js"

/** The first events of a list that fit into a page, at least one. */
export const pageFrom = (events: ReadonlyArray<StoredEvent>): ReadonlyArray<StoredEvent> => {
  let size = 0
  const end = events.findIndex((event, index) => {
    size += sizeOf([event])
    return index > 0 && size > maxPageBytes
  })
  return end < 0 ? events : events.slice(0, end)
}

export const makeMemoryFeed = (log: MemoryLog): EventFeedService => ({
  read: (options) => Effect.withFiberRuntime((fiber) => yieldWhenDue(fiber, () => readPage(log, options))),
  head: Effect.sync(() => headOf(log)),
  count: (options) =>
    Effect.map(validateFeedRead(options), ({ after, filter }) => {
      const matching = matcher(filter)
      let count = 0
      for (let index = indexAfter(after); index < log.length; index++) {
        const stored = log.at(index)
        if (stored !== undefined && matching(stored)) count++
      }
      return count
    }),
  // Commits happen one after the other, so no open transaction holds back a committed event.
  heldBack: (filter) => Effect.as(validateFeedRead({ filter }), Option.none()),
  positionOf: (place) =>
    Effect.map(validateStreamPosition("EventFeed.positionOf", place), ({ aggregateId, minSequence }) =>
      Option.map(Option.fromNullable(log.indexOf(aggregateId, minSequence)), positionAt)
    ),
  samples: (asked) =>
    Stream.unwrap(
      Effect.map(
        Effect.flatMap(validateFeedRead({ filter: asked }), ({ filter }) =>
          samplesIn(log, matcher(filter && { kinds: filter.kinds }))
        ),
        (indexes) => Stream.filterMap(Stream.fromIterable(indexes), (index) => eventAt(log, index))
      )
    ),
  awaitAppend: (after, filter) =>
    Effect.flatMap(validateFeedRead({ after, filter }), () => Effect.as(log.longerThan(indexAfter(after)), after))
})

/** The event at an index of the log, as the feed shows it. */
export const feedEventAt = (index: number, stored: StoredEvent): FeedEvent => ({
  ...decodeEvent(stored),
  ...identityOf(stored.aggregateId),
  position: positionAt(index)
})

/** The position of the event at an index of the log. */
export const positionAt = (index: number): Position => `1-${index + 1}` as Position

/** The index of the first event after a position. */
export const indexAfter = (position: Position): number => Number(position.split("-")[1])

/** The slice of an aggregate. */
export const sliceOf = (aggregateId: string, of: number): number => hash(aggregateId) % of

// --- internal ---

/** The maximum number of events that one read compares with a filter, so that it takes a bounded time. */
const window = 10_000

const readPage = (log: MemoryLog, options: ReadOptions | undefined): Effect.Effect<Page, ValidationError> =>
  Effect.map(validateFeedRead(options), ({ after, filter, limit }) => {
    const matching = matcher(filter)
    const events: Array<FeedEvent> = []
    let index = indexAfter(after)
    let size = 0
    const end = Math.min(index + window, log.length)
    for (; index < end && events.length < limit; index++) {
      const stored = log.at(index)
      if (stored === undefined || !matching(stored)) continue
      size += sizeOf([stored])
      if (size > maxPageBytes && events.length > 0) break
      events.push(feedEventAt(index, stored))
    }
    return { events, position: index === 0 ? after : positionAt(index - 1), more: index < log.length }
  })

/** The indexes of the first and the last event of each kind, type and version. */
const samplesIn = (log: MemoryLog, matching: (event: StoredEvent) => boolean): Effect.Effect<ReadonlyArray<number>> => {
  const found = new Map<string, { readonly first: number; last: number }>()
  const scan = (from: number): Effect.Effect<void> =>
    Effect.suspend(() => {
      const end = Math.min(from + window, log.length)
      for (let index = from; index < end; index++) {
        const stored = log.at(index)
        if (stored === undefined || !matching(stored)) continue
        // No name has a NUL.
        const key = `${identityOf(stored.aggregateId).kind}\0${stored.type}\0${stored.version}`
        const known = found.get(key)
        if (known === undefined) found.set(key, { first: index, last: index })
        else known.last = index
      }
      // Other fibers run between two windows.
      return end === log.length ? Effect.void : Effect.zipRight(Effect.yieldNow(), scan(end))
    })
  return Effect.map(scan(0), () =>
    [...found.values()].flatMap(({ first, last }) => (first === last ? [first] : [first, last]))
  )
}

const eventAt = (log: MemoryLog, index: number): Option.Option<FeedEvent> =>
  Option.map(Option.fromNullable(log.at(index)), (stored) => feedEventAt(index, stored))

const headOf = (log: MemoryLog): Position => (log.length === 0 ? beginning : positionAt(log.length - 1))

const matcher = (filter: ReadFilter | undefined): ((event: StoredEvent) => boolean) => {
  if (filter === undefined) return () => true
  const { correlationId, kinds, madeBy, slice, types } = filter
  return (event) =>
    (types === undefined || types.includes(event.type)) &&
    (kinds === undefined || kinds.includes(identityOf(event.aggregateId).kind)) &&
    (correlationId === undefined || event.correlationId === correlationId) &&
    (madeBy === undefined || event.timestamp <= madeBy) &&
    (slice === undefined || sliceOf(event.aggregateId, slice.of) === slice.index)
}

/** The 32-bit FNV-1a hash. */
const hash = (text: string): number => {
  let value = 0x811c9dc5
  for (let index = 0; index < text.length; index++) {
    value = Math.imul(value ^ text.charCodeAt(index), 0x01000193)
  }
  return value >>> 0
}
