/**
 * A store that fails, delays and loses acknowledgements as its test says. `TestStore` makes it.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import { RetryCommand, StoreError, StoreErrorReason, ValidationError } from "../../StoreError.js"
import type { Operation, TestStoreService, Trouble } from "../../TestStore.js"
import { show } from "./show.js"

/** The store with the trouble that the controls set. */
export const troubledStore = (
  store: StoreAdapterService
): { readonly store: StoreAdapterService; readonly controls: TestStoreService } => {
  const state = freshState()
  const around = <A, E, R>(operation: Operation, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | Failure, R> =>
    Effect.suspend(() => {
      state.calls.set(operation, (state.calls.get(operation) ?? 0) + 1)
      const delay = state.delays.get(operation)
      const run = Effect.suspend((): Effect.Effect<A, E | Failure, R> => {
        const failure = state.failures.get(operation)?.shift()
        return failure === undefined ? effect : Effect.fail(failure)
      })
      return delay === undefined ? run : Effect.zipRight(Effect.sleep(delay), run)
    })
  const committing = <A, E, R>(operation: Operation, effect: Effect.Effect<A, E, R>) =>
    around(
      operation,
      Effect.flatMap(effect, (value) =>
        Effect.suspend(() => {
          if (state.lost === 0) return Effect.succeed(value)
          state.lost--
          return Effect.fail(acknowledgementLost(operation))
        })
      )
    )
  return {
    controls: controlsOf(state),
    store: {
      commitEvents: (events) => committing("commitEvents", store.commitEvents(events)),
      commitAll: (events, projections) => committing("commitAll", store.commitAll(events, projections)),
      commitSnapshot: (snapshot) => withoutConflict(around("commitSnapshot", store.commitSnapshot(snapshot))),
      getEvents: (aggregateId, minSequence, options) =>
        withoutConflict(around("getEvents", store.getEvents(aggregateId, minSequence, options))),
      getSnapshot: (aggregateId, minSequence, options) =>
        withoutConflict(around("getSnapshot", store.getSnapshot(aggregateId, minSequence, options)))
    }
  }
}

// --- internal ---

type Failure = RetryCommand | ValidationError | StoreError

/** What the controls have set. */
interface State {
  readonly failures: Map<Operation, Array<Failure>>
  readonly delays: Map<Operation, Duration.Duration>
  readonly calls: Map<Operation, number>
  /** How many acknowledgements of commits are still to be lost. */
  lost: number
}

const freshState = (): State => ({ failures: new Map(), delays: new Map(), calls: new Map(), lost: 0 })

const controlsOf = (state: State): TestStoreService => ({
  failNext: (operation, trouble, { times = 1 } = {}) => {
    checkOperation("failNext", operation)
    checkTrouble(operation, trouble)
    if (!(Number.isInteger(times) && times > 0)) {
      throw new TypeError(`times of TestStore.failNext must be a whole number above 0, and is ${times}`)
    }
    return Effect.sync(() => {
      const failures = state.failures.get(operation) ?? []
      for (let i = 0; i < times; i++) failures.push(failureOf(operation, trouble))
      state.failures.set(operation, failures)
    })
  },
  loseNextAcknowledgement: Effect.sync(() => {
    state.lost++
  }),
  delay: (operation, duration) => {
    checkOperation("delay", operation)
    const decoded = Duration.decodeUnknown(duration)
    if (Option.isNone(decoded)) {
      throw new TypeError(`duration of TestStore.delay must be a duration, and is ${show(duration)}`)
    }
    return Effect.sync(() => {
      state.delays.set(operation, decoded.value)
    })
  },
  calls: (operation) => {
    checkOperation("calls", operation)
    return Effect.sync(() => state.calls.get(operation) ?? 0)
  },
  reset: Effect.sync(() => {
    state.failures.clear()
    state.delays.clear()
    state.calls.clear()
    state.lost = 0
  })
})

// As keys of an object, so that the compiler finds a missing one.
const operations: Readonly<Record<Operation, true>> = {
  commitEvents: true,
  commitAll: true,
  commitSnapshot: true,
  getEvents: true,
  getSnapshot: true
}

/** Throws for an operation that the store lacks: the trouble would never come, and its calls would be 0. */
const checkOperation = (control: string, operation: Operation): void => {
  if (!Object.hasOwn(operations, operation)) {
    throw new TypeError(
      `operation of TestStore.${control} must be one of ${Object.keys(operations).join(", ")}, and is ${show(operation)}`
    )
  }
}

/** Throws for what an operation can't fail with. */
const checkTrouble = (operation: Operation, trouble: Trouble): void => {
  const mayConflict = operation === "commitEvents" || operation === "commitAll"
  const isConflict = trouble === "RetryCommand" || trouble instanceof RetryCommand
  const isTrouble = isReason(trouble) || trouble instanceof StoreError || trouble instanceof ValidationError
  if (isConflict ? mayConflict : isTrouble) return
  const reasons = StoreErrorReason.literals.join(", ")
  const conflict = mayConflict ? ", or RetryCommand" : ""
  throw new TypeError(
    `trouble of TestStore.failNext must be an error of the store, or one of ${reasons}${conflict}, and is ${show(trouble)}`
  )
}

const isReason = Schema.is(StoreErrorReason)

const failureOf = (operation: Operation, trouble: Trouble): Failure =>
  typeof trouble !== "string"
    ? trouble
    : trouble === "RetryCommand"
      ? new RetryCommand({ aggregateId: "TestStore", sequence: 1 })
      : storeError(operation, trouble)

const storeError = (operation: Operation, reason: StoreErrorReason): StoreError =>
  new StoreError({ reason, operation, description: "TestStore was set to fail" })

const acknowledgementLost = (operation: Operation): StoreError =>
  new StoreError({
    reason: "CommitUnknown",
    operation,
    description: "TestStore has stored the events, and was set to lose the acknowledgement"
  })

/** Reads and snapshots have no conflicts, and the types of `failNext` allow none for them. */
const withoutConflict = <A, E, R>(
  effect: Effect.Effect<A, E | RetryCommand, R>
): Effect.Effect<A, Exclude<E, RetryCommand>, R> =>
  Effect.catchAll(effect, (error) =>
    error instanceof RetryCommand ? Effect.die(error) : Effect.fail(error as Exclude<E, RetryCommand>)
  )
