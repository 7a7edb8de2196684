/**
 * Runs a rebuild: it makes shadow tables, projects all events into them, and swaps them with the live tables.
 * `Rebuild.run` and `rebuildVersion.ts` call it.
 *
 * **Of several processes one works**, under a lease like those of subscriptions. Each batch moves the checkpoint of the
 * lease in its own transaction (`fillAndSwap.ts`), so a failure loses one batch at most. The other processes wait for
 * the lease, and find the rebuild finished.
 *
 * **A run has several attempts.** A transient failure, a lost lease or a lock conflict starts the next attempt after a
 * pause. Any other failure ends the run. The rebuild itself stays, and the next run continues it, unless it makes a
 * version of tables (`mustDiscard`).
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { beginning, EventFeed } from "../../EventFeed.js"
import { StoreError, type ValidationError } from "../../StoreError.js"
import { type Lease, LeaseLost, SubscriptionStore } from "../../SubscriptionStore.js"
import { insideTransaction } from "../runtime/ambientTransaction.js"
import { withLiveClock } from "../runtime/clock.js"
import { scoped } from "../runtime/interruption.js"
import { isTransient } from "../runtime/retry.js"
import { isTransientSqlError } from "../runtime/sqlError.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { type StoreTables, Tables } from "../sql/storeTables.js"
import { bothOf } from "../store/readOptions.js"
import { filterOf } from "../store/runProjections.js"
import { fillAndSwap } from "./fillAndSwap.js"
import {
  checkOptions,
  leaseOf,
  operation,
  type RebuildContext,
  type RebuildOptions,
  run,
  shadowSchemaOf
} from "./rebuildOptions.js"
import { type KnownRecord, leaseLostOf, lockLease, lockRecord, makeKnownRecord } from "./rebuildRecord.js"
import { isLockConflict } from "./replaceTables.js"
import { dropShadowTables } from "./shadowTables.js"

/** Runs the rebuild, and returns how many events this run has projected. */
export const rebuild = <E, R>(
  options: RebuildOptions<E, R>
): Effect.Effect<number, E | ValidationError | StoreError, EventFeed | SubscriptionStore | Tables | R> =>
  Effect.gen(function* () {
    yield* checkOptions(options)
    const feed = yield* EventFeed
    const subscriptions = yield* SubscriptionStore
    const store = yield* Tables
    if (yield* insideTransaction) return yield* insideAnother
    let projected = 0
    const oneRun: Run<E, R> = {
      options,
      feed,
      subscriptions,
      store,
      filter: bothOf(filterOf(options.projections), options.subscription?.filter),
      known: makeKnownRecord(store, options),
      count: (events) => {
        projected += events
      }
    }
    yield* attemptAfterFailures(oneRun, firstPause)
    return projected
  })

/**
 * Deletes the record, the lease and the shadow tables of a rebuild, after the batch or the swap that is under way. A
 * process that works for it finds its lease lost.
 *
 * A transaction of an application that reads the shadow tables may still deadlock with this one, so it is retried.
 */
export const abandonRebuild = (name: string): Effect.Effect<void, StoreError, Tables> =>
  Effect.flatMap(Tables, (store) => {
    const { schema, sql } = store
    return withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        // First, because it waits for a process that works, which locks the record, too (`rebuildRecord.ts`).
        yield* run(store, sql`delete from ${schema}.rebuilds where name = ${name}`)
        yield* run(store, sql`delete from ${schema}.subscriptions where name = ${leaseOf(name)}`)
        yield* dropShadowTables(sql, yield* shadowSchemaOf(store, name))
      })
    ).pipe(Effect.retry({ times: 10, while: (error) => isTransient(error) || isLockConflict(error) }))
  })

// --- internal ---

// In milliseconds.
const leaseDuration = 5000
const firstPause = 100
const lastPause = 5000

/** What all attempts of one run share. */
interface Run<E, R> extends Omit<RebuildContext<E, R>, "shadowSchema"> {
  readonly subscriptions: SubscriptionStore["Type"]
  readonly known: KnownRecord
  /** Adds projected events to the result of the run. */
  readonly count: (events: number) => void
}

const insideAnother = new StoreError({
  reason: "Misconfigured",
  operation,
  description: "a rebuild has many transactions of its own, so it can't run inside of another one"
})

/** Whether another attempt may succeed. An effect of a projection may fail with a `SqlError`. */
const isRetried = (error: unknown): boolean =>
  isTransient(error) || isLockConflict(error) || (error instanceof SqlError && isTransientSqlError(error))

/**
 * Makes attempts until one succeeds, or fails for a reason that another attempt would not change.
 *
 * After a lost lease the record says whether the rebuild was abandoned (`KnownRecord`). If so, the next attempt fails. Otherwise it goes on.
 */
const attemptAfterFailures = <E, R>(
  oneRun: Run<E, R>,
  pause: number
): Effect.Effect<void, E | ValidationError | StoreError, R> =>
  Effect.catchAll(attempt(oneRun), (error): Effect.Effect<void, E | ValidationError | StoreError, R> => {
    if (!(error instanceof LeaseLost) && !isRetried(error)) return Effect.fail(error)
    return Effect.zipRight(
      Effect.sleep(pause),
      Effect.suspend(() => attemptAfterFailures(oneRun, Math.min(pause * 2, lastPause)))
    )
  })

/** Takes the lease and works until the swap, or returns when another process has finished the rebuild. */
const attempt = <E, R>(oneRun: Run<E, R>): Effect.Effect<void, E | LeaseLost | ValidationError | StoreError, R> => {
  const { count, known, options, store } = oneRun
  return Effect.gen(function* () {
    if (yield* known.isFinished) return
    const checked: RebuildOptions<E | StoreError, R> =
      options.check === undefined ? options : { ...options, ...(yield* options.check(store)) }
    yield* known.begin
    const lease = yield* awaitLease(oneRun)
    if (Option.isNone(lease)) return
    // The process that had the lease before may have discarded a version.
    yield* known.begin
    if (yield* known.isFinished) return
    const context = { ...oneRun, options: checked, shadowSchema: yield* shadowSchemaOf(store, options.name) }
    yield* Effect.raceFirst(
      Effect.flatMap(lease.value.lost, () => leaseLostOf(options.name)),
      fillAndSwap(context, lease.value, count)
    ).pipe(
      Effect.catchAll((error) => failWhileHeld(lease.value, error)),
      Effect.tapErrorCause((cause) =>
        mustDiscard(options, cause) ? discard(store, options.name, lease.value) : Effect.void
      )
    )
  }).pipe(
    scoped,
    Effect.exit,
    Effect.tap((exit) => (mayLeaveLeaseRow(exit) ? Effect.ignore(deleteLeaseRow(store, options.name)) : Effect.void)),
    Effect.flatten
  )
}

/**
 * Fails with `LeaseLost` where the lease was lost before the failure, and as the attempt did otherwise.
 *
 * A batch checks the lease before it locks the record. Where the process is stopped between the two, the next holder of the lease projects the
 * same events. The batch may fail because of them, and that is no mistake of its projections.
 */
const failWhileHeld = <E>(lease: Lease, error: E): Effect.Effect<never, E | LeaseLost> =>
  error instanceof LeaseLost || isRetried(error)
    ? Effect.fail(error)
    : Effect.zipRight(
        // Where the lease can't be read, nothing is known of it.
        Effect.catchAll(lease.checkpoint, (failure) =>
          failure instanceof LeaseLost ? Effect.fail(failure) : Effect.void
        ),
        Effect.fail(error)
      )

/** Waits for the lease. Returns none where another process finishes the rebuild meanwhile. */
const awaitLease = <E, R>({ known, options, subscriptions }: Run<E, R>) =>
  Effect.raceFirst(
    Effect.asSome(
      Effect.catchTag(
        subscriptions.lease({
          key: { name: leaseOf(options.name), partition: 0, partitions: 1 },
          from: beginning,
          // Unique, because the row of an abandoned rebuild is made anew, and its fencing token begins again.
          holder: `rebuild ${options.name} ${crypto.randomUUID()}`,
          duration: leaseDuration
        }),
        // No subscription has the name, so the number is always 1.
        "PartitionsChanged",
        Effect.die
      )
    ),
    Effect.as(awaitTrue(known.isFinished), Option.none<Lease>())
  )

const awaitTrue = (condition: Effect.Effect<boolean, StoreError>): Effect.Effect<void, StoreError> =>
  Effect.flatMap(condition, (isTrue) =>
    isTrue ? Effect.void : Effect.zipRight(Effect.sleep("250 millis"), awaitTrue(condition))
  ).pipe(withLiveClock)

/**
 * Whether a failure makes the filled shadow tables useless. That is so for the rebuild of a version, because the
 * projection may be corrected under the same version. An interruption, a lost lease and a failure that is retried leave
 * the shadow tables.
 */
const mustDiscard = (
  { isOfVersion }: Pick<RebuildOptions<unknown, unknown>, "isOfVersion">,
  cause: Cause.Cause<unknown>
): boolean =>
  isOfVersion === true &&
  !Cause.isInterruptedOnly(cause) &&
  !Option.exists(Cause.failureOption(cause), (error) => isRetried(error) || error instanceof LeaseLost)

/** Abandons the rebuild while its lease is still held, so that no other process continues it. */
const discard = (store: StoreTables, name: string, lease: Lease): Effect.Effect<void> =>
  withTransaction(
    store.sql,
    operation,
    Effect.gen(function* () {
      yield* lockRecord(store, name)
      yield* lockLease(store, name, lease)
      yield* Effect.provideService(abandonRebuild(name), Tables, store)
    })
  ).pipe(Effect.retry({ times: 10, while: isTransient }), Effect.ignore)

/** Whether the rebuild is finished or abandoned. Waiting for its lease may have created the row of the lease again. */
const mayLeaveLeaseRow = (exit: Exit.Exit<void, unknown>): boolean =>
  Exit.isSuccess(exit) || Option.exists(Cause.failureOption(exit.cause), (error) => !isRetried(error))

/** Deletes the row of the lease where no process holds it, and no events are projected that the next run would build on. */
const deleteLeaseRow = (store: StoreTables, name: string) =>
  run(
    store,
    store.sql`delete from ${store.schema}.subscriptions
      where name = ${leaseOf(name)} and coalesce(leased_until < clock_timestamp(), true)
        and not exists (select 1 from ${store.schema}.rebuilds r where r.name = ${name} and r.finished_at is null and r.events_total > 0)`
  )
