/** A list of commands with an id takes effect once, as a whole. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Aggregate, MemoryStore, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import { Account, Deposit, InsufficientFunds, Limits, Withdraw } from "./account.js"
import { layerPg, uniqueName } from "./database.js"
import { aNode, failure } from "./nodes.js"
import { Book, Room } from "./room.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

const retry = Schedule.recurs(100)

const scene = Effect.gen(function* () {
  const [a, b, r] = [uniqueName("a"), uniqueName("b"), uniqueName("r")]
  yield* Account.evaluate(a, new Deposit({ amount: 100 }))
  const booking = (amount: number) =>
    Aggregate.evaluateAll(
      [
        Account.command(a, new Withdraw({ amount })),
        Account.command(b, new Deposit({ amount })),
        Room.command(r, new Book({ guest: "Ann" }))
      ],
      { retry }
    )
  const balances = Effect.map(Effect.all([Account.fetch(a), Account.fetch(b)]), (states) =>
    states.map(({ balance }) => balance)
  )
  return { a, b, r, booking, balances }
})

for (const [name, store] of Object.entries(stores)) {
  const layer = Layer.merge(Account.layer, Room.layer).pipe(Layer.provideMerge(Limits.layer), Layer.provideMerge(store))
  it.layer(layer, { timeout: 60_000 })(`Lists of commands with an id on ${name}`, (it) => {
    it.effect("evaluated again, all results are duplicates with the current states", () =>
      Effect.gen(function* () {
        const { a, balances, booking } = yield* scene
        const once = booking(30).pipe(Aggregate.withCommandId("c"))
        expect((yield* once).map(({ duplicate }) => duplicate)).toEqual([false, false, false])
        yield* Account.evaluate(a, new Deposit({ amount: 1 }))
        const again = yield* once
        expect(again.map(({ duplicate, events, sequence }) => [duplicate, events, sequence])).toEqual([
          [true, [], 3],
          [true, [], 1],
          [true, [], 1]
        ])
        expect([again[0].state.balance, again[1].state.balance, again[2].state]).toEqual([71, 30, "Ann"])
        expect(yield* balances).toEqual([71, 30])
      })
    )

    it.effect("the id belongs to the list: another list, or a single command, is CommandIdReused", () =>
      Effect.gen(function* () {
        const { a, b, balances, booking, r } = yield* scene
        const deposit = Account.evaluate(b, new Deposit({ amount: 30 }))
        const withId = Aggregate.withCommandId("c")
        yield* booking(30).pipe(withId)
        const others: ReadonlyArray<
          Effect.Effect<unknown, unknown, Effect.Effect.Context<ReturnType<typeof booking>>>
        > = [
          booking(31),
          Aggregate.evaluateAll([Account.command(b, new Deposit({ amount: 30 }))]),
          Aggregate.evaluateAll([
            Account.command(b, new Deposit({ amount: 30 })),
            Account.command(a, new Withdraw({ amount: 30 })),
            Room.command(r, new Book({ guest: "Ann" }))
          ]),
          Aggregate.evaluateAll([
            Room.command(uniqueName("r"), new Book({ guest: "Ann" })),
            Account.command(b, new Deposit({ amount: 30 }))
          ]),
          deposit
        ]
        for (const other of others) {
          const error = yield* Effect.flip(withId(other))
          expect(error).toBeInstanceOf(StoreError.CommandIdReused)
        }
        expect(yield* balances).toEqual([70, 30])
        yield* Account.evaluate(a, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("single"))
        const reused = yield* Effect.flip(booking(1).pipe(Aggregate.withCommandId("single")))
        expect(reused).toMatchObject({ _tag: "CommandIdReused", kind: "Account", id: a, commandId: "single" })
      })
    )

    it.effect("a refused list stores no receipt, and can take effect later", () =>
      Effect.gen(function* () {
        const { a, balances, booking } = yield* scene
        const once = booking(130).pipe(Aggregate.withCommandId("c"))
        expect(yield* Effect.flip(once)).toMatchObject({ refusal: new InsufficientFunds({ balance: 100 }) })
        yield* Account.evaluate(a, new Deposit({ amount: 50 }))
        yield* once
        expect(yield* balances).toEqual([20, 130])
        // The handlers would refuse it now.
        expect((yield* once).map(({ duplicate }) => duplicate)).toEqual([true, true, true])
      })
    )

    it.effect("evaluated concurrently on two nodes, it takes effect once, and all succeed", () =>
      Effect.gen(function* () {
        const { balances, booking } = yield* scene
        const nodes = [
          yield* aNode(Layer.merge(Account.layer, Room.layer)),
          yield* aNode(Layer.merge(Account.layer, Room.layer))
        ]
        const answers = yield* Effect.forEach(
          Array.from({ length: 20 }, (_, n) => nodes[n % 2] ?? nodes[0]),
          (node) =>
            booking(10).pipe(Aggregate.withCommandId("c"), node === undefined ? (it) => it : Effect.provide(node)),
          { concurrency: "unbounded" }
        )
        expect(answers.filter(([{ duplicate }]) => !duplicate)).toHaveLength(1)
        expect(yield* balances).toEqual([90, 10])
      }).pipe(Effect.scoped)
    )

    it.effect("a commit of unknown outcome is settled, with an id and without one", () =>
      Effect.gen(function* () {
        const { a, b } = yield* scene
        const shared = yield* StoreAdapter.StoreAdapter
        let commits = 0
        const node = yield* aNode(Account.layer, {
          ...shared,
          // The first answer of each commit is lost.
          commitAll: (events, projections) =>
            Effect.suspend(() => {
              const committing = shared.commitAll(events, projections)
              return ++commits % 2 === 1 ? Effect.zipRight(committing, failure("CommitUnknown")) : committing
            })
        })
        const transfer = Aggregate.evaluateAll(
          [Account.command(a, new Withdraw({ amount: 5 })), Account.command(b, new Deposit({ amount: 5 }))],
          { retry }
        ).pipe(Effect.provide(node))
        yield* transfer
        expect(commits).toBe(2)
        yield* transfer.pipe(Aggregate.withCommandId("c"))
        expect((yield* Effect.all([Account.fetch(a), Account.fetch(b)])).map(({ balance }) => balance)).toEqual([
          90, 10
        ])
      }).pipe(Effect.scoped)
    )

    it.effect("an invalid id, and a command that can't be encoded, are refused", () =>
      Effect.gen(function* () {
        const { a, booking } = yield* scene
        const empty = yield* Effect.flip(booking(1).pipe(Aggregate.withCommandId("")))
        expect(empty.message).toBe("Aggregate.evaluateAll refused its input: commandId: must not be empty")
        const bad = Object.assign(new Deposit({ amount: 1 }), { amount: -1 })
        const unencodable = yield* Effect.flip(
          Aggregate.evaluateAll([Account.command(a, new Withdraw({ amount: 1 })), Account.command(a, bad)]).pipe(
            Aggregate.withCommandId("c")
          )
        )
        expect(unencodable.message).toContain("Aggregate.evaluateAll refused its input: [1].amount: can't be encoded")
      })
    )
  })
}
