/** A command with an expected sequence takes effect only while its aggregate is at that sequence. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { Aggregate, MemoryStore, type Projection, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import { Account, Deposit, Deposited, definition, InsufficientFunds, Limits, Open, Touch, Withdraw } from "./account.js"
import { layerPg } from "./database.js"
import { aNode, macrotask } from "./nodes.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

/** No retry that has to wait can end under the clock of these tests. */
const Hanging = Aggregate.make("Account", { ...definition, retry: Schedule.spaced("1 hour") })

for (const [name, store] of Object.entries(stores)) {
  const layer = Account.layer.pipe(Layer.provideMerge(Limits.layer), Layer.provideMerge(store))
  it.layer(layer, { timeout: 60_000 })(`Expected sequences on ${name}`, (it) => {
    it.effect("at the expected sequence the command takes effect, and at any other it fails and stores nothing", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        expect(yield* deposit(id, 1, 0)).toMatchObject({ sequence: 1 })
        expect(yield* deposit(id, 2, 1)).toMatchObject({ sequence: 2 })
        for (const expected of [0, 1, 3]) {
          expect(yield* Effect.flip(deposit(id, 4, expected))).toEqual(unexpected(id, expected, 2))
          // The handler is not called: neither its events nor its refusals count.
          const [refused, touched] = [new Withdraw({ amount: 50 }), new Touch()].map((command) =>
            Account.evaluate(id, command).pipe(Aggregate.withExpectedSequence(expected), Effect.flip)
          )
          for (const failing of [refused, touched])
            expect(yield* failing ?? Effect.void).toEqual(unexpected(id, expected, 2))
        }
        expect(yield* Account.evaluate(id, new Touch()).pipe(Aggregate.withExpectedSequence(2))).toMatchObject({
          sequence: 2
        })
        expect(
          yield* Account.evaluate(id, new Withdraw({ amount: 50 })).pipe(Aggregate.withExpectedSequence(2), Effect.flip)
        ).toEqual(new InsufficientFunds({ balance: 3 }))
        expect(yield* amounts(id)).toEqual([1, 2])
        expect(yield* Account.root(id)).toEqual({ id, sequence: 2, state: { owner: null, balance: 3 } })
        expect(yield* Account.root(`${id}-none`)).toMatchObject({ sequence: 0 })
        const json = { _tag: "Deposit", amount: 5 }
        expect(yield* Account.evaluateUnknown(id, json).pipe(Aggregate.withExpectedSequence(7), Effect.flip)).toEqual(
          unexpected(id, 7, 2)
        )
      })
    )

    it.effect("the message has the expected and the actual sequence", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        yield* deposit(id, 1, 0)
        expect((yield* Effect.flip(deposit(id, 1, 0))).message).toBe(
          `Account "${id}" was expected to have no events, and is at sequence 1`
        )
        const other = yield* Account.newId
        expect((yield* Effect.flip(deposit(other, 1, 4))).message).toBe(
          `Account "${other}" was expected to be at sequence 4, and has no events`
        )
      })
    )

    it.effect("an invalid sequence is a ValidationError", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        for (const expected of [
          -1,
          0.5,
          Number.NaN,
          2 ** 31,
          JSON.parse('"1"'),
          JSON.parse("null"),
          JSON.parse("{}").x
        ]) {
          expect(yield* Effect.flip(deposit(id, 1, expected))).toMatchObject({
            _tag: "ValidationError",
            issues: [{ path: ["expectedSequence"] }]
          })
        }
        expect(yield* amounts(id)).toEqual([])
      })
    )

    it.scoped("a cached state is checked against the store, whether it is behind the expected sequence or at it", () =>
      Effect.gen(function* () {
        const [here, elsewhere] = [yield* aNode(Account.layer), yield* aNode(Account.layer)]
        const id = yield* Account.newId
        yield* Effect.provide(deposit(id, 1, 0), here)
        yield* Effect.provide(deposit(id, 2, 1), elsewhere)
        // This node's cached state is at 1.
        expect(yield* Effect.provide(deposit(id, 4, 2), here)).toMatchObject({ sequence: 3, state: { balance: 7 } })
        yield* Effect.provide(deposit(id, 8, 3), elsewhere)
        let [known, stored] = [3, 4]
        for (const command of [new Deposit({ amount: 16 }), new Withdraw({ amount: 50 }), new Touch()]) {
          const evaluating = Account.evaluate(id, command).pipe(Aggregate.withExpectedSequence(known))
          expect(yield* Effect.flip(Effect.provide(evaluating, here))).toEqual(unexpected(id, known, stored))
          // The state that was just read is cached, and another node commits.
          yield* Effect.provide(deposit(id, 1, stored), elsewhere)
          known = stored++
        }
        expect(yield* amounts(id)).toEqual([1, 2, 4, 8, 1, 1, 1])
      })
    )

    it.scoped("a race that is lost between load and commit is a mismatch, found without the delay of a retry", () =>
      Effect.gen(function* () {
        const shared = yield* StoreAdapter.StoreAdapter
        const others = yield* Effect.context<Aggregate.Instance<"Account">>()
        for (const commandId of [undefined, "c"]) {
          const id = yield* Account.newId
          yield* deposit(id, 1, 0)
          let raced = false
          let commits = 0
          const node = yield* aNode(Hanging.layer, {
            ...shared,
            commitAll: (events, projections) =>
              Effect.suspend(() => {
                commits++
                const first = raced ? Effect.void : Effect.orDie(Effect.provide(deposit(id, 2, 1), others))
                raced = true
                return Effect.zipRight(first, shared.commitAll(events, projections))
              })
          })
          const evaluating = Hanging.evaluate(id, new Deposit({ amount: 4 })).pipe(Aggregate.withExpectedSequence(1))
          const identified = commandId === undefined ? evaluating : Aggregate.withCommandId(commandId)(evaluating)
          expect(yield* Effect.flip(Effect.provide(identified, node))).toEqual(unexpected(id, 1, 2))
          expect(commits).toBe(1)
          expect(yield* amounts(id)).toEqual([1, 2])
        }
      })
    )

    it.scoped("of concurrent commands on several nodes that create the aggregate one succeeds", () =>
      Effect.gen(function* () {
        const nodes = yield* Effect.replicateEffect(aNode(Account.layer), 3)
        const id = yield* Account.newId
        const results = yield* Effect.forEach(
          [...nodes, ...nodes, ...nodes],
          (node) =>
            Account.evaluate(id, new Open({ owner: "ann" })).pipe(
              Aggregate.withExpectedSequence(0),
              Effect.either,
              Effect.provide(node)
            ),
          { concurrency: "unbounded" }
        )
        expect(results.filter(Either.isRight)).toHaveLength(1)
        for (const result of results) {
          if (Either.isLeft(result)) expect(result.left).toEqual(unexpected(id, 0, 1))
        }
      })
    )

    it.scoped(
      "on a hot aggregate each expectation is compared with the state after the commands before it, and fails after their commit",
      () =>
        Effect.gen(function* () {
          const { commits, id, node, open, reached } = yield* aHotAccount
          const first = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 1 })))
          yield* reached(1)
          const [second, late, third] = [
            yield* fork(node, deposit(id, 2, 1)),
            yield* fork(node, Effect.flip(deposit(id, 4, 1))),
            yield* fork(node, deposit(id, 8, 2))
          ]
          yield* settled
          expect(yield* Fiber.poll(late)).toEqual(Option.none())
          yield* open
          yield* Fiber.join(first)
          expect(yield* Fiber.join(second)).toMatchObject({ sequence: 2 })
          expect(yield* Fiber.join(late)).toEqual(unexpected(id, 1, 2))
          expect(yield* Fiber.join(third)).toMatchObject({ sequence: 3, state: { balance: 11 } })
          expect(commits()).toEqual([1, 2])
        })
    )

    it.scoped("of a batch that loses a race, the commands without an expectation are decided again", () =>
      Effect.gen(function* () {
        const { id, node, open, openOnce, reached } = yield* aHotAccount
        const elsewhere = yield* aNode(Account.layer)
        const first = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 1 })))
        yield* reached(1)
        const expecting = yield* fork(node, Effect.flip(deposit(id, 2, 1)))
        const plain = yield* fork(node, Account.evaluate(id, new Deposit({ amount: 4 })))
        yield* settled
        yield* openOnce
        yield* Fiber.join(first)
        yield* reached(2)
        yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 100 })), elsewhere)
        yield* open
        expect(yield* Fiber.join(expecting)).toMatchObject({ _tag: "UnexpectedSequence", expected: 1 })
        yield* Fiber.join(plain)
        expect(yield* amounts(id)).toEqual([1, 100, 4])
      })
    )

    it.effect("a duplicate, and a reused command id, win over a mismatch", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const withdraw = (amount: number, expected: number) =>
          Account.evaluate(id, new Withdraw({ amount })).pipe(
            Aggregate.withExpectedSequence(expected),
            Aggregate.withCommandId("c")
          )
        yield* deposit(id, 10, 0)
        expect(yield* Effect.flip(withdraw(3, 0))).toEqual(unexpected(id, 0, 1))
        expect(yield* withdraw(3, 1)).toMatchObject({ sequence: 2, duplicate: false })
        expect(yield* withdraw(3, 1)).toMatchObject({ sequence: 2, duplicate: true })
        expect(yield* Effect.flip(withdraw(4, 1))).toMatchObject({ _tag: "CommandIdReused" })
        expect(yield* amounts(id)).toEqual([10, 3])
      })
    )

    it.scoped("commands that a handler or a projection evaluates do not inherit the expectation", () =>
      Effect.gen(function* () {
        const [id, other] = [yield* Account.newId, yield* Account.newId]
        const inner = Effect.orDie(Account.evaluate(other, new Deposit({ amount: 1 })))
        const Forwarding: Projection.Projection<never, Aggregate.Instance<"Account"> | Limits> = {
          name: "forwarding",
          project: () => Effect.asVoid(inner)
        }
        const Nested = Aggregate.make("Nested", {
          ...definition,
          decide: { ...definition.decide, Touch: () => Effect.as(inner, [new Deposited({ amount: 4 })]) },
          projections: [Forwarding]
        })
        const services = yield* Layer.build(Nested.layer)
        for (const commandId of [undefined, "c"]) {
          const sequence = commandId === undefined ? 0 : 1
          const touch = Nested.evaluate(id, new Touch()).pipe(Aggregate.withExpectedSequence(sequence))
          const evaluating = commandId === undefined ? touch : Aggregate.withCommandId(commandId)(touch)
          expect(yield* Effect.provide(evaluating, services)).toMatchObject({ sequence: sequence + 1 })
        }
        expect(yield* amounts(other)).toEqual([1, 1, 1, 1])
      })
    )

    if (name.includes("SqlStore")) {
      it.effect("in the caller's transaction a mismatch leaves the transaction usable", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const id = yield* Account.newId
          yield* deposit(id, 1, 0)
          const [early, late] = yield* sql.withTransaction(
            Effect.all([Effect.flip(deposit(id, 2, 0)), Effect.zipRight(deposit(id, 2, 1), deposit(id, 4, 2))])
          )
          expect(early).toEqual(unexpected(id, 0, 1))
          expect(late).toMatchObject({ sequence: 3 })
          expect(yield* amounts(id)).toEqual([1, 2, 4])
        })
      )

      it.effect("in the caller's transaction a lost race leaves the transaction usable", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const shared = yield* StoreAdapter.StoreAdapter
          const others = yield* Effect.context<Aggregate.Instance<"Account">>()
          const id = yield* Account.newId
          yield* deposit(id, 1, 0)
          let raced = false
          const node = yield* aNode(Hanging.layer, {
            ...shared,
            commitAll: (events, projections) => {
              const first = raced ? Effect.void : outsideOfTransaction(Effect.provide(deposit(id, 2, 1), others))
              raced = true
              return Effect.zipRight(Effect.orDie(first), shared.commitAll(events, projections))
            }
          })
          const evaluating = Hanging.evaluate(id, new Deposit({ amount: 4 })).pipe(
            Aggregate.withExpectedSequence(1),
            Effect.provide(node)
          )
          yield* sql.withTransaction(
            Effect.gen(function* () {
              expect(yield* Effect.flip(evaluating)).toEqual(unexpected(id, 1, 2))
              yield* Account.evaluate(id, new Deposit({ amount: 8 }))
            })
          )
          expect(yield* amounts(id)).toEqual([1, 2, 8])
        }).pipe(Effect.scoped)
      )
    }
  })
}

// --- helpers ---

const deposit = (id: string, amount: number, expected: number) =>
  Account.evaluate(id, new Deposit({ amount })).pipe(Aggregate.withExpectedSequence(expected))

const unexpected = (id: string, expected: number, actual: number) =>
  new StoreError.UnexpectedSequence({ kind: "Account", id, expected, actual })

/** Runs the effect in a fiber that has no transaction. */
const outsideOfTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.mapInputContext(
    effect,
    (context: Context.Context<R>) => Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>
  )

/** A node whose commits wait at a gate. */
const aHotAccount = Effect.gen(function* () {
  const store = yield* StoreAdapter.StoreAdapter
  const sizes: Array<number> = []
  const latch = yield* Effect.makeSemaphore(1000)
  yield* latch.take(1000)
  const node = yield* aNode(Account.layer, {
    ...store,
    commitAll: (events, projections) =>
      Effect.suspend(() => {
        sizes.push(events.length)
        return Effect.zipRight(latch.take(1), store.commitAll(events, projections))
      })
  })
  return {
    commits: () => sizes,
    reached: (count: number) => Effect.repeat(macrotask, { until: () => sizes.length >= count }),
    openOnce: latch.release(1),
    open: latch.release(500),
    id: yield* Account.newId,
    node
  }
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
