/** Lists of commands beside each other, beside single commands, and interrupted at any point. */
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { Aggregate, MemoryStore, SqlStore, StoreAdapter } from "effect-maestro"
import { Account, Deposit, Limits, Withdraw } from "./account.js"
import { layerPg, uniqueName } from "./database.js"
import { aNode, macrotask } from "./nodes.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

const retry = Schedule.recurs(1000)

const transfer = (from: string, to: string, amount = 1) =>
  Aggregate.evaluateAll(
    [Account.command(from, new Withdraw({ amount })), Account.command(to, new Deposit({ amount }))],
    { retry }
  )

const accounts = (count: number, balance: number) =>
  Effect.forEach(
    Arr.makeBy(count, (n) => uniqueName(`account ${n}`)),
    (id) => Effect.as(Account.evaluate(id, new Deposit({ amount: balance })), id)
  )

const balancesOf = (ids: ReadonlyArray<string>) =>
  Effect.forEach(ids, (id) => Effect.map(Account.fetch(id), ({ balance }) => balance))

const sum = (numbers: ReadonlyArray<number>) => numbers.reduce((a, b) => a + b, 0)

for (const [name, store] of Object.entries(stores)) {
  const services = Account.layer.pipe(Layer.provideMerge(Limits.layer), Layer.provideMerge(store))
  layer(services, { timeout: 60_000, excludeTestServices: true })(`Concurrent lists of commands on ${name}`, (it) => {
    it.effect(
      "transfers in both directions, with single commands between them, do not wait for each other forever",
      () =>
        Effect.gen(function* () {
          const [a = "", b = "", c = ""] = yield* accounts(3, 500)
          const programs = Arr.makeBy(
            300,
            (n) =>
              [
                Effect.asVoid(transfer(a, b)),
                Effect.asVoid(transfer(b, a)),
                Effect.asVoid(Account.evaluate(n % 2 === 0 ? a : b, new Deposit({ amount: 1 }))),
                Effect.asVoid(transfer(c, a)),
                Effect.asVoid(
                  Account.evaluate(b, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId(`command ${n}`))
                )
              ][n % 5] ?? Effect.void
          )
          yield* Effect.all(programs, { concurrency: "unbounded", discard: true })
          expect(yield* balancesOf([a, b, c])).toEqual([500 + 60 + 30, 500 + 30 + 60, 440])
        })
    )

    it.effect("transfers on two nodes conflict, are decided again, and all take effect", () =>
      Effect.gen(function* () {
        const [a = "", b = ""] = yield* accounts(2, 100)
        const other = yield* aNode(Account.layer)
        yield* Effect.forEach(
          Arr.makeBy(40, (n) => n),
          (n) => (n % 2 === 0 ? transfer(a, b, 2) : Effect.provide(transfer(b, a, 1), other)),
          { concurrency: "unbounded" }
        )
        expect(yield* balancesOf([a, b])).toEqual([80, 120])
      }).pipe(Effect.scoped)
    )

    it.effect("commands that wait for a list are decided on the states after it", () =>
      Effect.gen(function* () {
        const [a = "", b = ""] = yield* accounts(2, 10)
        const [first, ...others] = yield* Effect.all(
          [transfer(a, b, 10), ...Arr.makeBy(20, () => Effect.either(transfer(a, b, 1)))],
          { concurrency: "unbounded" }
        )
        expect(first).toMatchObject([{ state: { balance: 0 } }, { state: { balance: 20 } }])
        expect(others).toMatchObject(others.map(() => ({ _tag: "Left", left: { index: 0, refusal: { balance: 0 } } })))
      })
    )

    const seed = Math.floor(Math.random() * 2 ** 31)

    it.effect(`random transfers among accounts on two nodes keep the sum (seed ${seed})`, () =>
      Effect.gen(function* () {
        const ids = yield* accounts(6, 50)
        const other = yield* aNode(Account.layer)
        const pick = Effect.map(Random.nextIntBetween(0, ids.length), (n) => ids[n] ?? "")
        const amount = Random.nextIntBetween(1, 40)
        const programs = yield* Effect.replicateEffect(
          Effect.gen(function* () {
            const [from, to, third, some] = [yield* pick, yield* pick, yield* pick, yield* amount]
            const evaluating = Aggregate.evaluateAll(
              [
                Account.command(from, new Withdraw({ amount: some * 2 })),
                Account.command(to, new Deposit({ amount: some })),
                Account.command(third, new Deposit({ amount: some }))
              ],
              { retry }
            )
            const identified = (yield* Random.nextBoolean)
              ? evaluating.pipe(Aggregate.withCommandId(`c${yield* Random.nextInt}`))
              : evaluating
            const node = yield* Random.nextBoolean
            const limited = (yield* Random.nextIntBetween(0, 4)) === 0
            const once = Effect.either(node ? Effect.provide(identified, other) : identified)
            const delayed = yield* Random.nextIntBetween(0, 5)
            return { program: limited ? Effect.timeoutOption(once, delayed) : Effect.asSome(once) }
          }),
          150
        )
        yield* Effect.forEach(programs, ({ program }) => program, { concurrency: "unbounded" })
        const balances = yield* balancesOf(ids)
        expect([sum(balances), balances.every((balance) => balance >= 0)]).toEqual([300, true])
      }).pipe(Effect.scoped, Effect.withRandom(Random.make(seed)))
    )

    it.effect("interrupted at any point, a list stores all or nothing, and frees all locks", () =>
      Effect.gen(function* () {
        for (let turns = 0; turns < 40; turns++) {
          const [a = "", b = "", c = ""] = yield* accounts(3, 10)
          const holder = yield* Effect.fork(transfer(c, b, 1))
          const interrupted = yield* Effect.fork(
            Aggregate.evaluateAll(
              [
                Account.command(a, new Withdraw({ amount: 5 })),
                Account.command(b, new Deposit({ amount: 5 })),
                Account.command(c, new Deposit({ amount: 1 }))
              ],
              { retry }
            )
          )
          const waiting = yield* Effect.fork(transfer(b, a, 1))
          yield* Effect.repeatN(turns % 2 === 0 ? Effect.yieldNow() : macrotask, Math.floor(turns / 2))
          const exit = yield* Fiber.interrupt(interrupted)
          yield* Fiber.join(holder)
          yield* Fiber.join(waiting)
          const balances = yield* balancesOf([a, b, c])
          const isStored = balances[0] === 6
          expect(balances).toEqual(isStored ? [6, 15, 10] : [11, 10, 9])
          if (Exit.isSuccess(exit)) expect(isStored).toBe(true)
          else expect(Cause.isInterruptedOnly(exit.cause)).toBe(true)
          yield* transfer(a, b, 1)
        }
      })
    )
  })
}

const inMemory = Account.layer.pipe(Layer.provideMerge(Limits.layer), Layer.provideMerge(MemoryStore.layer))

it.layer(inMemory)("The locks of a list", (it) => {
  it.effect("are freed if the list is interrupted while it waits for the second of them", () =>
    Effect.gen(function* () {
      const [a = "", b = ""] = (yield* accounts(2, 10)).sort()
      const [entered, gate] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const shared = yield* StoreAdapter.StoreAdapter
      const node = yield* aNode(Account.layer, {
        ...shared,
        commitAll: (events, projections) =>
          events.length === 1 && events[0]?.aggregateId === Account.streamId(b)
            ? Effect.zipRight(
                Deferred.succeed(entered, undefined),
                Effect.zipRight(Deferred.await(gate), shared.commitAll(events, projections))
              )
            : shared.commitAll(events, projections)
      })
      const holder = yield* Effect.fork(Effect.provide(Account.evaluate(b, new Deposit({ amount: 1 })), node))
      yield* Deferred.await(entered)
      const waiting = yield* Effect.fork(Effect.provide(transfer(b, a), node))
      yield* Effect.repeatN(Effect.yieldNow(), 50)
      // It holds the lock of the first account, because that is free.
      const behind = yield* Effect.fork(Effect.provide(Account.evaluate(a, new Deposit({ amount: 1 })), node))
      yield* Effect.repeatN(Effect.yieldNow(), 50)
      expect(behind.unsafePoll()).toBeNull()
      yield* Fiber.interrupt(waiting)
      yield* Fiber.join(behind)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(holder)
      yield* Effect.provide(transfer(b, a), node)
      expect(yield* balancesOf([a, b])).toEqual([12, 10])
    }).pipe(Effect.scoped)
  )

  it.effect("are taken when the open batches of their aggregates are committed", () =>
    Effect.gen(function* () {
      const [a = "", b = ""] = yield* accounts(2, 10)
      const commits: Array<number> = []
      const shared = yield* StoreAdapter.StoreAdapter
      const node = yield* aNode(Account.layer, {
        ...shared,
        commitAll: (events, projections) =>
          Effect.zipRight(
            Effect.yieldNow(),
            Effect.suspend(() => {
              commits.push(events.length)
              return shared.commitAll(events, projections)
            })
          )
      })
      const deposit = Account.evaluate(a, new Deposit({ amount: 1 }))
      yield* Effect.all(
        [
          ...Arr.replicate(Effect.asVoid(deposit), 20),
          Effect.asVoid(transfer(a, b, 10)),
          ...Arr.replicate(Effect.asVoid(deposit), 20)
        ],
        {
          concurrency: "unbounded"
        }
      ).pipe(Effect.provide(node))
      expect(yield* balancesOf([a, b])).toEqual([40, 20])
      // The single commands before and after the list were committed in batches.
      expect(commits.length).toBeLessThan(20)
      expect(sum(commits)).toBe(42)
    }).pipe(Effect.scoped)
  )
})
