/** Commits of several callers in one statement: the result of each is independent of the others. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, inject, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { type Event, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { type AppendResult, makeAppendBatcher, type Send } from "../src/internal/sql/commit/appendBatcher.js"
import type { Commit } from "../src/internal/sql/commit/commitQueue.js"
import { layerPg } from "./database.js"
import { macrotask } from "./nodes.js"

it.live("commits that are in flight or queued when the scope closes get a result, and no fiber is left", () =>
  Effect.gen(function* () {
    const before = [...(yield* Fiber.roots)].length
    const scope = yield* Scope.make()
    const database = yield* Scope.extend(aDatabase(), scope)
    // The first two are statements of their own; the others wait for their aggregates.
    const commits = yield* Effect.forEach(["a", "b", "a", "b"], (id, index) =>
      fork(database.commit([anEvent(id, index + 1)]))
    )
    yield* settled
    expect(database.statements().length).toBeLessThan(4)
    yield* Scope.close(scope, Exit.void)
    for (const commit of commits) expect(yield* Fiber.join(commit)).toBe("appended")
    // A commit that comes later is sent all the same.
    expect(yield* database.commit([anEvent("c")])).toBe("appended")
    yield* settled
    expect([...(yield* Fiber.roots)].length).toBeLessThanOrEqual(before)
  })
)

it.scoped("a lone commit is sent immediately; commits that arrive while both senders are busy share a statement", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const first = yield* Effect.forEach(["a", "b"], (id) => fork(database.commit([anEvent(id)])))
    expect(database.statements()).toEqual([["a"], ["b"]])
    const others = yield* Effect.forEach(["c", "d", "e"], (id) => fork(database.commit([anEvent(id)])))
    expect(database.statements()).toHaveLength(2)
    yield* database.answer(0, [])
    yield* Effect.flatMap(Arr.head(first), Fiber.join)
    yield* settled
    expect(database.statements()[2]).toEqual(["c", "d", "e"])
    yield* database.answer(2, ["appended", new StoreError.RetryCommand({ aggregateId: "d", sequence: 1 }), "duplicate"])
    expect(yield* Effect.forEach(others, Fiber.join)).toEqual([
      "appended",
      new StoreError.RetryCommand({ aggregateId: "d", sequence: 1 }),
      "duplicate"
    ])
  })
)

it.scoped("one commit of an aggregate is in flight at a time, in order; commits of other aggregates overtake", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const [one] = [yield* fork(database.commit([anEvent("a", 1)]))]
    const two = yield* fork(database.commit([anEvent("b", 1), anEvent("a", 2)]))
    const three = yield* fork(database.commit([anEvent("b", 2)]))
    const other = yield* fork(database.commit([anEvent("c", 1)]))
    yield* settled
    expect(database.statements()).toEqual([["a"], ["c"]])
    yield* database.answer(1, [])
    yield* database.answer(0, [])
    yield* Fiber.join(one)
    yield* Fiber.join(other)
    yield* settled
    expect(database.statements()[2]).toEqual(["b", "a"])
    yield* database.answer(2, [])
    yield* Fiber.join(two)
    yield* settled
    expect(database.statements()[3]).toEqual(["b"])
    yield* database.answer(3, [])
    yield* Fiber.join(three)
  })
)

it.scoped("the commits of a statement that fails, maybe by the fault of one, are sent again one by one", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const busy = yield* Effect.forEach(["x", "y"], (id) => fork(database.commit([anEvent(id)])))
    const together = yield* Effect.forEach(["a", "b", "c"], (id) => fork(Effect.either(database.commit([anEvent(id)]))))
    yield* database.answer(0, [])
    yield* settled
    expect(database.statements()[2]).toEqual(["a", "b", "c"])
    yield* database.fail(2, "Unknown")
    yield* settled
    expect(database.statements().slice(3)).toEqual([["a"], ["b"], ["c"]])
    expect(database.failFastOnLock().slice(2)).toEqual([true, false, false, false])
    yield* database.answer(3, [])
    yield* database.fail(4, "Unknown")
    yield* database.answer(5, [])
    expect((yield* Effect.forEach(together, Fiber.join)).map(({ _tag }) => _tag)).toEqual(["Right", "Left", "Right"])
    yield* database.answer(1, [])
    yield* Effect.forEach(busy, Fiber.join)
  })
)

it.scoped("many commits that arrive together are divided between the free senders", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const commitAll = (ids: ReadonlyArray<string>) => Effect.forEach(ids, (id) => fork(database.commit([anEvent(id)])))
    const before = [...(yield* commitAll(["a", "b"])), ...(yield* commitAll(["c", "d"]))]
    yield* Effect.forEach([0, 1], (index) => database.answer(index, []))
    yield* settled
    yield* database.answer(2, [])
    yield* Effect.forEach(before, Fiber.join)
    yield* settled
    const ids = Arr.makeBy(60, (index) => `e${index}`)
    const all = yield* fork(Effect.forEach(ids, (id) => database.commit([anEvent(id)]), { concurrency: "unbounded" }))
    yield* settled
    expect(database.statements().slice(3)).toEqual([ids.slice(0, 30), ids.slice(30)])
    yield* Effect.forEach([3, 4], (index) => database.answer(index, []))
    expect(yield* Fiber.join(all)).toEqual(Arr.replicate("appended", 60))
  })
)

it.scoped("a commit that has to wait for its aggregate is not polled", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const one = yield* fork(database.commit([anEvent("a", 1)]))
    // Both senders are free again, and the commit is in flight alone.
    yield* database.fail(0, "Contention")
    yield* settled
    expect(database.statements()).toEqual([["a"], ["a"]])
    const two = yield* fork(database.commit([anEvent("a", 2)]))
    yield* settled
    expect(database.statements()).toHaveLength(2)
    yield* database.answer(1, [])
    yield* Fiber.join(one)
    yield* settled
    yield* database.answer(2, [])
    yield* Fiber.join(two)
  })
)

it.scoped("a connection that breaks at the commit is CommitUnknown for each commit, and none is sent again", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const busy = yield* Effect.forEach(["x", "y"], (id) => fork(database.commit([anEvent(id)])))
    const together = yield* Effect.forEach(["a", "b"], (id) => fork(Effect.flip(database.commit([anEvent(id)]))))
    yield* database.answer(0, [])
    yield* settled
    yield* database.fail(2, "CommitUnknown")
    for (const error of yield* Effect.forEach(together, Fiber.join))
      expect(error).toMatchObject({ reason: "CommitUnknown" })
    expect(database.statements()).toHaveLength(3)
    yield* database.answer(1, [])
    yield* Effect.forEach(busy, Fiber.join)
  })
)

it.scoped("an interruption withdraws a queued commit, and cancels no batch that another caller waits for", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const busy = yield* Effect.forEach(["x", "y"], (id) => fork(database.commit([anEvent(id)])))
    const [a, b, c] = yield* Effect.all([
      fork(database.commit([anEvent("a")])),
      fork(database.commit([anEvent("b")])),
      fork(database.commit([anEvent("c")]))
    ])
    expect(Exit.isInterrupted(yield* Fiber.interrupt(b))).toBe(true)
    yield* database.answer(0, [])
    yield* settled
    expect(database.statements()[2]).toEqual(["a", "c"])
    expect(Exit.isInterrupted(yield* Fiber.interrupt(a))).toBe(true)
    expect(database.cancelled()).toEqual([])
    yield* database.answer(2, [])
    expect(yield* Fiber.join(c)).toBe("appended")
    yield* database.answer(1, [])
    yield* Effect.forEach(busy, Fiber.join)
    // A batch that no caller waits for is cancelled.
    const alone = yield* fork(database.commit([anEvent("d")]))
    yield* Fiber.interrupt(alone)
    yield* settled
    expect(database.cancelled()).toEqual([3])
  })
)

it.scoped("a slow statement does not delay later commits", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase(25)
    const stuck = yield* Effect.forEach(["a", "b"], (id) => fork(database.commit([anEvent(id)])))
    const next = yield* fork(database.commit([anEvent("c")]))
    // By the live clock, and not that of the test.
    yield* Effect.repeat(macrotask, { until: () => database.statements().length === 3 })
    yield* database.answer(2, [])
    yield* Fiber.join(next)
    yield* Effect.forEach([0, 1], (index) => database.answer(index, []))
    yield* Effect.forEach(stuck, Fiber.join)
  })
)

it.scoped("a large commit has a statement of its own, the queue is bounded, and all commits are stored", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const large = yield* fork(database.commit(Arr.makeBy(501, (index) => anEvent("large", index + 1))))
    expect(database.statements()).toHaveLength(1)
    yield* database.answer(0, [])
    yield* Fiber.join(large)

    const busy = yield* Effect.forEach(["x", "y"], (id) => fork(database.commit([anEvent(id)])))
    const body = JSON.stringify({ text: "x".repeat(240_000) })
    const many = yield* Effect.forEach(Arr.range(1, 300), (index) =>
      Effect.fork(database.commit([{ ...anEvent(`many-${index}`), body }]))
    )
    yield* settled
    yield* database.answerAll
    yield* Effect.forEach([...busy, ...many], Fiber.join)
    // The queue has 64 million characters at most, and a statement one million.
    expect(database.largest()).toBeLessThan(6)
  })
)

it.scoped("commits whose callers are interrupted in a full queue make room, and are not sent", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const busy = yield* Effect.forEach(["x", "y"], (id) => fork(database.commit([anEvent(id)])))
    const body = JSON.stringify({ text: "x".repeat(240_000) })
    for (const round of [1, 2, 3]) {
      const many = yield* Effect.forEach(Arr.range(1, 250), (index) =>
        Effect.fork(database.commit([{ ...anEvent(`gone-${round}-${index}`), body }]))
      )
      yield* settled
      yield* Fiber.interruptAll(many)
    }
    const last = yield* fork(database.commit([anEvent("last")]))
    yield* database.answer(0, [])
    yield* settled
    expect(database.statements()).toEqual([["x"], ["y"], ["last"]])
    yield* database.answer(2, [])
    yield* database.answer(1, [])
    yield* Effect.forEach([...busy, last], Fiber.join)
  })
)

it.layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie), { timeout: 60_000 })(
  "batched commits on Postgres",
  (it) => {
    // With a counter all commits wait for that transaction.
    it.scoped.skipIf(inject("feedOrder") === "counter")(
      "a commit that waits for another transaction delays no other commit",
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const sql = yield* SqlClient.SqlClient
          const [held, free] = [crypto.randomUUID(), Arr.makeBy(20, () => crypto.randomUUID())]
          const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const holder = yield* Effect.fork(
            sql.withTransaction(
              Effect.gen(function* () {
                yield* store.commitEvents([yield* stamped(held, 1)])
                yield* Deferred.succeed(holding, undefined)
                yield* Deferred.await(go)
              })
            )
          )
          yield* Deferred.await(holding)
          const waiting = yield* Effect.fork(Effect.flip(store.commitEvents([yield* stamped(held, 1)])))
          // All of them are stored while that transaction is open, those of the same batch, too.
          yield* Effect.forEach(free, (id) => Effect.flatMap(stamped(id, 1), (event) => store.commitEvents([event])), {
            concurrency: "unbounded"
          })
          expect(yield* Fiber.poll(waiting)).toEqual(Option.none())
          yield* Deferred.succeed(go, undefined)
          yield* Fiber.join(holder)
          expect(yield* Fiber.join(waiting)).toEqual(new StoreError.RetryCommand({ aggregateId: held, sequence: 1 }))
        })
    )

    it.scoped("of a thousand concurrent commits, some of which are refused, each gets its own result", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const ids = Arr.makeBy(1000, () => crypto.randomUUID())
        const results = yield* Effect.forEach(
          ids,
          (id, index) =>
            Effect.flatMap(stamped(id, index % 10 === 0 ? 2 : 1), (event) =>
              Effect.either(store.commitEvents([event]))
            ),
          { concurrency: "unbounded" }
        )
        for (const [index, result] of results.entries()) {
          const id = ids[index] ?? ""
          if (index % 10 === 0) {
            expect(result).toMatchObject({ _tag: "Left", left: { _tag: "RetryCommand", aggregateId: id, sequence: 2 } })
          } else {
            expect(result._tag).toBe("Right")
            expect(yield* store.getEvents(id, 1)).toHaveLength(1)
          }
        }
      })
    )
  }
)

// --- what the cases are made of ---

interface Answerable {
  readonly ids: ReadonlyArray<string>
  readonly size: number
  readonly failFastOnLock: boolean
  readonly answer: Deferred.Deferred<ReadonlyArray<AppendResult>, StoreError.StoreError>
  cancelled: boolean
}

/** Sends by an effect in a fiber, whose interruption cancels the statement. */
const sendBy =
  (
    statement: (
      commits: ReadonlyArray<Commit>,
      failFastOnLock: boolean
    ) => Effect.Effect<ReadonlyArray<AppendResult>, StoreError.StoreError>
  ): Send =>
  (commits, { failFastOnLock }, done) => {
    const fiber = Effect.runFork(statement(commits, failFastOnLock))
    fiber.addObserver(done)
    return Effect.asVoid(Fiber.interrupt(fiber))
  }

/** A database that answers a statement when the test says so, and senders that wait for it so long. */
const aDatabase = (maxSenderWait = 60_000) =>
  Effect.gen(function* () {
    const statements: Array<Answerable> = []
    let answersImmediately = false
    const commit = yield* makeAppendBatcher(
      sendBy((commits, failFastOnLock) =>
        Effect.suspend(() => {
          const statement: Answerable = {
            ids: commits.flatMap((events) => [...new Set(events.map(({ aggregateId }) => aggregateId))]),
            size: commits.length,
            failFastOnLock,
            answer: Deferred.unsafeMake(Fiber.id(Fiber.never)),
            cancelled: false
          }
          statements.push(statement)
          return answersImmediately
            ? Effect.succeed([])
            : Effect.onInterrupt(Deferred.await(statement.answer), () =>
                Effect.sync(() => {
                  statement.cancelled = true
                })
              )
        })
      ),
      false,
      maxSenderWait
    )
    const answerAll = Effect.suspend(() => {
      answersImmediately = true
      return Effect.forEach(statements, ({ answer }) => Deferred.succeed(answer, []), { discard: true })
    })
    // The end of the scope waits for commits in flight.
    yield* Effect.addFinalizer(() => answerAll)
    const at = (index: number) => statements[index]?.answer ?? Deferred.unsafeMake(Fiber.id(Fiber.never))
    return {
      commit,
      statements: () => statements.map(({ ids }) => ids),
      failFastOnLock: () => statements.map((statement) => statement.failFastOnLock),
      cancelled: () => statements.flatMap(({ cancelled }, index) => (cancelled ? [index] : [])),
      largest: () => Math.max(...statements.map(({ size }) => size)),
      answer: (index: number, results: ReadonlyArray<AppendResult>) =>
        Effect.zipRight(Deferred.succeed(at(index), results), settled),
      fail: (index: number, reason: StoreError.StoreErrorReason) =>
        Effect.zipRight(
          Deferred.fail(
            at(index),
            new StoreError.StoreError({ reason, operation: "commitEvents", description: "as the test wants it" })
          ),
          settled
        ),
      answerAll
    }
  })

const anEvent = (aggregateId: string, sequence = 1): Event.StoredEvent => ({
  timestamp: Timestamp.fromParts({ millis: sequence, counter: 0, node: 1n }),
  aggregateId,
  sequence,
  type: "Happened",
  version: 1,
  body: "{}",
  metadata: "{}"
})

const stamped = (aggregateId: string, sequence: number): Effect.Effect<Event.Event> =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({
      timestamp,
      aggregateId,
      sequence,
      type: "Happened",
      version: 1,
      body: {},
      metadata: {}
    }))
  )

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.zipLeft(Effect.fork(effect), settled)

/** All fibers that can go on have gone on. */
const settled = Effect.repeatN(macrotask, 5)
