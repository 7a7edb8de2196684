/**
 * A failed projection is named with its event: in the `StoreError`, or for any other failure in the span and in the
 * log.
 */
import { SqlError } from "@effect/sql/SqlError"
import { expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HashMap from "effect/HashMap"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { type Event, MemoryStore, Projection, StoreAdapter, StoreError, Subscription, Timestamp } from "effect-maestro"
import { settleCommit } from "../src/internal/runtime/retry.js"
import { collectSpans } from "./spans.js"
import { eventually, start } from "./subscribers.js"

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Int }) {}

const deposited = (aggregateId: string, sequence: number, body: object = { amount: 1 }): Effect.Effect<Event.Event> =>
  Effect.map(
    Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
    (timestamp) => ({ timestamp, aggregateId, sequence, type: "Deposited", body, metadata: {} }) as Event.Event
  )

const failed = (cause: Error & { readonly code?: string }) =>
  new SqlError({ cause, message: "Failed to execute statement" })
const withCode = (message: string, code: string) => Object.assign(new Error(message), { code })

interface Line {
  readonly level: string
  readonly annotations: Readonly<Record<string, unknown>>
  readonly message: unknown
}

/** Runs the effect, and returns its exit, the log, and the attributes of the span around the commit. */
const observed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const lines: Array<Line> = []
    const logger = Logger.make(({ annotations, logLevel, message }) => {
      lines.push({ level: logLevel.label, annotations: Object.fromEntries(HashMap.toEntries(annotations)), message })
    })
    const { spans, tracer } = yield* collectSpans
    const exit = yield* Effect.exit(effect).pipe(
      Effect.withSpan("request"),
      Effect.withTracer(tracer),
      Logger.withMinimumLogLevel(LogLevel.All),
      Effect.provide(Logger.replace(Logger.defaultLogger, logger))
    )
    const attributes = Object.assign({}, ...spans.map((span) => Object.fromEntries(span.attributes)))
    return { attributes, exit, lines }
  })

/** Unwraps the proxies in which Effect wraps errors inside a span. */
const causeOf = (exit: Exit.Exit<unknown, unknown>) => {
  if (Exit.isSuccess(exit)) return []
  const error = Cause.squash(exit.cause)
  return [exit.cause._tag, error instanceof Error ? String(error) : error]
}

const names = {
  "projection.name": "balances",
  "event.type": "Deposited",
  "event.sequence": 1,
  "aggregate.id": "a"
}

const outcomes: ReadonlyArray<readonly [what: string, level: string, Effect.Effect<void, unknown>]> = [
  ["a defect", "ERROR", Effect.die(new Error("it broke"))],
  ["a statement that is wrong", "WARN", Effect.fail(failed(withCode("syntax error", "42601")))],
  ["a deadlock", "DEBUG", Effect.fail(failed(withCode("deadlock detected", "40P01")))],
  ["a refusal", "DEBUG", Effect.fail({ _tag: "Refused" })]
]

for (const [what, level, outcome] of outcomes) {
  it.effect(`${what} stays as it is, and is named in the span and in the log, at level ${level}`, () =>
    Effect.gen(function* () {
      const store = yield* MemoryStore.make
      const events = [yield* deposited("a", 1)]
      const { attributes, exit, lines } = yield* observed(
        store.commitAll(events, [{ name: "balances", project: () => outcome }])
      )
      expect(causeOf(exit)).toEqual(causeOf(yield* Effect.exit(outcome)))
      expect(attributes).toMatchObject(names)
      expect(lines.map(({ annotations, level }) => ({ annotations, level }))).toEqual([{ annotations: names, level }])
      expect(String(lines[0]?.message)).toContain('projection "balances" failed at event 1 of aggregate "a"')
    })
  )
}

it.effect("a projection that throws has a defect", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const throwing: Projection.Projection = {
      name: "balances",
      project: () => {
        throw new Error("it broke")
      }
    }
    const { exit, lines } = yield* observed(store.commitAll([yield* deposited("a", 1)], [throwing]))
    expect(causeOf(exit)).toEqual(["Die", "Error: it broke"])
    expect(lines.map(({ annotations }) => annotations)).toEqual([names])
  })
)

it.effect("an interrupted projection is not reported as a failure", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const started = yield* Deferred.make<void>()
    const hanging: Projection.Projection = {
      name: "balances",
      project: () => Effect.zipRight(Deferred.succeed(started, undefined), Effect.never)
    }
    const events = [yield* deposited("a", 1)]
    const { lines } = yield* observed(
      Effect.gen(function* () {
        const fiber = yield* Effect.fork(store.commitAll(events, [hanging]))
        yield* Deferred.await(started)
        yield* Fiber.interrupt(fiber)
        return yield* store.commitAll(events, [{ name: "interrupts itself", project: () => Effect.interrupt }])
      })
    )
    expect(lines).toEqual([])
  })
)

it.effect("an event that can't be decoded is named with its projection, once", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const Balances = Projection.make({ name: "balances", events: Deposited, project: { Deposited: () => Effect.void } })
    const error = yield* Effect.flip(store.commitAll([yield* deposited("a", 1, { amount: "ten" })], [Balances]))
    expect(error).toMatchObject({ reason: "UnreadableEvent", projection: "balances", aggregateId: "a", sequence: 1 })
    expect(error.message).toMatch(
      /^projection "balances", event Deposited 1 of aggregate "a": it can't be decoded: .*\(UnreadableEvent\)$/s
    )
  })
)

it.effect("a failed commit inside a projection has its own names", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const inner = [yield* deposited("inner", 1)]
    const full = new StoreError.StoreError({ reason: "Exhausted", operation: "x", description: "the disk is full" })
    const outer: Projection.Projection<unknown> = {
      name: "outer",
      project: () => store.commitAll<unknown, never>(inner, [{ name: "balances", project: () => Effect.fail(full) }])
    }
    const error = yield* Effect.flip(store.commitAll([yield* deposited("outer", 1)], [outer]))
    expect(error).toMatchObject({ reason: "Exhausted", projection: "balances", aggregateId: "inner" })
    expect(String(error)).toContain(
      'projection "balances", event Deposited 1 of aggregate "inner": the disk is full (Exhausted)'
    )
  })
)

it.live("a projection that a subscription runs is named, too", () =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const name = "eventual balances"
    const failing = (error: unknown) => ({ name: "balances", of: "all" as const, project: () => Effect.fail(error) })
    const full = new StoreError.StoreError({ reason: "Exhausted", operation: "x", description: "the disk is full" })
    const subscription = Subscription.fromProjections(name, [failing(full)], {
      onFailure: "park",
      retry: Schedule.recurs(0)
    })
    yield* store.commitEvents([yield* deposited("a", 1)])
    const { lines } = yield* observed(
      Effect.scoped(
        Effect.gen(function* () {
          yield* start(subscription)
          const [parked] = yield* eventually(Subscription.parked(name), (found) => found.length === 1)
          expect(parked?.error).toContain(
            'projection "balances", event Deposited 1 of aggregate "a": the disk is full (Exhausted)'
          )
        })
      )
    )
    expect(lines.map(({ annotations }) => annotations)).toContainEqual(expect.objectContaining(names))
  }).pipe(Effect.provide(MemoryStore.layer))
)

it.effect(
  "a final failure of a projection settles an earlier attempt of unknown outcome, and a transient failure does not",
  () =>
    Effect.gen(function* () {
      const failure = (reason: StoreError.StoreErrorReason, projection?: string) =>
        new StoreError.StoreError({
          reason,
          operation: "commitAll",
          description: "d",
          ...(projection === undefined ? {} : { projection })
        })
      const settling = (...failures: ReadonlyArray<StoreError.StoreError>) => {
        let attempt = 0
        return Effect.flip(
          settleCommit(
            Schedule.recurs(failures.length - 1),
            Effect.suspend(() => Effect.fail(failures[attempt++] ?? failure("Unknown")))
          )
        )
      }
      expect(yield* settling(failure("CommitUnknown"), failure("Constraint", "balances"))).toMatchObject({
        reason: "Constraint"
      })
      expect(yield* settling(failure("CommitUnknown"), failure("Contention", "balances"))).toMatchObject({
        reason: "CommitUnknown"
      })
      expect(yield* settling(failure("CommitUnknown"), failure("Exhausted"))).toMatchObject({ reason: "CommitUnknown" })
    })
)

it("the message of a StoreError has the place, the operation, the cause and the code", () => {
  const error = new StoreError.StoreError({
    reason: "Constraint",
    operation: "commitAll",
    description: "it is violated",
    code: "23505",
    projection: "balances"
  })
  expect(error.message).toBe('projection "balances": it is violated (Constraint, 23505)')
  const fields = { aggregateId: "Account/42", sequence: 3, type: "Deposited" }
  expect(new StoreError.StoreError({ ...error, ...fields }).message).toBe(
    'projection "balances", event Deposited 3 of aggregate "Account/42": it is violated (Constraint, 23505)'
  )
  const { code: _code, projection: _projection, ...rest } = error
  expect(new StoreError.StoreError({ ...rest, ...fields, type: "money came\nin" }).message).toBe(
    'commitAll: Constraint: event "money came\\nin" 3 of aggregate "Account/42": it is violated'
  )
})
