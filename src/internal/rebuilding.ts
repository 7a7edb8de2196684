/**
 * A rebuild: it makes shadow tables, projects all events into them, and swaps them with the live tables. `Rebuild.run` calls it.
 *
 * **Nothing is skipped or projected twice at the swap.** A commit with a strong projection writes the table in the transaction that
 * stores its events. Once the live tables are locked, a transaction that has written them has ended, so its events can be seen. One that
 * has yet to write them waits for the lock; its events can't be seen, and its statement finds the new table when it goes on. So the events
 * that can be seen under the lock are exactly those that the new tables must hold, whatever other transactions are open. A statement that
 * goes on so sees the rows of the new table only with a new snapshot. A transaction that keeps an older one (REPEATABLE READ) fails by
 * `check_snapshot` before it projects.
 *
 * **A subscription** is moved to the position of the rebuild in the same transaction. If a consumer holds its lease, the consumer finds the
 * lease lost, and goes on from the new checkpoint.
 *
 * **Of several processes one works**, by a lease like those of subscriptions; each batch moves the lease's checkpoint in its own
 * transaction. What was done stays done whatever fails.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
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
import { dropShadows, isInUse, lockLive, makeShadows, type Shadowed, swap, writingShadows } from "./shadowTables.js"
import { executeAlone } from "./sqlConnection.js"
import { fromSqlError } from "./sqlError.js"
import { feedEventsOf, partsOf, selectFitting } from "./sqlFeed.js"
import type { Home } from "./sqlLease.js"
import { homeOf } from "./sqlSubscriptions.js"
import { withTransaction } from "./sqlTransaction.js"
import { insideTransaction, whetherInside } from "./storeTransaction.js"
import { describeHeldBack } from "./subscriptionStatus.js"

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
  /** Runs before a rebuild begins or goes on. It fails, or says what stands for these two. */
  readonly check?:
    | ((home: Home) => Effect.Effect<
        {
          readonly create: Effect.Effect<unknown, E | StoreError, R> | undefined
          readonly onSwap: Effect.Effect<void, StoreError>
        },
        StoreError
      >)
    | undefined
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

/** Runs the rebuild, and returns how many events it has projected. */
export const rebuild = <E, R>(
  plan: Plan<E, R>
): Effect.Effect<number, E | ValidationError | StoreError, EventFeed | SubscriptionStore | R> =>
  Effect.gen(function* () {
    yield* checkPlan(plan)
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const home = yield* homeOrFail(store)
    if (yield* insideTransaction) return yield* insideAnother
    const filter = bothOf(filterOf(plan.projections), plan.subscription?.filter)
    let projected = 0
    let wasBegun = false
    /** Whether another run has finished the rebuild. A rebuild that was begun and is not there any more was abandoned. */
    const isOver = Effect.flatMap(statusOf(home, plan.name), (status) => {
      if (wasBegun && Option.isNone(status) && plan.isOwn !== true) return Effect.fail(abandoned(plan.name))
      wasBegun = Option.isSome(status)
      return Effect.succeed(Option.exists(status, ({ finished }) => finished))
    })

    const attempt = Effect.scoped(
      Effect.gen(function* () {
        if (yield* isOver) return
        yield* checkPartitions(home, plan)
        const checked: Plan<E | StoreError, R> =
          plan.check === undefined ? plan : { ...plan, ...(yield* plan.check(home)) }
        const lease = yield* Effect.raceFirst(
          Effect.asSome(
            store.lease({
              key: { name: leaseOf(plan.name), partition: 0, partitions: 1 },
              from: beginning,
              holder: `rebuild ${plan.name}`,
              duration: leaseDuration
            })
          ),
          // Another process may end it while this one waits.
          Effect.as(untilTrue(isOver), Option.none<Lease>())
        )
        if (Option.isNone(lease) || (yield* isOver)) return
        const work = { plan: checked, feed, filter, home, shadow: yield* shadowOf(home, plan.name) }
        yield* Effect.raceFirst(
          Effect.flatMap(lease.value.lost, () => lostLease(plan.name)),
          buildAndSwap(work, lease.value, (events) => {
            projected += events
          })
        ).pipe(
          Effect.tapErrorCause((cause) =>
            isSpoilt(plan, cause)
              ? discard(home, plan.name, lease.value).pipe(Effect.provideService(SubscriptionStore, store))
              : Effect.void
          )
        )
      })
    ).pipe(
      Effect.exit,
      Effect.tap((exit) => (mayLeaveLease(exit) ? Effect.ignore(deleteLease(home, plan.name)) : Effect.void)),
      Effect.flatten
    )

    const attemptFrom = (pause: number): Effect.Effect<void, E | ValidationError | StoreError, R> => {
      const again = Effect.zipRight(
        Effect.sleep(pause),
        Effect.suspend(() => attemptFrom(Math.min(pause * 2, lastPause)))
      )
      return Effect.catchAll(attempt, (error): Effect.Effect<void, E | ValidationError | StoreError, R> => {
        if (isPassing(error) || isInUse(error)) return again
        if (!(error instanceof LeaseLost)) return Effect.fail(error)
        return Effect.matchEffect(statusOf(home, plan.name), {
          onFailure: (failed) => (isPassing(failed) ? again : Effect.fail(failed)),
          onSuccess: (status) => (Option.isSome(status) ? again : Effect.fail(abandoned(plan.name)))
        })
      })
    }
    yield* attemptFrom(firstPause)
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
        // A process that is at work finds its lease lost.
        yield* run(home, sql`delete from ${schema}.subscriptions where name = ${leaseOf(name)}`)
        yield* run(home, sql`delete from ${schema}.rebuilds where name = ${name}`)
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

/** What a rebuild works with. */
interface Work<E, R> {
  readonly plan: Plan<E, R>
  readonly feed: EventFeed["Type"]
  readonly filter: Filter
  readonly home: Home
  /** The schema of the shadow tables. */
  readonly shadow: string
}

/** Refuses names that can be none, and projections that came past the types without saying whose events they are about. */
const checkPlan = (plan: Plan<unknown, unknown>): Effect.Effect<void, ValidationError> => {
  const issues: Array<ValidationIssue> = []
  const refuse = (path: ReadonlyArray<string | number>, message: string) =>
    issues.push(new ValidationIssue({ path, message }))
  const problem = plan.isOwn === true ? undefined : nameProblem(plan.name, maxNameLength)
  if (problem !== undefined) refuse(["name"], problem)
  for (const [index, { of }] of plan.projections.entries()) {
    if (of === undefined) refuse(["projections", index, "of"], "must be an aggregate, or all")
  }
  const { batchSize } = plan
  if (batchSize !== undefined && !(Number.isInteger(batchSize) && batchSize >= 1 && batchSize <= 10_000)) {
    refuse(["batchSize"], "must be an integer from 1 to 10000")
  }
  const [first, ...rest] = issues
  return first === undefined ? Effect.void : new ValidationError({ operation: "Rebuild.run", issues: [first, ...rest] })
}

/** Fails where the subscription is cut into another number of partitions in the store: what is in which would change. */
const checkPartitions = (home: Home, { subscription }: Plan<unknown, unknown>): Effect.Effect<void, StoreError> =>
  subscription === undefined
    ? Effect.void
    : Effect.flatMap(
        run(
          home,
          home.sql<{ partitions: number }>`select distinct partitions from ${home.schema}.subscriptions
            where name = ${subscription.name} and partitions <> ${subscription.partitions}`
        ),
        ([other]) =>
          other === undefined
            ? Effect.void
            : new StoreError({
                reason: "Misconfigured",
                operation,
                description: `subscription ${JSON.stringify(subscription.name)} has ${other.partitions} partitions in the store, and ${subscription.partitions} here: what is in which would change`
              })
      )

/** Runs a statement in the transaction around it, or on a connection of its own, whose interruption is bounded. */
const run = <A>({ sql }: Home, statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  whetherInside((inside) =>
    inside
      ? Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))
      : executeAlone(sql, operation, "writing", statement)
  )

const insideAnother = new StoreError({
  reason: "Misconfigured",
  operation,
  description: "a rebuild has many transactions of its own, so it can't run inside of another one"
})

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

/** The schema of the shadow tables: a hash, since a schema's name has at most 63 bytes, and a database may have several stores. */
const shadowOf = (home: Home, name: string): Effect.Effect<string, StoreError> =>
  Effect.map(
    run(
      home,
      home.sql<{
        shadow: string
      }>`select 'rebuild_' || left(encode(sha256(convert_to(${JSON.stringify([home.name, name])}, 'UTF8')), 'hex'), 32) as shadow`
    ),
    ([row]) => row?.shadow ?? ""
  )

const statusOf = (home: Home, name: string) =>
  Effect.map(
    run(
      home,
      home.sql<RebuildRow>`select events_done::text as done, events_total::text as total, finished_at is not null as finished
        from ${home.schema}.rebuilds where name = ${name}`
    ),
    ([row]) =>
      Option.map(Option.fromNullable(row), ({ done, finished, total }) => ({
        done: Number(done),
        total: Number(total),
        finished
      }))
  )

const untilTrue = (condition: Effect.Effect<boolean, StoreError>): Effect.Effect<void, StoreError> =>
  Effect.flatMap(condition, (isTrue) =>
    isTrue ? Effect.void : Effect.zipRight(Effect.sleep("250 millis"), untilTrue(condition))
  ).pipe(onMachineTime)

const abandoned = (name: string) =>
  new StoreError({
    reason: "Misconfigured",
    operation,
    description: `rebuild ${JSON.stringify(name)} was abandoned while it was under way`
  })

/**
 * Whether what was built does not count. The projections of a version of tables may be mended under the same name, so whatever ends them but an
 * interruption, a lost lease, or a failure that is tried again does so.
 */
const isSpoilt = ({ isOwn }: Pick<Plan<unknown, unknown>, "isOwn">, cause: Cause.Cause<unknown>): boolean =>
  isOwn === true &&
  !Cause.isInterruptedOnly(cause) &&
  !Option.exists(Cause.failureOption(cause), (error) => isPassing(error) || error instanceof LeaseLost)

/** Abandons the rebuild while its lease is still held, so that no other run goes on from what it has built. */
const discard = (home: Home, name: string, lease: Lease): Effect.Effect<void, never, SubscriptionStore> =>
  withTransaction(
    home.sql,
    operation,
    Effect.gen(function* () {
      yield* run(home, home.sql`select 1 from ${home.schema}.subscriptions where name = ${leaseOf(name)} for update`)
      yield* lease.checkpoint
      yield* abandonRebuild(name)
    })
  ).pipe(Effect.retry({ times: 10, while: isPassing }), Effect.ignore)

/** Whether the run has found the rebuild done or abandoned, so that a wait for its lease may have made the row of the lease anew. */
const mayLeaveLease = (exit: Exit.Exit<void, unknown>): boolean =>
  Exit.isSuccess(exit) || Option.exists(Cause.failureOption(exit.cause), (error) => !isPassing(error))

/** Deletes the row of the lease where no run holds it, and the rebuild is done or was abandoned. */
const deleteLease = (home: Home, name: string) =>
  run(
    home,
    home.sql`delete from ${home.schema}.subscriptions
      where name = ${leaseOf(name)} and coalesce(leased_until < clock_timestamp(), true)
        and not exists (select 1 from ${home.schema}.rebuilds r where r.name = ${name} and r.finished_at is null)`
  )

const buildAndSwap = <E, R>(
  work: Work<E, R>,
  lease: Lease,
  count: (events: number) => void
): Effect.Effect<void, E | LeaseLost | ValidationError | StoreError, R> =>
  Effect.gen(function* () {
    const { feed, filter, home, plan, shadow } = work
    const { schema, sql } = home
    const limit = plan.batchSize ?? 1000
    const begun = yield* Clock.currentTimeMillis
    let position = lease.position
    let here = 0
    let millisProjecting = 0
    let nextWarning = 0
    /** As many events as are projected in the time, by the rate of this run. */
    const projectedIn = (millis: number) =>
      Math.max(alwaysFew, millisProjecting === 0 ? 0 : (here / millisProjecting) * millis)

    const tables = yield* withTransaction(
      sql,
      operation,
      Effect.zipRight(lease.checkpoint, makeShadows(sql, shadow, plan.tables, plan.create))
    )
    const left = yield* feed.count({ after: position, filter })
    const [row] = yield* run(
      home,
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
        const asked = yield* Clock.currentTimeMillis
        yield* lease.advance(page.position, projectAll(work, page.events))
        millisProjecting += (yield* Clock.currentTimeMillis) - asked
        position = page.position
        here += page.events.length
        count(page.events.length)
        yield* tell
      }
      const last = page.events.at(-1)
      const near = last !== undefined && (yield* Clock.currentTimeMillis) - toMillis(last.timestamp) < youngEnough
      if (page.more && !near) continue
      // The swap projects what the feed holds back while all users of the tables wait.
      const held = plan.subscription === undefined ? yield* feed.heldBack(filter) : Option.none()
      if (Option.isSome(held) && held.value.events > projectedIn(mostMillisHeld)) {
        const now = yield* Clock.currentTimeMillis
        if (now >= nextWarning) {
          yield* Effect.logWarning(
            `rebuild ${plan.name} waits before it swaps the tables: ${describeHeldBack(held.value, now)}`
          )
          nextWarning = now + warnEvery
        }
        yield* onMachineTime(Effect.sleep("250 millis"))
        continue
      }
      const most = projectedIn(mostMillisLocked)
      const swapped = yield* Effect.exit(swapInOneTransaction(work, lease, tables, position, most))
      if (Exit.isSuccess(swapped) && swapped.value !== undefined) {
        here += swapped.value
        count(swapped.value)
        yield* tell
        return
      }
      // Others use the tables. What they commit meanwhile is projected before the next attempt.
      if (Exit.isFailure(swapped)) {
        const error = Cause.failureOption(swapped.cause)
        if (Option.isNone(error) || !isInUse(error.value)) return yield* Effect.failCause(swapped.cause)
      }
      yield* Effect.sleep("200 millis")
    }
  })

/** Projects events into the shadow tables, in the transaction around it. */
const projectAll = <E, R>(
  { home, plan, shadow }: Work<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.gen(function* () {
    const { schema, sql } = home
    const projecting = Effect.forEach(events, projectBy(plan.projections, { endsRun: true }), { discard: true })
    yield* writingShadows(sql, shadow, home.name, projecting)
    yield* run(
      home,
      sql`update ${schema}.rebuilds set events_done = events_done + ${events.length} where name = ${plan.name}`
    )
  })

/** Projects the events that are left, swaps the tables, and returns how many events that were; none where more than `most` are left. */
const swapInOneTransaction = <E, R>(
  work: Work<E, R>,
  lease: Lease,
  tables: ReadonlyArray<Shadowed>,
  position: Position,
  most: number
): Effect.Effect<number | undefined, E | LeaseLost | StoreError, R> => {
  const { filter, home, plan, shadow } = work
  const { schema, sql } = home

  /** Projects all events that can be seen. The feed does not show some of them yet, because an older transaction is open. */
  const projectRest = (after: Position, count: number): Effect.Effect<number, E | StoreError | TooManyLeft, R> =>
    Effect.flatMap(run(home, selectFitting(home, { after, filter, limit: restPage })), (rows) => {
      const events = feedEventsOf(rows)
      const last = events.at(-1)
      if (count + events.length > most) return new TooManyLeft()
      return last === undefined
        ? Effect.succeed(count)
        : Effect.zipRight(projectAll(work, events), projectRest(last.position, count + events.length))
    })

  /** Moves the subscription to the position of the rebuild, and ends the leases on it. */
  const moveSubscription = (name: string, partitions: number) =>
    Effect.gen(function* () {
      const [feedKey, place] = partsOf(position)
      yield* run(
        home,
        sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position)
          select ${name}, partition, ${partitions}::int, ${feedKey}::xid8, ${place}::bigint
          from generate_series(0, ${partitions}::int - 1) partition
          on conflict (name, partition) do update set
            feed_key = excluded.feed_key, position = excluded.position,
            token = subscriptions.token + 1, holder = null, leased_until = null, stopped = false, last_failure = null,
            attempted = null`
      )
      yield* run(home, sql`delete from ${schema}.events_set_aside where subscription = ${name}`)
    })

  return withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      // A process that is stopped in the middle must not hold the locks for ever.
      yield* run(home, sql`select ${limitIdle(home, leaseDuration)}`)
      // The tables first, as consumers and commits lock them.
      yield* lockLive(sql, schema, tables, plan.create === undefined)
      yield* run(home, sql`select 1 from ${schema}.subscriptions where name = ${leaseOf(plan.name)} for update`)
      yield* lease.checkpoint
      const rest = plan.subscription === undefined ? yield* projectRest(position, 0) : 0
      if (plan.subscription !== undefined) {
        yield* checkPartitions(home, plan)
        yield* moveSubscription(plan.subscription.name, plan.subscription.partitions)
      }
      yield* swap(sql, shadow, tables, plan.create === undefined)
      if (plan.onSwap !== undefined) yield* plan.onSwap
      yield* run(
        home,
        sql`update ${schema}.rebuilds set finished_at = clock_timestamp(), events_total = events_done where name = ${plan.name}`
      )
      yield* run(home, sql`delete from ${schema}.subscriptions where name = ${leaseOf(plan.name)}`)
      return rest
    })
  ).pipe(Effect.catchAll((error) => (error instanceof TooManyLeft ? Effect.succeed(notSwapped) : Effect.fail(error))))
}

/** What a swap returns that has released its lock again. */
const notSwapped: number | undefined = undefined

const restPage = 1000

/** More events are left at the swap than may be projected while the tables are locked. */
class TooManyLeft extends Data.TaggedError("TooManyLeft") {}

/** As many events are projected at the swap in any case. */
const alwaysFew = 500

// In milliseconds: how much work the feed may hold back before the tables are locked, and how much may be found under the lock.
const mostMillisHeld = 500
const mostMillisLocked = 2000
const warnEvery = 30_000

/**
 * The swap begins when the events are younger than this, in milliseconds. Under a steady load there are always more events to read, so
 * it does not wait for the last one.
 */
const youngEnough = 1000
