/**
 * The replica of a store, and whether it may be read now. `SqlStore.ts` makes it of the option `readFrom`; the feed and the queries of
 * aggregates read it.
 *
 * A replica may be read while it is a standby of the store's database, has replayed the timeline that the primary writes, and has the last
 * migration. A check finds that out when the store is made, and again for a read that begins a second or more after the last one.
 *
 * - A failure of the replica is never that of a caller. A read that fails there, or takes too long, is made on the primary.
 * - After a failed check, or a read that shows that the replica is gone, all reads go to the primary for a pause, which grows. The next check
 *   then runs in the background, so no caller waits for a replica that is gone.
 * - The timeline shows a failover. A replica of the former primary may have events that the new one lacks.
 * - While the primary can't be reached, the replica is compared with what the primary was before.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Scope from "effect/Scope"
import { StoreError } from "../../StoreError.js"
import { withLiveClock } from "../runtime/clock.js"
import { isMigrated } from "./migrations.js"
import { CommandRunner } from "./pg/commandRunner.js"
import { differenceOf, type Identity, identityOf, isOther, type ReadableLog } from "./replicaIdentity.js"

/** The option `readFrom`: a layer of the client of the replica. */
export type ReadFrom<R> = Layer.Layer<SqlClient.SqlClient, unknown, R>

export interface Replica {
  /** The log on the replica; undefined while it may not be read. It waits for a check for a second at most. */
  readonly find: Effect.Effect<ReadableLog | undefined>
  /** Runs a read on the replica, for a bounded time. `Left` is why the primary has to make it. */
  readonly attempt: <A>(read: Effect.Effect<A, StoreError>) => Effect.Effect<Either.Either<A, StoreError>>
}

/** The answer that the replica is not to be read. */
export const unread: Effect.Effect<ReadableLog | undefined> = Effect.sync(() => undefined)

/** Refuses an option that is no layer, which is a mistake of the program. */
export const checkReadFrom = (readFrom: unknown): void => {
  if (readFrom === undefined || Layer.isLayer(readFrom)) return
  throw new TypeError("the option readFrom of SqlStore must be a layer that provides an SqlClient")
}

/** Makes the replica and checks it. It may be out of reach, but if it is another database, this fails. */
export const makeReplica = <R>(
  readFrom: ReadFrom<R>,
  name: string,
  primary: ReadableLog,
  preparedStatements: boolean
): Effect.Effect<Replica, StoreError, R | Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const runtime = yield* outsideTransactions<R>()
    const connect = Effect.map(buildIn(scope, readFrom), (client): ReadableLog => {
      const sql = client.withoutTransforms()
      return { log: { ...primary.log, sql }, runner: new CommandRunner(sql, preparedStatements) }
    })
    const replica = new CheckedReplica(name, primary, Effect.provide(connect, runtime), (work) => {
      Runtime.runFork(runtime)(Effect.withTracerEnabled(work, false), { scope })
    })
    yield* replica.find
    const { refusal } = replica
    return refusal === undefined ? replica : yield* misconfigured(refusal)
  })

// --- internal ---

// In milliseconds.
/** How long a check is valid. */
const validFor = 1000
/** How long a caller waits for a check. */
const longestWait = 1000
/** How long a check, and a read of the replica, may take. */
const longestRead = 5000
const firstPause = 1000
const longestPause = 30_000

class CheckedReplica implements Replica {
  /** Why the option `readFrom` can't be right: no later check will change that. */
  refusal: string | undefined
  /** Why the replica is not read. */
  private problem: string | undefined
  private log: ReadableLog | undefined
  /** What the primary was when it was last asked. */
  private known: Identity | undefined
  private validUntil = 0
  private pausedUntil = 0
  private pause = firstPause
  /** Ends with the check that runs. */
  private checking: Deferred.Deferred<void> | undefined

  constructor(
    private readonly name: string,
    private readonly primary: ReadableLog,
    private readonly connect: Effect.Effect<ReadableLog, Unconnected>,
    /** Starts a fiber that ends with the store. It has nothing of its caller. */
    private readonly start: (work: Effect.Effect<void>) => void
  ) {}

  readonly find: Effect.Effect<ReadableLog | undefined> = Effect.suspend(() => {
    const now = performance.now()
    if (now < this.validUntil) return Effect.succeed(this.log)
    if (now < this.pausedUntil) return unread
    const checked = this.checking ?? this.startCheck()
    if (this.problem !== undefined) return unread
    return Effect.map(withLiveClock(Effect.timeoutOption(Deferred.await(checked), longestWait)), () =>
      performance.now() < this.validUntil ? this.log : undefined
    )
  })

  readonly attempt = <A>(read: Effect.Effect<A, StoreError>): Effect.Effect<Either.Either<A, StoreError>> =>
    Effect.map(Effect.either(inTime(read)), (result) => {
      if (Either.isLeft(result) && !concernsOneRead.has(result.left.reason)) this.fail(result.left.description)
      return result
    })

  private startCheck(): Deferred.Deferred<void> {
    const checked = Deferred.unsafeMake<void>(FiberId.none)
    this.checking = checked
    const check = Effect.matchCause(this.findProblem, {
      onFailure: (cause) => (Cause.isInterrupted(cause) ? undefined : this.fail(textOf(Cause.squash(cause)))),
      onSuccess: (problem) => (problem === undefined ? this.succeed() : this.fail(problem))
    })
    const end = Effect.suspend(() => {
      this.checking = undefined
      return Deferred.succeed(checked, undefined)
    })
    this.start(Effect.ensuring(check, end))
    return checked
  }

  private readonly findProblem = Effect.gen(this, function* () {
    const log = this.log ?? (yield* Effect.tapError(this.connect, this.noteRefusal))
    this.log = log
    const [primary, replica] = yield* Effect.all(
      [Effect.option(inTime(identityOf(this.primary))), inTime(identityOf(log))],
      {
        concurrency: 2
      }
    )
    this.known = Option.getOrElse(primary, () => this.known)
    if (this.known === undefined) return "the primary can't be reached"
    const difference = differenceOf(this.known, replica)
    this.refusal = isOther(this.known, replica) ? difference : undefined
    if (difference !== undefined) return difference
    const { schema, sql } = log.log
    return (yield* inTime(isMigrated(sql, this.name, schema, "SqlStore")))
      ? undefined
      : "it has not replayed the migrations yet"
  })

  private readonly noteRefusal = ({ isPermanent, why }: Unconnected) =>
    Effect.sync(() => {
      if (isPermanent) this.refusal = why
    })

  private succeed(): void {
    if (this.problem !== undefined) this.start(Effect.logInfo("SqlStore reads the replica again"))
    this.problem = undefined
    this.pause = firstPause
    this.validUntil = performance.now() + validFor
  }

  /** Begins a pause. Only the first failure of several is logged. */
  private fail(problem: string): void {
    const now = performance.now()
    this.validUntil = 0
    if (this.problem !== undefined && now < this.pausedUntil) return
    if (this.problem === undefined) {
      this.start(Effect.logWarning(`SqlStore reads the primary in place of the replica: ${problem}`))
    }
    this.problem = problem
    this.pausedUntil = now + this.pause
    this.pause = Math.min(this.pause * 2, longestPause)
  }
}

/** The failures that say nothing about the next read, such as a conflict with what the replica replays. */
const concernsOneRead: ReadonlySet<StoreError["reason"]> = new Set(["Contention", "Cancelled", "UnreadableEvent"])

/** Limits the time that the replica may take, so that one that is silent costs a caller no more. */
const inTime = <A>(read: Effect.Effect<A, StoreError>): Effect.Effect<A, StoreError> =>
  withLiveClock(
    Effect.timeoutFail(read, {
      duration: longestRead,
      onTimeout: () =>
        new StoreError({
          reason: "Unavailable",
          operation: "SqlStore",
          description: "the server has not replied in time"
        })
    })
  )

/** Builds the client in a scope. A layer that fails, or takes too long, leaves nothing there. */
const buildIn = <R>(scope: Scope.Scope, readFrom: ReadFrom<R>): Effect.Effect<SqlClient.SqlClient, Unconnected, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Scope.fork(scope, ExecutionStrategy.sequential), (own) =>
      restore(
        // Disconnected, because a client that connects can't be interrupted.
        withLiveClock(Effect.timeout(Effect.disconnect(Layer.buildWithScope(readFrom, own)), longestRead))
      ).pipe(
        Effect.onExit((exit) => (Exit.isSuccess(exit) ? Effect.void : Scope.close(own, exit))),
        Effect.map(Context.get(SqlClient.SqlClient)),
        Effect.mapErrorCause((cause) =>
          Cause.isInterruptedOnly(cause) ? Cause.interrupt(FiberId.none) : Cause.fail(unconnected(cause))
        )
      )
    )
  )

/** The runtime of the caller, without the transaction that the layer may be built in. */
const outsideTransactions = <R>() =>
  Effect.map(Effect.runtime<R>(), ({ context, fiberRefs, runtimeFlags }) =>
    Runtime.make({
      context: Context.omit(SqlClient.TransactionConnection)(
        context as Context.Context<R | SqlClient.TransactionConnection>
      ) as Context.Context<R>,
      fiberRefs,
      runtimeFlags
    })
  )

/** Why there is no client. */
interface Unconnected {
  readonly why: string
  /** Whether the layer failed by itself, and not because a server can't be reached. */
  readonly isPermanent: boolean
}

const unconnected = (cause: Cause.Cause<unknown>): Unconnected => {
  const failure = Cause.squash(cause)
  return {
    why: `its client can't be made: ${textOf(failure)}`,
    isPermanent: !(failure instanceof SqlError || Cause.isTimeoutException(failure))
  }
}

const textOf = (failure: unknown): string => {
  if (failure instanceof StoreError) return failure.description
  if (typeof failure !== "object" || failure === null) return String(failure)
  return "why" in failure ? String(failure.why) : "message" in failure ? String(failure.message) : String(failure)
}

const misconfigured = (refusal: string): StoreError =>
  new StoreError({ reason: "Misconfigured", operation: "SqlStore", description: `the option readFrom: ${refusal}` })
