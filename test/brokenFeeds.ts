/** Feeds with one fault each. The contract must fail for each of them. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import {
  Event,
  EventFeed,
  MemoryStore,
  Projection,
  StoreAdapter,
  type StoreError,
  SubscriptionStore
} from "effect-maestro"
import { makeOverlappingFeed, type Writing } from "./overlappingStore.js"

/** The three ports of a store. */
export interface Ports {
  readonly store: StoreAdapter.StoreAdapterService
  readonly feed: EventFeed.EventFeedService
  readonly subscriptions: SubscriptionStore.SubscriptionStoreService
}

export type Breaking = (ports: Ports) => Ports

/** The ports of a correct store. */
export const memory: Effect.Effect<Ports> = Effect.scoped(
  Effect.map(Layer.build(MemoryStore.layer), (context) => ({
    store: Context.get(context, StoreAdapter.StoreAdapter),
    feed: Context.get(context, EventFeed.EventFeed),
    subscriptions: Context.get(context, SubscriptionStore.SubscriptionStore)
  }))
)

/** A correct feed with overlapping transactions, which keeps the order of streams and of transactions. */
export const overlaps: Breaking = (ports) => ({
  ...ports,
  ...makeOverlappingFeed({ key: highest, waits: true })
})

// --- the feed ---

/** Events are ordered by their transaction alone, which may have begun long before. */
export const ordersByTransactionAlone: Breaking = (ports) => ({
  ...ports,
  ...makeOverlappingFeed({ key: ({ transaction }) => transaction, waits: true })
})

/** Events are ordered by the time of writing, so a reader may have gone on before they are committed. */
export const skipsWhatCommitsLate: Breaking = (ports) => ({
  ...ports,
  ...makeOverlappingFeed({ key: () => 1, waits: false })
})

/** Readers do not wait for open transactions, whose events may come before the ones that they read. */
export const doesNotWaitForOlderTransactions: Breaking = (ports) => ({
  ...ports,
  ...makeOverlappingFeed({ key: highest, waits: false })
})

/** The order of streams is kept, and that of transactions is not. */
export const forgetsTheOrderOfATransaction: Breaking = (ports) => ({
  ...ports,
  ...makeOverlappingFeed({ key: ({ before, transaction }) => Math.max(before, transaction), waits: true })
})

/** The events of a commit are shown while its projections run. */
export const showsUncommittedEvents: Breaking = (ports) => {
  const open = new Set<EventFeed.FeedEvent>()
  const showing: Breaking = ({ feed, store }) => ({
    ...ports,
    store: {
      ...store,
      commitAll: (events, projections) =>
        Effect.suspend(() => {
          let shown: ReadonlyArray<EventFeed.FeedEvent> = []
          const showing: Projection.Projection = {
            name: "showing",
            project: () =>
              Effect.map(Effect.orDie(feed.head), (head) => {
                if (shown.length > 0) return
                shown = events.map((event, index) => feedEvent(event, behind(head, index + 1)))
                for (const one of shown) open.add(one)
              })
          }
          return Effect.ensuring(
            store.commitAll(events, projections.length === 0 ? [] : [showing, ...projections]),
            Effect.sync(() => {
              for (const one of shown) open.delete(one)
            })
          )
        })
    },
    feed: {
      ...feed,
      read: (options) =>
        Effect.map(feed.read(options), (page) => {
          const more = [...open].filter(
            ({ position }) => !page.more && EventFeed.order(position, options?.after ?? EventFeed.beginning) > 0
          )
          return { ...page, events: [...page.events, ...more], position: more.at(-1)?.position ?? page.position }
        })
    }
  })
  return showing(ports)
}

/** The events of a failed commit stay in the feed. */
export const showsWhatWasRolledBack: Breaking = ({ feed, store, ...rest }) => {
  const undone: Array<EventFeed.FeedEvent> = []
  return {
    ...rest,
    store: {
      ...store,
      commitAll: (events, projections) =>
        Effect.onError(store.commitAll(events, projections), () =>
          Effect.map(Effect.orDie(feed.head), (head) => {
            undone.push(...events.map((event, index) => feedEvent(event, behind(head, index + 1))))
          })
        )
    },
    feed: {
      ...feed,
      read: (options) =>
        Effect.map(feed.read(options), (page) => ({
          ...page,
          events: [...page.events, ...undone].toSorted((one, other) => EventFeed.order(one.position, other.position))
        }))
    }
  }
}

/** The feed shows a transaction its own events. */
export const showsATransactionItsOwnEvents: Breaking = ({ feed, store, ...rest }) => ({
  ...rest,
  store: {
    ...store,
    commitAll: (events, projections) =>
      store.commitAll(
        events,
        projections.map(Projection.toEffect).map((projection) => ({
          ...projection,
          project: (event) => Effect.provideService(projection.project(event), Own, events.map(Event.make))
        }))
      )
  },
  feed: {
    ...feed,
    read: (options) =>
      Effect.zipWith(feed.read(options), Own, (page, own) => {
        const shown = own.map((event, index) => feedEvent(event, behind(page.position, index + 1)))
        return { ...page, events: [...page.events, ...shown], position: shown.at(-1)?.position ?? page.position }
      })
  }
})

/** A page begins with the last event of the page before. */
export const showsAnEventTwiceAtPageBorders: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    Effect.map(feed.read(options), (page) => {
      const position = page.more ? page.events.at(-2)?.position : undefined
      return position === undefined ? page : { ...page, position }
    })
}))

/** A page includes the event at the position. */
export const readsFromThePositionOn: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    Effect.gen(function* () {
      const page = yield* feed.read(options)
      const { events } = yield* feed.read({ filter: options?.filter, limit: 10_000 })
      return { ...page, events: [...events.filter(({ position }) => position === options?.after), ...page.events] }
    })
}))

/** A commit's events are sorted by their aggregates. */
export const sortsTheEventsOfACommit: Breaking = ({ store, ...rest }) => ({
  ...rest,
  store: {
    ...store,
    commitEvents: (events) =>
      store.commitEvents(
        Array.isArray(events)
          ? events.toSorted((one, other) => one.aggregateId.localeCompare(other.aggregateId))
          : events
      )
  }
})

/** Texts lose a byte order mark. */
export const losesByteOrderMarks: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    Effect.map(feed.read(options), (page) => ({
      ...page,
      events: page.events.map((event) => ({ ...event, type: event.type.replace(/^\ufeff/, "") }))
    }))
}))

export const ignoresTheCorrelationId: Breaking = withFeed((feed) => {
  const without = <O extends EventFeed.ReadOptions>(options: O | undefined) => ({
    ...options,
    filter: { ...options?.filter, correlationId: undefined }
  })
  return {
    ...feed,
    read: (options) => feed.read(without(options)),
    count: (options) => feed.count(without(options))
  }
})

export const comparesCorrelationIdsLoosely: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) => {
    const correlationId = options?.filter?.correlationId
    return correlationId === undefined
      ? feed.read(options)
      : Effect.map(feed.read({ ...options, filter: { ...options?.filter, correlationId: undefined } }), (page) => ({
          ...page,
          events: page.events.filter((event) => event.correlationId?.toLowerCase() === correlationId.toLowerCase())
        }))
  }
}))
/** Events lose a field. */
const loses = (lost: Partial<EventFeed.FeedEvent>): Breaking =>
  withFeed((feed) => ({
    ...feed,
    read: (options) =>
      Effect.map(feed.read(options), (page) => ({
        ...page,
        events: page.events.map((event) => ({ ...event, ...lost }))
      }))
  }))

export const losesVersions = loses({ version: 1 })
export const losesCorrelationIds = loses({ correlationId: undefined })
export const losesCausationIds = loses({ causationId: undefined })
export const losesTraceparents = loses({ traceparent: undefined })

export const ignoresTheSlice: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) => feed.read({ ...options, filter: { ...options?.filter, slice: undefined } })
}))

/** An event is shown if its type or its kind matches, not both. */
export const takesAnyPartOfTheFilter: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    options?.filter?.types === undefined || options.filter.kinds === undefined
      ? feed.read(options)
      : Effect.map(feed.read({ after: options.after }), (page) => ({
          ...page,
          events: page.events.filter(
            ({ kind, type }) =>
              options.filter?.types?.includes(type) === true || options.filter?.kinds?.includes(kind) === true
          )
        }))
}))

/** An id without a slash is taken for a kind. */
export const takesAnIdForItsKind: Breaking = withKinds((aggregateId) => aggregateId.split("/", 1).join())

/** The kind ends at the last slash. */
export const endsAKindAtTheLastSlash: Breaking = withKinds((aggregateId) =>
  aggregateId.slice(0, Math.max(aggregateId.lastIndexOf("/"), 0))
)

/** Kinds are compared without regard to case and form. */
export const comparesKindsLoosely: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) => {
    const aggregates = options?.filter?.kinds
    return !Array.isArray(aggregates)
      ? feed.read(options)
      : Effect.map(feed.read({ ...options, filter: { ...options?.filter, kinds: undefined } }), (page) => ({
          ...page,
          events: page.events.filter(({ kind }) => aggregates.map(loosely).includes(loosely(kind)))
        }))
  }
}))

/** A page without a matching event is taken for the last. */
export const endsAtAnEmptyPage: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    Effect.gen(function* () {
      if (options?.filter === undefined) return yield* feed.read(options)
      const { more, position } = yield* feed.read({ after: options.after, limit: 1000 })
      const page = yield* feed.read(options)
      const events = page.events.filter((event) => EventFeed.order(event.position, position) <= 0)
      return { events, position, more: more && events.length > 0 }
    }),
  awaitAppend: (after) => feed.awaitAppend(after)
}))

export const hasItsHeadAheadOfWhatItShows: Breaking = withFeed((feed) => ({
  ...feed,
  head: Effect.map(feed.head, (head) => behind(head, 1))
}))

export const countsWhatTheFilterHides: Breaking = withFeed((feed) => ({
  ...feed,
  count: (options) => feed.count({ after: options?.after })
}))

/** The position of a page is that of the last event but one. */
export const findsThePositionOfAnotherEvent: Breaking = withFeed((feed) => ({
  ...feed,
  positionOf: ({ aggregateId, sequence }) => feed.positionOf({ aggregateId, sequence: Math.max(sequence - 1, 1) })
}))

export const countsAThousandAtMost: Breaking = withFeed((feed) => ({
  ...feed,
  count: (options) => Effect.map(feed.count(options), (count) => Math.min(count, 1000))
}))

/** Only the first fifty events of each stream have a position. */
export const findsThePositionsOfFiftyEvents: Breaking = withFeed((feed) => ({
  ...feed,
  positionOf: (place) =>
    Effect.map(
      feed.positionOf(place),
      Option.filter(() => place.sequence <= 50)
    )
}))

/** Pages share one object for each stored event. */
export const sharesTheEventsOfItsPages: Breaking = withFeed((feed) => {
  const read = new Map<string, EventFeed.FeedEvent>()
  const shared = (event: EventFeed.FeedEvent): EventFeed.FeedEvent => {
    const known = read.get(event.timestamp) ?? event
    read.set(event.timestamp, known)
    return known
  }
  return {
    ...feed,
    read: (options) =>
      Effect.map(feed.read(options), (page) => ({ ...page, events: page.events.map((event) => shared(event)) }))
  }
})

/** Events of a page with equal metadata share one object. */
export const sharesTheMetadataOfAPage: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    Effect.map(feed.read(options), (page) => {
      const read = new Map<string, EventFeed.FeedEvent["metadata"]>()
      return {
        ...page,
        events: page.events.map((event) => {
          const text = JSON.stringify(event.metadata)
          const metadata = read.get(text) ?? event.metadata
          read.set(text, metadata)
          return { ...event, metadata }
        })
      }
    })
}))

/** A limit out of its bounds is moved into them. */
export const takesAnyLimit: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    feed.read({
      ...options,
      ...(typeof options?.limit === "number" && { limit: Math.min(Math.max(options.limit, 1), 10_000) })
    })
}))

/** A page has as many events as its limit, of any size. */
export const countsPagesInEvents: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) => {
    const readOn = (
      before: EventFeed.Page,
      limit: number
    ): Effect.Effect<EventFeed.Page, StoreError.ValidationError | StoreError.StoreError> =>
      before.more && limit > 0
        ? Effect.flatMap(feed.read({ ...options, after: before.position, limit }), (page) =>
            readOn({ ...page, events: [...before.events, ...page.events] }, limit - page.events.length)
          )
        : Effect.succeed(before)
    return Effect.flatMap(feed.read(options), (page) => readOn(page, (options?.limit ?? 1000) - page.events.length))
  }
}))

/** An event that is larger than a page is never shown. */
export const leavesOutWhatIsLargerThanAPage: Breaking = withFeed((feed) => ({
  ...feed,
  read: (options) =>
    Effect.map(feed.read(options), (page) => ({
      ...page,
      events: page.events.filter(({ body }) => JSON.stringify(body).length < 8_000_000)
    }))
}))

/** Transactions overlap, and `heldBack` is always none. */
export const keepsQuietOfWhatIsHeldBack: Breaking = (ports) => {
  const overlapping = overlaps(ports)
  return {
    ...overlapping,
    feed: { ...overlapping.feed, heldBack: (filter) => Effect.as(overlapping.feed.heldBack(filter), Option.none()) }
  }
}

/** `heldBack` ignores its filter. */
export const holdsBackWhatTheFilterHides: Breaking = (ports) => {
  const overlapping = overlaps(ports)
  return {
    ...overlapping,
    feed: {
      ...overlapping.feed,
      heldBack: () =>
        Effect.map(
          overlapping.feed.heldBack(),
          Option.map((held) => ({ ...held, events: held.events + 1 }))
        )
    }
  }
}

/** One sample of each type, of any version. */
export const samplesTypesWithoutVersions: Breaking = withFeed((feed) => ({
  ...feed,
  samples: (filter) => firstOfEach(feed.samples(filter), ({ kind, type }) => JSON.stringify([kind, type]))
}))

/** One sample of each type and version, of any kind. */
export const samplesTypesWithoutKinds: Breaking = withFeed((feed) => ({
  ...feed,
  samples: (filter) => firstOfEach(feed.samples(filter), ({ type, version }) => JSON.stringify([type, version]))
}))

export const samplesWhatTheKindsHide: Breaking = withFeed((feed) => ({
  ...feed,
  samples: () => feed.samples()
}))

/** Samples are taken of the events that one read returns. */
export const samplesOnePageOfTheFeed: Breaking = withFeed((feed) => ({
  ...feed,
  samples: (filter) =>
    Stream.unwrap(
      Effect.map(feed.read({ filter, limit: 10_000 }), ({ events }) =>
        firstOfEach(Stream.fromIterable(events), ({ kind, type, version }) => JSON.stringify([kind, type, version]))
      )
    )
}))

/** A sample that is larger than a page comes without its body. */
export const cutsLargeSamples: Breaking = withFeed((feed) => ({
  ...feed,
  samples: (filter) =>
    Stream.map(feed.samples(filter), (event) =>
      JSON.stringify(event.body).length > 4_000_000 ? { ...event, body: {} } : event
    )
}))

/** All events are samples. */
export const samplesEveryEvent: Breaking = withFeed((feed) => ({
  ...feed,
  samples: (filter) =>
    Stream.concat(
      feed.samples(filter),
      Stream.provideService(EventFeed.streamStored({ filter }), EventFeed.EventFeed, feed)
    )
}))

/** Only the first waiter is woken. */
export const wakesOneWaiter: Breaking = withFeed((feed) => {
  let waiting = 0
  return {
    ...feed,
    awaitAppend: (after, filter) =>
      Effect.acquireUseRelease(
        Effect.sync(() => waiting++),
        (before) => (before > 0 ? Effect.never : feed.awaitAppend(after, filter)),
        () => Effect.sync(() => waiting--)
      )
  }
})

/** When a waiter is interrupted, all others wait without end. */
export const forgetsWaitersWhenOneIsInterrupted: Breaking = withFeed((feed) => {
  let interrupted = false
  return {
    ...feed,
    awaitAppend: (after, filter) =>
      feed.awaitAppend(after, filter).pipe(
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            interrupted = true
          })
        ),
        Effect.flatMap((position) => (interrupted ? Effect.never : Effect.succeed(position)))
      )
  }
})

/** A waiter resumes at the head of the feed, and skips the events before it. */
export const leadsPastWhatIsNew: Breaking = withFeed((feed) => ({
  ...feed,
  awaitAppend: (after, filter) => Effect.zipRight(feed.awaitAppend(after, filter), feed.head)
}))

// --- internal ---

const highest = ({ before, highest, transaction }: Writing): number => Math.max(transaction, before, highest)

class Own extends Context.Reference<Own>()("brokenFeeds/Own", {
  defaultValue: (): ReadonlyArray<Event.Event> => []
}) {}

const feedEvent = (event: Event.NewEvent, position: EventFeed.Position): EventFeed.FeedEvent => ({
  ...Event.make(event),
  ...Event.identityOf(event.aggregateId),
  position
})

/** A position of the memory store, so many events after another. */
const behind = (position: EventFeed.Position, places: number): EventFeed.Position =>
  `1-${Number(position.slice(position.indexOf("-") + 1)) + places}` as EventFeed.Position

/** The first event of each key. */
function firstOfEach<E>(
  events: Stream.Stream<EventFeed.FeedEvent, E>,
  keyOf: (event: EventFeed.FeedEvent) => string
): Stream.Stream<EventFeed.FeedEvent, E> {
  return Stream.suspend(() => {
    const seen = new Set<string>()
    return Stream.filter(events, (event) => {
      const isNew = !seen.has(keyOf(event))
      seen.add(keyOf(event))
      return isNew
    })
  })
}

const loosely = (text: unknown): string => String(text).normalize("NFC").toLowerCase()

/** A feed that derives kinds in another way, in its events and in its filter. */
function withKinds(kindOf: (aggregateId: string) => string): Breaking {
  return withFeed((feed) => ({
    ...feed,
    read: (options) => {
      const aggregates = options?.filter?.kinds
      return Array.isArray(aggregates)
        ? Effect.map(feed.read({ ...options, filter: { ...options?.filter, kinds: undefined } }), (page) => ({
            ...page,
            events: page.events.filter(({ aggregateId }) => aggregates.includes(kindOf(aggregateId)))
          }))
        : feed.read(options)
    }
  }))
}

function withFeed(breaking: (feed: Ports["feed"]) => Ports["feed"]): Breaking {
  return (ports) => ({ ...ports, feed: breaking(ports.feed) })
}
