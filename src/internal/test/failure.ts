/**
 * The failure of an assertion of the test kit, its message, and the three ways in which an assertion is run.
 *
 * All assertions are effects that fail with `AssertionFailed`. `synchronously` throws that failure, `asPromise` rejects
 * with it, so that a test runner needs no support for Effect.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Runtime from "effect/Runtime"
import { differenceOf } from "./difference.js"

/** What an assertion of this kit fails with. Its message has what was given, done, expected and got. */
export class AssertionFailed extends Data.TaggedError("AssertionFailed")<{
  readonly message: string
  /** What the test expected. */
  readonly expected: unknown
  /** What the code under test returned. */
  readonly actual: unknown
}> {
  // Test runners recognize failed assertions by this name.
  override readonly name = "AssertionError"
  /** The message has the difference already, so a runner need not print its own. */
  readonly showDiff = false
}

/** A part of a message: a title, and lines below it. */
export type Section = readonly [title: string, lines: ReadonlyArray<string>]

/** What an assertion has found, and the lines of both sides. */
export interface Finding {
  readonly title: string
  readonly sections: ReadonlyArray<Section>
  readonly expected: { readonly value: unknown; readonly lines: ReadonlyArray<string> }
  readonly got: { readonly value: unknown; readonly lines: ReadonlyArray<string> }
}

/** Makes the failure of a finding. The message ends with the difference of both sides. */
export const failed = ({ expected, got, sections, title }: Finding): AssertionFailed => {
  const difference = differenceOf(expected.lines, got.lines)
  return new AssertionFailed({
    message: [
      title,
      "",
      ...sections.flatMap(textOfSection),
      "then (- expected, + got)",
      ...indented(difference),
      ...(difference.every((line) => line.startsWith(" ")) ? ["both print alike, and are values of other types"] : [])
    ].join("\n"),
    expected: expected.value,
    actual: got.value
  })
}

/** Makes the failure of a test that can't be carried out, such as one with a given event that can't be stored. */
export const impossible = (
  title: string,
  sections: ReadonlyArray<Section>,
  problem: ReadonlyArray<string>
): AssertionFailed =>
  new AssertionFailed({
    message: [title, "", ...sections.flatMap(textOfSection), ...textOfSection(["problem", problem])].join("\n"),
    expected: undefined,
    actual: problem.join("\n")
  })

/** Runs an assertion in this call, and throws its failure. One that waits for a promise or a timer throws, too. */
export const synchronously = (assertion: Effect.Effect<void, AssertionFailed>): void => {
  const site = callSite()
  const exit = Effect.runSyncExit(assertion)
  if (Exit.isFailure(exit)) throw thrownBy(site, exit.cause)
}

/** Runs an assertion, and rejects with its failure. */
export const asPromise = (assertion: Effect.Effect<void, AssertionFailed>): Promise<void> => {
  const site = callSite()
  return Effect.runPromiseExit(assertion).then((exit) => {
    if (Exit.isFailure(exit)) throw thrownBy(site, exit.cause)
  })
}

// --- internal ---

const indented = (lines: ReadonlyArray<string>): ReadonlyArray<string> => lines.map((line) => `  ${line}`)

const textOfSection = ([title, lines]: Section): ReadonlyArray<string> =>
  lines.length === 0 ? [] : [title, ...indented(lines.flatMap((line) => line.split("\n")))]

/** The frames from the test on. The failure itself is made in a fiber, whose frames do not name the test. */
const callSite = (): string => {
  const limit = Error.stackTraceLimit
  // Other code of the process may have lowered it, so that only frames of the kit were left.
  Error.stackTraceLimit = 50
  const frames = (new Error().stack ?? "").split("\n").slice(1)
  Error.stackTraceLimit = limit
  const first = frames.findIndex((frame) => !ownFrame.test(frame))
  return frames.slice(Math.max(first, 0)).join("\n")
}

const ownFrame = /[\\/]internal[\\/]test[\\/]/

const thrownBy = (site: string, cause: Cause.Cause<AssertionFailed>): unknown => {
  const thrown = Cause.squash(cause)
  if (Runtime.isAsyncFiberException(thrown)) {
    Effect.runFork(Fiber.interruptFork(thrown.fiber))
    return withSite(site, impossible("the assertion is synchronous, and the code under test waits", [], waits))
  }
  return thrown instanceof AssertionFailed ? withSite(site, thrown) : thrown
}

const waits = ["a handler waits for a promise or a timer: use `.promise` or `.effect` before `then…`"]

const withSite = (site: string, error: AssertionFailed): AssertionFailed => {
  error.stack = `${error.name}: ${error.message}\n${site}`
  return error
}
