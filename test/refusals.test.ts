/** Declared refusals, for the compiler and as schemas; `evaluateUnknown` with a list of allowed commands. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore } from "effect-maestro"
import { expectTypeOf } from "vitest"
import {
  Account,
  AlreadyOpen,
  Deposit,
  Deposited,
  definition,
  InsufficientFunds,
  LimitExceeded,
  Limits,
  Withdraw,
  Withdrawn
} from "./account.js"

const refusals = { Open: [AlreadyOpen], Withdraw: [InsufficientFunds, LimitExceeded] } as const

const Declaring = Aggregate.make("Account", { ...definition, refusals })

it("an aggregate has the schemas of its commands and of its declared refusals", () => {
  expect(Declaring.commands).toBe(definition.commands)
  expect(Declaring.refusals).toBe(refusals)
  expect(Account.refusals).toBe(undefined)
  expectTypeOf(Declaring.refusals).toEqualTypeOf(refusals)
  expectTypeOf(Account.refusals).toEqualTypeOf<undefined>()
  const Refusal = Schema.Union(...Declaring.refusals.Withdraw)
  const refusal = new LimitExceeded({ limit: 5 })
  const json: unknown = JSON.parse(JSON.stringify(Schema.encodeSync(Refusal)(refusal)))
  expect(json).toEqual({ _tag: "LimitExceeded", limit: 5 })
  expect(Schema.decodeUnknownSync(Refusal)(json)).toEqual(refusal)
})

it("declared refusals change no failure of evaluate", () => {
  const types = () => [
    [Declaring.evaluate("a", new Withdraw({ amount: 1 })), Account.evaluate("a", new Withdraw({ amount: 1 }))] as const,
    [Declaring.evaluate("a", new Deposit({ amount: 1 })), Account.evaluate("a", new Deposit({ amount: 1 }))] as const
  ]
  expectTypeOf<ReturnType<typeof types>[number][0]>().toEqualTypeOf<ReturnType<typeof types>[number][1]>()
})

// `test/check/hovers.ts` checks where such an error is shown, and its text.
it("a handler with a refusal that is not declared does not compile", () => {
  const inPlace = {
    state: Schema.Number,
    initialState: 0,
    events: Schema.Union(Deposited, Withdrawn),
    commands: Schema.Union(Deposit, Withdraw),
    evolve: { Deposited: (balance: number) => balance, Withdrawn: (balance: number) => balance }
  }
  const decide = {
    Deposit: () => Effect.succeed([]),
    Withdraw: (_: Withdraw, { state }: Aggregate.Root<number>) => new InsufficientFunds({ balance: state })
  }
  const types = () => {
    Aggregate.make("Account", {
      ...definition,
      refusals: { Open: [AlreadyOpen], Withdraw: [InsufficientFunds] },
      // @ts-expect-error: LimitExceeded is not declared
      decide: definition.decide
    })
    Aggregate.make("Account", {
      ...inPlace,
      refusals: {},
      // @ts-expect-error: InsufficientFunds is not declared
      decide
    })
    Aggregate.make("Account", {
      ...inPlace,
      // @ts-expect-error: Close is no command
      refusals: { Close: [InsufficientFunds] },
      decide: { Deposit: () => Effect.succeed([]), Withdraw: () => Effect.succeed([]) }
    })
    Aggregate.make("Account", {
      ...inPlace,
      // @ts-expect-error: no schema
      refusals: { Withdraw: ["InsufficientFunds"] },
      decide: { Deposit: () => Effect.succeed([]), Withdraw: () => Effect.succeed([]) }
    })
  }
  expectTypeOf(types).toBeFunction()
})

it("failures of the library and of the database need not be declared, and handlers in place are inferred", () => {
  const types = () =>
    Aggregate.make("Transfers", {
      state: Schema.Number,
      initialState: 0,
      events: Schema.Union(Deposited, Withdrawn),
      commands: Schema.Union(Deposit, Withdraw),
      refusals: { Withdraw: [InsufficientFunds] },
      decide: {
        Deposit: (command, root) => {
          expectTypeOf(command).toEqualTypeOf<Deposit>()
          expectTypeOf(root).toEqualTypeOf<Aggregate.Root<number>>()
          return Account.evaluate(root.id, command).pipe(
            Aggregate.withCommandId("c"),
            Aggregate.withExpectedSequence(1),
            Effect.map(({ events }) => events.filter((event) => event._tag === "Deposited"))
          )
        },
        Withdraw: ({ amount }, { state }) =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* sql`select 1`
            if (amount > state) return yield* new InsufficientFunds({ balance: state })
            return [new Withdrawn({ amount })]
          })
      },
      evolve: {
        Deposited: (balance, { amount }) => balance + amount,
        Withdrawn: (balance, { amount }) => balance - amount
      }
    })
  expectTypeOf<ReturnType<typeof types>["name"]>().toEqualTypeOf<"Transfers">()
})

it("refusals of an unknown command are refused when the aggregate is made", () => {
  const strange: typeof refusals = JSON.parse('{ "Open": [], "Withdraw": [], "Close": [] }')
  expect(() => Aggregate.make("Account", { ...definition, refusals: strange })).toThrow(
    "refusals of Account names what is no command: Close"
  )
})

it.effect(
  "evaluateUnknown refuses a command that is not allowed by a ValidationError that names the allowed commands",
  () =>
    Effect.gen(function* () {
      const id = yield* Account.newId
      const only = ["Deposit", "Touch"] as const
      const evaluate = (json: unknown) => Account.evaluateUnknown(id, json, { only })
      expect(yield* evaluate({ _tag: "Deposit", amount: 5 })).toMatchObject({ sequence: 1 })
      for (const [json, found] of [
        [{ _tag: "Withdraw", amount: 1 }, 'is "Withdraw"'],
        [{ _tag: "Close" }, 'is "Close"'],
        [{ _tag: "x".repeat(1000) }, `is "${"x".repeat(100)}"`],
        [{ amount: 1 }, "there is none"],
        [null, "there is none"],
        ["Deposit", "there is none"]
      ] as const) {
        const error = yield* Effect.flip(evaluate(json))
        expect(error).toMatchObject({
          _tag: "ValidationError",
          operation: "Account.evaluateUnknown",
          issues: [{ path: ["_tag"], message: `must be one of Deposit, Touch, and ${found}` }]
        })
        // The input is no list, so the issue has no index.
        expect(String(error)).toContain(`refused its input: _tag: must be one of Deposit, Touch, and ${found}`)
      }
      expect(yield* Effect.flip(evaluate({ _tag: "Deposit", amount: -1 }))).toMatchObject({
        issues: [{ path: ["amount"] }]
      })
      expect(yield* Effect.flip(Account.evaluateUnknown(id, { _tag: "Touch" }, { only: [] }))).toMatchObject({
        issues: [{ message: 'is "Touch", and no tag is allowed' }]
      })
      // A command whose tag differs at each read.
      let reads = 0
      const changing = {
        get _tag() {
          return reads++ === 0 ? "Deposit" : "Withdraw"
        },
        amount: 5
      }
      expect(yield* Effect.flip(evaluate(changing))).toMatchObject({ _tag: "ValidationError" })
      expect(yield* Account.fetch(id)).toMatchObject({ balance: 5 })
      expect(yield* Account.evaluateUnknown(id, { _tag: "Withdraw", amount: 5 }, {})).toMatchObject({ sequence: 2 })
      expect(yield* Account.exists(id)).toBe(true)
      expect(yield* Account.exists(`${id}-none`)).toBe(false)
    }).pipe(Effect.provide(Account.layer.pipe(Layer.provide(Limits.layer), Layer.provide(MemoryStore.layer))))
)
