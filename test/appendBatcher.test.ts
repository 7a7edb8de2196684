/** Commits of strangers that travel together: none of them notices. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { type Event, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { type AppendResult, makeAppendBatcher } from "../src/internal/sql/commit/appendBatcher.js"
import type { Commit } from "../src/internal/sql/commit/commitQueue.js"
import { layerPg } from "./database.js"
import { macrotask } from "./nodes.js"

it.live("commits that are under way or wait when the scope closes are answered, and no fiber is left", () =>
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

it.scoped("one that comes alone leaves at once; those that come while all ways are taken leave together", () =>
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

it.scoped("of one aggregate there is one commit under way, and they leave in order; others overtake them", () =>
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

it.scoped("a statement that fails, maybe through one of them, is sent again for each by itself", () =>
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
    expect(database.hurried().slice(2)).toEqual([true, false, false, false])
    yield* database.answer(3, [])
    yield* database.fail(4, "Unknown")
    yield* database.answer(5, [])
    expect((yield* Effect.forEach(together, Fiber.join)).map(({ _tag }) => _tag)).toEqual(["Right", "Left", "Right"])
    yield* database.answer(1, [])
    yield* Effect.forEach(busy, Fiber.join)
  })
)

it.scoped("many that come together are divided between the ways that are free", () =>
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

it.scoped("nobody keeps looking for what can't leave yet", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase()
    const one = yield* fork(database.commit([anEvent("a", 1)]))
    // Both ways are free again, and the commit is under way by itself.
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

it.scoped("a connection that breaks at the commit is CommitUnknown for each of them; none is sent again here", () =>
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

it.scoped("an interruption takes one out of the queue, and leaves those under way to the others", () =>
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
    // Where nobody waits for it any more, it is cancelled.
    const alone = yield* fork(database.commit([anEvent("d")]))
    yield* Fiber.interrupt(alone)
    yield* settled
    expect(database.cancelled()).toEqual([3])
  })
)

it.scoped("a statement that is held up does not hold up those that come after", () =>
  Effect.gen(function* () {
    const database = yield* aDatabase(25)
    const stuck = yield* Effect.forEach(["a", "b"], (id) => fork(database.commit([anEvent(id)])))
    const next = yield* fork(database.commit([anEvent("c")]))
    // By the machine's clock, not by that of the test.
    yield* Effect.repeat(macrotask, { until: () => database.statements().length === 3 })
    yield* database.answer(2, [])
    yield* Fiber.join(next)
    yield* Effect.forEach([0, 1], (index) => database.answer(index, []))
    yield* Effect.forEach(stuck, Fiber.join)
  })
)

it.scoped("a large commit travels alone, and so much waits that memory is bounded, and all come through", () =>
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
    // 64 million characters fit; the rest came when there was room, and no statement took more than a million.
    expect(database.largest()).toBeLessThan(6)
  })
)

it.scoped("those who give up while nothing leaves make room, and are not sent", () =>
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
  "coalesced commits on Postgres",
  (it) => {
    it.scoped("who waits for somebody's open transaction keeps no stranger waiting", () =>
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
        // All of them come through while that transaction is open: those that left with the one that waits, too.
        yield* Effect.forEach(free, (id) => Effect.flatMap(stamped(id, 1), (event) => store.commitEvents([event])), {
          concurrency: "unbounded"
        })
        expect(yield* Fiber.poll(waiting)).toEqual(Option.none())
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(holder)
        expect(yield* Fiber.join(waiting)).toEqual(new StoreError.RetryCommand({ aggregateId: held, sequence: 1 }))
      })
    )

    it.scoped("a thousand at once, some refused, are each answered for themselves", () =>
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
  readonly hurried: boolean
  readonly answer: Deferred.Deferred<ReadonlyArray<AppendResult>, StoreError.StoreError>
  cancelled: boolean
}

/** A database that answers when it is told to, and senders that wait for it so long. */
const aDatabase = (patience = 60_000) =>
  Effect.gen(function* () {
    const statements: Array<Answerable> = []
    let atOnce = false
    const commit = yield* makeAppendBatcher(
      (commits: ReadonlyArray<Commit>, hurried) =>
        Effect.suspend(() => {
          const statement: Answerable = {
            ids: commits.flatMap((events) => [...new Set(events.map(({ aggregateId }) => aggregateId))]),
            size: commits.length,
            hurried,
            answer: Deferred.unsafeMake(Fiber.id(Fiber.never)),
            cancelled: false
          }
          statements.push(statement)
          return atOnce
            ? Effect.succeed([])
            : Effect.onInterrupt(Deferred.await(statement.answer), () =>
                Effect.sync(() => {
                  statement.cancelled = true
                })
              )
        }),
      patience
    )
    const answerAll = Effect.suspend(() => {
      atOnce = true
      return Effect.forEach(statements, ({ answer }) => Deferred.succeed(answer, []), { discard: true })
    })
    // The end of the scope waits for what is under way.
    yield* Effect.addFinalizer(() => answerAll)
    const at = (index: number) => statements[index]?.answer ?? Deferred.unsafeMake(Fiber.id(Fiber.never))
    return {
      commit,
      statements: () => statements.map(({ ids }) => ids),
      hurried: () => statements.map(({ hurried }) => hurried),
      cancelled: () => statements.flatMap(({ cancelled }, index) => (cancelled ? [index] : [])),
      largest: () => Math.max(...statements.map(({ size }) => size)),
      answer: (index: number, verdicts: ReadonlyArray<AppendResult>) =>
        Effect.zipRight(Deferred.succeed(at(index), verdicts), settled),
      fail: (index: number, reason: StoreError.StoreErrorReason) =>
        Effect.zipRight(
          Deferred.fail(
            at(index),
            new StoreError.StoreError({ reason, operation: "commitEvents", description: "told to" })
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
  body: "{}",
  metadata: "{}"
})

const stamped = (aggregateId: string, sequence: number): Effect.Effect<Event.Event> =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({ timestamp, aggregateId, sequence, type: "Happened", body: {}, metadata: {} }))
  )

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.zipLeft(Effect.fork(effect), settled)

/** Whoever can go on has gone on. */
const settled = Effect.repeatN(macrotask, 5)
