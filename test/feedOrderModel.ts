/** The oracles of the feed's order: they count, from events alone, the faults of a feed. */
import * as crypto from "node:crypto"
import * as Option from "effect/Option"
import { EventFeed } from "effect-maestro"

/** The place of an event in its stream. */
export interface Place {
  readonly aggregateId: string
  readonly sequence: number
}

export const textOf = ({ aggregateId, sequence }: Place): string => `${aggregateId}/${sequence}`

export const placeOf = (text: string): Place => {
  const slash = text.lastIndexOf("/")
  return { aggregateId: text.slice(0, slash), sequence: Number(text.slice(slash + 1)) }
}

/** How many events do not follow the event before them in their stream: out of order, doubled, or after a gap. */
export const outOfOrder = (events: Iterable<Place>): number => {
  const heads = new Map<string, number>()
  let count = 0
  for (const { aggregateId, sequence } of events) {
    const head = heads.get(aggregateId) ?? 0
    if (sequence !== head + 1) count++
    heads.set(aggregateId, Math.max(head, sequence))
  }
  return count
}

/** How many events have a position that is not higher than the position before it. */
export const notRising = (events: ReadonlyArray<EventFeed.FeedEvent>): number =>
  events.filter(({ position }, index) => {
    const before = events[index - 1]
    return before !== undefined && EventFeed.order(before.position, position) >= 0
  }).length

/** The attempt that wrote an event: from the metadata, or from the command id of a receipt, up to the first bar. */
export const attemptOf = ({ body, metadata }: EventFeed.FeedEvent): string =>
  String(metadata.attempt ?? body.commandId ?? "").split("|")[0] ?? ""

/**
 * How many events are before an event that their attempt wrote earlier. The timestamps of a node rise in the order of
 * writing.
 */
export const effectsBeforeCauses = (events: Iterable<EventFeed.FeedEvent>): number => {
  const last = new Map<string, string>()
  let count = 0
  for (const event of events) {
    const attempt = attemptOf(event)
    if (attempt === "") continue
    const before = last.get(attempt)
    if (before !== undefined && before >= event.timestamp) count++
    else last.set(attempt, event.timestamp)
  }
  return count
}

/** The events after a position, as a reader that begins there must see them. */
export const behind = (
  events: ReadonlyArray<EventFeed.FeedEvent>,
  after: EventFeed.Position
): ReadonlyArray<EventFeed.FeedEvent> => events.filter(({ position }) => EventFeed.order(position, after) > 0)

/** A row that depends on the order of its events: the last amount, and a trail of all of them. */
export interface Book {
  readonly last: number
  readonly sum: number
  readonly count: number
  readonly trail: string
}

export const emptyBook: Book = { last: 0, sum: 0, count: 0, trail: "" }

export const booked = (book: Book, amount: number): Book => ({
  last: amount,
  sum: book.sum + amount,
  count: book.count + 1,
  trail: crypto.createHash("md5").update(`${book.trail}:${amount}`).digest("hex").slice(0, 8)
})

/** The fold of all `Booked` events, stream by stream and in sequence, for any order of the input. */
export const foldBooks = (events: ReadonlyArray<EventFeed.FeedEvent>): Record<string, Book> => {
  const books: Record<string, Book> = {}
  for (const { aggregateId, body } of events
    .filter(({ type }) => type === "Booked")
    .toSorted((a, b) => a.sequence - b.sequence)) {
    books[aggregateId] = booked(books[aggregateId] ?? emptyBook, Number(body.amount))
  }
  return books
}

/** The acknowledged events of an attempt; none where it failed, so that the feed must have none of it. */
export interface Attempt {
  readonly id: string
  readonly written: Option.Option<ReadonlyArray<Place>>
}

/** The faults of the final feed. Each number must be zero. */
export interface Verdict {
  readonly outOfOrder: number
  readonly notRising: number
  readonly effectsBeforeCauses: number
  /** Acknowledged events that the feed does not have. */
  readonly lost: number
  /** Events that the feed has more than once. */
  readonly doubled: number
  /** Events of attempts that failed or were rolled back. */
  readonly ghosts: number
}

export const clean: Verdict = {
  outOfOrder: 0,
  notRising: 0,
  effectsBeforeCauses: 0,
  lost: 0,
  doubled: 0,
  ghosts: 0
}

export const verdictOf = (
  feed: ReadonlyArray<EventFeed.FeedEvent>,
  attempts: ReadonlyArray<Attempt>,
  undone: ReadonlySet<string>
): Verdict => {
  const shown = new Set(feed.map(textOf))
  const failed = new Set([...undone, ...attempts.flatMap(({ id, written }) => (Option.isNone(written) ? [id] : []))])
  return {
    outOfOrder: outOfOrder(feed),
    notRising: notRising(feed),
    effectsBeforeCauses: effectsBeforeCauses(feed),
    lost: attempts.flatMap(({ written }) =>
      Option.getOrElse(written, () => []).filter((place) => !shown.has(textOf(place)))
    ).length,
    doubled: feed.length - shown.size,
    ghosts: feed.filter((event) => failed.has(attemptOf(event))).length
  }
}
