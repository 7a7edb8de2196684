/**
 * A store in memory whose transactions overlap: no commit waits for another, and conflicts are found when a transaction
 * ends. Its feed orders events by the key that it is made with.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Event, EventFeed, type Snapshot, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { pageFrom, sliceOf } from "../src/internal/memory/feed.js"
import { type ReadFilter, validateFeedRead } from "../src/internal/store/readOptions.js"
import { decodeEvent, validateStreamPosition } from "../src/internal/store/storedRecord.js"

/** A transaction, with the one around it. The outermost one is the committed records. */
export interface Transaction {
  readonly outer: Transaction | undefined
}

/** Observes the transactions of a store. Each ends once, committed or not. */
export interface Observer {
  readonly written: (transaction: Transaction, event: Event.StoredEvent) => void
  readonly committed: (transaction: Transaction) => void
  readonly ended: (transaction: Transaction) => void
}

/** The parts of the key of an event. */
export interface Writing {
  /** The number of its transaction, given at the first write. */
  readonly transaction: number
  /** The key of the event before it in its stream. */
  readonly before: number
  /** The highest key of its transaction so far. */
  readonly highest: number
}

/** How the feed orders and shows events. */
export interface FeedOptions {
  /** Events are ordered by their keys, then by the order in which they were written. */
  readonly key: (writing: Writing) => number
  /** Whether an event is shown only when no open transaction can write an event before it. */
  readonly waits: boolean
}

/** The store with a feed. */
export const makeOverlappingFeed = (
  options: FeedOptions
): { readonly store: Store; readonly feed: EventFeed.EventFeedService } => {
  const log: Array<Entry> = []
  const open = new Map<Transaction, { readonly number: number; highest: number }>()
  const pending = new Map<Transaction, Array<Entry>>()
  const entries = new Map<string, Array<Entry>>()
  let [numbers, positions] = [0, 0]

  const rootOf = (transaction: Transaction): Transaction =>
    transaction.outer?.outer === undefined ? transaction : rootOf(transaction.outer)

  /** The key of the event before this one, if the transaction has written it. */
  const writtenIn = (transaction: Transaction | undefined, event: Event.StoredEvent): number | undefined =>
    transaction === undefined
      ? undefined
      : (pending
          .get(transaction)
          ?.find(
            ({ event: { aggregateId, sequence } }) =>
              aggregateId === event.aggregateId && sequence === event.sequence - 1
          )?.key ?? writtenIn(transaction.outer, event))

  const store = makeOverlapping({
    written: (transaction, event) => {
      const root = rootOf(transaction)
      const own = open.get(root) ?? { number: ++numbers, highest: 0 }
      open.set(root, own)
      const before = writtenIn(transaction, event) ?? entries.get(event.aggregateId)?.[event.sequence - 2]?.key ?? 0
      const key = options.key({ transaction: own.number, before, highest: own.highest })
      own.highest = Math.max(own.highest, key)
      const written = pending.get(transaction) ?? []
      pending.set(transaction, written)
      written.push({ event, key, position: ++positions })
    },
    committed: (transaction) => {
      const written = pending.get(transaction) ?? []
      pending.delete(transaction)
      const { outer } = transaction
      if (outer !== undefined && outer.outer !== undefined) {
        pending.set(outer, [...(pending.get(outer) ?? []), ...written])
        return
      }
      log.push(...written)
      for (const entry of written) {
        const stream = entries.get(entry.event.aggregateId) ?? []
        entries.set(entry.event.aggregateId, stream)
        stream[entry.event.sequence - 1] = entry
      }
    },
    ended: (transaction) => {
      pending.delete(transaction)
      open.delete(transaction)
    }
  })

  /** The number of the oldest open transaction. */
  const oldestOpen = () =>
    options.waits ? Math.min(...[...open.values()].map(({ number }) => number)) : Number.POSITIVE_INFINITY

  /** What the feed shows. */
  const shown = (after: EventFeed.Position, filter?: ReadFilter): ReadonlyArray<Entry> => {
    const oldest = oldestOpen()
    const [afterKey = 0, afterPosition = 0] = after.split("-").map(Number)
    return log
      .filter(
        ({ event, key, position }) =>
          key < oldest && (key > afterKey || (key === afterKey && position > afterPosition)) && matches(event, filter)
      )
      .toSorted((one, other) => one.key - other.key || one.position - other.position)
  }

  const feed: EventFeed.EventFeedService = {
    read: (asked) =>
      Effect.map(validateFeedRead(asked), ({ after, filter, limit }) => {
        const found = shown(after, filter)
        const events = pageFrom(found.slice(0, limit).map(({ event }) => event))
        const page = found.slice(0, events.length)
        const last = found.length > page.length ? page.at(-1) : (shown(after).at(-1) ?? page.at(-1))
        return {
          events: page.map(feedEventOf),
          position: last === undefined ? after : positionOf(last),
          more: found.length > page.length
        }
      }),
    head: Effect.sync(() => {
      const last = shown(EventFeed.beginning).at(-1)
      return last === undefined ? EventFeed.beginning : positionOf(last)
    }),
    count: (asked) => Effect.map(validateFeedRead(asked), ({ after, filter }) => shown(after, filter).length),
    heldBack: (kinds) =>
      Effect.map(validateFeedRead({ filter: kinds }), ({ filter }) => {
        const oldest = oldestOpen()
        const waiting = log.filter(({ event, key }) => key >= oldest && matches(event, filter))
        return waiting.length === 0
          ? Option.none()
          : Option.some({
              events: waiting.length,
              since: Math.min(...waiting.map(({ event }) => Timestamp.toMillis(event.timestamp))),
              transaction: Option.none()
            })
      }),
    positionOf: ({ aggregateId, sequence }) =>
      Effect.map(validateStreamPosition("EventFeed.positionOf", { aggregateId, sequence }), () =>
        Option.map(Option.fromNullable(entries.get(aggregateId)?.[sequence - 1]), positionOf)
      ),
    samples: (asked) =>
      Stream.unwrap(
        Effect.map(validateFeedRead({ filter: asked }), ({ filter }) => {
          const found = new Map<string, EventFeed.FeedEvent>()
          for (const entry of log) {
            if (!matches(entry.event, { kinds: filter?.kinds })) continue
            const event = feedEventOf(entry)
            found.set(JSON.stringify([event.kind, event.type, event.version]), event)
          }
          return Stream.fromIterable(found.values())
        })
      ),
    awaitAppend: (asked, kinds) =>
      Effect.flatMap(validateFeedRead({ after: asked, filter: kinds }), ({ after, filter }) => {
        const wait: Effect.Effect<EventFeed.Position> = Effect.suspend(() =>
          shown(after, filter).length > 0 ? Effect.succeed(after) : Effect.zipRight(macrotask, wait)
        )
        return wait
      })
  }
  return { store, feed }
}

interface Entry {
  readonly event: Event.StoredEvent
  readonly key: number
  readonly position: number
}

const positionOf = ({ key, position }: Entry): EventFeed.Position => `${key}-${position}` as EventFeed.Position

const feedEventOf = (entry: Entry): EventFeed.FeedEvent => ({
  ...decodeEvent(entry.event),
  ...Event.identityOf(entry.event.aggregateId),
  position: positionOf(entry)
})

const matches = (event: Event.StoredEvent, { correlationId, kinds, madeBy, slice, types }: ReadFilter = {}): boolean =>
  (types === undefined || types.includes(event.type)) &&
  (correlationId === undefined || event.correlationId === correlationId) &&
  (madeBy === undefined || event.timestamp <= madeBy) &&
  (kinds === undefined || kinds.includes(Event.identityOf(event.aggregateId).kind)) &&
  (slice === undefined || sliceOf(event.aggregateId, slice.of) === slice.index)

const macrotask = Effect.async<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

// --- the store ---

type Store = StoreAdapter.StoreAdapterService

/** Makes the store. The observer receives the writes and the ends of its transactions. */
export const makeOverlapping = (observer?: Observer): Store => {
  const committed = makeRecords(undefined)
  const Transaction = Context.GenericTag<Records>(`unusualStores/Transaction/${++stores}`)
  const visible = Effect.map(
    Effect.serviceOption(Transaction),
    Option.getOrElse(() => committed)
  )
  const transact = <A, E, R>(
    operation: string,
    body: (records: Records) => Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | StoreError.RetryCommand | StoreError.StoreError, R> =>
    Effect.flatMap(visible, (outer) =>
      Effect.suspend(() => {
        const records = makeRecords(outer)
        return Effect.zipLeft(
          body(records),
          // Synchronous, so that no other fiber runs between the check for conflicts and the write.
          Effect.suspend(() => keep(operation, records, outer, observer))
        ).pipe(Effect.ensuring(Effect.sync(() => close(records, observer))))
      })
    )
  return StoreAdapter.makeEncoded({
    name: "findsConflictsAtTheEnd",
    append: (events) => transact("commitEvents", (records) => append(records, events, observer)),
    appendWith: (events, { project }) =>
      transact("commitAll", (records) =>
        Effect.flatMap(append(records, events, observer), (outcome) =>
          outcome === "duplicate" ? Effect.void : Effect.provideService(project, Transaction, records)
        )
      ),
    putSnapshot: (snapshot) =>
      // A snapshot never conflicts.
      Effect.catchTag(
        transact("commitSnapshot", (records) => Effect.sync(() => putSnapshot(records, snapshot))),
        "RetryCommand",
        Effect.die
      ),
    readEvents: ({ aggregateId, maxSequence, minSequence }) =>
      Effect.map(visible, (records) =>
        streamOf(records, aggregateId).filter(({ sequence }) => sequence >= minSequence && sequence <= maxSequence)
      ),
    readSnapshot: ({ aggregateId, maxSequence, minSequence }) =>
      Effect.map(visible, (records) =>
        Option.filter(
          Option.fromNullable(snapshotOf(records, aggregateId)),
          ({ sequence }) => sequence >= minSequence && sequence <= maxSequence
        )
      )
  })
}

// --- records ---

let stores = 0

/** The committed records, or the records that a transaction adds to the ones around it. */
interface Records {
  readonly events: Map<string, ReadonlyArray<Event.StoredEvent>>
  readonly snapshots: Map<string, Snapshot.StoredSnapshot>
  readonly outer: Records | undefined
  closed: boolean
}

const makeRecords = (outer: Records | undefined): Records => ({
  events: new Map(),
  snapshots: new Map(),
  closed: false,
  outer
})

const streamOf = ({ events, outer }: Records, id: string): ReadonlyArray<Event.StoredEvent> => [
  ...(outer === undefined ? [] : streamOf(outer, id)),
  ...(events.get(id) ?? [])
]

const snapshotOf = ({ outer, snapshots }: Records, id: string): Snapshot.StoredSnapshot | undefined =>
  snapshots.get(id) ?? (outer === undefined ? undefined : snapshotOf(outer, id))

const headOf = ({ events, outer }: Records, id: string): number =>
  events.get(id)?.at(-1)?.sequence ?? (outer === undefined ? 0 : headOf(outer, id))

const eventOf = ({ events, outer }: Records, id: string, sequence: number): Event.StoredEvent | undefined => {
  const own = events.get(id)
  const first = own?.[0]?.sequence ?? sequence + 1
  return sequence >= first ? own?.[sequence - first] : outer === undefined ? undefined : eventOf(outer, id, sequence)
}

const followsHead = (records: Records, { aggregateId, follows, sequence }: Event.StoredEvent): boolean =>
  sequence === headOf(records, aggregateId) + 1 &&
  (follows === undefined || eventOf(records, aggregateId, sequence - 1)?.timestamp === follows)

const append = (records: Records, events: ReadonlyArray<Event.StoredEvent>, observer: Observer | undefined) =>
  Effect.suspend(() => {
    const isStored = ({ aggregateId, sequence, timestamp }: Event.StoredEvent) =>
      eventOf(records, aggregateId, sequence)?.timestamp === timestamp
    if (events.every(isStored)) return Effect.succeed("duplicate" as const)
    for (const { aggregateId, events: added } of byAggregate(events)) {
      const [first] = added
      if (first !== undefined && !followsHead(records, first)) {
        return Effect.fail(new StoreError.RetryCommand({ aggregateId, sequence: first.sequence }))
      }
      records.events.set(aggregateId, [...(records.events.get(aggregateId) ?? []), ...added])
    }
    for (const event of events) observer?.written(records, event)
    return Effect.succeed("appended" as const)
  })

const byAggregate = (events: ReadonlyArray<Event.StoredEvent>) => {
  const streams = new Map<string, Array<Event.StoredEvent>>()
  for (const event of events) {
    const stream = streams.get(event.aggregateId)
    if (stream === undefined) streams.set(event.aggregateId, [event])
    else stream.push(event)
  }
  return [...streams].map(([aggregateId, events]) => ({ aggregateId, events }))
}

const putSnapshot = (records: Records, snapshot: Snapshot.StoredSnapshot): void => {
  const stored = snapshotOf(records, snapshot.aggregateId)
  if (stored === undefined || stored.sequence <= snapshot.sequence)
    records.snapshots.set(snapshot.aggregateId, snapshot)
}

const keep = (
  operation: string,
  records: Records,
  outer: Records,
  observer: Observer | undefined
): Effect.Effect<void, StoreError.RetryCommand | StoreError.StoreError> => {
  if (outer.closed) {
    return Effect.fail(new StoreError.StoreError({ reason: "Unknown", operation, description: "it has ended" }))
  }
  const added = [...records.events.values()].flat()
  let isNew = false
  const isKept = ({ aggregateId, sequence, timestamp }: Event.StoredEvent) =>
    eventOf(outer, aggregateId, sequence)?.timestamp === timestamp
  // Another fiber may have stored the same commit meanwhile.
  if (added.length > 0 && !added.every(isKept)) {
    isNew = true
    for (const [aggregateId, stream] of records.events) {
      const [first] = stream
      if (first !== undefined && !followsHead(outer, first)) {
        return Effect.fail(new StoreError.RetryCommand({ aggregateId, sequence: first.sequence }))
      }
    }
    for (const [aggregateId, stream] of records.events) {
      outer.events.set(aggregateId, [...(outer.events.get(aggregateId) ?? []), ...stream])
    }
  }
  for (const snapshot of records.snapshots.values()) putSnapshot(outer, snapshot)
  if (isNew) observer?.committed(records)
  return Effect.void
}

const close = (records: Records, observer: Observer | undefined): void => {
  records.closed = true
  observer?.ended(records)
  records.events.clear()
  records.snapshots.clear()
}
