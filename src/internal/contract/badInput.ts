/**
 * The contract of bad input. An operation accepts its input, or fails with a typed failure that has the path. It never
 * dies, hangs, stores a part, or reads data as SQL.
 */
import { expect } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Option from "effect/Option"
import { StoreAdapter } from "../../StoreAdapter.js"
import { RetryCommand, ValidationError, type ValidationIssue } from "../../StoreError.js"
import {
  asJson,
  type Case,
  event,
  everyCase,
  failureOf,
  newId,
  passing,
  type Settings,
  snapshot,
  stream,
  test
} from "./case.js"
import { anyValue, hostileText } from "./hostile.js"

export const badInputCases = (settings: Settings): ReadonlyArray<Case> => [
  test("bad input: any value as any argument is accepted, or a ValidationError with its path", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      yield* everyCase(settings, FastCheck.tuple(anyValue, anyValue, anyValue), (recipes) =>
        Effect.gen(function* () {
          const [a, b, c] = recipes.map(({ make }) => make())
          // Untyped callers can pass such arguments.
          const call = (f: unknown, ...args: ReadonlyArray<unknown>) =>
            (f as (...args: ReadonlyArray<unknown>) => Effect.Effect<unknown, unknown>)(...args)
          for (const operation of [
            () => call(store.commitEvents, a),
            () => call(store.commitEvents, [a, b]),
            () => call(store.commitAll, a, [passing]),
            () => call(store.commitAll, [a, b], []),
            () => call(store.commitSnapshot, a),
            () => call(store.getEvents, a, b, c),
            () => call(store.getEvents, "a", 1, { maxSequence: a }),
            () => call(store.getSnapshot, a, b, c),
            () => call(store.getSnapshot, "a", a, { maxSequence: b })
          ]) {
            yield* isTyped(operation)
          }
        })
      )
    })),

  test("bad input: a commit with one bad value writes nothing, and a valid one stores exactly its events", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const fields = FastCheck.constantFrom(
        ...["timestamp", "aggregateId", "sequence", "type", "body", "metadata"],
        ...["correlationId", "causationId", "traceparent"]
      )
      const input = FastCheck.record({ field: fields, value: anyValue, withProjection: FastCheck.boolean() })
      yield* everyCase(settings, input, ({ field, value, withProjection }) =>
        Effect.gen(function* () {
          const [before, after] = [yield* stream(newId(), 1, 1), yield* stream(newId(), 1, 1)]
          const changed = { ...(yield* event(newId(), 1)), [field]: ofThisRun(field, value.make()) }
          const commit = [...before, changed, ...after]
          const exit = yield* isTyped(() =>
            withProjection ? store.commitAll(commit, [passing]) : store.commitEvents(commit)
          )
          const stored = Exit.isSuccess(exit)
          for (const one of [before, after]) {
            expect(yield* store.getEvents(one[0]?.aggregateId ?? "", 0)).toEqual(stored ? one : [])
          }
          if (stored) {
            expect(yield* store.getEvents(changed.aggregateId, 0)).toEqual([asJson(changed)])
          } else if (field !== "sequence") {
            expect(issuesOf(exit)[0]).toMatchObject({
              index: 1,
              path: [field, ...(issuesOf(exit)[0]?.path.slice(1) ?? [])]
            })
          }
        })
      )
    })),

  test("bad input: a snapshot with one bad value does not replace the stored one, and a valid one is stored exactly", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const input = FastCheck.record({
        field: FastCheck.constantFrom("timestamp", "sequence", "body", "metadata"),
        value: anyValue
      })
      yield* everyCase(settings, input, ({ field, value }) =>
        Effect.gen(function* () {
          const first = yield* snapshot(newId(), 1)
          yield* store.commitSnapshot(first)
          const changed = { ...(yield* snapshot(first.aggregateId, 2)), [field]: value.make() }
          const exit = yield* isTyped(() => store.commitSnapshot(changed))
          const expected = Exit.isSuccess(exit) && changed.sequence > 1 ? asJson(changed) : first
          expect(yield* store.getSnapshot(first.aggregateId, 0)).toEqual(Option.some(expected))
        })
      )
    })),

  test("bad input: hostile texts are data, as ids, types, keys and values, and change no other stream", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const untouched = yield* stream(newId(), 1, 3)
      yield* store.commitEvents(untouched)
      yield* everyCase(settings, FastCheck.tuple(hostileText, hostileText, hostileText), ([a, b, c]) =>
        Effect.gen(function* () {
          const id = `${newId().slice(0, 13)}${a}`
          const commit = [{ ...(yield* event(id, 1)), type: b, body: { [c]: a }, metadata: { [a]: { [b]: [c] } } }]
          const exit = yield* isTyped(() => store.commitEvents(commit))
          if (Exit.isSuccess(exit)) expect(yield* store.getEvents(id, 1)).toEqual(commit)
          yield* isTyped(() => store.getSnapshot(id, 0))
        })
      )
      expect(yield* store.getEvents(untouched[0]?.aggregateId ?? "", 1)).toEqual(untouched)
    }))
]

// --- internal ---

/** Checks that the operation ends soon, and that a failure is typed and has a path. */
const isTyped = (operation: () => Effect.Effect<unknown, unknown>): Effect.Effect<Exit.Exit<unknown, unknown>> =>
  Effect.gen(function* () {
    // Called inside `suspend`, so that a function that throws is a defect too.
    const result = yield* Effect.exit(Effect.suspend(operation)).pipe(Effect.timeoutOption("10 seconds"))
    const exit = Option.getOrElse(result, () => Exit.fail("it did not end"))
    if (Exit.isFailure(exit)) {
      const failure = failureOf(exit)
      if (!(failure instanceof RetryCommand)) {
        expect(failure, Cause.pretty(exit.cause)).toBeInstanceOf(ValidationError)
        expect(issuesOf(exit)).not.toHaveLength(0)
        for (const issue of issuesOf(exit)) expect(issue.message).not.toBe("")
      }
    }
    return exit
  })

/** A text as an id of this run. A valid text stays valid, and a bad one stays bad. */
const ofThisRun = (field: string, value: unknown): unknown =>
  field === "aggregateId" && typeof value === "string" && value !== "" ? `${newId().slice(0, 13)}${value}` : value

const issuesOf = (exit: Exit.Exit<unknown, unknown>): ReadonlyArray<ValidationIssue> => {
  const failure = failureOf(exit)
  return failure instanceof ValidationError ? failure.issues : []
}
