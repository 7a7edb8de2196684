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
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { beginning, EventFeed } from "../../EventFeed.js"
import { StoreError, type ValidationError } from "../../StoreError.js"
import { type Lease, LeaseLost, SubscriptionStore } from "../../SubscriptionStore.js"
import { toMillis } from "../../Timestamp.js"
import { insideTransaction } from "../runtime/ambientTransaction.js"
import { withLiveClock } from "../runtime/clock.js"
import { isTransient } from "../runtime/retry.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { type StoreTables, Tables } from "../sql/storeTables.js"
import { bothOf } from "../store/readOptions.js"
import { filterOf } from "../store/runProjections.js"
import { describeHeldBack } from "../subscription/status.js"
import { checkPartitions, checkPlan, leaseOf, operation, type Plan, run, shadowOf, type Work } from "./plan.js"
import { dropShadows, isInUse, makeShadows } from "./shadowTables.js"
import { projectAll, swapInOneTransaction } from "./swap.js"

/** Runs the rebuild, and returns how many events it has projected. */
export const rebuild = <E, R>(
  plan: Plan<E, R>
): Effect.Effect<number, E | ValidationError | StoreError, EventFeed | SubscriptionStore | Tables | R> =>
  Effect.gen(function* () {
    yield* checkPlan(plan)
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const home = yield* Tables
    if (yield* insideTransaction) return yield* insideAnother
    const filter = bothOf(filterOf(plan.projections), plan.subscription?.filter)
    let projected = 0
    let wasBegun = false
    /** Whether another run has finished the rebuild. A rebuild that was begun and is not there any more was abandoned. */
    const isSettled = Effect.flatMap(statusOf(home, plan.name), (status) => {
      if (wasBegun && Option.isNone(status) && plan.isOwn !== true) return Effect.fail(abandoned(plan.name))
      wasBegun = Option.isSome(status)
      return Effect.succeed(Option.exists(status, ({ finished }) => finished))
    })

    const attempt = Effect.scoped(
      Effect.gen(function* () {
        if (yield* isSettled) return
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
          Effect.as(untilTrue(isSettled), Option.none<Lease>())
        )
        if (Option.isNone(lease) || (yield* isSettled)) return
        const work = { plan: checked, feed, filter, home, shadow: yield* shadowOf(home, plan.name) }
        yield* Effect.raceFirst(
          Effect.flatMap(lease.value.lost, () => lostLease(plan.name)),
          buildAndSwap(work, lease.value, (events) => {
            projected += events
          })
        ).pipe(
          Effect.tapErrorCause((cause) => (isSpoilt(plan, cause) ? discard(home, plan.name, lease.value) : Effect.void))
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
        if (isTransient(error) || isInUse(error)) return again
        if (!(error instanceof LeaseLost)) return Effect.fail(error)
        return Effect.matchEffect(statusOf(home, plan.name), {
          onFailure: (failed) => (isTransient(failed) ? again : Effect.fail(failed)),
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
  Tables
> => Effect.flatMap(Tables, (home) => statusOf(home, name))

export const abandonRebuild = (name: string): Effect.Effect<void, StoreError, Tables> =>
  Effect.flatMap(Tables, (home) => {
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

// In milliseconds.
const leaseDuration = 5000
const firstPause = 100
const lastPause = 5000

interface RebuildRow {
  readonly done: string
  readonly total: string
  readonly finished: boolean
}

const insideAnother = new StoreError({
  reason: "Misconfigured",
  operation,
  description: "a rebuild has many transactions of its own, so it can't run inside of another one"
})

const lostLease = (name: string) => new LeaseLost({ subscription: leaseOf(name), partition: 0 })

const statusOf = (home: StoreTables, name: string) =>
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
  ).pipe(withLiveClock)

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
  !Option.exists(
    Cause.failureOption(cause),
    (error) => isTransient(error) || isInUse(error) || error instanceof LeaseLost
  )

/** Abandons the rebuild while its lease is still held, so that no other run goes on from what it has built. */
const discard = (home: StoreTables, name: string, lease: Lease): Effect.Effect<void> =>
  withTransaction(
    home.sql,
    operation,
    Effect.gen(function* () {
      yield* run(home, home.sql`select 1 from ${home.schema}.subscriptions where name = ${leaseOf(name)} for update`)
      yield* lease.checkpoint
      yield* Effect.provideService(abandonRebuild(name), Tables, home)
    })
  ).pipe(Effect.retry({ times: 10, while: isTransient }), Effect.ignore)

/** Whether the run has found the rebuild done or abandoned, so that a wait for its lease may have made the row of the lease anew. */
const mayLeaveLease = (exit: Exit.Exit<void, unknown>): boolean =>
  Exit.isSuccess(exit) || Option.exists(Cause.failureOption(exit.cause), (error) => !isTransient(error))

/** Deletes the row of the lease where no run holds it, and the rebuild is done or was abandoned. */
const deleteLease = (home: StoreTables, name: string) =>
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
        yield* withLiveClock(Effect.sleep("250 millis"))
        continue
      }
      const most = projectedIn(mostMillisLocked)
      const swapped = yield* Effect.exit(swapInOneTransaction(work, lease, tables, position, most))
      if (Exit.isSuccess(swapped) && Option.isSome(swapped.value)) {
        here += swapped.value.value
        count(swapped.value.value)
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
