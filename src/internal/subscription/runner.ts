/**
 * A subscription as a program runs it: all partitions, in the foreground or as a layer, with its status and its parked
 * events. `Subscription.make` calls it.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { maxNameLength } from "../../Event.js"
import { isPosition, type StreamPosition } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { SubscriptionStore } from "../../SubscriptionStore.js"
import { correlationProblem, nameProblem } from "../codec/names.js"
import { scoped } from "../runtime/interruption.js"
import { validateStreamPosition } from "../store/storedRecord.js"
import { makeHoldings, measureLag } from "./metrics.js"
import { makeNode, type RunnerOptions } from "./node.js"
import type { On } from "./on.js"
import type { ConsumerOptions } from "./session.js"
import { statusOf } from "./status.js"

/** Makes the parts of a subscription. It throws a `TypeError` for invalid options. */
export const makeRunner = <E, R>(options: RunnerOptions<E, R>) => {
  checkOptions(options)
  const { filter, handle, name, partitions } = options

  const { held, observe } = makeHoldings(name)
  const { run, runInBackground } = makeNode(options, observe)

  const retryOne = (event: StreamPosition) =>
    Effect.flatMap(SubscriptionStore, (store) =>
      store.retryParked(name, event, (parked) => Effect.asVoid(handle([parked])))
    )

  const retryAllParked = Effect.flatMap(
    Effect.flatMap(SubscriptionStore, (store) => store.parked(name)),
    (events) =>
      Effect.reduce(events, 0, (count, event) => Effect.map(retryOne(event), (done) => count + (done ? 1 : 0)))
  )

  const status = statusOf(name, filter)

  const measured = <A, E2, R2>(running: Effect.Effect<A, E2, R2>) =>
    scoped(Effect.zipRight(Effect.forkScoped(measureLag(name, status)), running))

  return {
    name,
    filter,
    partitions,
    run: measured(run),
    layer: Layer.scopedDiscard(Effect.forkScoped(measured(runInBackground))),
    held,
    retryParked: (event: StreamPosition) =>
      Effect.zipRight(validateStreamPosition("Subscription.retryParked", event), retryOne(event)),
    retryAllParked,
    status
  }
}

/** Throws a `TypeError` for an aggregate without a handler. */
export const checkHandlers = (name: string, ons: ReadonlyArray<Pick<On, "events" | "of">>): void => {
  const empty = ons.find(({ events }) => events.length === 0)
  if (empty === undefined) return
  const aggregate = empty.of === "all" ? "any aggregate" : empty.of.name
  throw new TypeError(`subscription ${name} has no handler for events of ${aggregate}`)
}

/**
 * Throws a `TypeError` for projections that a subscription can't run. Callers that circumvent the types can do so.
 */
export const checkProjections = (
  name: string,
  projections: ReadonlyArray<Projection.Any>,
  from: ConsumerOptions<never, never>["from"] | undefined
): void => {
  for (const { name: projection, of, tables } of projections) {
    const refuse = (problem: string) =>
      new TypeError(`projection ${JSON.stringify(projection)} of subscription ${name} ${problem}`)
    if (of === undefined) throw refuse("must be of an aggregate, or of all")
    if (tables !== undefined && from !== undefined && from !== "beginning") {
      throw refuse('owns tables, whose next version holds all events, so `from` must be "beginning"')
    }
  }
}

// --- internal ---

const checkOptions = ({
  batchSize,
  filter,
  from,
  lease,
  name,
  partitions
}: Omit<RunnerOptions<never, never>, "handle">): void => {
  const checkInteger = (value: number, field: string, max: number) => {
    if (!(Number.isInteger(value) && value >= 1 && value <= max)) {
      throw new TypeError(`${field} of subscription ${name} must be a whole number from 1 to ${max}, and is ${value}`)
    }
  }
  const problem = nameProblem(name, maxNameLength)
  if (problem !== undefined) throw new TypeError(`the name of subscription ${JSON.stringify(name)} ${problem}`)
  for (const field of ["types", "kinds"] as const) {
    if (filter?.[field]?.length === 0) {
      throw new TypeError(`subscription ${name} would handle no events: its options let through no ${field}`)
    }
  }
  const chainProblem = filter?.correlationId === undefined ? undefined : correlationProblem(filter.correlationId)
  if (chainProblem !== undefined) throw new TypeError(`correlationId of subscription ${name} ${chainProblem}`)
  checkInteger(batchSize, "batchSize", 10_000)
  checkInteger(partitions, "partitions", 1000)
  if (from !== "beginning" && from !== "now" && !isPosition(from)) {
    throw new TypeError(
      `from of subscription ${name} must be "beginning", "now" or a position of the feed, and is ${JSON.stringify(from)}`
    )
  }
  if (filter?.slice !== undefined && partitions > 1) {
    throw new TypeError(`subscription ${name} can't be cut into partitions and be about a slice: partitions are slices`)
  }
  if (!(lease >= 10 && lease <= 86_400_000)) {
    throw new TypeError(`lease of subscription ${name} must be from 10 milliseconds to a day`)
  }
}
