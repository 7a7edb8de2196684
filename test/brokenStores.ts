/** Stores that are broken on purpose, which the contract must catch. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { Event, Projection, type Snapshot, type StoreAdapter, StoreError } from "effect-maestro"

type Store = StoreAdapter.StoreAdapterService

/**
 * A conflict is no failure: the events are stored after those of the other commit, although they were decided on an
 * older state.
 */
export const skipsTheConflictCheck = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    store.commitAll(events, projections).pipe(
      Effect.catchIf(isRetryCommand, () =>
        Effect.gen(function* () {
          const heads = new Map<string, number>()
          const renumbered: Array<Event.NewEvent> = []
          for (const event of events) {
            const known = heads.get(event.aggregateId)
            const head = known ?? (yield* store.getEvents(event.aggregateId, 0)).length
            heads.set(event.aggregateId, head + 1)
            renumbered.push({ ...event, follows: undefined, sequence: head + 1 })
          }
          yield* store.commitAll(renumbered, projections)
        })
      )
    )
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** Only sequences are compared, and not the events that others follow. */
export const ignoresWhatAnEventFollows = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    store.commitAll(
      Array.isArray(events) ? events.map((event) => ({ ...event, follows: undefined })) : events,
      projections
    )
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** Each event of a commit is a commit of its own. */
export const commitsOneByOne = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    Array.isArray(events)
      ? Effect.forEach(events, (event) => store.commitAll([event], projections), { discard: true })
      : store.commitAll(events, projections)
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** The events are stored before their projections run. */
export const projectsAfterTheCommit = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    Effect.zipRight(
      store.commitEvents(events),
      Effect.forEach(
        projections,
        (projection) =>
          Effect.forEach(events.map(Event.make), Projection.toEffect(projection).project, { discard: true }),
        {
          discard: true
        }
      )
    )
})

/** A `StoreError` of a projection has no names. */
export const forgetsWhichProjectionFailed = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    Effect.mapError(store.commitAll(events, projections), (error) => {
      if (!(error instanceof StoreError.StoreError)) return error
      const { aggregateId: _id, projection: _projection, sequence: _sequence, type: _type, ...rest } = error
      return new StoreError.StoreError(rest)
    })
})

/** Projections run for the events of all aggregates. */
export const ignoresWhoseEventsAProjectionIsAbout = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    store.commitAll(
      events,
      Array.isArray(projections) ? projections.map((one) => ({ ...one, of: undefined })) : projections
    )
})

/** Projections run with the services of the last caller, but in their own transaction. */
export const projectsInTheContextOfTheLastCaller = (store: Store): Store => {
  let last: ReadonlyArray<readonly [string, unknown]> = []
  const borrow = <R>(own: Context.Context<R>): Context.Context<R> =>
    Context.unsafeMake(new Map([...own.unsafeMap, ...last]))
  return {
    ...store,
    commitAll: <E, R>(events: ReadonlyArray<Event.NewEvent>, projections: ReadonlyArray<Projection.Projection<E, R>>) =>
      Effect.contextWithEffect((caller: Context.Context<R>) => {
        last = [...caller.unsafeMap].filter(([key]) => !key.includes("Transaction"))
        return store.commitAll(
          events,
          projections.map(Projection.toEffect).map(({ project, ...projection }) => ({
            ...projection,
            project: (event: Event.Event) => Effect.mapInputContext(project(event), borrow<R>)
          }))
        )
      })
  }
}

/** Projections run in a fiber of the store, so the fiber refs that they set are lost. */
export const projectsInAFiberOfItsOwn = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    store.commitAll(
      events,
      projections.map(Projection.toEffect).map(({ project, ...projection }) => ({
        ...projection,
        project: (event) => Effect.flatten(Effect.flatMap(Effect.forkDaemon(project(event)), Fiber.await))
      }))
    )
})

/**
 * Streams that were read or committed are not read again until a conflict, so a command may be decided on an old state.
 */
export const trustsWhatItKept = (store: Store): Store => {
  const kept = new Map<string, ReadonlyArray<Event.Event>>()
  const commitAll: Store["commitAll"] = (events, projections) =>
    Effect.tapError(store.commitAll(events, projections), () =>
      Effect.sync(() => {
        for (const { aggregateId } of events) kept.delete(aggregateId)
      })
    ).pipe(
      Effect.tap(() =>
        Effect.sync(() => {
          for (const event of events) {
            const known = kept.get(event.aggregateId)
            if (known !== undefined && known.length === event.sequence - 1) {
              kept.set(event.aggregateId, [...known, Event.make(event)])
            }
          }
        })
      )
    )
  return {
    ...store,
    commitAll,
    commitEvents: (events) => commitAll(events, []),
    getSnapshot: (id, min, options) =>
      Effect.zipRight(store.getSnapshot(id, min, options), store.getSnapshot(id, 2 ** 31 - 1)),
    getEvents: (id, min, options) => {
      const within = (events: ReadonlyArray<Event.Event>) =>
        events.filter(
          ({ sequence }) => sequence >= min && sequence <= (options?.maxSequence ?? Number.POSITIVE_INFINITY)
        )
      const known = kept.get(id)
      return known === undefined
        ? Effect.map(store.getEvents(id, 0), (events) => {
            kept.set(id, events)
            return within(events)
          })
        : Effect.succeed(within(known))
    }
  }
}

/** Committing the same events again is a conflict. */
export const forgetsWhatItStored = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    Effect.gen(function* () {
      const [first] = events
      if (first !== undefined) {
        const there = yield* Effect.orElseSucceed(store.getEvents(first.aggregateId, first.sequence), () => [])
        if (there.length > 0) {
          return yield* new StoreError.RetryCommand({ aggregateId: first.aggregateId, sequence: first.sequence })
        }
      }
      return yield* store.commitAll(events, projections)
    })
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** A commit that is stored already runs its projections again. */
export const projectsAgain = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) => {
    let ran = false
    const marking: Projection.Projection = {
      name: "marking",
      project: () =>
        Effect.sync(() => {
          ran = true
        })
    }
    return Effect.zipRight(
      store.commitAll(events, projections.length === 0 ? [] : [...projections, marking]),
      Effect.suspend(() =>
        ran
          ? Effect.void
          : Effect.forEach(
              projections,
              (projection) =>
                Effect.forEach(events.map(Event.make), Projection.toEffect(projection).project, { discard: true }),
              {
                discard: true
              }
            )
      )
    )
  }
})

/** The lower bound of a read is exclusive, as in Maestro's own adapters. */
export const readsFromAfterTheBound = (store: Store): Store => ({
  ...store,
  getEvents: (id, min, options) => store.getEvents(id, min < 2 ? min : min + 1, options)
})

/** The last snapshot replaces the stored one, also one of a higher sequence. */
export const keepsTheLastSnapshot = (store: Store): Store => {
  const last = new Map<string, Parameters<Store["commitSnapshot"]>[0]>()
  return {
    ...store,
    commitSnapshot: (snapshot) =>
      Effect.tap(store.commitSnapshot(snapshot), () => Effect.sync(() => last.set(snapshot.aggregateId, snapshot))),
    getSnapshot: (id, min, options) =>
      Effect.map(store.getSnapshot(id, min, options), (found) => {
        const kept = last.get(id)
        return found._tag === "Some" && kept !== undefined ? { ...found, value: kept } : found
      })
  }
}

/** A commit is acknowledged before it is stored, and may be interrupted afterwards. */
export const acknowledgesEarly = (store: Store): Store => ({
  ...store,
  commitEvents: (events) =>
    Effect.asVoid(Effect.forkDaemon(Effect.zipRight(Effect.yieldNow(), store.commitEvents(events))))
})

/** The writes of a failed commit inside a projection stay, if the projection continues. */
export const keepsWhatFailedInside = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    Effect.flatMap(Inside, (inside) =>
      inside === undefined
        ? store.commitAll(events, within({}, projections))
        : projectsAfterTheCommit(store).commitAll(events, projections)
    )
})

/** Readers find the snapshots of a projection before the commit has succeeded. */
export const showsSnapshotsEarly = (store: Store): Store => {
  const early = new Map<string, Snapshot.Snapshot>()
  return {
    ...store,
    commitAll: (events, projections) => {
      const transaction = { saved: [] as Snapshot.Snapshot[] }
      return Effect.ensuring(
        store.commitAll(events, within(transaction, projections)),
        Effect.sync(() => {
          for (const { aggregateId } of transaction.saved) early.delete(aggregateId)
        })
      )
    },
    commitSnapshot: (snapshot) =>
      Effect.zipRight(
        store.commitSnapshot(snapshot),
        Effect.map(Inside, (inside) => {
          inside?.saved?.push(snapshot)
          if (inside !== undefined) early.set(snapshot.aggregateId, snapshot)
        })
      ),
    getSnapshot: (id, min, options) =>
      Effect.map(store.getSnapshot(id, min, options), (found) =>
        Option.orElse(Option.fromNullable(early.get(id)), () => found)
      )
  }
}

/** The snapshots of a projection stay, although the commit has failed. */
export const keepsTheSnapshotsOfFailures = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) => {
    const transaction = { saved: [] as Snapshot.Snapshot[] }
    return Effect.ensuring(
      store.commitAll(events, within(transaction, projections)),
      Effect.suspend(() => Effect.ignore(Effect.forEach(transaction.saved, (one) => store.commitSnapshot(one))))
    )
  },
  commitSnapshot: (snapshot) =>
    Effect.zipRight(
      store.commitSnapshot(snapshot),
      Effect.map(Inside, (inside) => {
        inside?.saved?.push(snapshot)
      })
    )
})

/**
 * The commit of a fiber that a projection left running succeeds after the end of the transaction, but is not stored.
 */
export const acknowledgesWhatComesTooLate = (store: Store): Store => {
  const lie = <E, R>(commit: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> =>
    Effect.catchIf(
      commit,
      (error) => error instanceof StoreError.StoreError,
      () => Effect.void
    )
  return {
    ...store,
    commitAll: (events, projections) => lie(store.commitAll(events, projections)),
    commitEvents: (events) => lie(store.commitEvents(events)),
    commitSnapshot: (snapshot) => lie(store.commitSnapshot(snapshot))
  }
}

/** If one of the concurrent commits of a projection fails, the successful ones are lost. */
export const losesThoseBesideAFailure = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    Effect.flatMap(Inside, (inside) => {
      if (inside === undefined) return store.commitAll(events, within({}, projections))
      const losing: Projection.Projection = {
        name: "losing",
        project: () => (inside.failed === true ? Effect.die(lost) : Effect.void)
      }
      return store.commitAll(events, [...projections, losing]).pipe(
        Effect.tapError(() =>
          Effect.sync(() => {
            inside.failed = true
          })
        ),
        Effect.catchSomeDefect((defect) => (defect === lost ? Option.some(Effect.void) : Option.none()))
      )
    })
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** A commit whose first and last events are stored counts as a duplicate. */
export const looksAtTheEndsOnly = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    Effect.gen(function* () {
      const ends = Array.isArray(events) && events.length > 0 ? [events[0], events.at(-1)] : []
      const found = yield* Effect.forEach(ends, (end) =>
        end === undefined
          ? Effect.succeed(false)
          : store.getEvents(end.aggregateId, end.sequence, { maxSequence: end.sequence }).pipe(
              Effect.map(([stored]) => stored?.timestamp === end.timestamp),
              Effect.orElseSucceed(() => false)
            )
      )
      if (found.length > 0 && found.every(Boolean)) return
      yield* store.commitAll(events, projections)
    })
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** For a moment readers find only the first half of a commit. */
export const showsCommitsByHalves = (store: Store): Store => {
  const hidden = new Set<Event.Event["timestamp"]>()
  return {
    ...store,
    commitEvents: (events) =>
      Effect.suspend(() => {
        const half = Array.isArray(events) && events.length > 1 ? events.slice(events.length >> 1) : []
        for (const { timestamp } of half) hidden.add(timestamp)
        return Effect.zipLeft(store.commitEvents(events), half.length === 0 ? Effect.void : macrotask)
      }).pipe(
        Effect.ensuring(
          Effect.sync(() => {
            hidden.clear()
          })
        )
      ),
    getEvents: (id, min, options) =>
      Effect.map(store.getEvents(id, min, options), (events) =>
        events.filter(({ timestamp }) => !hidden.has(timestamp))
      )
  }
}

/** Readers find uncommitted records. */
export const readsWhatIsNotCommitted = (store: Store): Store => {
  let open: Context.Context<never> | undefined
  const opening: Projection.Projection = {
    name: "opening",
    project: () =>
      Effect.contextWith((context: Context.Context<never>) => {
        open = context
      })
  }
  const closing = Effect.sync(() => {
    open = undefined
  })
  return {
    ...store,
    commitAll: (events, projections) =>
      Effect.flatMap(Inside, (inside) =>
        inside === undefined
          ? Effect.ensuring(store.commitAll(events, [opening, ...within({}, projections)]), closing)
          : store.commitAll(events, projections)
      ),
    getEvents: (id, min, options) =>
      Effect.suspend(() =>
        open === undefined ? store.getEvents(id, min, options) : Effect.provide(store.getEvents(id, min, options), open)
      )
  }
}

/** All reads return one object for each stored event. */
export const sharesTheEventsItReads = (store: Store): Store => {
  const read = new Map<string, Event.Event>()
  const shared = (event: Event.Event): Event.Event => {
    const known = read.get(event.timestamp) ?? event
    read.set(event.timestamp, known)
    return known
  }
  return {
    ...store,
    getEvents: (id, min, options) =>
      Effect.map(store.getEvents(id, min, options), (events) => events.map((event) => shared(event)))
  }
}

/** All reads return one object for each stored snapshot. */
export const sharesTheSnapshotsItReads = (store: Store): Store => {
  const read = new Map<string, Snapshot.Snapshot>()
  const shared = (snapshot: Snapshot.Snapshot): Snapshot.Snapshot => {
    const known = read.get(snapshot.timestamp) ?? snapshot
    read.set(snapshot.timestamp, known)
    return known
  }
  return {
    ...store,
    getSnapshot: (id, min, options) =>
      Effect.map(
        store.getSnapshot(id, min, options),
        Option.map((snapshot) => shared(snapshot))
      )
  }
}

/** A projection receives the first fifty events of a commit. */
export const projectsFiftyEventsAtMost = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    store.commitAll(
      events,
      projections.map(Projection.toEffect).map((projection) => {
        let received = 0
        return {
          ...projection,
          project: (event) => (++received > 50 ? Effect.void : projection.project(event))
        }
      })
    )
})

/** Bodies are read with their keys sorted, as `jsonb` sorts them. */
/** Events lose a field between commit and read. */
const loses = (store: Store, lost: Partial<Event.Event>): Store => ({
  ...store,
  getEvents: (id, min, options) =>
    Effect.map(store.getEvents(id, min, options), (events) => events.map((event) => ({ ...event, ...lost })))
})

export const losesVersions = (store: Store): Store => loses(store, { version: 1 })

export const losesCorrelationIds = (store: Store): Store => loses(store, { correlationId: undefined })

export const losesCausationIds = (store: Store): Store => loses(store, { causationId: undefined })

export const losesTraceparents = (store: Store): Store => loses(store, { traceparent: undefined })

export const sortsKeys = (store: Store): Store => changesBodies(store, sorted)

/** Bodies are read with 0 instead of -0. */
export const forgetsTheSignOfZero = (store: Store): Store =>
  changesBodies(store, (body) => JSON.parse(JSON.stringify(body)))

/** A snapshot is not replaced by another of its sequence. */
export const keepsTheFirstSnapshot = (store: Store): Store => ({
  ...store,
  commitSnapshot: (snapshot) =>
    Effect.flatMap(
      Effect.catchAll(store.getSnapshot(snapshot.aggregateId, snapshot.sequence), () => Effect.succeed(Option.none())),
      (stored) => (Option.isSome(stored) ? Effect.void : store.commitSnapshot(snapshot))
    )
})

// --- internal ---

type Body = Event.Event["body"]

const changesBodies = (store: Store, change: (body: Body) => Body): Store => ({
  ...store,
  getEvents: (id, min, options) =>
    Effect.map(store.getEvents(id, min, options), (events) =>
      events.map((event) => ({ ...event, body: change(event.body) }))
    ),
  getSnapshot: (id, min, options) =>
    Effect.map(
      store.getSnapshot(id, min, options),
      Option.map((snapshot) => ({ ...snapshot, body: change(snapshot.body) }))
    )
})

const sorted = (body: Body): Body =>
  Object.fromEntries(Object.entries(body).sort(([one], [other]) => one.length - other.length || (one < other ? -1 : 1)))

/** The state of the commit whose projections are running, for a broken store. */
interface Open {
  readonly saved?: Array<Snapshot.Snapshot>
  failed?: boolean
}

class Inside extends Context.Reference<Inside>()("brokenStores/Inside", {
  defaultValue: (): Open | undefined => undefined
}) {}

const within = <E, R>(
  open: Open,
  projections: ReadonlyArray<Projection.Projection<E, R>>
): ReadonlyArray<Projection.Projection<E | StoreError.StoreError, R>> =>
  projections.map(Projection.toEffect).map((projection) => ({
    ...projection,
    project: (event) => Effect.provideService(projection.project(event), Inside, open)
  }))

const lost = "lost with a failed commit"

const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const isRetryCommand = (error: unknown): error is StoreError.RetryCommand => error instanceof StoreError.RetryCommand
