/** Stores that are wrong on purpose, to see whether what checks a store would notice. */
import * as Effect from "effect/Effect"
import type { Event, Projection } from "effect-maestro"
import { type StoreAdapter, StoreError } from "effect-maestro"

type Store = StoreAdapter.StoreAdapterService

/** A lost race is no failure: the events go after those that came first, whatever they were decided on. */
export const skipsTheConflictCheck = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    store.commitAll(events, projections).pipe(
      Effect.catchIf(isRetryCommand, () =>
        Effect.gen(function* () {
          const heads = new Map<string, number>()
          const renumbered: Array<Event.Event> = []
          for (const event of events) {
            const known = heads.get(event.aggregateId)
            const head = known ?? (yield* store.getEvents(event.aggregateId, 0)).length
            heads.set(event.aggregateId, head + 1)
            renumbered.push({ ...event, sequence: head + 1 })
          }
          yield* store.commitAll(renumbered, projections)
        })
      )
    )
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** A commit is as many commits as it has events. */
export const commitsOneByOne = (store: Store): Store => {
  const commitAll: Store["commitAll"] = (events, projections) =>
    Array.isArray(events)
      ? Effect.forEach(events, (event) => store.commitAll([event], projections), { discard: true })
      : store.commitAll(events, projections)
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** The events are there before their projections are. */
export const projectsAfterTheCommit = (store: Store): Store => ({
  ...store,
  commitAll: (events, projections) =>
    Effect.zipRight(
      store.commitEvents(events),
      Effect.forEach(projections, (projection) => Effect.forEach(events, projection.project, { discard: true }), {
        discard: true
      })
    )
})

/** What was read or committed once is not read again, until a commit conflicts: a refusal is decided on what may be old. */
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
              kept.set(event.aggregateId, [...known, event])
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
          : Effect.forEach(projections, (projection) => Effect.forEach(events, projection.project, { discard: true }), {
              discard: true
            })
      )
    )
  }
})

/** The lower bound of a read is left out, as Maestro's own adapters do. */
export const readsFromAfterTheBound = (store: Store): Store => ({
  ...store,
  getEvents: (id, min, options) => store.getEvents(id, min < 2 ? min : min + 1, options)
})

/** The last snapshot stays, whatever its sequence. Only for one store: it keeps what it replaces. */
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

/** An acknowledgement comes before anything is stored, and what was acknowledged may be interrupted. */
export const acknowledgesEarly = (store: Store): Store => ({
  ...store,
  commitEvents: (events) =>
    Effect.asVoid(Effect.forkDaemon(Effect.zipRight(Effect.yieldNow(), store.commitEvents(events))))
})

const isRetryCommand = (error: unknown): error is StoreError.RetryCommand => error instanceof StoreError.RetryCommand
