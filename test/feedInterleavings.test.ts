/** The order of the feed in interleavings that could break it, step by step, on two nodes of one Postgres database. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, EventFeed, MemoryStore, Projection, StoreAdapter, Subscription } from "effect-maestro"
import { Account, Deposit, Withdraw } from "./account.js"
import { outOfOrder, placeOf, textOf } from "./feedOrderModel.js"
import { onPostgres } from "./feedOrderNodes.js"
import type { OnSql } from "./feedOrderWorkload.js"
import { commit, event, eventually, newId, start } from "./subscribers.js"

/** The node whose transactions stay open, and the node that commits in between. */
class Here extends Context.Tag("test/Here")<Here, Context.Context<OnSql>>() {}
class There extends Context.Tag("test/There")<There, Context.Context<OnSql>>() {}

const layerNodes = Layer.scopedContext(
  Effect.gen(function* () {
    const [here, there] = Arr.getSomes((yield* onPostgres).map(({ onSql }) => onSql))
    if (here === undefined || there === undefined) return yield* Effect.dieMessage("there must be two nodes")
    return Context.make(Here, here).pipe(Context.add(There, there))
  })
)

/** Runs the effect on the other node, outside of the open transaction. */
const elsewhere = <A, E>(effect: Effect.Effect<A, E, OnSql>) =>
  Effect.flatMap(There, (services) =>
    Effect.mapInputContext(effect, (context: Context.Context<never>) =>
      Context.omit(SqlClient.TransactionConnection)(Context.merge(context, services))
    )
  )

const here = <A, E, R>(effect: Effect.Effect<A, E, R | OnSql>) =>
  Effect.flatMap(Here, (services) => Effect.provide(effect, services))

const inTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(effect))

const deposit = (account: string) => Account.evaluate(account, new Deposit({ amount: 10 }))
const withdraw = (account: string) => Account.evaluate(account, new Withdraw({ amount: 1 }))

class Undone extends Data.TaggedError("Undone") {}

/**
 * A reader on the other node: reads on from its last position, now or until it has so many events, and returns all
 * events so far.
 */
const aReader = Effect.map(elsewhere(EventFeed.head), (head) => {
  let after = head
  const places: Array<string> = []
  const now = elsewhere(
    Effect.map(
      Effect.suspend(() => EventFeed.read({ after, limit: 10_000 })),
      (page): ReadonlyArray<string> => {
        after = page.position
        places.push(...page.events.map(({ id, sequence }) => textOf({ aggregateId: id, sequence })))
        return [...places]
      }
    )
  )
  return { now, upTo: (count: number) => eventually(now, ({ length }) => length >= count) }
})

layer(layerNodes, { excludeTestServices: true, timeout: 60_000 })(
  "the feed keeps the order of each aggregate",
  (it) => {
    it.effect("when another caller commits between the halves of a transfer", () =>
      Effect.gen(function* () {
        const reading = yield* aReader
        const [ann, bob, eve] = [newId("ann"), newId("bob"), newId("eve")]
        yield* elsewhere(deposit(ann))
        yield* reading.upTo(1)
        yield* inTransaction(
          Effect.gen(function* () {
            yield* withdraw(ann)
            yield* elsewhere(deposit(bob))
            yield* elsewhere(deposit(eve))
            expect(yield* reading.now).toEqual([`${ann}/1`])
            yield* deposit(bob)
            expect(yield* reading.now).toEqual([`${ann}/1`])
          })
        )
        const shown = yield* reading.upTo(5)
        expectInOrder(shown, [`${ann}/2`, `${bob}/2`])
        expect(shown).toHaveLength(5)
        expect(shown).toContain(`${eve}/1`)
      }).pipe(here)
    )

    it.effect("when another caller commits before a strong projection evaluates a command", () =>
      Effect.gen(function* () {
        const [shop, till] = [newId("shop"), newId("till")]
        const sale = yield* aSale(
          Effect.gen(function* () {
            yield* elsewhere(deposit(till))
            yield* deposit(till)
          })
        )
        const reading = yield* aReader
        yield* sale(shop)
        yield* elsewhere(deposit(till))
        yield* sale(shop)
        const shown = yield* reading.upTo(7)
        expect(shown).toHaveLength(7)
        expectInOrder(shown, [`${shop}/1`, `${till}/2`])
        expectInOrder(shown, [`${shop}/2`, `${till}/5`])
      }).pipe(Effect.scoped, here)
    )

    it.effect("when another caller commits while the handler of a subscription evaluates commands", () =>
      Effect.gen(function* () {
        const [cause, a, b] = [newId("cause"), newId("a"), newId("b")]
        const reading = yield* aReader
        const handled = Subscription.make(newId("handling"), {
          from: yield* EventFeed.head,
          handle: (event) =>
            event.id !== cause
              ? Effect.void
              : Effect.gen(function* () {
                  yield* deposit(a)
                  yield* elsewhere(deposit(b))
                  yield* deposit(b)
                  yield* deposit(a)
                })
        })
        yield* start(handled)
        const { position } = yield* deposit(cause)
        yield* Subscription.waitFor(handled.name, position, "30 seconds")
        expectInOrder(yield* reading.upTo(5), [`${cause}/1`, `${a}/1`, `${b}/2`, `${a}/2`])
      }).pipe(Effect.scoped, here)
    )

    it.effect("when a transaction rolls back to a savepoint, and writes again after other commits", () =>
      Effect.gen(function* () {
        const [a, b, c] = [newId("a"), newId("b"), newId("c")]
        const reading = yield* aReader
        yield* inTransaction(
          Effect.gen(function* () {
            yield* deposit(a)
            yield* elsewhere(deposit(b))
            yield* inTransaction(Effect.zipRight(deposit(b), Effect.fail(new Undone()))).pipe(Effect.ignore)
            // The rollback released the lock on the second event.
            yield* elsewhere(deposit(b))
            yield* deposit(c)
            yield* deposit(b)
            yield* deposit(a)
          })
        )
        yield* elsewhere(deposit(b))
        const shown = yield* reading.upTo(7)
        expectInOrder(shown, [`${a}/1`, `${c}/1`, `${b}/3`, `${a}/2`])
        expect(shown).toHaveLength(7)
      }).pipe(here)
    )

    it.effect(
      "when the first write of a transaction is rolled back, and its id is older than the events before its next write",
      () =>
        Effect.gen(function* () {
          const [a, b] = [newId("a"), newId("b")]
          const reading = yield* aReader
          yield* inTransaction(
            Effect.gen(function* () {
              yield* inTransaction(Effect.zipRight(deposit(a), Effect.fail(new Undone()))).pipe(Effect.ignore)
              yield* elsewhere(deposit(b))
              yield* elsewhere(deposit(a))
              yield* deposit(b)
              yield* deposit(a)
            })
          )
          expectInOrder(yield* reading.upTo(4), [`${b}/2`, `${a}/2`])
        }).pipe(here)
    )

    it.effect("when another caller's commit stands between two events of one transaction", () =>
      Effect.gen(function* () {
        const [a, b] = [newId("a"), newId("b")]
        const reading = yield* aReader
        yield* inTransaction(
          Effect.gen(function* () {
            yield* deposit(a)
            yield* elsewhere(deposit(b))
            yield* deposit(a)
            yield* elsewhere(deposit(b))
            yield* deposit(b)
            yield* deposit(a)
          })
        )
        const shown = yield* reading.upTo(6)
        expectInOrder(shown, [`${a}/1`, `${a}/2`, `${b}/3`, `${a}/3`])
      }).pipe(here)
    )

    it.effect("and shows a cause before its effect, also where the cause follows a later commit", () =>
      Effect.gen(function* () {
        const [first, busy, fresh, other] = [newId("first"), newId("busy"), newId("fresh"), newId("other")]
        const reading = yield* aReader
        yield* inTransaction(
          Effect.gen(function* () {
            yield* deposit(first)
            yield* elsewhere(deposit(busy))
            // It follows the other caller's event, and so must all later events of this transaction.
            yield* deposit(busy)
            yield* deposit(fresh)
            yield* commit(event(other, 1), event(newId("x"), 1), event(other, 2))
          })
        )
        const shown = yield* reading.upTo(7)
        expectInOrder(shown, [`${first}/1`, `${busy}/2`, `${fresh}/1`, `${other}/1`, `${other}/2`])
      }).pipe(here)
    )

    it.effect("when transactions form a chain along aggregates, each begun before its predecessor", () =>
      Effect.gen(function* () {
        const ids = Arr.makeBy(5, (index) => newId(`chain${index}`))
        const reading = yield* aReader
        const seen: Array<ReadonlyArray<string>> = []
        /** Begins a transaction, runs the next one in between, and writes the aggregate that both share. */
        const link = (index: number): Effect.Effect<void, unknown, OnSql | There> =>
          Effect.gen(function* () {
            const [own, next] = [ids[index], ids[index + 1]]
            if (own === undefined || next === undefined) return
            yield* inTransaction(
              Effect.gen(function* () {
                yield* deposit(own)
                yield* Effect.mapInputContext(link(index + 1), outside)
                yield* deposit(next)
                seen.push(yield* reading.now)
              })
            )
          })
        yield* link(0)
        const shown = yield* reading.upTo(8)
        expectInOrder(shown, [])
        expect(shown).toHaveLength(8)
        // The reader goes on from its last position.
        for (const earlier of seen) expect(shown.slice(0, earlier.length)).toEqual(earlier)
      }).pipe(here)
    )

    it.effect("when a commit of several aggregates follows commits that began after it", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const [a, b, c] = [newId("a"), newId("b"), newId("c")]
        const reading = yield* aReader
        yield* inTransaction(
          Effect.gen(function* () {
            yield* commit(event(a, 1))
            yield* elsewhere(commit(event(c, 1)))
            yield* elsewhere(commit(event(b, 1)))
            const events = yield* Effect.all([event(a, 2), event(c, 2), event(a, 3), event(b, 2), event(c, 3)])
            yield* store.commitEvents(events)
          })
        )
        const shown = yield* reading.upTo(8)
        expectInOrder(shown, [`${a}/1`, `${a}/2`, `${c}/2`, `${a}/3`, `${b}/2`, `${c}/3`])
      }).pipe(here)
    )

    for (const level of ["repeatable read", "serializable"] as const) {
      it.effect(`inside a caller's transaction that is ${level}`, () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const [a, b, c] = [newId("a"), newId("b"), newId("c")]
          const reading = yield* aReader
          const isolated = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
            inTransaction(Effect.zipRight(sql`set transaction isolation level ${sql.literal(level)}`, effect))
          yield* isolated(
            Effect.gen(function* () {
              yield* deposit(a)
              yield* elsewhere(deposit(b))
              yield* deposit(c)
              yield* deposit(a)
            })
          )
          // A transaction must not follow an event that it can't see, so it fails and stores nothing.
          const refused = yield* isolated(
            Effect.gen(function* () {
              yield* deposit(c)
              yield* elsewhere(deposit(b))
              yield* deposit(b)
            })
          ).pipe(Effect.flip)
          expect(refused).toMatchObject({ _tag: "StoreError", reason: "Contention" })
          const shown = yield* reading.upTo(5)
          expectInOrder(shown, [`${a}/1`, `${c}/1`, `${a}/2`])
          expect(shown).toHaveLength(5)
        }).pipe(here)
      )
    }
  }
)

layer(MemoryStore.layer)("the feed of the memory store", (it) => {
  it.effect("shows the events of one transaction in the order in which they were written", () =>
    Effect.gen(function* () {
      const [a, b, c] = [newId("a"), newId("b"), newId("c")]
      const store = yield* StoreAdapter.StoreAdapter
      const effects: Projection.Projection<unknown> = {
        name: "effects",
        project: ({ aggregateId, sequence }) =>
          aggregateId === a && sequence === 1
            ? Effect.provideService(
                Effect.zipRight(
                  commit(event(b, 1)),
                  Effect.zipRight(commit(event(a, 2)), commit(event(c, 1), event(b, 2), event(c, 2)))
                ),
                StoreAdapter.StoreAdapter,
                store
              )
            : Effect.void
      }
      yield* store.commitAll([yield* event(a, 1)], [effects])
      const { events } = yield* EventFeed.read()
      expect(events.map(textOf)).toEqual([`${a}/1`, `${b}/1`, `${a}/2`, `${c}/1`, `${b}/2`, `${c}/2`])
    })
  )
})

// --- internal ---

/** Expects the events in the order of their streams, and the given ones in this order. */
const expectInOrder = (shown: ReadonlyArray<string>, some: ReadonlyArray<string>): void => {
  expect({ shown, outOfOrder: outOfOrder(shown.map(placeOf)) }).toEqual({ shown, outOfOrder: 0 })
  expect(shown.filter((place) => some.includes(place))).toEqual(some)
}

/** Removes the current transaction from the context. */
const outside = (context: Context.Context<OnSql | There>) => Context.omit(SqlClient.TransactionConnection)(context)

class Sold extends Schema.TaggedClass<Sold>()("SoldBetween", {}) {}

/** An aggregate whose strong projection runs an effect, and the command that triggers it. */
const aSale = <E>(projecting: Effect.Effect<unknown, E, OnSql | There>) =>
  Effect.gen(function* () {
    const Sale = Aggregate.make("SaleBetween", {
      state: Schema.Struct({}),
      initialState: {},
      events: Sold,
      commands: Sold,
      decide: { SoldBetween: (command) => Effect.succeed([command]) },
      evolve: { SoldBetween: (state) => state },
      projections: [Projection.make({ name: "between", events: Sold, project: { SoldBetween: () => projecting } })]
    })
    const services = yield* Layer.build(Layer.fresh(Sale.layer))
    return (shop: string) => Effect.provide(Sale.evaluate(shop, new Sold()), services)
  })
