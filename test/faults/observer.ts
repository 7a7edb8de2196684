/** A process that only follows: a reader of the feed, a subscription that keeps a table, and one that evaluates commands. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { Aggregate, EventFeed, SqlStore, Subscription, Timestamp } from "effect-maestro"
import { Deposit, Felt, Sale, Tenant, Wallet } from "./domain.js"
import type { Place } from "./history.js"

/** The caller of the command that the observer evaluates for a sale. */
export const forwarded = (sale: string): string => `forwarded ${sale}`

/** Follows by a URL that faults may lie on. `finish` waits until all that is stored was seen, and gives what each follower saw. */
export interface Observer {
  readonly finish: Effect.Effect<ReadonlyArray<ReadonlyArray<Place>>, unknown>
}

export const makeObserver = (
  admin: SqlClient.SqlClient,
  url: string,
  felt: Felt["Type"]
): Effect.Effect<Observer, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    yield* admin`create table ledger (line bigint generated always as identity, account text not null, sequence int not null)`
    const scope = yield* Effect.acquireRelease(Scope.make(), Scope.close)
    const services = yield* Layer.buildWithScope(
      Wallet.layer.pipe(
        Layer.provideMerge(SqlStore.layer),
        Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 5, connectTimeout: "2 seconds" })),
        Layer.provideMerge(Timestamp.layerWith({ node: 1000n })),
        Layer.provideMerge(Layer.succeed(Felt, felt))
      ),
      scope
    )
    const seen: Array<Place> = []
    yield* Effect.forkIn(follow(Context.get(services, EventFeed.EventFeed), seen), scope)
    yield* Effect.provide(Layer.buildWithScope(Layer.merge(writing.layer, forwarding.layer), scope), services)

    const behind = Effect.suspend(
      () => admin<{ sales: number; events: number }>`select
        (select count(*) from maestro.event_log where type = 'Sold')::int
        - (select count(*) from maestro.event_log where metadata ->> 'attempt' like ${forwarded("%")})::int as sales,
        (select count(*) from maestro.event_log)::int
        - least(${seen.length}, (select count(*) from ledger))::int as events`
    )
    return {
      finish: Effect.gen(function* () {
        // What it has not seen by then it has lost.
        yield* behind.pipe(
          Effect.zipLeft(Effect.sleep("20 millis")),
          Effect.repeat({ until: ([row]) => row !== undefined && row.sales <= 0 && row.events <= 0, times: 500 })
        )
        yield* Scope.close(scope, Exit.void)
        return [seen, yield* admin<Place>`select account, sequence from ledger order by line`]
      })
    }
  })

// --- internal ---

const again = Schedule.spaced("20 millis")

/** Short, because a lease whose acknowledgement was cut keeps the partition until it runs out. */
const lease = "2 seconds"

const follow = (feed: EventFeed.EventFeed["Type"], seen: Array<Place>) =>
  Effect.iterate(EventFeed.beginning, {
    while: () => true,
    body: (after) =>
      Effect.flatMap(Effect.retry(feed.read({ after, limit: 50 }), again), ({ events, more, position }) => {
        for (const { id, sequence } of events) seen.push({ account: id, sequence })
        return more ? Effect.succeed(position) : Effect.retry(feed.awaitAppend(position), again)
      })
  })

const writing = Subscription.make("writing", {
  retry: again,
  lease,
  batchSize: 20,
  handleBatch: (events) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`insert into ledger (account, sequence) select * from unnest(
        ${events.map(({ id }) => id)}::text[], ${events.map(({ sequence }) => sequence)}::int[])`
    )
})

/** Pays once more for each sale, in the transaction of the checkpoint. */
const forwarding = Subscription.make("forwarding", {
  retry: again,
  lease,
  batchSize: 5,
  on: Subscription.on(Sale, {
    Sold: ({ account }, { id }) =>
      Wallet.evaluate(account, new Deposit({ amount: 1 })).pipe(
        Effect.provideService(Aggregate.Metadata, { attempt: forwarded(id) }),
        Effect.provideService(Tenant, forwarded(id))
      )
  })
})
