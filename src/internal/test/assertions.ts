/**
 * What assertions have in common: comparing lists and failures, and printing the result of what was done.
 */
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import { type AssertionFailed, type Finding, failed } from "./failure.js"
import { isSame } from "./same.js"
import { show } from "./show.js"

/** Runs an assertion, and returns what the assertion returns to the test. */
export type Run<Out> = (assertion: Effect.Effect<void, AssertionFailed>) => Out

/** The effect, which runs once however often it is evaluated. Evaluations in the meantime wait for the first. */
export const once = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> => {
  let done: Exit.Exit<A, E> | undefined
  let running: Deferred.Deferred<void> | undefined
  const run: Effect.Effect<A, E> = Effect.uninterruptibleMask((restore) => {
    if (done !== undefined) return done
    if (running !== undefined) return restore(Effect.zipRight(Deferred.await(running), run))
    const ended = Deferred.unsafeMake<void>(FiberId.none)
    running = ended
    return Effect.onExit(restore(effect), (exit) => {
      // An interrupted one may be evaluated again.
      if (!Exit.isInterrupted(exit)) done = exit
      running = undefined
      return Deferred.succeed(ended, undefined)
    })
  })
  return run
}

/** Succeeds if the values are equal, and fails with the finding otherwise. */
export const expectSame = (
  expected: unknown,
  actual: unknown,
  finding: () => Finding
): Effect.Effect<void, AssertionFailed> => (isSame(expected, actual) ? Effect.void : failed(finding()))

/** Whether a cause is a typed failure of the expected class, or one that equals the expected instance. */
export const isExpected = (expected: unknown, cause: Cause.Cause<unknown>): boolean =>
  Option.exists(refusalIn(cause), (failure) => {
    if (typeof expected !== "function") return isSame(expected, failure)
    const tag = tagOfClass(expected)
    return failure instanceof expected || (tag !== undefined && tag === tagOf(failure))
  })

/** The expected failure for a message. */
export const showExpected = (expected: unknown): string =>
  typeof expected === "function"
    ? `fails with ${tagOfClass(expected) ?? expected.name}`
    : `fails with ${show(expected)}`

/** The failure of a cause for a message: a typed one, or the exception of a handler. */
export const showCause = (cause: Cause.Cause<unknown>): ReadonlyArray<string> =>
  Option.match(Cause.failureOption(cause), {
    onSome: (failure) => [`fails with ${show(failure)}`, ...messageOf(failure)],
    onNone: () => [`dies: ${Cause.pretty(cause)}`]
  })

/** The typed failure of a cause, for a message. */
export const failureIn = (cause: Cause.Cause<unknown>): unknown => Option.getOrUndefined(Cause.failureOption(cause))

/** The typed failure of a cause that has no exception and no interruption. */
export const refusalIn = (cause: Cause.Cause<unknown>): Option.Option<unknown> =>
  Chunk.isEmpty(Cause.defects(cause)) && !Cause.isInterrupted(cause) ? Cause.failureOption(cause) : Option.none()

// --- internal ---

/** Failures of the library explain themselves in their message. By default a message is the JSON of the fields. */
const messageOf = (failure: unknown): ReadonlyArray<string> =>
  failure instanceof Error && failure.message !== "" && !failure.message.startsWith("{") ? [`  ${failure.message}`] : []

const tagOf = (value: unknown): unknown =>
  typeof value === "object" && value !== null && "_tag" in value ? value._tag : undefined

/** The tag of a class of `Schema.TaggedError`. Two copies of one module have two classes of one tag. */
const tagOfClass = (value: object): string | undefined =>
  "_tag" in value && typeof value._tag === "string" ? value._tag : undefined
