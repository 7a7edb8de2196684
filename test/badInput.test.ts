/** Bad input of aggregates, clocks, layers and schemas. The contract covers bad input of the port. */
import { expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, Event, MemoryStore, Snapshot, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { inject } from "vitest"
import { asJson, everyCase, onRealClock } from "../src/internal/contract/case.js"
import { anyValue, hostileText } from "../src/internal/contract/hostile.js"
import { Account, Deposit, Limits } from "./account.js"
import { layerPglite } from "./database.js"

const settings = { lacks: [], runs: inject("runs"), seed: undefined }

const layer = Account.layer.pipe(Layer.provide(Limits.layer), Layer.provideMerge(MemoryStore.layer))

it.layer(layer)("bad input", (it) => {
  it.effect(
    "aggregates: any value as id, command, sequence or metadata is a typed failure, and stores nothing bad",
    () =>
      // Fewer runs, because each input is given to twelve operations.
      everyCase(
        { ...settings, runs: Math.min(Math.ceil(settings.runs / 2), 500) },
        FastCheck.tuple(anyValue, anyValue),
        (recipes) =>
          Effect.gen(function* () {
            const [a, b] = recipes.map(({ make }) => make())
            const id = yield* Account.newId
            const ended = yield* Effect.forEach(
              [
                () => call(Account.evaluate, a, new Deposit({ amount: 1 })),
                () => call(Account.evaluate, id, a),
                () => call(Account.evaluate, id, { _tag: a }),
                () => call(Account.evaluateUnknown, id, a),
                () => call(Account.evaluateUnknown, id, { _tag: "Deposit", amount: a }),
                () => call(Account.evaluateUnknown, id, { _tag: "Withdraw", amount: b }),
                () => call(Account.get, a),
                () => call(Account.fetch, a),
                () => call(Account.replay, a, b),
                () => call(Account.replay, id, a),
                () => call(Account.snapshot, a),
                () => Stream.runDrain(Account.history(a as string))
              ],
              typedFailure
            )
            // An accepted command is a deposit of a number above 0, so every stored event can be read.
            const stored = yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
              store.getEvents(Account.streamId(id), 1)
            )
            expect(stored.length).toBeLessThanOrEqual(ended.filter(Exit.isSuccess).length)
            const state = yield* Account.fetch(id)
            expect(state.balance).toBeGreaterThanOrEqual(0)
          })
      )
  )

  it.effect("Aggregate.Metadata: any value is stored exactly, or a ValidationError", () =>
    everyCase(settings, anyValue, ({ make }) =>
      Effect.gen(function* () {
        const [whole, inside] = [yield* Account.newId, yield* Account.newId]
        const deposit = (id: string, metadata: unknown) =>
          Effect.provideService(
            Account.evaluate(id, new Deposit({ amount: 1 })),
            Aggregate.Metadata,
            metadata as Record<string, unknown>
          )
        yield* typedFailure(() => deposit(whole, make()))
        const value = make()
        if (Exit.isSuccess(yield* typedFailure(() => deposit(inside, { value })))) {
          const [stored] = yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
            store.getEvents(Account.streamId(inside), 1)
          )
          expect(stored?.metadata).toEqual({ value: asJson(value) })
        }
      })
    )
  )

  it.effect("a command whose payload its schema forbids is a ValidationError, also from untyped callers", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Account.evaluate("a", JSON.parse('{"_tag": "Deposit", "amount": "ten"}')))
      expect(error).toMatchObject({ _tag: "ValidationError", issues: [{ path: ["amount"] }] })
    })
  )
})

it.effect("HybridClock.receive: a value that is no timestamp is a ValidationError, and does not change the clock", () =>
  everyCase(settings, anyValue, ({ make }) =>
    Effect.gen(function* () {
      const clock = Timestamp.make()
      const before = yield* clock.now
      const exit = yield* typedFailure(() => call(clock.receive, make()))
      expect(Exit.isFailure(exit)).toBe(true)
      const after = yield* clock.now
      expect(Timestamp.isTimestamp(after) && after > before).toBe(true)
    })
  )
)

it.effect("Timestamp.fromParts: any numbers make a timestamp", () =>
  everyCase(
    settings,
    FastCheck.tuple(FastCheck.double(), FastCheck.double(), FastCheck.bigInt()),
    ([millis, counter, node]) =>
      Effect.sync(() => {
        const timestamp = Timestamp.fromParts({ millis, counter, node })
        expect(Timestamp.isTimestamp(timestamp)).toBe(true)
        expect(Timestamp.fromParts(Timestamp.toParts(timestamp))).toBe(timestamp)
      })
  )
)

it.effect("the schemas of records and timestamps refuse any bad value with a ParseError", () =>
  everyCase(settings, FastCheck.tuple(anyValue, hostileText), ([{ make }, text]) =>
    Effect.sync(() => {
      for (const schema of [Event.Event, Snapshot.Snapshot, Timestamp.Timestamp]) {
        const decode = Schema.decodeUnknownEither(schema as Schema.Schema<unknown, unknown>)
        expect(Either.isLeft(decode(text)) || Timestamp.isTimestamp(text)).toBe(true)
        // For a value that throws when it is read, the schema throws the same error.
        const value = make()
        if (isReadable(value)) expect(Either.isEither(decode(value))).toBe(true)
      }
      expect(typeof Timestamp.isTimestamp(make())).toBe("boolean")
    })
  )
)

it.scopedLive("SqlStore: any text is a schema's name, or Misconfigured; none is read as SQL", () =>
  Effect.gen(function* () {
    const client = yield* Layer.build(layerPglite)
    yield* everyCase({ ...settings, runs: Math.min(Math.ceil(settings.runs / 5), 25) }, hostileText, (schema) =>
      Effect.gen(function* () {
        const store = SqlStore.layerWith({ schema }).pipe(Layer.provide(Layer.succeedContext(client)))
        const exit = yield* Effect.exit(Effect.scoped(Layer.build(store)))
        if (Exit.isFailure(exit)) {
          const failure = Option.getOrUndefined(Cause.failureOption(exit.cause))
          expect(failure instanceof StoreError.StoreError && failure.reason, Cause.pretty(exit.cause)).toBe(
            "Misconfigured"
          )
        }
      })
    )
    yield* everyCase(settings, anyValue, ({ make }) =>
      Effect.gen(function* () {
        const schema = make()
        if (typeof schema === "string" || schema === undefined || schema === null) return
        const error = yield* Effect.flip(
          Layer.build(SqlStore.layerWith({ schema: schema as string })).pipe(Effect.provide(client))
        )
        expect(error).toMatchObject({ reason: "Misconfigured" })
      }).pipe(Effect.scoped, Effect.orDie)
    )
  })
)

// --- helpers ---

/** Calls a function with arguments that its types forbid, as untyped callers do. */
const call = <R>(f: (...args: never) => Effect.Effect<unknown, unknown, R>, ...args: ReadonlyArray<unknown>) =>
  (f as (...args: ReadonlyArray<unknown>) => Effect.Effect<unknown, unknown, R>)(...args)

const failures = [StoreError.ValidationError, StoreError.RetryCommand, StoreError.StoreError]

/**
 * Checks that the operation ends soon, and that a failure is typed. A refusal of the account is a typed failure too.
 */
const typedFailure = <R>(operation: () => Effect.Effect<unknown, unknown, R>) =>
  Effect.gen(function* () {
    const result = yield* Effect.exit(Effect.suspend(operation)).pipe(Effect.timeoutOption("10 seconds"), onRealClock)
    const exit = Option.getOrElse(result, () => Exit.fail("it did not end"))
    if (Exit.isFailure(exit)) {
      const failure = Option.getOrUndefined(Cause.failureOption(exit.cause))
      const refusal = typeof failure === "object" && failure !== null && "_tag" in failure
      expect(refusal || failures.some((type) => failure instanceof type), Cause.pretty(exit.cause)).toBe(true)
      if (failure instanceof StoreError.ValidationError) expect(failure.issues[0].message).not.toBe("")
    }
    return exit
  })

const isReadable = (value: unknown): boolean => {
  try {
    JSON.stringify(value)
    return typeof value !== "object" || value === null || Reflect.ownKeys(value).length >= 0
  } catch {
    return false
  }
}
