/** The option `reply: "position"`: the result of a command without its state and events, on the local layer and on runners. */
import * as SqlClient from "@effect/sql/SqlClient"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, SqlStore, StoreError } from "effect-maestro"
import { Account, Deposit, Deposited, Frozen, InsufficientFunds, id, Touch, Withdraw } from "./clusterBank.js"
import { type Services, storedOf, ways } from "./clusterWays.js"
import { layerPg } from "./database.js"

const short = { reply: "position" } as const
const a = id("a")
const deposit = (amount: number) => Account.evaluate(a, new Deposit({ amount }), short)
const acknowledged = (sequence: number, duplicate = false) => ({
  sequence,
  position: { aggregateId: "Account/a", sequence },
  duplicate
})

/** The function without the types of its parameters, as JavaScript calls it. */
const untyped = (call: unknown) =>
  call as (
    id: string,
    command: unknown,
    options: unknown
  ) => Effect.Effect<unknown, unknown, Aggregate.Instance<"Account">>

class Asked extends Schema.TaggedClass<Asked>()("Asked", { sequence: Schema.Number }) {}
class Ask extends Schema.TaggedClass<Ask>()("Ask", {}) {}

/** An aggregate whose handler deposits, and records the sequence of the account. */
const Teller = Aggregate.make("Teller", {
  state: Schema.Number,
  initialState: 0,
  events: Asked,
  commands: Ask,
  decide: { Ask: () => Effect.map(deposit(1), ({ sequence }) => [new Asked({ sequence })]) },
  evolve: { Asked: (_, { sequence }) => sequence }
})

for (const [way, layer] of Object.entries(ways)) {
  describe(`on ${way}`, () => {
    const test = (name: string, run: () => Effect.Effect<void, unknown, Services>) =>
      it.live(name, () => Effect.scoped(Effect.provide(Effect.suspend(run), layer)))

    test("the result has the sequence, the position and duplicate, and nothing else", () =>
      Effect.gen(function* () {
        const made = yield* deposit(3)
        expect(Object.keys(made).sort()).toEqual(["duplicate", "position", "sequence"])
        expect(made).toEqual(acknowledged(1))
        expect(yield* Account.evaluate(a, new Touch(), short)).toEqual(acknowledged(1))
        expect(yield* storedOf("Account/a")).toHaveLength(1)
        // Without the option the result is whole.
        expect(yield* Account.evaluate(a, new Deposit({ amount: 4 }))).toMatchObject({
          state: { balance: 7 },
          sequence: 2,
          events: [new Deposited({ amount: 4 })]
        })
      }))

    test("evaluateUnknown takes the option beside `only`", () =>
      Effect.gen(function* () {
        const evaluate = (amount: number, only: ReadonlyArray<"Deposit" | "Touch">) =>
          Account.evaluateUnknown(a, { _tag: "Deposit", amount }, { only, ...short })
        expect(yield* evaluate(3, ["Deposit"])).toEqual(acknowledged(1))
        expect(yield* Effect.flip(evaluate(3, ["Touch"]))).toBeInstanceOf(StoreError.ValidationError)
        expect(yield* Effect.flip(evaluate(-1, ["Deposit"]))).toBeInstanceOf(StoreError.ValidationError)
        expect(yield* Account.evaluateUnknown(a, { _tag: "Touch" }, { reply: undefined })).toMatchObject({
          state: { balance: 3 }
        })
      }))

    test("a refusal is that of the whole result, and stores nothing", () =>
      Effect.gen(function* () {
        const refused = yield* Effect.flip(Account.evaluate(a, new Withdraw({ amount: 1 }), short))
        expect(refused).toBeInstanceOf(InsufficientFunds)
        expect(refused).toMatchObject({ balance: 0 })
        expect(yield* Effect.flip(deposit(666))).toBeInstanceOf(Frozen)
        expect(yield* storedOf("Account/a")).toEqual([])
      }))

    test("a command with an id takes effect once, and the next one is a duplicate, with either form of the result", () =>
      Effect.gen(function* () {
        const once = deposit(3).pipe(Aggregate.withCommandId("1"))
        expect(yield* once).toEqual(acknowledged(1))
        expect(yield* once).toEqual(acknowledged(1, true))
        const whole = Account.evaluate(a, new Deposit({ amount: 3 })).pipe(Aggregate.withCommandId("1"))
        expect(yield* whole).toMatchObject({ ...acknowledged(1, true), events: [], state: { balance: 3 } })
        const other = deposit(4).pipe(Aggregate.withCommandId("1"))
        expect(yield* Effect.flip(other)).toBeInstanceOf(StoreError.CommandIdReused)
      }))

    test("a command under an expected sequence is evaluated at that sequence alone", () =>
      Effect.gen(function* () {
        const at = (sequence: number) => deposit(3).pipe(Aggregate.withExpectedSequence(sequence))
        expect(yield* at(0)).toEqual(acknowledged(1))
        expect(yield* Effect.flip(at(0))).toMatchObject({ _tag: "UnexpectedSequence", expected: 0, actual: 1 })
        expect(yield* at(1)).toEqual(acknowledged(2))
      }))

    test("commands on one aggregate that run concurrently take effect each", () =>
      Effect.gen(function* () {
        const commands = Array.from({ length: 20 }, () => deposit(1))
        const all = yield* Effect.all(commands, { concurrency: "unbounded" })
        const expected = Array.from({ length: 20 }, (_, index) => acknowledged(index + 1))
        expect([...all].sort((one, other) => one.sequence - other.sequence)).toEqual(expected)
        expect(yield* Account.fetch(a)).toMatchObject({ balance: 20 })
      }))

    test("the handler of another aggregate may use it, and its chain is named by the first event", () =>
      Effect.gen(function* () {
        const asked = Teller.evaluate("t", new Ask(), short).pipe(Effect.provide(Layer.fresh(Teller.layer)))
        expect(yield* asked).toMatchObject({ position: { aggregateId: "Teller/t", sequence: 1 } })
        const [[inner], [outer]] = [yield* storedOf("Account/a"), yield* storedOf("Teller/t")]
        expect(outer?.body).toEqual({ sequence: 1 })
        expect(outer?.correlationId).toBe(inner?.timestamp)
        expect(inner?.correlationId).toBe(inner?.timestamp)
      }))

    test("another value of the option is a ValidationError that names the right one, and nothing is stored", () =>
      Effect.gen(function* () {
        for (const reply of ["state", "Position", "", null, 0, true, {}, ["position"]]) {
          for (const [operation, call] of [
            ["Account.evaluate", untyped(Account.evaluate)(a, new Deposit({ amount: 1 }), { reply })],
            ["Account.evaluateUnknown", untyped(Account.evaluateUnknown)(a, { _tag: "Deposit", amount: 1 }, { reply })]
          ] as const) {
            const failed = yield* Effect.flip(call)
            expect(failed).toBeInstanceOf(StoreError.ValidationError)
            expect(failed).toMatchObject({
              operation,
              issues: [{ path: ["reply"], message: 'must be "position", or left out for the whole result' }]
            })
          }
        }
        expect(yield* Account.exists(a)).toBe(false)
      }))

    const tags = "Deposit, Withdraw, Touch, Break, Query"
    const refusesOptions = (options: unknown, path: ReadonlyArray<string | number>, message: string) =>
      Effect.gen(function* () {
        const input = { _tag: "Deposit", amount: 1 }
        const failed = yield* Effect.flip(untyped(Account.evaluateUnknown)(a, input, options))
        expect(failed).toBeInstanceOf(StoreError.ValidationError)
        expect(failed).toMatchObject({ operation: "Account.evaluateUnknown", issues: [{ path, message }] })
      })

    test("`only` that is no array of tags of commands is a ValidationError, and nothing is stored", () =>
      Effect.gen(function* () {
        const noArray = `must be an array of tags of commands: ${tags}`
        const only = { length: 1, 0: "Deposit", includes: () => true }
        for (const wrong of ["Deposit", "xDepositx", "", null, 0, true, {}, new Set(["Deposit"]), only]) {
          yield* refusesOptions({ only: wrong }, ["only"], noArray)
        }
        const noTag = `must be the tag of a command: ${tags}`
        yield* refusesOptions({ only: ["Deposit", "Depositt"] }, ["only", 1], `${noTag}, and is "Depositt"`)
        yield* refusesOptions({ only: [["Deposit"]] }, ["only", 0], noTag)
        yield* refusesOptions({ only: Array(1) }, ["only", 0], noTag)
        let reads = 0
        const changing = new Proxy(["Touch"], {
          get: (target, key) => (key === "0" && reads++ > 0 ? "Deposit" : Reflect.get(target, key))
        })
        const deposit = { _tag: "Deposit", amount: 1 }
        const failed = yield* Effect.flip(untyped(Account.evaluateUnknown)(a, deposit, { only: changing }))
        expect(failed).toMatchObject({ issues: [{ path: ["_tag"] }] })
        expect(yield* Account.exists(a)).toBe(false)
      }))

    test("options that are no plain object, or have another name, are a ValidationError, and nothing is stored", () =>
      Effect.gen(function* () {
        const noObject = (keys: string) => `must be a plain object with ${keys}, or left out`
        for (const options of ["position", 1, true, null, ["Deposit"], new Set(["Deposit"]), () => ({})]) {
          yield* refusesOptions(options, ["options"], noObject("only, reply"))
          const failed = yield* Effect.flip(untyped(Account.evaluate)(a, new Deposit({ amount: 1 }), options))
          expect(failed).toMatchObject({ issues: [{ path: ["options"], message: noObject("reply") }] })
        }
        const none = (keys: string) => `is no option here: the options are ${keys}`
        yield* refusesOptions({ replay: "position" }, ["replay"], none("only, reply"))
        yield* refusesOptions({ onyl: ["Touch"] }, ["onyl"], none("only, reply"))
        for (const key of ["only", "replay", "expectedSequence"]) {
          const failed = yield* Effect.flip(untyped(Account.evaluate)(a, new Deposit({ amount: 1 }), { [key]: [] }))
          expect(failed).toMatchObject({
            _tag: "ValidationError",
            operation: "Account.evaluate",
            issues: [{ path: [key], message: none("reply") }]
          })
        }
        const unreadable = Object.defineProperty({}, "reply", {
          get: () => {
            throw new Error("no value")
          }
        })
        yield* refusesOptions(unreadable, ["options"], "can't be read: no value")
        const all = yield* Effect.flip(untyped(Account.evaluateUnknown)(a, {}, { onyl: [], only: 1, reply: 1 }))
        expect(all).toMatchObject({ issues: [{ path: ["onyl"] }, { path: ["only"] }, { path: ["reply"] }] })
        expect(yield* Account.exists(a)).toBe(false)
      }))
  })
}

it.live("in a transaction of the caller it is part of the transaction", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    expect(yield* sql.withTransaction(deposit(3))).toEqual(acknowledged(1))
    const rolledBack = sql.withTransaction(
      Effect.flatMap(deposit(4), (made) => {
        expect(made).toEqual(acknowledged(2))
        return Effect.fail("rolled back")
      })
    )
    expect(yield* Effect.flip(rolledBack)).toBe("rolled back")
    const once = deposit(5).pipe(Aggregate.withCommandId("1"))
    expect(yield* sql.withTransaction(Effect.all([once, once]))).toEqual([acknowledged(2), acknowledged(2, true)])
    expect(yield* Account.fetch(a)).toMatchObject({ balance: 8 })
  }).pipe(Effect.provide(Account.layer.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(layerPg()))))
)
