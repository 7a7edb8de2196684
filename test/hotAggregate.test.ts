/** Concurrent commands on one aggregate, and its cached state. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as TestClock from "effect/TestClock"

import { Aggregate, MemoryStore, type Projection, SqlStore, StoreAdapter } from "effect-maestro"
import { Account, Deposit, Deposited, definition, InsufficientFunds, Limits, Touch, Withdraw } from "./account.js"
import { layerPg } from "./database.js"
import { aNode, failure, macrotask } from "./nodes.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

for (const [name, store] of Object.entries(stores)) {
  it.layer(Layer.merge(Limits.layer, store), { timeout: 60_000 })(`Hot aggregates on ${name}`, (it) => {
    it.scoped("commands that wait for the lock are decided one on the other, and committed together", () =>
      Effect.gen(function* () {
        const { gate, id, node } = yield* aHotAccount(Account.layer)
        const first = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 1 })))
        yield* gate.reached(1)
        const others = yield* Effect.forEach(Arr.range(2, 20), (amount) =>
          fork(node, Account.evaluate(id, new Deposit({ amount })))
        )
        yield* settled
        yield* gate.open
        const results = yield* Effect.forEach([first, ...others], Fiber.join)
        expect(results.map(({ sequence }) => sequence)).toEqual(Arr.range(1, 20))
        for (const [index, { events, state }] of results.entries()) {
          expect(events).toEqual([new Deposited({ amount: index + 1 })])
          expect(state.balance).toBe(((index + 1) * (index + 2)) / 2)
        }
        expect(gate.commits()).toEqual([1, 19])
        expect(yield* amounts(id)).toEqual(Arr.range(1, 20))
      })
    )

    it.scoped("the next command of a caller joins the batch of the commands that wait", () =>
      Effect.gen(function* () {
        const { gate, id, node } = yield* aHotAccount(Account.layer)
        const clients = yield* Effect.forEach(Arr.range(1, 4), () =>
          fork(node, Effect.replicateEffect(Account.evaluate(id, new Deposit({ amount: 1 })), 5))
        )
        yield* gate.reached(1)
        yield* gate.open
        const results = yield* Effect.forEach(clients, Fiber.join)
        const sequences = results.flatMap((answers) => answers.map(({ sequence }) => sequence))
        expect(sequences.sort((a, b) => a - b)).toEqual(Arr.range(1, 20))
        // One for the first command, which may be alone, and then one for each round of all clients.
        expect(gate.commits().length).toBeLessThanOrEqual(6)
      })
    )

    it.scoped(
      "a refusal fails only its own command, and only after the commit of the events that it was decided on",
      () =>
        Effect.gen(function* () {
          const { gate, id, node } = yield* aHotAccount(Account.layer)
          const first = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 1 })))
          yield* gate.reached(1)
          const before = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 10 })))
          const refused = yield* fork(node, Effect.flip(Account.evaluate(id, new Withdraw({ amount: 100 }))))
          const nothing = yield* fork(node, Account.evaluate(id, new Touch()))
          const after = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 5 })))
          yield* settled
          yield* gate.openOnce
          yield* Fiber.join(first)
          yield* gate.reached(2)
          yield* settled
          expect(yield* Fiber.poll(refused)).toEqual(Option.none())
          expect(yield* Fiber.poll(nothing)).toEqual(Option.none())
          yield* gate.open
          expect(yield* Fiber.join(refused)).toEqual(new InsufficientFunds({ balance: 11 }))
          expect(yield* Fiber.join(nothing)).toMatchObject({ sequence: 2, state: { balance: 11 }, events: [] })
          expect(yield* Fiber.join(before)).toMatchObject({ sequence: 2 })
          expect(yield* Fiber.join(after)).toMatchObject({ sequence: 3, state: { balance: 16 } })
          expect(gate.commits()).toEqual([1, 2])
        })
    )

    it.scoped("after a conflict all commands of a batch are decided again, also the refused ones", () =>
      Effect.gen(function* () {
        const { gate, id, node } = yield* aHotAccount(Account.layer)
        const elsewhere = yield* aNode(Account.layer)
        const first = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 1 })))
        yield* gate.reached(1)
        const results = yield* Effect.forEach(
          [new Deposit({ amount: 2 }), new Withdraw({ amount: 50 }), new Deposit({ amount: 3 })],
          (command) => fork(node, Account.evaluate(id, command))
        )
        yield* settled
        yield* gate.openOnce
        yield* Fiber.join(first)
        yield* gate.reached(2)
        // Another node commits first, and the refused command becomes possible.
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 100 })), elsewhere)
        yield* gate.open
        yield* Effect.forEach(results, Fiber.join)
        expect(yield* Effect.provide(Account.fetch(id), elsewhere)).toMatchObject({ balance: 56 })
        expect((yield* amounts(id)).sort((a, b) => a - b)).toEqual([1, 2, 3, 50, 100])
      })
    )

    it.scoped("a projection that fails for one command fails only that command", () =>
      Effect.gen(function* () {
        const ran: Array<number> = []
        const Picky: Projection.Projection<string> = {
          name: "picky",
          project: ({ body }) => (body.amount === 13 ? Effect.fail("unlucky") : Effect.sync(() => ran.push(1)))
        }
        const Audited = Aggregate.make("Account", { ...definition, projections: [Picky] })
        const { gate, id, node } = yield* aHotAccount(Audited.layer)
        const first = yield* fork(node, Audited.evaluate(id, new Deposit({ amount: 1 })))
        yield* gate.reached(1)
        const results = yield* Effect.forEach([2, 13, 3], (amount) =>
          fork(node, Effect.either(Audited.evaluate(id, new Deposit({ amount }))))
        )
        yield* settled
        yield* gate.open
        yield* Fiber.join(first)
        const answers = yield* Effect.forEach(results, Fiber.join)
        expect(answers.map(Either.isRight)).toEqual([true, false, true])
        expect(answers[1]).toEqual(Either.left("unlucky"))
        expect((yield* amounts(id)).sort((a, b) => a - b)).toEqual([1, 2, 3])
      })
    )

    it.scoped(
      "an interrupted command leaves the others alone, and a batch that all callers left is not committed",
      () =>
        Effect.gen(function* () {
          const { gate, id, node } = yield* aHotAccount(Account.layer)
          const first = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 1 })))
          yield* gate.reached(1)
          const [a, b] = [
            yield* fork(node, Account.evaluate(id, new Deposit({ amount: 2 }))),
            yield* fork(node, Account.evaluate(id, new Deposit({ amount: 4 })))
          ]
          yield* settled
          yield* gate.openOnce
          yield* Fiber.join(first)
          yield* gate.reached(2)
          yield* Fiber.interruptFork(a)
          yield* settled
          yield* gate.openOnce
          expect(yield* Fiber.join(b)).toMatchObject({ sequence: 3, state: { balance: 7 } })
          expect(Exit.isInterrupted(yield* Fiber.await(a))).toBe(true)

          const holder = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 8 })))
          yield* gate.reached(3)
          const waiting = yield* Effect.forEach([16, 32], (amount) =>
            fork(node, Account.evaluate(id, new Deposit({ amount })))
          )
          yield* settled
          yield* gate.openOnce
          yield* Fiber.join(holder)
          yield* gate.reached(4)
          yield* Fiber.interruptAll(waiting)
          yield* gate.open
          expect(yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 64 })), node)).toMatchObject({
            state: { balance: 7 + 8 + 64 }
          })
        })
    )

    it.scoped("a slow handler does not delay the commands that were decided before", () =>
      Effect.gen(function* () {
        const go = yield* Deferred.make<void>()
        const Slow = Aggregate.make("Account", {
          ...definition,
          decide: { ...definition.decide, Touch: () => Effect.as(Deferred.await(go), [new Deposited({ amount: 100 })]) }
        })
        const { gate, id, node } = yield* aHotAccount(Slow.layer)
        const first = yield* fork(node, Slow.evaluate(id, new Deposit({ amount: 1 })))
        yield* gate.reached(1)
        const quick = yield* fork(node, Slow.evaluate(id, new Deposit({ amount: 2 })))
        const slow = yield* fork(node, Slow.evaluate(id, new Touch()))
        const behind = yield* fork(node, Slow.evaluate(id, new Deposit({ amount: 4 })))
        yield* settled
        yield* gate.open
        yield* Fiber.join(first)
        expect(yield* Fiber.join(quick)).toMatchObject({ sequence: 2 })
        yield* Deferred.succeed(go, undefined)
        expect(yield* Fiber.join(slow)).toMatchObject({ sequence: 3, state: { balance: 103 } })
        expect(yield* Fiber.join(behind)).toMatchObject({ sequence: 4, state: { balance: 107 } })
      })
    )

    // --- cached states ---

    it.scoped("a command on a cached state reads nothing, and neither does get", () =>
      Effect.gen(function* () {
        const { id, node, reads } = yield* aCountingAccount(Account.layer)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node)
        const before = reads()
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 2 })), node)
        expect(yield* Effect.provide(Account.get(id), node)).toMatchObject({ balance: 3 })
        expect(reads()).toBe(before)
      })
    )

    it.scoped("a refusal, or a decision of no events, on a cached state is checked against the store", () =>
      Effect.gen(function* () {
        const { id, node } = yield* aCountingAccount(Account.layer)
        const elsewhere = yield* aNode(Account.layer)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 10 })), node)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 90 })), elsewhere)
        // This node's cached balance is 10.
        expect(yield* Effect.provide(Account.get(id), node)).toMatchObject({ balance: 10 })
        expect(yield* Effect.provide(Account.evaluate(id, new Withdraw({ amount: 50 })), node)).toMatchObject({
          sequence: 3,
          state: { balance: 50 }
        })
        yield* Effect.provide(Account.evaluate(id, new Withdraw({ amount: 50 })), elsewhere)
        expect(yield* Effect.provide(Account.evaluate(id, new Touch()), node)).toMatchObject({
          sequence: 4,
          state: { balance: 0 }
        })
        expect(yield* Effect.provide(Effect.flip(Account.evaluate(id, new Withdraw({ amount: 1 }))), node)).toEqual(
          new InsufficientFunds({ balance: 0 })
        )
      })
    )

    it.scoped("the first command on a fresh id reads nothing, and on any other id it reads the store", () =>
      Effect.gen(function* () {
        const { id, node, reads } = yield* aCountingAccount(Account.layer)
        expect(yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node)).toMatchObject({
          sequence: 1,
          state: { balance: 1 }
        })
        expect(reads()).toBe(0)
        yield* Effect.provide(Account.evaluate(crypto.randomUUID(), new Deposit({ amount: 1 })), node)
        expect(reads()).toBeGreaterThan(0)
      })
    )

    it.scoped("the events that another node stored under a fresh id count", () =>
      Effect.gen(function* () {
        const { node } = yield* aCountingAccount(Account.layer)
        const Elsewhere = Aggregate.make("Account", definition)
        const elsewhere = yield* aNode(Elsewhere.layer)
        const [committing, refused, touched] = yield* Effect.replicateEffect(Account.newId, 3)
        for (const id of [committing, refused, touched]) {
          yield* Effect.provide(Elsewhere.evaluate(id ?? "", new Deposit({ amount: 10 })), elsewhere)
        }
        expect(
          yield* Effect.provide(Account.evaluate(committing ?? "", new Deposit({ amount: 5 })), node)
        ).toMatchObject({ sequence: 2, state: { balance: 15 } })
        expect(
          yield* Effect.provide(Account.evaluate(refused ?? "", new Withdraw({ amount: 10 })), node)
        ).toMatchObject({ sequence: 2, state: { balance: 0 } })
        expect(yield* Effect.provide(Account.evaluate(touched ?? "", new Touch()), node)).toMatchObject({
          sequence: 1,
          state: { balance: 10 }
        })
      })
    )

    it.scoped("an id is fresh once, and never without a cache", () =>
      Effect.gen(function* () {
        const Unkept = Aggregate.make("Account", { ...definition, cache: { capacity: 0 } })
        const unkept = yield* aCountingAccount(Unkept.layer)
        yield* Effect.provide(Unkept.evaluate(yield* Unkept.newId, new Deposit({ amount: 1 })), unkept.node)
        expect(unkept.reads()).toBeGreaterThan(0)

        const One = Aggregate.make("Account", { ...definition, cache: { capacity: 1 } })
        const { node, reads } = yield* aCountingAccount(One.layer)
        const ids = yield* Effect.replicateEffect(One.newId, 2)
        for (const id of ids) yield* Effect.provide(One.evaluate(id, new Deposit({ amount: 1 })), node)
        expect(reads()).toBe(0)
        // Its state is not cached any more.
        yield* Effect.provide(One.evaluate(ids[0] ?? "", new Deposit({ amount: 1 })), node)
        expect(reads()).toBeGreaterThan(0)
      })
    )

    it.scoped("fetch refreshes the cached state", () =>
      Effect.gen(function* () {
        const { id, node } = yield* aCountingAccount(Account.layer)
        const elsewhere = yield* aNode(Account.layer)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 10 })), node)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 5 })), elsewhere)
        expect(yield* Effect.provide(Account.fetch(id), node)).toMatchObject({ balance: 15 })
        expect(yield* Effect.provide(Account.get(id), node)).toMatchObject({ balance: 15 })
      })
    )

    it.scoped("the cache has at most `capacity` states, the last used ones, and none that is idle for too long", () =>
      Effect.gen(function* () {
        const Few = Aggregate.make("Account", { ...definition, cache: { capacity: 2, idleTimeToLive: "10 minutes" } })
        const { node, reads } = yield* aCountingAccount(Few.layer)
        const ids = yield* Effect.replicateEffect(Few.newId, 3)
        for (const id of ids) yield* Effect.provide(Few.evaluate(id, new Deposit({ amount: 1 })), node)
        const readsFor = (id: string | undefined) =>
          Effect.suspend(() => {
            const before = reads()
            return Effect.map(Effect.provide(Few.get(id ?? ""), node), () => reads() - before)
          })
        expect(yield* readsFor(ids[2])).toBe(0)
        expect(yield* readsFor(ids[1])).toBe(0)
        expect(yield* readsFor(ids[0])).toBeGreaterThan(0)
        expect(yield* readsFor(ids[0])).toBe(0)
        yield* TestClock.adjust("11 minutes")
        expect(yield* readsFor(ids[0])).toBeGreaterThan(0)
      })
    )

    for (const goneOn of [false, true]) {
      it.scoped(
        `the state of a store that was restored from a backup${goneOn ? ", and has new events," : ""} wins over the cached state`,
        () =>
          Effect.gen(function* () {
            const before = yield* MemoryStore.make
            const after = yield* MemoryStore.make
            let current = before
            const node = yield* aNode(Account.layer, {
              commitAll: (events, projections) => Effect.suspend(() => current.commitAll(events, projections)),
              commitEvents: (events) => Effect.suspend(() => current.commitEvents(events)),
              commitSnapshot: (snapshot) => Effect.suspend(() => current.commitSnapshot(snapshot)),
              getEvents: (...args) => Effect.suspend(() => current.getEvents(...args)),
              getSnapshot: (...args) => Effect.suspend(() => current.getSnapshot(...args))
            })
            const id = yield* Account.newId
            yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 10 })), node)
            yield* after.commitEvents(yield* before.getEvents(Account.streamId(id), 1))
            yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 10 })), node)
            const elsewhere = yield* aNode(Account.layer, after)
            if (goneOn) yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 5 })), elsewhere)
            current = after
            const [sequence, balance] = goneOn ? [2, 15] : [1, 10]
            expect(
              yield* Effect.provide(Effect.flip(Account.evaluate(id, new Withdraw({ amount: 100 }))), node)
            ).toEqual(new InsufficientFunds({ balance }))
            expect(yield* Effect.provide(Account.fetch(id), node)).toMatchObject({ balance })
            expect(yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node)).toMatchObject({
              sequence: sequence + 1,
              state: { balance: balance + 1 }
            })
          })
      )
    }

    it.scoped("a command in a transaction that the caller rolls back does not change the cached state", () =>
      Effect.gen(function* () {
        const sql = yield* Effect.serviceOption(SqlClient.SqlClient)
        if (Option.isNone(sql)) return
        const { id, node } = yield* aCountingAccount(Account.layer)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 10 })), node)
        yield* Effect.flip(
          sql.value.withTransaction(
            Effect.gen(function* () {
              yield* Account.evaluate(id, new Deposit({ amount: 90 }))
              expect(yield* Account.get(id)).toMatchObject({ balance: 100 })
              return yield* Effect.fail("no")
            })
          )
        ).pipe(Effect.provide(node))
        expect(yield* Effect.provide(Account.get(id), node)).toMatchObject({ balance: 10 })
        expect(yield* Effect.provide(Effect.flip(Account.evaluate(id, new Withdraw({ amount: 50 }))), node)).toEqual(
          new InsufficientFunds({ balance: 10 })
        )
      })
    )

    it.scoped("a snapshot is stored when a batch passes a multiple of snapshotEvery, also in the middle", () =>
      Effect.gen(function* () {
        const Saving = Aggregate.make("Account", { ...definition, snapshotEvery: 5 })
        const { gate, id, node } = yield* aHotAccount(Saving.layer)
        const store = yield* StoreAdapter.StoreAdapter
        const first = yield* fork(node, Saving.evaluate(id, new Deposit({ amount: 1 })))
        yield* gate.reached(1)
        const others = yield* Effect.replicateEffect(fork(node, Saving.evaluate(id, new Deposit({ amount: 1 }))), 6)
        yield* settled
        yield* gate.open
        yield* Effect.forEach([first, ...others], Fiber.join)
        expect(Option.map(yield* store.getSnapshot(Saving.streamId(id), 1), ({ sequence }) => sequence)).toEqual(
          Option.some(7)
        )
      })
    )
  })
}

it.scoped(
  "after a commit of unknown outcome the failure stays CommitUnknown when a later attempt fails otherwise",
  () =>
    Effect.gen(function* () {
      for (const reason of ["Exhausted", "Cancelled", "Misconfigured", "Unknown"] as const) {
        const store = yield* MemoryStore.make
        let commits = 0
        const node = yield* aNode(Account.layer, {
          ...store,
          commitAll: (events, projections) =>
            Effect.suspend(() =>
              ++commits === 1
                ? Effect.zipRight(store.commitAll(events, projections), Effect.fail(failure("CommitUnknown")))
                : Effect.fail(failure(reason))
            )
        })
        const error = yield* Effect.flip(
          Effect.provide(Account.evaluate(yield* Account.newId, new Deposit({ amount: 1 })), node)
        )
        expect(error).toMatchObject({ reason: "CommitUnknown" })
      }
    }).pipe(Effect.provide(Layer.merge(Limits.layer, MemoryStore.layer)))
)

it("an invalid capacity of the cache is refused when the aggregate is made", () => {
  for (const capacity of [-1, 1.5, Number.NaN]) {
    expect(() => Aggregate.make("Account", { ...definition, cache: { capacity } })).toThrow("cache.capacity")
  }
})

// --- helpers ---

/** A node whose commits wait at a gate. */
const aHotAccount = <R>(layer: Layer.Layer<Aggregate.Instance<"Account">, never, StoreAdapter.StoreAdapter | R>) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const sizes: Array<number> = []
    const latch = yield* Effect.makeSemaphore(1000)
    yield* latch.take(1000)
    const node = yield* aNode(layer, {
      ...store,
      commitAll: (events, projections) =>
        Effect.suspend(() => {
          sizes.push(events.length)
          return Effect.zipRight(latch.take(1), store.commitAll(events, projections))
        })
    })
    const gate = {
      commits: () => sizes,
      reached: (count: number) => Effect.repeat(macrotask, { until: () => sizes.length >= count }),
      openOnce: latch.release(1),
      open: latch.release(500)
    }
    return { gate, id: yield* Account.newId, node }
  })

/** A node that counts what it reads. */
const aCountingAccount = <R>(layer: Layer.Layer<Aggregate.Instance<"Account">, never, StoreAdapter.StoreAdapter | R>) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    let reads = 0
    const counted = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
      Effect.suspend(() => {
        reads++
        return effect
      })
    const node = yield* aNode(layer, {
      ...store,
      getEvents: (...args) => counted(store.getEvents(...args)),
      getSnapshot: (...args) => counted(store.getSnapshot(...args))
    })
    return { id: yield* Account.newId, node, reads: () => reads }
  })

/** Forks in order: each command waits for the lock before the next begins. */
const fork = <A, E, R>(node: Context.Context<R>, effect: Effect.Effect<A, E, R>) =>
  Effect.zipLeft(Effect.fork(Effect.provide(effect, node)), macrotask)

/** Lets every fiber of the test run until it waits. */
const settled = Effect.repeatN(macrotask, 20)

const amounts = (id: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.map(store.getEvents(Account.streamId(id), 1), (events) => events.map(({ body }) => Number(body.amount)))
  )
