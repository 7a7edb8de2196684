/**
 * A lease that this process holds: its operations and its renewal. `lease.ts` makes it when it has taken the lease.
 *
 * Each statement has the fencing token and the holder in its condition. Where the row has others, it changes nothing and fails
 * with `LeaseLost`.
 *
 * A checkpoint is moved only from where this process has left it. After a failover that has lost the last checkpoint, the writes of its
 * transaction are lost, too. So the lease counts as lost, and the next one begins at the checkpoint that is stored. The holder is
 * compared, because after such a failover another process may have the same token.
 */
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Position } from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import { type Attempts, type EventFailure, type Lease, LeaseLost, type LeaseOptions } from "../../SubscriptionStore.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { liveClock } from "../runtime/clock.js"
import { keyTypeOf } from "./feedOrder.js"
import type { Notifications } from "./notifications.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import type { Command } from "./pg/driver.js"
import { executeCommand } from "./pg/execute.js"
import { checkStillOpen, limitIdle, withTransactionFrom } from "./pg/transaction.js"
import { columnsOf, type PositionRow, placeOf, positionOf, positionValues, storedPosition } from "./position.js"
import type { StoreTables } from "./storeTables.js"
import { isHeldBy, isOfKey, leaseEnd, makeStatements, operation } from "./subscriptionStatements.js"

/** A lease as it was taken. */
export interface TakenLease extends Pick<Lease, "position" | "attempts" | "isTakenOver"> {
  /** The fencing token. */
  readonly token: string
}

/** What this process knows of its lease. */
export interface LeaseState {
  /** The duration of the lease, in milliseconds. */
  readonly duration: number
  /** When the last successful renewal began, by `uptime`. */
  renewedAt: number
  /** How many transactions are open that end with a checkpoint. */
  openTransactions: number
}

/** Milliseconds by a clock that is never set. */
export const uptime: Effect.Effect<number> = Effect.map(liveClock.currentTimeNanos, (nanos) =>
  Number(nanos / 1_000_000n)
)

export const makeHeldLease = (
  tables: StoreTables,
  runner: CommandRunner,
  notifications: Notifications,
  { duration, holder, key }: LeaseOptions,
  taken: TakenLease,
  state: LeaseState,
  lost: Effect.Effect<void>
): Lease => {
  const { schema, sql } = tables
  const keyType = keyTypeOf(tables)
  const { execute } = makeStatements(sql)
  const isHeld = isHeldBy(sql, key, holder, taken.token)
  const known = makeKnownCheckpoint(taken.position)
  const leaseLost = new LeaseLost({ subscription: key.name, partition: key.partition })

  /** Runs a statement that returns the row of the lease, if it is held. */
  const whileHeld = <A>(statement: Effect.Effect<ReadonlyArray<A>, StoreError>) =>
    Effect.flatMap(statement, ([row]) => (row === undefined ? leaseLost : Effect.succeed(row)))

  // The texts are put together once, with placeholders for the new position and for the position before.
  const moving = sql`update ${schema}.subscriptions
    set feed_key = ${""}::${keyType}, position = ${""}::bigint, event_time = ${""}, attempted = null,
      leased_until = ${leaseEnd(sql, duration)}
    where (${isAtOneOf(tables, 3)}) and ${isHeld} returning token::text`
  const [moveText, [, , , end, , , , , , , ...heldValues]] = moving.compile()
  // The new position is among those before, because a move of unknown outcome is repeated.
  const moveValues = (to: Position) => [...columnsOf(to), end, ...known.places(), ...placeOf(to), ...heldValues]
  const move = runner.prepare(moveText)
  const moveNested = { text: sql`with moved as (${moving}) select ${sql.literal(checkIsMoved)}`.compile()[0] }
  const moveLast = runner.prepare(
    sql`with moved as (${moving}) select ${sql.literal(checkIsMoved)}, ${sql.literal(checkStillOpen)}`.compile()[0]
  )
  const [beginText, compiledBegin] = sql`select token::text, ${limitIdle(tables, duration)}::text
    from ${schema}.subscriptions where ${isHeld} and (${isAtOneOf(tables, 2)})`.compile()
  const beginning = runner.prepare(beginText)
  const beginValues = compiledBegin.slice(0, -4)

  const moveCheckpoint = (to: Position) =>
    whenInTransaction((inside) =>
      Effect.map(
        whileHeld(
          executeCommand(runner, { operation, phase: "writing", savepoint: false }, { ...move, values: moveValues(to) })
        ),
        () => known.moved(to, inside)
      )
    )

  const advance = <E, R>(
    to: Position,
    effect: Effect.Effect<void, E, R>
  ): Effect.Effect<void, E | LeaseLost | StoreError, R> => {
    let began = 0
    let isPart = false
    const begin: Command = { ...beginning, values: [...beginValues, ...known.places()] }
    const transaction = withTransactionFrom<E | LeaseLost, R>(
      sql,
      operation,
      {
        // Checks the lease, and limits how long the transaction may idle, so that a process that is stopped in it does
        // not keep its locks.
        own: begin,
        nested: begin
      },
      ([row], isNested): Effect.Effect<Command, E | LeaseLost, R> =>
        row === undefined
          ? leaseLost
          : Effect.map(Effect.zipRight(effect, uptime), (now) => {
              began = now
              isPart = isNested
              return { ...(isNested ? moveNested : moveLast), values: moveValues(to) }
            })
    ).pipe(Effect.mapError((error) => (isNotMoved(error) ? leaseLost : error)))
    return Effect.acquireUseRelease(
      Effect.sync(() => {
        state.openTransactions++
      }),
      () =>
        Effect.flatMap(notifications.afterCommit([], transaction), () => {
          state.renewedAt = Math.max(state.renewedAt, began)
          known.moved(to, isPart)
          return notifications.progressed
        }),
      () =>
        Effect.sync(() => {
          state.openTransactions--
        })
    )
  }

  const park = (failure: EventFailure) =>
    Effect.asVoid(
      execute(
        sql`insert into ${schema}.parked_events
          (subscription, aggregate_id, sequence, partition, feed_key, position, event_time, type, error, attempts)
          values (${key.name}, ${failure.aggregateId}, ${failure.sequence}, ${key.partition},
            ${positionValues(tables, failure.position)}, ${failure.type}, ${failure.error}, ${failure.attempts})
          on conflict (subscription, aggregate_id, sequence) do nothing`
      )
    )

  const parkedAggregates = (aggregateIds: ReadonlyArray<string>) =>
    Effect.gen(function* () {
      const select = execute(
        sql<{ aggregate_id: string }>`select distinct '.' || aggregate_id as aggregate_id from ${schema}.parked_events
          where subscription = ${key.name} and aggregate_id = any(${[...aggregateIds]}::text[])`
      )
      if ((yield* select).length === 0) return new Set<string>()
      // `retryParked` locks the row, too. So either it waits for this transaction, or this one reads again what it has
      // left.
      yield* execute(sql`select 1 from ${schema}.subscriptions where ${isOfKey(sql, key)} for update`)
      return new Set((yield* select).map(({ aggregate_id }) => aggregate_id.slice(1)))
    })

  const set = (assignments: Statement.Fragment) =>
    Effect.asVoid(
      whileHeld(execute(sql`update ${schema}.subscriptions set ${assignments} where ${isHeld} returning token`))
    )

  return {
    position: taken.position,
    attempts: taken.attempts,
    isTakenOver: taken.isTakenOver,
    lost,
    checkpoint: Effect.map(
      whileHeld(execute(sql<PositionRow>`select ${storedPosition(sql)} from ${schema}.subscriptions where ${isHeld}`)),
      (row) => {
        const position = positionOf(row)
        known.moved(position, false)
        return position
      }
    ),
    advanceTo: (to) => Effect.zipRight(moveCheckpoint(to), notifications.progressed),
    advance,
    park,
    parkedAggregates,
    recordAttempt: (attempts) => set(sql`attempted = ${attemptsText(attempts)}::jsonb`),
    recordFailure: (failure) =>
      set(
        failure === undefined
          ? sql`last_failure = null, attempted = null`
          : sql`last_failure = ${JSON.stringify(failure)}::jsonb, attempted = ${attemptsText(failure)}::jsonb`
      ),
    stop: (failure) => set(sql`stopped = true, last_failure = ${JSON.stringify(failure)}::jsonb`)
  }
}

/**
 * Renews the lease until it is lost, or has certainly run out. While a transaction is open that ends with a checkpoint,
 * a failed renewal decides nothing, because the pool may have no other connection. The checkpoint then fails if the
 * lease is lost.
 */
export const keepAlive = (
  tables: StoreTables,
  { holder, key }: LeaseOptions,
  { token }: TakenLease,
  state: LeaseState
): Effect.Effect<void> =>
  Effect.gen(function* () {
    const { duration } = state
    for (;;) {
      yield* Effect.sleep(duration / 3)
      const began = yield* uptime
      const renewal = yield* Effect.exit(
        Effect.timeoutFail(Effect.disconnect(renew(tables, key, holder, token, duration)), {
          // A process that was suspended still asks the database before it gives up.
          duration: Math.max(state.renewedAt + duration - began, duration / 3),
          onTimeout: () => "late"
        })
      )
      if (Exit.isSuccess(renewal)) {
        if (!renewal.value) return
        state.renewedAt = Math.max(state.renewedAt, began)
      } else if (state.openTransactions === 0 && (yield* uptime) >= state.renewedAt + duration) return
    }
  })

// --- internal ---

const notMoved = "effect-maestro: the lease is lost"

/** A column that fails where the lease is lost, so that the COMMIT that was sent behind it does not run. */
const checkIsMoved = `(case when exists (select 1 from moved) then 'yes' else '${notMoved}' end)::boolean`

const isNotMoved = (error: unknown): boolean => error instanceof StoreError && error.description.includes(notMoved)

/** Renews the lease, and returns whether it is still held. */
const renew = (
  { schema, sql }: StoreTables,
  key: LeaseOptions["key"],
  holder: string,
  token: string,
  duration: number
): Effect.Effect<boolean, StoreError> =>
  Effect.map(
    makeStatements(sql).execute(
      sql<{ held: boolean }>`with renewed as (
          update ${schema}.subscriptions s set leased_until = ${leaseEnd(sql, duration)}
          from (
            select name, partition from ${schema}.subscriptions where ${isHeldBy(sql, key, holder, token)}
            -- A locked row is that of a checkpoint in this process, which renews the lease itself.
            for update skip locked
          ) held
          where s.name = held.name and s.partition = held.partition
        )
        select true as held from ${schema}.subscriptions where ${isHeldBy(sql, key, holder, token)}`
    ),
    ([row]) => row !== undefined
  )

/** Where the checkpoint may be, as this process knows it. */
const makeKnownCheckpoint = (taken: Position) => {
  let current = taken
  // Where it is again if the transaction around is rolled back.
  let outside = taken
  return {
    places: () => [...placeOf(current), ...placeOf(outside)],
    /** It was moved, as a part of a transaction around or by a commit. */
    moved: (to: Position, isPart: boolean): void => {
      current = to
      if (!isPart) outside = to
    }
  }
}

/** Whether the checkpoint is at one of so many positions, for each of which two placeholders stand. */
const isAtOneOf = (tables: StoreTables, positions: number): Statement.Fragment => {
  const { sql } = tables
  return Array.from(
    { length: positions },
    () => sql`(feed_key, position) = (${""}::${keyTypeOf(tables)}, ${""}::bigint)`
  ).reduce((all, one) => sql`${all} or ${one}`)
}

const attemptsText = ({ attempts, position }: Attempts): string => JSON.stringify({ position, attempts })
