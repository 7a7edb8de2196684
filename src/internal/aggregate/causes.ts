/**
 * What an application says of the cause of its commands. `Aggregate` exports both functions. The library sets the cause
 * itself for the commands of handlers and projections (`runtime/commandCause.ts`).
 */
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { isTimestamp } from "../../Timestamp.js"
import { correlationProblem } from "../codec/names.js"
import { chainFrom, withChain } from "../runtime/commandCause.js"

/**
 * Names the chain that the commands of an effect belong to: all their events get this `correlationId`. So do the events
 * that follow from them by subscriptions, process managers and other handlers. `EventFeed` finds all events of a chain
 * by the filter `correlationId`.
 *
 * Without it, a command that follows from no event begins a chain, whose id is the timestamp of its first event. (Where
 * its handler evaluates commands, and it is decided again, that is the first event of its first decision.) An id is a text of 1 to 255 characters; any other is refused by a `ValidationError`. Several commands may share an id. It
 * does not make a command idempotent: that is `withCommandId`.
 *
 * @since 0.1.0
 * @category causes
 *
 * @example
 * ```ts
 * import { Aggregate } from "effect-maestro"
 * import type * as Effect from "effect/Effect"
 *
 * declare const order: Effect.Effect<unknown, Aggregate.Failure, Aggregate.Instance<"Order">>
 *
 * export const orderOf = (requestId: string) => order.pipe(Aggregate.withCorrelationId(requestId))
 * ```
 */
export const withCorrelationId =
  (correlationId: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | ValidationError, R> => {
    const problem = correlationProblem(correlationId)
    return problem === undefined
      ? withChain((outer) => ({ correlationId, causationId: outer?.causationId }))(effect)
      : refused("withCorrelationId", "correlationId", problem)
  }

/**
 * Evaluates the commands of an effect as followers of an event: their events get its chain (`correlationId`) and its
 * timestamp (`causationId`). The handlers of a subscription need it only for a batch (`handleBatch`). It is for
 * consumers of your own, such as one that runs `EventFeed.stream`.
 *
 * An event without a `correlationId`, as other programs may write it, names the chain by its timestamp. An event whose
 * fields are no valid ids is refused by a `ValidationError`.
 *
 * @since 0.1.0
 * @category causes
 *
 * @example
 * ```ts
 * import { Aggregate, EventFeed } from "effect-maestro"
 * import type * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * declare const remind: (order: string) => Effect.Effect<unknown, Aggregate.Failure, Aggregate.Instance<"Reminder">>
 *
 * export const reminders = EventFeed.stream({ filter: { types: ["OrderPlaced"] } }).pipe(
 *   Stream.runForEach((event) => remind(event.id).pipe(Aggregate.causedBy(event)))
 * )
 * ```
 */
export const causedBy =
  (event: Pick<Event, "correlationId" | "timestamp">) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | ValidationError, R> =>
    Effect.suspend((): Effect.Effect<A, E | ValidationError, R> => {
      // Callers that circumvent the types may give anything.
      const { correlationId, timestamp }: Partial<typeof event> = event ?? {}
      if (!isTimestamp(timestamp))
        return refused("causedBy", "timestamp", "must be a timestamp: a UUIDv7 in lower case")
      const problem = correlationId === undefined ? undefined : correlationProblem(correlationId)
      return problem === undefined
        ? withChain(() => chainFrom({ correlationId, timestamp }))(effect)
        : refused("causedBy", "correlationId", problem)
    })

// --- internal ---

const refused = (operation: string, field: string, message: string): ValidationError =>
  new ValidationError({
    operation: `Aggregate.${operation}`,
    issues: [new ValidationIssue({ path: [field], message })]
  })
