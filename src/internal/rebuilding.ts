/**
 * The work of a rebuild: doubles of the tables, all events into them, then the swap.
 *
 * Why nothing is skipped or done twice at the swap: whoever commits an event with a strong projection writes the table in the same
 * transaction. Once the tables are locked, a transaction that has written them is over, and its events can be seen; one that is still to
 * write them waits, its events can't be seen, and it finds the new tables when it goes on. So what can be seen at that moment is exactly
 * what the new tables must hold, whatever other transactions are open. A subscription is simply put to where the rebuild is: its
 * holder, should it be at work, finds its lease lost, and goes on from there.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { maxNameLength } from "../Event.js"
import { beginning, EventFeed, type FeedEvent, type Filter, type Position } from "../EventFeed.js"
import type { Projection } from "../Projection.js"
import { StoreError, ValidationError, ValidationIssue } from "../StoreError.js"
import { type Lease, LeaseLost, SubscriptionStore } from "../SubscriptionStore.js"
import { toMillis } from "../Timestamp.js"
import { limitIdle } from "./embedded.js"
import { bothOf } from "./feedInput.js"
import { onMachineTime } from "./machineTime.js"
import { nameProblem, reservedPrefix } from "./names.js"
import { filterOf, projectBy } from "./projecting.js"
import { isPassing } from "./settling.js"
import { dropShadows, lockLive, makeShadows, type Shadowed, swap, writingDoubles } from "./shadowTables.js"
import { fromSqlError } from "./sqlError.js"
import { behind, type FeedRow, feedColumns, feedEventsOf, matches, partsOf } from "./sqlFeed.js"
import type { Home } from "./sqlLease.js"
import { homeOf } from "./sqlSubscriptions.js"
import { withTransaction } from "./sqlTransaction.js"

interface Plan<E, R> {
  readonly name: string
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  readonly tables: ReadonlyArray<string>
  readonly create?: Effect.Effect<unknown, E, R> | undefined
  readonly subscription?:
    | { readonly name: string; readonly partitions: number; readonly filter: Filter | undefined }
    | undefined
  readonly batchSize?: number | undefined
  /** Whether the library itself has named it, by a name that is reserved. */
  readonly isOwn?: boolean | undefined
  /** Runs in the transaction of the swap, after it. When it fails, nothing is swapped. */
  readonly onSwap?: Effect.Effect<void, StoreError> | undefined
  readonly onProgress?:
    | ((progress: {
        readonly done: number
        readonly total: number
        readonly eventsPerSecond: number
        readonly secondsLeft: number
      }) => Effect.Effect<unknown>)
    | undefined
}

/** Does all of it, and answers how many events it projected. */
export const rebuild = <E, R>(
  plan: Plan<E, R>
): Effect.Effect<number, E | ValidationError | StoreError, EventFeed | SubscriptionStore | R> =>
  Effect.gen(function* () {
    yield* checkPlan(plan)
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const home = yield* homeOrFail(store)
    const filter = bothOf(filterOf(plan.projections), plan.subscription?.filter)
    let projected = 0

    const attempt = Effect.scoped(
      Effect.gen(function* () {
        if (yield* isFinished(home, plan.name)) return
        const lease = yield* Effect.raceFirst(
          Effect.asSome(
            store.lease({
              key: { name: leaseOf(plan.name), partition: 0, partitions: 1 },
              from: beginning,
              holder: `rebuild ${plan.name}`,
              duration: leaseDuration
            })
          ),
          // Somebody else may do it while this one waits.
          Effect.as(untilFinished(home, plan.name), Option.none<Lease>())
        )
        if (Option.isNone(lease) || (yield* isFinished(home, plan.name))) return
        const workplace = { plan, feed, filter, home, shadow: yield* shadowOf(home, plan.name) }
        yield* Effect.raceFirst(
          Effect.flatMap(lease.value.lost, () => lostLease(plan.name)),
          buildAndSwap(workplace, lease.value, (events) => {
            projected += events
          })
        )
      })
    )

    const abandoned = new StoreError({
      reason: "Misconfigured",
      operation,
      description: `rebuild ${JSON.stringify(plan.name)} was abandoned while it was under way`
    })
    const enduring = (pause: number): Effect.Effect<void, E | ValidationError | StoreError, R> => {
      const again = Effect.zipRight(
        Effect.sleep(pause),
        Effect.suspend(() => enduring(Math.min(pause * 2, lastPause)))
      )
      return Effect.catchAll(attempt, (error): Effect.Effect<void, E | ValidationError | StoreError, R> => {
        if (isPassing(error)) return again
        if (!(error instanceof LeaseLost)) return Effect.fail(error)
        return Effect.matchEffect(statusOf(home, plan.name), {
          onFailure: (failed) => (isPassing(failed) ? again : Effect.fail(failed)),
          onSuccess: (status) => (Option.isSome(status) ? again : Effect.fail(abandoned))
        })
      })
    }
    yield* enduring(firstPause)
    return projected
  })

export const rebuildStatus = (
  name: string
): Effect.Effect<
  Option.Option<{ readonly done: number; readonly total: number; readonly finished: boolean }>,
  StoreError,
  SubscriptionStore
> => Effect.flatMap(Effect.flatMap(SubscriptionStore, homeOrFail), (home) => statusOf(home, name))

export const abandonRebuild = (name: string): Effect.Effect<void, StoreError, SubscriptionStore> =>
  Effect.flatMap(Effect.flatMap(SubscriptionStore, homeOrFail), (home) => {
    const { schema, sql } = home
    return withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        // Whoever is at work finds its lease gone.
        yield* run(sql`delete from ${schema}.subscriptions where name = ${leaseOf(name)}`)
        yield* run(sql`delete from ${schema}.rebuilds where name = ${name}`)
        yield* dropShadows(sql, yield* shadowOf(home, name))
      })
    )
  })

// --- internal ---

const operation = "Rebuild"

// In milliseconds.
const leaseDuration = 5000
const firstPause = 100
const lastPause = 5000

interface RebuildRow {
  readonly done: string
  readonly total: string
  readonly finished: boolean
}

interface Workplace<E, R> {
  readonly plan: Plan<E, R>
  readonly feed: EventFeed["Type"]
  readonly filter: Filter
  readonly home: Home
  /** The schema of the doubles. */
  readonly shadow: string
}

/** Refuses names that can be none, and projections that came past the types without saying whose events they are about. */
const checkPlan = (plan: Plan<unknown, unknown>): Effect.Effect<void, ValidationError> => {
  const issues: Array<ValidationIssue> = []
  const refuse = (path: ReadonlyArray<string | number>, message: string) =>
    issues.push(new ValidationIssue({ index: 0, path, message }))
  const problem = plan.isOwn === true ? undefined : nameProblem(plan.name, maxNameLength)
  if (problem !== undefined) refuse(["name"], problem)
  for (const [index, { of }] of plan.projections.entries()) {
    if (of === undefined) refuse(["projections", index, "of"], "must be an aggregate, or all")
  }
  const [first, ...rest] = issues
  return first === undefined ? Effect.void : new ValidationError({ operation: "Rebuild.run", issues: [first, ...rest] })
}

const run = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

const homeOrFail = (store: SubscriptionStore["Type"]): Effect.Effect<Home, StoreError> => {
  const home = homeOf(store)
  return home === undefined
    ? Effect.fail(
        new StoreError({
          reason: "Misconfigured",
          operation,
          description: "a rebuild needs the store in SQL, for its tables"
        })
      )
    : Effect.succeed(home)
}

/** Of no subscription: its name would be reserved. */
export const leaseOf = (name: string): string => `${reservedPrefix}/rebuild/${name}`

const lostLease = (name: string) => new LeaseLost({ subscription: leaseOf(name), partition: 0 })

/** The schema of a rebuild's doubles: a hash, since a schema's name has at most 63 bytes, and a database may have several stores. */
const shadowOf = ({ name: store, sql }: Home, name: string): Effect.Effect<string, StoreError> =>
  Effect.map(
    run(
      sql<{
        shadow: string
      }>`select 'rebuild_' || left(encode(sha256(convert_to(${JSON.stringify([store, name])}, 'UTF8')), 'hex'), 32) as shadow`
    ),
    ([row]) => row?.shadow ?? ""
  )

const statusOf = ({ schema, sql }: Home, name: string) =>
  Effect.map(
    run(
      sql<RebuildRow>`select events_done::text as done, events_total::text as total, finished_at is not null as finished
        from ${schema}.rebuilds where name = ${name}`
    ),
    ([row]) =>
      Option.map(Option.fromNullable(row), ({ done, finished, total }) => ({
        done: Number(done),
        total: Number(total),
        finished
      }))
  )

const isFinished = ({ schema, sql }: Home, name: string) =>
  Effect.map(
    run(sql`select 1 from ${schema}.rebuilds where name = ${name} and finished_at is not null`),
    (rows) => rows.length > 0
  )

const untilFinished = (home: Home, name: string): Effect.Effect<void, StoreError> =>
  Effect.flatMap(isFinished(home, name), (finished) =>
    finished ? Effect.void : Effect.zipRight(Effect.sleep("250 millis"), untilFinished(home, name))
  ).pipe(onMachineTime)

const buildAndSwap = <E, R>(
  workplace: Workplace<E, R>,
  lease: Lease,
  count: (events: number) => void
): Effect.Effect<void, E | LeaseLost | ValidationError | StoreError, R> =>
  Effect.gen(function* () {
    const { feed, filter, home, plan, shadow } = workplace
    const { schema, sql } = home
    const limit = plan.batchSize ?? 1000
    const begun = yield* Clock.currentTimeMillis
    let position = lease.position
    let here = 0

    const tables = yield* withTransaction(
      sql,
      operation,
      Effect.zipRight(lease.checkpoint, makeShadows(sql, shadow, plan.tables, plan.create))
    )
    const left = yield* feed.count({ after: position, filter })
    const [row] = yield* run(
      sql<{ done: string }>`insert into ${schema}.rebuilds as r (name, events_total) values (${plan.name}, ${left})
        on conflict (name) do update set events_total = r.events_done + ${left} returning events_done::text as done`
    )
    const before = Number(row?.done ?? 0)
    let total = before + left

    const tell = Effect.gen(function* () {
      const seconds = ((yield* Clock.currentTimeMillis) - begun) / 1000
      const eventsPerSecond = seconds > 0 ? here / seconds : 0
      const done = before + here
      total = Math.max(total, done)
      if (plan.onProgress !== undefined) {
        yield* plan.onProgress({
          done,
          total,
          eventsPerSecond: Math.round(eventsPerSecond),
          secondsLeft: eventsPerSecond > 0 ? Math.ceil((total - done) / eventsPerSecond) : 0
        })
      }
    })

    for (;;) {
      const page = yield* feed.read({ after: position, limit, filter })
      if (page.events.length > 0 || page.position !== position) {
        yield* lease.advance(page.position, projectAll(workplace, page.events))
        position = page.position
        here += page.events.length
        count(page.events.length)
        yield* tell
      }
      const last = page.events.at(-1)
      const near = last !== undefined && (yield* Clock.currentTimeMillis) - toMillis(last.timestamp) < nearEnough
      if (page.more && !near) continue
      const swapped = yield* Effect.exit(swapInOneTransaction(workplace, lease, tables, position))
      if (Exit.isSuccess(swapped)) {
        here += swapped.value
        count(swapped.value)
        yield* tell
        return
      }
      // Who uses the tables goes first; what has been committed meanwhile is projected before the next attempt.
      const error = Cause.failureOption(swapped.cause)
      if (Option.isNone(error) || !isTimeout(error.value)) return yield* Effect.failCause(swapped.cause)
      yield* Effect.sleep("200 millis")
    }
  })

const isTimeout = (error: unknown): boolean =>
  error instanceof StoreError && (error.code === "55P03" || error.code === "40P01")

/** Projects events into the doubles, in the transaction around. */
const projectAll = <E, R>(
  { home, plan, shadow }: Workplace<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.gen(function* () {
    const { schema, sql } = home
    const projecting = Effect.forEach(events, projectBy(plan.projections), { discard: true })
    yield* writingDoubles(sql, shadow, home.name, projecting)
    yield* run(
      sql`update ${schema}.rebuilds set events_done = events_done + ${events.length} where name = ${plan.name}`
    )
  })

/** The end of it; answers how many events it still projected. */
const swapInOneTransaction = <E, R>(
  workplace: Workplace<E, R>,
  lease: Lease,
  tables: ReadonlyArray<Shadowed>,
  position: Position
): Effect.Effect<number, E | LeaseLost | StoreError, R> => {
  const { filter, home, plan, shadow } = workplace
  const { schema, sql } = home

  /** All that can be seen, of transactions too that are younger than an open one. */
  const projectRest = (after: Position, count: number): Effect.Effect<number, E | StoreError, R> =>
    Effect.flatMap(
      run(
        sql<FeedRow>`select ${feedColumns(sql)} from ${schema}.event_log
          where ${behind(sql, after)} and ${matches(sql, filter)}
          order by event_log.feed_key, event_log.position limit ${restLimit}`
      ),
      (rows) => {
        const events = feedEventsOf(rows)
        const last = events.at(-1)
        return last === undefined
          ? Effect.succeed(count)
          : Effect.zipRight(projectAll(workplace, events), projectRest(last.position, count + events.length))
      }
    )

  /** The subscription goes on here, with whoever has its lease next. */
  const moveSubscription = (name: string, partitions: number) =>
    Effect.gen(function* () {
      const [feedKey, place] = partsOf(position)
      yield* run(
        sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position)
          select ${name}, partition, ${partitions}::int, ${feedKey}::xid8, ${place}::bigint
          from generate_series(0, ${partitions}::int - 1) partition
          on conflict (name, partition) do update set
            feed_key = excluded.feed_key, position = excluded.position,
            token = subscriptions.token + 1, holder = null, leased_until = null, stopped = false, last_failure = null,
            attempted = null`
      )
      yield* run(sql`delete from ${schema}.events_set_aside where subscription = ${name}`)
    })

  return withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      // A process that is stopped in the middle must not lock everybody out for ever.
      yield* run(sql`select ${limitIdle(home, leaseDuration)}`)
      // The tables first, as those do who write them.
      yield* lockLive(sql, tables)
      yield* run(sql`select 1 from ${schema}.subscriptions where name = ${leaseOf(plan.name)} for update`)
      yield* lease.checkpoint
      const rest = plan.subscription === undefined ? yield* projectRest(position, 0) : 0
      if (plan.subscription !== undefined) {
        yield* moveSubscription(plan.subscription.name, plan.subscription.partitions)
      }
      yield* swap(sql, shadow, tables, plan.create === undefined)
      if (plan.onSwap !== undefined) yield* plan.onSwap
      yield* run(
        sql`update ${schema}.rebuilds set finished_at = clock_timestamp(), events_total = events_done where name = ${plan.name}`
      )
      yield* run(sql`delete from ${schema}.subscriptions where name = ${leaseOf(plan.name)}`)
      return rest
    })
  )
}

const restLimit = 1000

/**
 * When the events that are projected are this young, in milliseconds, the end can come: where much is written all the time there is
 * always more to read.
 */
const nearEnough = 1000
