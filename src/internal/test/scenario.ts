/**
 * Collects the steps of a test of domain code: `AggregateTest.of` makes it, and each method returns a new one.
 */
import * as Arbitrary from "effect/Arbitrary"
import * as DateTime from "effect/DateTime"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import type { Projection } from "../../Projection.js"
import type { Time } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { type IdSchema, idProblemBy } from "../codec/ids.js"
import { checkAggregate } from "./checkInput.js"
import { type Target, whenCommand } from "./commands.js"
import { copyOf } from "./copy.js"
import type { AnyAggregate, GivenEvent, StoredForm } from "./given.js"
import { projecting } from "./projected.js"
import { receiving } from "./reactions.js"
import type { Done, Of, Projected, ProjectOptions, Received } from "./scenarioTypes.js"
import type { AnyLayer, Plan } from "./world.js"

/** `AggregateTest.of`. */
export const of = ((aggregate) => scenarioOf(noPlan, targetOf("AggregateTest.of", aggregate))) as Untyped["of"] as Of

/** An id that the schema accepts, always the same one. */
export const usualId = (schema: IdSchema): string => {
  const usual = "1"
  if (idProblemBy(schema)?.(usual) === undefined) return usual
  const [id = usual] = FastCheck.sample(Arbitrary.make(schema), { numRuns: 1, seed: 1 })
  return String(id)
}

// --- internal ---

/** The steps without the types of an aggregate, which `Scenario` has. One function serves all aggregates. */
interface Untyped {
  readonly id: (id: string) => Untyped
  readonly at: (time: Time) => Untyped
  readonly given: (...events: ReadonlyArray<Tagged>) => Untyped
  readonly givenStored: (...events: ReadonlyArray<StoredForm>) => Untyped
  readonly of: (aggregate: AnyAggregate) => Untyped
  readonly provide: (layer: AnyLayer) => Untyped
  readonly when: (command: Tagged) => Done<unknown, Tagged, unknown>
  readonly on: (event: Tagged) => Received<unknown>
  readonly project: (
    projections: Projection.Any | ReadonlyArray<Projection.Any>,
    options?: ProjectOptions
  ) => Projected<unknown>
}

const noPlan: Plan = { given: [], layer: Layer.empty, millis: undefined }

/** The aggregate, with an id that its schema accepts. */
const targetOf = (operation: string, aggregate: AnyAggregate): Target => {
  checkAggregate(operation, aggregate)
  return { aggregate, id: usualId(aggregate.id) }
}

const scenarioOf = (plan: Plan, current: Target): Untyped => {
  const { aggregate } = current
  const give = (events: ReadonlyArray<GivenEvent>): Plan => ({
    ...plan,
    // A copy, because the test may change what it has given.
    given: [...plan.given, { ...current, millis: plan.millis, events: copyOf(events) }]
  })
  return {
    id: (id) => scenarioOf(plan, { aggregate, id }),
    at: (time) => scenarioOf({ ...plan, millis: millisOf(time) }, current),
    given: (...events) => scenarioOf(give(events.map((event) => ({ _tag: "Event", event }))), current),
    givenStored: (...events) => scenarioOf(give(events.map((stored) => ({ _tag: "Stored", stored }))), current),
    of: (other) => scenarioOf(plan, targetOf("`of` of a test", other)),
    provide: (layer) => scenarioOf({ ...plan, layer: Layer.provideMerge(layer, plan.layer) }, current),
    when: (command) => whenCommand(plan, current, command),
    on: (event) => receiving(give([{ _tag: "Event", event }]), plan.given),
    project: (projections, options = {}) => projecting(plan, aggregate, projections, options)
  }
}

const millisOf = (time: Time): number => {
  const millis = time instanceof Date ? time.getTime() : DateTime.toEpochMillis(time)
  if (Number.isNaN(millis)) throw new TypeError("`at` of a test was given an invalid date")
  return millis
}
