/**
 * Commits of strangers with their projections in one transaction: while some are under way, those that arrive wait and leave together.
 * None of them notices: whatever goes wrong in company is undone, and each goes alone, as if it had never met the others.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import type * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import type { RetryCommand, StoreError } from "../StoreError.js"
import { placeAmong, type Verdict } from "./coalesce.js"
import { aggregatesOf, type Commit, CommitQueue, isLarge, sizeOf, type Waiting } from "./commitQueue.js"
import { soon } from "./nextTurn.js"
import { together } from "./pipeline.js"
import { withinGrace } from "./promptly.js"
import { makePace } from "./sharingPace.js"
import { fromSqlError } from "./sqlError.js"
import { begin, commit as commitTransaction, type Lease, leased, on, reserve, rollback } from "./sqlTransaction.js"
import { spanned } from "./tracing.js"

/** What commits are shared by. */
export interface Ways {
  readonly sql: SqlClient.SqlClient
  /** Stores the events of commits in the transaction around it, if that has begun. */
  readonly store: (commits: ReadonlyArray<Commit>) => Effect.Effect<ReadonlyArray<Verdict>, StoreError>
  /** A transaction for one commit. */
  readonly alone: <E, R>(
    commit: Commit,
    project: Effect.Effect<void, E, R>
  ) => Effect.Effect<void, RetryCommand | StoreError | E, R>
}

/**
 * A way for commits with projections to transactions that carry many.
 *
 * - Where few are under way one leaves at once, by itself. When one ends, those that wait leave together.
 * - No two commits of a transaction concern the same aggregate, nor do those of two that are under way. Those about one aggregate leave
 *   in their order.
 * - All events are stored by one statement. Then the projections run, one commit after the other, each in the fiber of its own caller.
 *   Nobody is answered before COMMIT but those who have nothing in the transaction: refused, or stored before.
 * - When anything goes wrong (a statement, a projection, an interruption, a wait that is too long), all is rolled back and each goes
 *   alone: its failure is its own, and is the one that it would have had. What does so again and again goes alone from the start.
 * - Nobody sees or feels in a transaction what a stranger did there beyond its rows: who reads the log, sets something, or passes over a
 *   failed statement goes alone.
 * - One that is held up does not hold up those that come after: they leave beside it.
 */
export const makeSharing = (ways: Ways): Effect.Effect<Ways["alone"]> => {
  const queue = new CommitQueue<Entry>()
  let underWay = 0
  let departing = false
  const pace = makePace()

  const departSoon = (): void => {
    if (departing || queue.length === 0) return
    departing = true
    soon(() => {
      departing = false
      depart()
    })
  }

  const depart = (): void => {
    for (let lanes = pace.lanes() - underWay; lanes > 0 && queue.length > 0; lanes--) {
      const commits = Math.min(pace.seats(), Math.ceil(queue.length / lanes))
      const entries = queue.take({ ...limits, commits })
      const [first, ...others] = entries
      if (first === undefined) return
      const leave = enter()
      if (others.length === 0) {
        first.leave = leave
        first.isAlone = true
        tell(first, { _tag: "Alone" })
      } else {
        departures.push(travel(entries, leave))
        callCarrier()
      }
    }
  }

  const departures: Array<Effect.Effect<void>> = []
  let callCarrier = (): void => {}
  /** Starts those that carry many: in a fiber that belongs to no caller. */
  const carrier: Effect.Effect<never> = Effect.forever(
    Effect.async<void>((resume) => {
      callCarrier = () => {
        callCarrier = () => {}
        resume(Effect.suspend(() => Effect.forEach(departures.splice(0), Effect.forkDaemon, { discard: true })))
      }
      if (departures.length > 0) callCarrier()
    })
  )

  /** A place among those under way, which is left at the latest after some time. */
  const enter = (): Lane => {
    underWay++
    const entered = performance.now()
    let left = false
    const clear = (): void => {
      if (left) return
      left = true
      underWay--
      departSoon()
    }
    const timer = setTimeout(clear, pace.patience())
    return () => {
      clearTimeout(timer)
      clear()
      pace.lasted(performance.now() - entered)
    }
  }

  /** Nothing of the commit is under way any more. */
  const finish = (entry: Entry): void => {
    if (entry.finished) return
    entry.finished = true
    queue.done(entry)
    entry.leave?.()
    entry.onFinish?.()
    departSoon()
  }

  const end = (entry: Entry, exit: Exit.Exit<void, RetryCommand | StoreError>): void => {
    finish(entry)
    tell(entry, { _tag: "Ended", exit })
  }

  /** One shared transaction, from its connection on. Its fiber belongs to none of those that it carries. */
  const travel = (entries: ReadonlyArray<Entry>, leave: Lane): Effect.Effect<void> =>
    Effect.scoped(
      Effect.flatMap(Effect.exit(reserve(ways.sql, operation)), (reserved) => {
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
      const entries = all.filter(({ gone }) => !gone)
      for (const entry of all) if (entry.gone) finish(entry)
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
            on([connection, 0], ways.store(entries.map(({ commit }) => commit)))
          )
        )
        const written: Array<Entry> = []
        for (const [index, entry] of entries.entries()) {
          const verdict = verdicts[index] ?? "written"
          if (verdict === "written") written.push(entry)
          else end(entry, verdict === "stored" ? Exit.void : Exit.fail(verdict))
        }
        aboard = written
        for (const entry of written) {
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

  /** Lets one member project, and waits until it has. */
  const turn = (entry: Entry, trip: Trip, connection: Connection): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      const lease: Lease = { over: false }
      const place: Place = {
        connection: leased(connection, lease, {
          refuses: (statement) => {
            if (!concernsOthers.test(statement)) return undefined
            pace.blame(entry.kind, severe)
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
            entry.projected = true
            return resume(Effect.void)
          }
          if (!trip.over && !entry.gone) pace.blame(entry.kind, 1)
          trip.stop()
        }
      }
      entry.place = place
      if (entry.gone) trip.stop()
      else tell(entry, { _tag: "Project", place })
      return Effect.suspend(() => {
        place.close()
        return entry.running === undefined
          ? Effect.void
          : Effect.zipRight(Fiber.interruptFork(entry.running), withinGrace(Fiber.await(entry.running)))
      })
    })

  const withdraw = (entry: Entry): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (entry.queued) {
        queue.withdraw(entry)
        return Effect.void
      }
      entry.gone = true
      // It was told to go alone, and did not hear it any more.
      if (entry.isAlone) finish(entry)
      if (entry.finished || entry.trip === undefined) return Effect.void
      // What has projected waits for its COMMIT. Anything else goes away, and the others go alone.
      if (!entry.projected) entry.trip.stop()
      return Effect.asVoid(
        withinGrace(
          Effect.async<void>((resume) => {
            if (entry.finished) resume(Effect.void)
            else entry.onFinish = () => resume(Effect.void)
          })
        )
      )
    })

  const commitInCompany: Ways["alone"] = (commit, project) => {
    const measured = timed(project, pace.took)
    const kind = commit[0]?.type ?? ""
    return Effect.contextWithEffect((context: Context.Context<never>) => {
      const size = sizeOf(commit)
      if (isLarge(commit, size) || pace.isOut(kind)) return ways.alone(commit, measured)
      return Effect.uninterruptibleMask((restore) => {
        const entry: Entry = {
          commit,
          size,
          kind,
          aggregates: aggregatesOf(commit),
          span: Context.getOption(context, Tracer.ParentSpan),
          instruction: undefined,
          onInstruction: undefined,
          onFinish: undefined,
          queued: true,
          gone: false,
          isAlone: false,
          finished: false,
          projected: false,
          leave: undefined,
          trip: undefined,
          place: undefined,
          running: undefined
        }
        queue.push(entry)
        departSoon()
        const next: ReturnType<typeof ways.alone<Failure<typeof project>, Services<typeof project>>> = Effect.flatMap(
          Effect.onInterrupt(restore(told(entry)), () => withdraw(entry)),
          (instruction) => {
            const { running } = entry
            switch (instruction._tag) {
              case "Alone":
                return Effect.ensuring(
                  restore(
                    running === undefined
                      ? ways.alone(commit, measured)
                      : Effect.zipRight(Fiber.await(running), ways.alone(commit, measured))
                  ),
                  Effect.sync(() => finish(entry))
                )
              case "Project":
                return Effect.zipRight(start(entry, instruction.place, restore(measured)), next)
              case "Ended":
                return running !== undefined && Exit.isSuccess(instruction.exit)
                  ? Fiber.inheritAll(running)
                  : instruction.exit
            }
          }
        )
        return next
      })
    })
  }

  return Effect.as(
    Effect.mapInputContext(
      Effect.forkDaemon(carrier),
      (context: Context.Context<never>) =>
        Context.omit(Tracer.ParentSpan, SqlClient.TransactionConnection)(context) as Context.Context<never>
    ),
    commitInCompany
  )
}

// --- internal ---

type Failure<T> = T extends Effect.Effect<infer _A, infer E, infer _R> ? E : never
type Services<T> = T extends Effect.Effect<infer _A, infer _E, infer R> ? R : never

/** A commit on its way. */
interface Entry extends Waiting {
  readonly kind: string
  readonly span: Option.Option<Tracer.AnySpan>
  /** What its fiber was told and has not heard yet. */
  instruction: Instruction | undefined
  onInstruction: ((instruction: Instruction) => void) | undefined
  onFinish: (() => void) | undefined
  isAlone: boolean
  finished: boolean
  projected: boolean
  leave: Lane | undefined
  trip: Trip | undefined
  place: Place | undefined
  /** Its projections, in a transaction with others. */
  running: Fiber.RuntimeFiber<void, unknown> | undefined
}

/** What a commit's fiber is to do next. */
type Instruction =
  | { readonly _tag: "Alone" }
  | { readonly _tag: "Project"; readonly place: Place }
  | { readonly _tag: "Ended"; readonly exit: Exit.Exit<void, RetryCommand | StoreError> }

/** Gives back a place among those under way. */
type Lane = () => void

/** A shared transaction under way. */
interface Trip {
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
interface Place {
  readonly connection: Connection
  readonly report: (exit: Exit.Exit<void, unknown>) => void
  readonly close: () => void
  closed: boolean
}

const operation = "commitAll"

/** How long a shared transaction may take before its COMMIT, and those in it wait when it is undone, in milliseconds. */
const maxMillis = 200
const maxCleanUp = 300

// What one transaction carries beside the number of its commits.
const limits = { events: 2048, size: 1_000_000, seen: 1024 }

const severe = 3

/** How long a statement waits for a lock, and how long it may take at all, before the server itself breaks it off. */
const settings = ["SET LOCAL lock_timeout = '100ms'", "SET LOCAL statement_timeout = '200ms'"]

/**
 * What is not a matter of its own rows: the log, where events of others stand that are not projected yet; what holds until the end
 * of the transaction, and so for those who come after; and the transaction itself.
 */
const concernsOthers =
  /\b(event_log|commit_events|set_config)\b|(?:^|;)\s*(set|reset|discard|begin|start|commit|end|abort|prepare|rollback(?!\s+to\b))\b/i

const notInCompany = new SqlError({
  cause: new Error("this statement is not sent in a transaction with others"),
  message: "Failed to execute statement"
})

const tell = (entry: Entry, instruction: Instruction): void => {
  const { onInstruction } = entry
  entry.onInstruction = undefined
  if (onInstruction === undefined) entry.instruction = instruction
  else onInstruction(instruction)
}

const told = (entry: Entry): Effect.Effect<Instruction> =>
  Effect.async<Instruction>((resume) => {
    const { instruction } = entry
    entry.instruction = undefined
    if (instruction === undefined) entry.onInstruction = (next) => resume(Effect.succeed(next))
    else resume(Effect.succeed(instruction))
  })

/** Begins the projections of one, as its own fiber would have run them. */
const start = <E, R>(entry: Entry, place: Place, project: Effect.Effect<void, E, R>): Effect.Effect<void, never, R> =>
  Effect.suspend(() => {
    if (place.closed) return Effect.void
    const projecting = spanned("sql.transaction", { kind: "client" })(on([place.connection, 0], project))
    return Effect.map(Effect.forkDaemon(projecting), (fiber) => {
      entry.running = fiber
      fiber.addObserver(place.report)
      if (place.closed) fiber.unsafeInterruptAsFork(FiberId.none)
    })
  })

const timed = <E, R>(effect: Effect.Effect<void, E, R>, took: (millis: number) => void): Effect.Effect<void, E, R> =>
  Effect.suspend(() => {
    const started = performance.now()
    return Effect.map(effect, () => took(performance.now() - started))
  })

const isUnknown = (cause: Cause.Cause<StoreError>): boolean => hasReason(cause, "CommitUnknown")

const isLost = (cause: Cause.Cause<StoreError>): boolean =>
  hasReason(cause, "ConnectionLost") || hasReason(cause, "Unavailable")

const hasReason = (cause: Cause.Cause<StoreError>, reason: StoreError["reason"]): boolean => {
  const failure = Cause.failureOption(cause)
  return failure._tag === "Some" && failure.value.reason === reason
}
