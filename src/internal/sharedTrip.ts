/**
 * One shared transaction under way: from its connection to its COMMIT, or to where all of it is taken back and each of its members is
 * told to go alone.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import type * as Tracer from "effect/Tracer"
import type { RetryCommand, StoreError } from "../StoreError.js"
import { placeAmong, type Verdict } from "./coalesce.js"
import type { Commit, Waiting } from "./commitQueue.js"
import { beginPipeline, canPipeline, endPipeline, inOnePiece, isPipeline, together } from "./pipeline.js"
import { withinGrace } from "./promptly.js"
import type { Pace } from "./sharingPace.js"
import { fromSqlError } from "./sqlError.js"
import { begin, commit as commitTransaction, type Lease, leased, on, reserve, rollback } from "./sqlTransaction.js"
import { concernsOthers } from "./statementText.js"
import { spanned } from "./tracing.js"
import type { Projecting, WholeCommit, WholeCommits } from "./wholeCommit.js"

/** What a shared transaction is made with. */
export interface Carriage {
  readonly sql: SqlClient.SqlClient
  /** Stores the events of commits in the transaction around it, if that has begun. */
  readonly store: (commits: ReadonlyArray<Commit>) => Effect.Effect<ReadonlyArray<Verdict>, StoreError>
  readonly whole: WholeCommits
}

/** A commit on its way. */
export interface Entry extends Waiting {
  readonly kind: string
  readonly span: Option.Option<Tracer.AnySpan>
  /** What its projections are, where that is statements and nothing else. */
  readonly projecting: Projecting | undefined
  /** What its fiber was told and has not heard yet. */
  instruction: Instruction | undefined
  onInstruction: ((instruction: Instruction) => void) | undefined
  onFinish: (() => void) | undefined
  isAlone: boolean
  finished: boolean
  projected: boolean
  leave: (() => void) | undefined
  trip: Trip | undefined
  place: Place | undefined
  /** Its projections, in a transaction with others. */
  running: Fiber.RuntimeFiber<void, unknown> | undefined
}

/** What a commit's fiber is to do next. */
export type Instruction =
  | { readonly _tag: "Alone" }
  | { readonly _tag: "Project"; readonly place: Place }
  | { readonly _tag: "Ended"; readonly exit: Exit.Exit<void, RetryCommand | StoreError> }

/** A shared transaction. */
export interface Trip {
  projecting: Entry | undefined
  /** When that began. */
  since: number
  /** It will not be committed, or it was. */
  over: boolean
  body: Fiber.RuntimeFiber<void, unknown> | undefined
  /** Something went wrong: all of it is undone. */
  readonly stop: () => void
}

/** The transaction as one member has it while it is its turn. */
export interface Place {
  readonly connection: Connection
  /** Whether others have their turn at the same time. */
  readonly besideOthers: boolean
  readonly report: (exit: Exit.Exit<void, unknown>) => void
  readonly close: () => void
  closed: boolean
}

export const operation = "commitAll"

export const tell = (entry: Entry, instruction: Instruction): void => {
  const { onInstruction } = entry
  entry.onInstruction = undefined
  if (onInstruction === undefined) entry.instruction = instruction
  else onInstruction(instruction)
}

/** What becomes of those aboard. */
interface Ends {
  /** Nothing of the commit is under way any more. */
  readonly finish: (entry: Entry) => void
  /** The same, and it is told. */
  readonly end: (entry: Entry, exit: Exit.Exit<void, RetryCommand | StoreError>) => void
}

export const makeTravel = (
  { sql, store, whole }: Carriage,
  pace: Pace,
  { end, finish }: Ends
): ((entries: ReadonlyArray<Entry>, leave: () => void) => Effect.Effect<void>) => {
  /** Until when a conflict is so likely that all together would often be in vain. */
  let contendedUntil = 0

  /** One shared transaction, from its connection on. Its fiber belongs to none of those that it carries. */
  const travel = (entries: ReadonlyArray<Entry>, leave: () => void): Effect.Effect<void> =>
    Effect.scoped(
      Effect.flatMap(Effect.exit(reserve(sql, operation)), (reserved) => {
        if (Exit.isSuccess(reserved)) return withConnection(entries, reserved.value)
        for (const entry of entries) end(entry, Exit.failCause(reserved.cause))
        return Effect.void
      })
    ).pipe(
      spanned("SqlStore.shareTransaction", { ...placeAmong(entries), attributes: { commits: entries.length } }),
      Effect.ensuring(Effect.sync(leave)),
      Effect.uninterruptible
    )

  const withConnection = (all: ReadonlyArray<Entry>, connection: Connection): Effect.Effect<void> =>
    Effect.gen(function* () {
      const present = stillPresent(all)
      if (present.length === 0 || (yield* sendWhole(present, connection))) return
      const entries = stillPresent(present)
      if (entries.length === 0) return
      let aboard: ReadonlyArray<Entry> = entries
      let grace: ReturnType<typeof setTimeout> | undefined

      const goAlone = (): void => {
        clearTimeout(grace)
        for (const entry of aboard) {
          if (entry.trip !== trip) continue
          entry.trip = undefined
          if (entry.gone) finish(entry)
          else {
            entry.isAlone = true
            tell(entry, { _tag: "Alone" })
          }
        }
      }
      /** Somebody's fault it was. */
      const blameAll = (): void => {
        for (const kind of new Set(aboard.map(({ kind }) => kind))) pace.blame(kind, 1)
      }
      const trip: Trip = {
        projecting: undefined,
        since: 0,
        over: false,
        body: undefined,
        stop: () => {
          if (trip.over) return
          trip.over = true
          // Whatever it takes to clean up, nobody has to wait for it long.
          grace = setTimeout(goAlone, maxCleanUp)
          trip.body?.unsafeInterruptAsFork(FiberId.none)
        }
      }
      for (const entry of entries) entry.trip = trip

      const tooLong = setTimeout(() => {
        if (trip.over) return
        const { projecting, since } = trip
        if (projecting !== undefined && performance.now() - since > maxMillis / 2) pace.blame(projecting.kind, severe)
        else pace.tooLong()
        trip.stop()
      }, maxMillis)

      const body = Effect.gen(function* () {
        // It gives up by itself where it has to wait; to cancel it would take another connection.
        const verdicts = yield* Effect.uninterruptible(
          together(
            connection,
            begin(operation, connection, settings),
            on([connection, 0], store(entries.map(({ commit }) => commit)))
          )
        )
        const written: Array<Entry> = []
        for (const [index, entry] of entries.entries()) {
          const verdict = verdicts[index] ?? "written"
          if (verdict === "written") written.push(entry)
          else end(entry, verdict === "stored" ? Exit.void : Exit.fail(verdict))
        }
        aboard = written
        const short = canPipeline(connection) ? written.filter(isOneStatement) : []
        if (short.length > 1) {
          beginPipeline(connection)
          inOnePiece(connection)
          yield* turnsAtOnce(short, trip, connection)
        }
        for (const entry of written) {
          if (entry.projected) continue
          trip.projecting = entry
          trip.since = performance.now()
          yield* turn(entry, trip, connection)
          trip.projecting = undefined
        }
      })
      const exit = yield* Effect.flatMap(Effect.forkDaemon(Effect.interruptible(body)), (fiber) => {
        trip.body = fiber
        if (trip.over) fiber.unsafeInterruptAsFork(FiberId.none)
        return Fiber.await(fiber)
      })
      clearTimeout(tooLong)
      if (Exit.isSuccess(exit) && !trip.over && aboard.length > 0) {
        const committed = yield* Effect.exit(commitTransaction(operation, connection))
        endPipeline(connection)
        const unknown = Exit.isFailure(committed) && isUnknown(committed.cause)
        if (Exit.isSuccess(committed) || unknown) {
          for (const entry of aboard) {
            if (!unknown) pace.praise(entry.kind)
            end(entry, committed)
          }
          return
        }
        blameAll()
      } else {
        if (Exit.isFailure(exit) && Cause.isFailure(exit.cause) && !isLost(exit.cause)) blameAll()
        trip.over = true
        yield* rollback(connection)
      }
      goAlone()
    })

  /** Without those for whom nobody waits any more. */
  const stillPresent = (entries: ReadonlyArray<Entry>): ReadonlyArray<Entry> =>
    entries.filter((entry) => {
      if (entry.gone) finish(entry)
      return !entry.gone
    })

  /**
   * Sends all in one round trip, if their projections are statements and nothing else, and answers whether that was the end. If not,
   * nothing was done: who is in conflict, or whose fault it was, the long way finds out.
   */
  const sendWhole = (entries: ReadonlyArray<Entry>, connection: Connection): Effect.Effect<boolean> => {
    const commits: Array<WholeCommit> = []
    for (const { commit, projecting, span } of entries) {
      if (projecting === undefined) return Effect.succeed(false)
      commits.push({ commit, projecting, span: Option.getOrUndefined(span) })
    }
    if (performance.now() < contendedUntil || !whole.can(connection)) return Effect.succeed(false)
    // Who is interrupted from here on waits for what becomes of it.
    for (const entry of entries) entry.projected = true
    const started = performance.now()
    return Effect.map(Effect.exit(whole.send(connection, commits, maxMillis)), (exit) => {
      for (const entry of entries) entry.projected = false
      const millis = performance.now() - started
      const error = Exit.isSuccess(exit) ? exit.value.error : undefined
      if (error !== undefined) {
        if (error.code === "55P03" || error.code === "40P01") pace.collided()
        // The long way refuses each by itself, and keeps the others.
        if (error.code === "MA001") contendedUntil = performance.now() + contendedFor
        return false
      }
      if (Exit.isSuccess(exit)) {
        pace.took(millis / entries.length)
        if (millis > maxMillis / 2) {
          pace.tooLong()
          for (const kind of new Set(entries.map(({ kind }) => kind))) pace.blame(kind, 1)
        } else for (const { kind } of entries) pace.praise(kind)
      }
      for (const entry of entries) end(entry, Exit.asVoid(exit))
      return true
    })
  }

  /** Whether the commit's projections come to one statement, as far as is known. */
  const isOneStatement = ({ commit, kind }: Entry): boolean => commit.length === 1 && pace.isOneStatement(kind)

  /** The transaction for one member, which reports when it has projected. */
  const placeFor = (
    entry: Entry,
    trip: Trip,
    connection: Connection,
    besideOthers: boolean,
    projected: () => void
  ): Place => {
    const lease: Lease = { over: false }
    let statements = 0
    const place: Place = {
      besideOthers,
      connection: leased(connection, lease, {
        // To break one off is to ask the server to cancel whatever it is at. Each ends soon: the server sees to that.
        unbroken: besideOthers,
        refuses: (statement, streamed) => {
          statements++
          // There is no cursor in a pipeline.
          const tooMuch = besideOthers && (statements > 1 || streamed)
          if (tooMuch) pace.needed(entry.kind, statements + 1)
          else if (concernsOthers(statement) || (streamed && isPipeline(connection))) {
            pace.blame(entry.kind, severe)
          } else return undefined
          trip.stop()
          return notInCompany
        },
        failed: (error) => {
          // Whatever the projection makes of it: alone it might not have failed.
          if (lease.over) return
          if (!trip.over) {
            const { code, reason } = fromSqlError(operation, "writing", error)
            if (code === "55P03" || code === "40P01") pace.collided()
            if (reason !== "ConnectionLost") pace.blame(entry.kind, code === "57014" ? severe : 1)
          }
          trip.stop()
        }
      }),
      closed: false,
      close: () => {
        place.closed = true
        lease.over = true
      },
      report: (exit) => {
        if (place.closed) return
        place.close()
        if (Exit.isSuccess(exit)) {
          pace.needed(entry.kind, statements)
          entry.projected = true
          return projected()
        }
        if (!trip.over && !entry.gone) pace.blame(entry.kind, 1)
        trip.stop()
      }
    }
    entry.place = place
    if (entry.gone) trip.stop()
    else tell(entry, { _tag: "Project", place })
    return place
  }

  /** Lets one member project, and waits until it has. */
  const turn = (entry: Entry, trip: Trip, connection: Connection): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      const place = placeFor(entry, trip, connection, false, () => resume(Effect.void))
      return Effect.suspend(() => {
        place.close()
        return entry.running === undefined
          ? Effect.void
          : Effect.zipRight(Fiber.interruptFork(entry.running), withinGrace(Fiber.await(entry.running)))
      })
    })

  /**
   * Lets several members project at the same time, and waits until all have. Where that is broken off nobody waits for them here: what
   * they have sent will be answered before the ROLLBACK is, and nothing more is sent for them.
   */
  const turnsAtOnce = (entries: ReadonlyArray<Entry>, trip: Trip, connection: Connection): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      let left = entries.length
      const projected = (): void => {
        if (--left === 0) resume(Effect.void)
      }
      const places = entries.map((entry) => placeFor(entry, trip, connection, true, projected))
      return Effect.sync(() => {
        for (const place of places) place.close()
        for (const { running } of entries) running?.unsafeInterruptAsFork(FiberId.none)
      })
    })

  return travel
}

// --- internal ---

/** How long a shared transaction may take before its COMMIT, and those in it wait when it is undone, in milliseconds. */
const maxMillis = 200
const maxCleanUp = 300

/** How long a statement waits for a lock, and how long it may take at all, before the server itself breaks it off. */
const settings = ["SET LOCAL lock_timeout = '100ms'", "SET LOCAL statement_timeout = '200ms'"]

const severe = 3

/** After a conflict others are likely, in milliseconds. */
const contendedFor = 100

const notInCompany = new SqlError({
  cause: new Error("this statement is not sent in a transaction with others"),
  message: "Failed to execute statement"
})

const isUnknown = (cause: Cause.Cause<StoreError>): boolean => hasReason(cause, "CommitUnknown")

const isLost = (cause: Cause.Cause<StoreError>): boolean =>
  hasReason(cause, "ConnectionLost") || hasReason(cause, "Unavailable")

const hasReason = (cause: Cause.Cause<StoreError>, reason: StoreError["reason"]): boolean => {
  const failure = Cause.failureOption(cause)
  return failure._tag === "Some" && failure.value.reason === reason
}
