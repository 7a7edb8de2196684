/**
 * A failover that loses the last commits of a node, which goes on: with cached states, a waiting subscription and a reader that are ahead of
 * the log. `main.ts` runs it.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Aggregate, EventFeed, SqlStore, StoreError, Subscription } from "effect-maestro"
import { logKind } from "../logKind.js"
import { InsufficientFunds, PayIn, PayOut, Purse } from "./domain.js"
import type { Pair } from "./pair.js"

/** Fails over, and returns what was wrong. */
export const loseTheLastCommits = (pair: Pair): Effect.Effect<ReadonlyArray<string>, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const wrong: Array<string> = []
    const must = (isSo: boolean, what: string) => {
      if (!isSo) wrong.push(what)
    }
    const [ahead, other] = [yield* aNode(pair.url), yield* aNode(pair.url)]
    const payIn = (id: string, amount: number) => Purse.evaluate(id, new PayIn({ amount }))

    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table lines (line bigint generated always as identity, place text not null)`
      const feed = yield* EventFeed.EventFeed
      yield* Layer.build(writing.layer)
      yield* payIn("ann", 1)
      yield* caughtUp
      yield* pair.caughtUp

      yield* pair.cutOff
      for (let n = 0; n < 40; n++) yield* payIn("ann", 1000)
      const fresh = yield* Purse.newId
      yield* payIn(fresh, 1000)
      yield* Aggregate.withCommandId("once")(payIn("bob", 7))
      yield* caughtUp
      const lost = yield* feed.head
      const reader = yield* Effect.fork(Effect.flip(feed.awaitAppend(lost)))
      yield* pair.failOver

      // Another node brings the purse to the sequence that is cached here.
      yield* Effect.provide(Effect.repeatN(payIn("ann", 1), 39), other)
      const refused = yield* Effect.flip(again(Purse.evaluate("ann", new PayOut({ amount: 500 }))))
      must(refused instanceof InsufficientFunds && refused.balance === 41, `a lost balance was decided on: ${refused}`)
      const { sequence, state } = yield* payIn("ann", 1)
      must(sequence === 42 && state.balance === 42, `the state after lost events is ${state.balance} at ${sequence}`)
      const unused = yield* Effect.flip(Purse.evaluate(fresh, new PayOut({ amount: 1 })))
      must(unused instanceof InsufficientFunds && unused.balance === 0, `an id without events had ${unused}`)
      for (const duplicate of [false, true]) {
        const repeated = yield* Aggregate.withCommandId("once")(payIn("bob", 7))
        must(repeated.duplicate === duplicate && repeated.state.balance === 7, "a lost command is not repeated once")
      }

      const failure = yield* Effect.flip(feed.read({ after: lost }))
      must(
        failure instanceof StoreError.StoreError && failure.reason === "Misconfigured",
        `a reader ahead of the log got ${failure}`
      )
      yield* Effect.forkScoped(reader.await)
      yield* again(caughtUp)
      const events = yield* sql<{ place: string }>`select aggregate_id || ' ' || sequence as place
        from maestro.event_log order by feed_key, position`
      const lines = yield* sql<{ place: string }>`select place from lines order by line`
      must(
        events.map(({ place }) => place).join() === lines.map(({ place }) => place).join(),
        `the subscription has ${lines.length} lines of ${events.length} events, or another order`
      )
    }).pipe(Effect.provide(ahead))
    return wrong
  })

// --- internal ---

const aNode = (url: string) =>
  Layer.build(
    Layer.fresh(
      Purse.layer.pipe(
        Layer.provideMerge(SqlStore.layerWith(logKind())),
        Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 5, connectTimeout: "2 seconds" }))
      )
    )
  )

const writing = Subscription.make("writing", {
  lease: "2 seconds",
  handle: ({ aggregateId, sequence }) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`insert into lines (place) values (${`${aggregateId} ${sequence}`})`
    )
})

const caughtUp = Effect.flatMap(EventFeed.head, (head) => Subscription.waitFor("writing", head, "40 seconds"))

/** Repeats it while the address leads nowhere. */
const again = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.retry(effect, {
    schedule: Schedule.intersect(Schedule.spaced("100 millis"), Schedule.recurs(100)),
    while: (error) => error instanceof StoreError.StoreError
  })
