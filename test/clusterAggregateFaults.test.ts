/**
 * What a client makes of an answer that is lost: it sends the message again, and the command takes effect once, with its
 * first result.
 */
import * as ClusterError from "@effect/cluster/ClusterError"
import { expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { Aggregate, MemoryStore, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { Conditions } from "../src/internal/aggregate/conditions.js"
import { makeCluster } from "./cluster.js"
import {
  Account,
  Accounts,
  Ask,
  Deposit,
  Deposited,
  InsufficientFunds,
  id,
  Teller,
  Withdraw,
  Withdrawn
} from "./clusterBank.js"
import { address, ambiguous, eventsOf, faulty, losing, runner } from "./clusterFaults.js"
import { layerPg } from "./database.js"
import { macrotask } from "./nodes.js"

for (const [name, failure] of Object.entries(ambiguous)) {
  const { calls, fault } = losing(failure)
  it.live(`a command whose answer is lost by ${name} takes effect once, and has its first result`, () =>
    Effect.gen(function* () {
      const made = yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
      expect(calls.count).toBe(4)
      expect(made).toEqual({
        state: { balance: 3, last: undefined, names: new Set(["Deposited"]) },
        sequence: 1,
        events: [new Deposited({ amount: 3 })],
        position: { aggregateId: "Account/a", sequence: 1 },
        duplicate: false
      })
      expect(made.events[0]).toBeInstanceOf(Deposited)
      expect(yield* eventsOf("Account/a")).toHaveLength(1)
    }).pipe(Effect.provide(faulty(fault)))
  )
}

it.live("a repeated command has its first result, also where others came after it", () => {
  const calls: Array<string> = []
  const layer = faulty((call, tag) =>
    Effect.flatMap(call, (answer) => {
      calls.push(tag)
      // The answer of the withdrawal is lost, and another command takes effect before it is sent again.
      return tag === "Withdraw" && calls.filter((one) => one === tag).length === 1
        ? Effect.zipRight(Deferred.succeed(lost, undefined), Effect.zipRight(Deferred.await(other), fail))
        : Effect.succeed(answer)
    })
  )
  const fail = new ClusterError.RunnerUnavailable({ address: runner })
  const lost = Effect.runSync(Deferred.make<void>())
  const other = Effect.runSync(Deferred.make<void>())
  return Effect.gen(function* () {
    yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
    const fiber = yield* Effect.fork(Account.evaluate(id("a"), new Withdraw({ amount: 3 })))
    yield* Deferred.await(lost)
    yield* Account.evaluate(id("a"), new Deposit({ amount: 1 }))
    yield* Deferred.succeed(other, undefined)
    // By then a withdrawal of 3 would be refused.
    const withdrawn = yield* Fiber.join(fiber)
    expect(withdrawn).toMatchObject({ sequence: 2, state: { balance: 0 }, duplicate: false })
    expect(withdrawn.events).toHaveLength(1)
    expect((yield* eventsOf("Account/a")).map(({ type }) => type)).toEqual(["Deposited", "Withdrawn", "Deposited"])
    // What is cached is the state of the store.
    expect(yield* Account.get(id("a"))).toMatchObject({ balance: 1 })
  }).pipe(Effect.provide(layer))
})

it.live("on Postgres, too, a repeated command has its first result, and the receipt names its call", () =>
  Effect.gen(function* () {
    const made = yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
    expect(made).toMatchObject({ sequence: 1, duplicate: false, events: [new Deposited({ amount: 3 })] })
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
  }).pipe(
    Effect.provide(
      faulty(
        losing(new ClusterError.RunnerUnavailable({ address: runner })).fault,
        Accounts.layerClient,
        SqlStore.layer.pipe(Layer.provide(layerPg()), Layer.orDie)
      )
    )
  )
)

it.live("random failures before, during and after commands: each takes effect once, and has its own result", () => {
  const seed = Math.floor(Math.random() * 2 ** 32)
  const random = Random.make(seed)
  const failures = Object.values(ambiguous)
  const fault = (call: Effect.Effect<unknown, unknown>) =>
    Effect.gen(function* () {
      const failure = failures[yield* random.nextIntBetween(0, failures.length)] ?? Effect.interrupt
      const kind = yield* random.nextIntBetween(0, 10)
      // Before it is sent; after its answer; while it is under way, where the message goes on; or never. Two of them hang.
      if (kind === 0) return yield* failure
      if (kind === 1) return yield* Effect.zipRight(Effect.exit(call), failure)
      if (kind === 2) {
        yield* Effect.forkDaemon(call)
        yield* Effect.yieldNow()
        return yield* failure
      }
      if (kind === 3) return yield* Effect.never
      if (kind === 4) return yield* Effect.zipRight(Effect.exit(call), Effect.never)
      return yield* call
    })
  const patient = ClusterAggregate.make(Account, { retry: Schedule.spaced("1 millis"), resendAfter: "100 millis" })
  return Effect.gen(function* () {
    const ids = ["a", "b", "c"].map(id)
    const made = yield* Effect.forEach(
      Array.from({ length: 100 }, (_, index) => index),
      (index) => {
        const [one] = [ids[index % 3] ?? id("a")]
        const command = index % 4 === 3 ? new Withdraw({ amount: 2 }) : new Deposit({ amount: 1 })
        return Effect.exit(
          Account.evaluate(one, command).pipe(
            index % 5 === 0 ? Aggregate.withCommandId(`${index}`) : (effect) => effect,
            Effect.map((evaluated) => ({ ...evaluated, id: one, command }))
          )
        )
      },
      { concurrency: 12 }
    )
    for (const one of ids) {
      const stored = yield* eventsOf(`Account/${one}`)
      const answers = made.flatMap((exit) => (Exit.isSuccess(exit) && exit.value.id === one ? [exit.value] : []))
      const sorted = [...answers].sort((a, b) => a.sequence - b.sequence)
      expect(
        sorted.map(({ sequence }) => sequence),
        `seed ${seed}`
      ).toEqual(stored.map(({ sequence }) => sequence))
      let balance = 0
      for (const { command, duplicate, events, state } of sorted) {
        balance += command._tag === "Deposit" ? 1 : -2
        const event = command._tag === "Deposit" ? new Deposited({ amount: 1 }) : new Withdrawn({ amount: 2 })
        expect({ balance: state.balance, duplicate, events }, `seed ${seed}`).toEqual({
          balance,
          duplicate: false,
          events: [event]
        })
      }
    }
    const failed = made.flatMap((exit) => (Exit.isFailure(exit) ? [Cause.squash(exit.cause)] : []))
    for (const error of failed) expect(error, `seed ${seed}`).toBeInstanceOf(InsufficientFunds)
  }).pipe(Effect.provide(faulty(fault, patient.layerClient)))
})

it.live("a lost answer does not make a command with an id a duplicate, and its next evaluation is one", () =>
  Effect.gen(function* () {
    const deposit = Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(Aggregate.withCommandId("1"))
    expect(yield* deposit).toMatchObject({ duplicate: false, sequence: 1, state: { balance: 3 } })
    expect(yield* deposit).toMatchObject({ duplicate: true, sequence: 1, events: [] })
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
  }).pipe(Effect.provide(faulty(losing(new ClusterError.MailboxFull({ address })).fault)))
)

it.live("a lost answer under an expected sequence is no UnexpectedSequence", () =>
  Effect.gen(function* () {
    const deposit = Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(Aggregate.withExpectedSequence(0))
    expect(yield* deposit).toMatchObject({ sequence: 1 })
    expect(yield* Effect.flip(deposit)).toBeInstanceOf(StoreError.UnexpectedSequence)
  }).pipe(Effect.provide(faulty(losing(new ClusterError.RunnerUnavailable({ address: runner })).fault)))
)

it.live("a lost answer does not change the chain of the command around it", () =>
  Effect.gen(function* () {
    yield* Teller.evaluate("t", new Ask({ account: "a" })).pipe(Effect.provide(Teller.layer))
    const [[inner], [outer]] = [yield* eventsOf("Account/a"), yield* eventsOf("Teller/t")]
    expect(outer?.correlationId).toBe(inner?.timestamp)
  }).pipe(Effect.provide(faulty(losing(new ClusterError.RunnerUnavailable({ address: runner })).fault)))
)

it.live("a refusal is not sent again", () => {
  let calls = 0
  return Effect.gen(function* () {
    expect(yield* Effect.flip(Account.evaluate(id("a"), new Withdraw({ amount: 3 })))).toBeInstanceOf(InsufficientFunds)
    expect(calls).toBe(1)
  }).pipe(
    Effect.provide(
      faulty((call) => {
        calls++
        return call
      })
    )
  )
})

const Impatient = ClusterAggregate.make(Account, { timeout: "300 millis" })

it.live("a call that no runner answers in time fails with ClusterUnavailable, which names the aggregate", () =>
  Effect.gen(function* () {
    const failed = yield* Effect.flip(Account.evaluate(id("a"), new Deposit({ amount: 3 })))
    expect(failed).toBeInstanceOf(StoreError.StoreError)
    expect(failed).toMatchObject({
      reason: "ClusterUnavailable",
      operation: "Account.evaluate",
      aggregateId: "Account/a"
    })
    expect(yield* Effect.flip(Account.fetch(id("a")))).toMatchObject({ reason: "ClusterUnavailable" })
    expect(yield* Effect.flip(Stream.runCount(Account.history(id("a"))))).toMatchObject({
      reason: "ClusterUnavailable"
    })
  }).pipe(
    Effect.provide(
      Layer.unwrapScoped(
        Effect.map(makeCluster(), ({ layerClient }) => Impatient.layerClient.pipe(Layer.provide(layerClient)))
      )
    )
  )
)

it.live("a call whose schedule ends fails with ClusterUnavailable, and the reason of the cluster", () => {
  const once = ClusterAggregate.make(Account, { retry: Aggregate.defaultRetry })
  const { calls, fault } = losing(new ClusterError.MailboxFull({ address }), Number.POSITIVE_INFINITY)
  return Effect.gen(function* () {
    const failed = yield* Effect.flip(Account.evaluate(id("a"), new Deposit({ amount: 3 })))
    expect(failed).toMatchObject({ reason: "ClusterUnavailable", description: "the cluster failed by MailboxFull" })
    expect(calls.count).toBe(16)
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
  }).pipe(Effect.provide(faulty(fault, once.layerClient)))
})

it.live("an interruption is bounded, also where the cluster does not confirm it", () =>
  Effect.gen(function* () {
    const fiber = yield* Effect.fork(Account.evaluate(id("a"), new Deposit({ amount: 3 })))
    yield* Effect.yieldNow()
    const exit = yield* Effect.timeout(Fiber.interrupt(fiber), "5 seconds")
    expect(Exit.isInterrupted(exit)).toBe(true)
  }).pipe(Effect.provide(faulty(() => Effect.uninterruptible(Effect.never))))
)

it.live("a history goes on where its connection was lost, without a gap and without an event twice", () => {
  let calls = 0
  const layer = faulty((call, tag) => {
    if (tag !== "history") return call
    calls++
    // The stream of an entity, which the type of a fault does not say.
    const events = call as unknown as Stream.Stream<{ readonly index: number }, unknown>
    const cut = Stream.concat(
      Stream.take(events, 4),
      Stream.fail(new ClusterError.RunnerUnavailable({ address: runner }))
    )
    // The cluster may begin again by itself, too.
    const again = Stream.concat(Stream.take(events, 2), events)
    return (calls <= 2 ? cut : again) as unknown as typeof call
  })
  return Effect.gen(function* () {
    yield* Effect.forEach(Array.from({ length: 15 }), () => Account.evaluate(id("a"), new Deposit({ amount: 1 })))
    const history = yield* Stream.runCollect(Account.history(id("a")))
    expect(Chunk.toReadonlyArray(history).map(({ sequence }) => sequence)).toEqual(
      Array.from({ length: 15 }, (_, index) => index + 1)
    )
    expect(calls).toBe(3)
  }).pipe(Effect.provide(layer))
})

it.live("a store that fails while a command is sent again does not claim that nothing was stored", () => {
  let commits = 0
  let isDown = false
  const layerStore = Layer.effect(
    StoreAdapter.StoreAdapter,
    Effect.map(MemoryStore.make, (store): StoreAdapter.StoreAdapterService => {
      const down = Effect.suspend(
        () => new StoreError.StoreError({ reason: "Misconfigured", operation: "getEvents", description: "no table" })
      )
      return {
        ...store,
        getEvents: (id, first, options) => (isDown ? down : store.getEvents(id, first, options)),
        commitAll: (events, projections) => (isDown ? down : store.commitAll(events, projections))
      }
    })
  )
  const once = ClusterAggregate.make(Account, { retry: Schedule.recurs(3) })
  const fault = (call: Effect.Effect<unknown, unknown>) =>
    Effect.tap(call, () => {
      commits++
      isDown = true
      return commits === 1 ? new ClusterError.RunnerUnavailable({ address: runner }) : Effect.void
    })
  return Effect.gen(function* () {
    const failed = yield* Effect.flip(Account.evaluate(id("a"), new Deposit({ amount: 1 })))
    expect(failed).toMatchObject({ reason: "ClusterUnavailable" })
    expect(failed.message).toContain("no table")
    isDown = false
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
    isDown = true
    // A message that is sent once has the failure of the store.
    commits = 1
    expect(yield* Effect.flip(Account.evaluate(id("b"), new Deposit({ amount: 1 })))).toMatchObject({
      reason: "Misconfigured"
    })
  }).pipe(Effect.provide(faulty(fault, once.layerClient, layerStore)))
})

it.live("commands that wait for each other on one aggregate are committed together, each with its receipt", () => {
  const commits: Array<ReadonlyArray<string>> = []
  const layerStore = Layer.effect(
    StoreAdapter.StoreAdapter,
    Effect.map(
      MemoryStore.make,
      (store): StoreAdapter.StoreAdapterService => ({
        ...store,
        commitAll: (events, projections) => {
          commits.push(events.map(({ type }) => type))
          return Effect.zipRight(Effect.repeatN(macrotask, 20), store.commitAll(events, projections))
        }
      })
    )
  )
  return Effect.gen(function* () {
    const made = yield* Effect.forEach(
      Array.from({ length: 40 }, (_, index) =>
        index % 10 === 9 ? new Withdraw({ amount: 1000 }) : new Deposit({ amount: 1 })
      ),
      (command) => Effect.either(Account.evaluate(id("a"), command)),
      { concurrency: "unbounded" }
    )
    const answers = made.filter(Either.isRight).map(({ right }) => [right.sequence, right.state.balance] as const)
    expect(answers.sort(([a], [b]) => a - b)).toEqual(Array.from({ length: 36 }, (_, index) => [index + 1, index + 1]))
    expect(made.filter(Either.isLeft).every(({ left }) => left instanceof InsufficientFunds)).toBe(true)
    const types = commits.flat()
    expect(types.filter((type) => type === "Deposited")).toHaveLength(36)
    expect(types.filter((type) => type === "effect-maestro/CommandHandled")).toHaveLength(36)
    expect(commits.length).toBeLessThan(20)
  }).pipe(Effect.provide(faulty((call) => call, Accounts.layerClient, layerStore)))
})

it.live("a message that arrives twice, without its sender knowing, does not fail the commands of its batch", () => {
  // The cluster repeats a message by itself where a connection is lost.
  const twice = (call: Effect.Effect<unknown, unknown>) =>
    Effect.map(Effect.all([call, call], { concurrency: "unbounded" }), ([, second]) => second)
  return Effect.gen(function* () {
    const made = yield* Effect.forEach(
      Array.from({ length: 30 }),
      () => Account.evaluate(id("a"), new Deposit({ amount: 1 })),
      { concurrency: "unbounded" }
    )
    expect(made.map(({ sequence }) => sequence).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 30 }, (_, index) => index + 1)
    )
    for (const { duplicate, events, sequence, state } of made) {
      expect([state.balance, duplicate, events.length]).toEqual([sequence, false, 1])
    }
    expect(yield* eventsOf("Account/a")).toHaveLength(30)
  }).pipe(Effect.provide(faulty(twice)))
})

it.scopedLive("a message that is late takes no effect after a later message of its call was refused", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const [gate, reached] = [yield* Effect.makeLatch(false), yield* Deferred.make<void>()]
    const slow: StoreAdapter.StoreAdapterService = {
      ...store,
      commitAll: (events, projections) =>
        Effect.zipRight(
          Effect.zipRight(Deferred.succeed(reached, undefined), gate.await),
          store.commitAll(events, projections)
        )
    }
    const on = (store: StoreAdapter.StoreAdapterService) =>
      Layer.build(Layer.fresh(Account.layer).pipe(Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, store))))
    const [paused, other] = [yield* on(slow), yield* on(store)]
    const withdraw = Account.evaluate(id("a"), new Withdraw({ amount: 5 }))
    const deposit = Effect.provide(Account.evaluate(id("a"), new Deposit({ amount: 5 })), other)
    const message = (before: number) => Effect.provideService(Conditions, { attempt: { id: "call", before } })
    yield* deposit
    // The first message is decided on a runner that is then paused.
    const late = yield* Effect.fork(withdraw.pipe(message(0), Effect.provide(paused)))
    yield* Deferred.await(reached)
    yield* Effect.provide(withdraw, other)
    expect(yield* withdraw.pipe(message(1), Effect.flip, Effect.provide(other))).toBeInstanceOf(InsufficientFunds)
    // Now the first message would be accepted.
    yield* deposit
    yield* gate.open
    expect(yield* Effect.flip(Fiber.join(late))).toMatchObject({ reason: "ClusterUnavailable" })
    const types = (yield* store.getEvents("Account/a", 1)).map(({ type }) => type)
    expect(types).toEqual(["Deposited", "Withdrawn", "Deposited"])
    // A message after the refusal is refused as long as its command is, and takes no effect either.
    expect(yield* withdraw.pipe(message(2), Effect.flip, Effect.provide(other))).toMatchObject({ _tag: "StoreError" })
  })
)
