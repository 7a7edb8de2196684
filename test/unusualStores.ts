/** Stores that are right, and work unlike those of this library: what the contract does not forbid its cases must let pass. */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { type Event, MemoryStore, type Snapshot, StoreAdapter, StoreError } from "effect-maestro"

type Store = StoreAdapter.StoreAdapterService

/** Every commit takes so long, and can be interrupted meanwhile. */
const after = (pause: Effect.Effect<void>) =>
  Effect.map(
    MemoryStore.make,
    (store): Store => ({
      ...store,
      commitAll: (events, projections) => Effect.zipRight(pause, store.commitAll(events, projections)),
      commitEvents: (events) => Effect.zipRight(pause, store.commitEvents(events)),
      commitSnapshot: (snapshot) => Effect.zipRight(pause, store.commitSnapshot(snapshot))
    })
  )

/** As far away as the next data centre but one. By a timer of the machine, as a driver has it. */
export const isFarAway: Effect.Effect<Store> = after(
  Effect.async<void>((resume) => {
    const timer = setTimeout(() => resume(Effect.void), 30)
    return Effect.sync(() => clearTimeout(timer))
  })
)

/** Every commit fails at first, and is tried again a little later. */
export const triesAgain: Effect.Effect<Store> = after(
  Effect.suspend(() => {
    let tries = 0
    return Effect.retry(
      Effect.suspend(() => (tries++ < 2 ? Effect.fail("busy") : Effect.void)),
      Schedule.exponential("1 millis")
    ).pipe(Effect.orDie)
  })
)

/** Commits wait for a moment, so that others can join them. */
export const waitsForCompany: Effect.Effect<Store> = Effect.sync(() => {
  let leaving: Deferred.Deferred<void> | undefined
  return Effect.suspend(() => {
    if (leaving !== undefined) return Deferred.await(leaving)
    return Effect.flatMap(Deferred.make<void>(), (company) => {
      leaving = company
      const leave = Effect.suspend(() => {
        leaving = undefined
        return Deferred.succeed(company, undefined)
      })
      return Effect.zipRight(
        Effect.forkDaemon(Effect.zipRight(Effect.sleep("1 millis"), leave)),
        Deferred.await(company)
      )
    })
  })
}).pipe(Effect.flatMap(after))

/** Nobody waits for anybody: whether a commit fits is seen at its end, when somebody else may have been faster. */
export const findsConflictsAtTheEnd: Effect.Effect<Store> = Effect.sync(() => {
  const committed: Records = { events: new Map(), snapshots: new Map(), closed: false, outer: undefined }
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
        const records: Records = { events: new Map(), snapshots: new Map(), closed: false, outer }
        return Effect.zipLeft(
          body(records),
          // To find no conflict and to keep the records is one step: nobody can come between.
          Effect.suspend(() => keep(operation, records, outer))
        ).pipe(Effect.ensuring(Effect.sync(() => close(records))))
      })
    )
  return StoreAdapter.makeEncoded({
    name: "findsConflictsAtTheEnd",
    append: (events) => transact("commitEvents", (records) => append(records, events)),
    appendWith: (events, project) =>
      transact("commitAll", (records) =>
        Effect.flatMap(append(records, events), (outcome) =>
          outcome === "stored" ? Effect.void : Effect.provideService(project, Transaction, records)
        )
      ),
    putSnapshot: (snapshot) =>
      // A snapshot conflicts with nothing.
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
})

// --- records ---

let stores = 0

/** What is committed, or what a transaction adds to those around it. */
interface Records {
  readonly events: Map<string, ReadonlyArray<Event.StoredEvent>>
  readonly snapshots: Map<string, Snapshot.StoredSnapshot>
  readonly outer: Records | undefined
  closed: boolean
}

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

const append = (records: Records, events: ReadonlyArray<Event.StoredEvent>) =>
  Effect.suspend(() => {
    const isStored = ({ aggregateId, sequence, timestamp }: Event.StoredEvent) =>
      eventOf(records, aggregateId, sequence)?.timestamp === timestamp
    if (events.every(isStored)) return Effect.succeed("stored" as const)
    for (const { aggregateId, events: added } of byAggregate(events)) {
      const sequence = added[0]?.sequence ?? 0
      if (sequence !== headOf(records, aggregateId) + 1) {
        return Effect.fail(new StoreError.RetryCommand({ aggregateId, sequence }))
      }
      records.events.set(aggregateId, [...(records.events.get(aggregateId) ?? []), ...added])
    }
    return Effect.succeed("written" as const)
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
  if (stored === undefined || stored.sequence < snapshot.sequence) records.snapshots.set(snapshot.aggregateId, snapshot)
}

const keep = (
  operation: string,
  records: Records,
  outer: Records
): Effect.Effect<void, StoreError.RetryCommand | StoreError.StoreError> => {
  if (outer.closed) {
    return Effect.fail(new StoreError.StoreError({ reason: "Unknown", operation, description: "it has ended" }))
  }
  const added = [...records.events.values()].flat()
  const isKept = ({ aggregateId, sequence, timestamp }: Event.StoredEvent) =>
    eventOf(outer, aggregateId, sequence)?.timestamp === timestamp
  // The same commit may have come from elsewhere meanwhile.
  if (added.length > 0 && !added.every(isKept)) {
    for (const [aggregateId, stream] of records.events) {
      const sequence = stream[0]?.sequence ?? 0
      if (headOf(outer, aggregateId) !== sequence - 1) {
        return Effect.fail(new StoreError.RetryCommand({ aggregateId, sequence }))
      }
    }
    for (const [aggregateId, stream] of records.events) {
      outer.events.set(aggregateId, [...(outer.events.get(aggregateId) ?? []), ...stream])
    }
  }
  for (const snapshot of records.snapshots.values()) putSnapshot(outer, snapshot)
  return Effect.void
}

const close = (records: Records): void => {
  records.closed = true
  records.events.clear()
  records.snapshots.clear()
}
