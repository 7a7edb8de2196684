/**
 * Checks what a test gives to the kit. A value that can't work is a mistake of the test, and throws a `TypeError` that
 * names it. Types find such values, too, but tests may be written in JavaScript.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { isAggregate } from "../aggregate/parts.js"
import type { SequenceOptions } from "./sequenceTypes.js"
import { show } from "./show.js"

/** Throws unless the value was made by `Aggregate.make`. */
export const checkAggregate = (operation: string, value: unknown): void => {
  if (!isAggregate(value)) {
    throw new TypeError(`${operation} takes an aggregate, which Aggregate.make returns, and was given ${show(value)}`)
  }
}

/** Throws unless each value is a projection. */
export const checkProjections = (values: ReadonlyArray<unknown>): void => {
  for (const value of values) {
    if (Predicate.hasProperty(value, "run") && Effect.isEffect(value.run)) {
      const name = Predicate.hasProperty(value, "name") ? `${show(value.name)}, ` : ""
      const instead = Predicate.hasProperty(value, "projections")
        ? "give its projections, as in `.project(subscription.projections)`"
        : "give the projections that it runs"
      throw new TypeError(`\`project\` takes projections, and was given ${name}a subscription: ${instead}`)
    }
    if (!isProjection(value)) {
      throw new TypeError(
        `\`project\` takes projections, which Projection.make and makeSql return, and was given ${show(value)}`
      )
    }
  }
}

/** Throws for options of `sequences` that can't work. A test of no sequence would succeed whatever it asserts. */
export const checkSequenceOptions = (options: SequenceOptions<unknown>): void => {
  const refuse = (option: string, must: string, value: unknown) =>
    new TypeError(`${option} of AggregateTest.sequences must be ${must}, and is ${show(value)}`)
  if (typeof options !== "object")
    throw new TypeError(
      `AggregateTest.sequences takes options as an object, such as { runs: 200 }, and was given ${show(options)}`
    )
  const unknown = Object.keys(options).find((key) => !sequenceOptions.includes(key))
  if (unknown !== undefined) {
    throw new TypeError(
      `AggregateTest.sequences has no option ${show(unknown)}, and its options are ${sequenceOptions.join(", ")}`
    )
  }
  const { commands, maxLength, runs, seed } = options
  for (const [option, value] of Object.entries({ runs, maxLength })) {
    if (value !== undefined && !(Number.isSafeInteger(value) && value >= 1)) {
      throw refuse(option, "a whole number above 0", value)
    }
  }
  if (seed !== undefined && !Number.isSafeInteger(seed)) throw refuse("seed", "a whole number", seed)
  if (commands !== undefined && !isArbitrary(commands)) {
    throw refuse("commands", "an arbitrary, such as `Arbitrary.make(schema)`", commands)
  }
}

// --- internal ---

const sequenceOptions = ["runs", "maxLength", "seed", "commands", "provide"]

const isProjection = (value: unknown): boolean =>
  (Predicate.hasProperty(value, "project") && typeof value.project === "function") ||
  (Predicate.hasProperty(value, "statements") && typeof value.statements === "function")

/** By its methods, because a program may have two copies of `fast-check`. */
const isArbitrary = (value: unknown): boolean =>
  Predicate.hasProperty(value, "generate") && typeof value.generate === "function"
