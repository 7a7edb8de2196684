/**
 * Commits of strangers with their projections in one transaction: while some are under way, those that arrive wait and leave together.
 * None of them notices: whatever goes wrong in company is undone, and each goes alone, as if it had never met the others.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Tracer from "effect/Tracer"
import type { RetryCommand, StoreError } from "../StoreError.js"
import { aggregatesOf, type Commit, CommitQueue, isLarge, sizeOf } from "./commitQueue.js"
import { soon } from "./nextTurn.js"
import { withinGrace } from "./promptly.js"
import { type Carriage, type Entry, type Instruction, makeTravel, type Place, tell } from "./sharedTrip.js"
import { makePace } from "./sharingPace.js"
import { on } from "./sqlTransaction.js"
import { spanned } from "./tracing.js"
import type { Projecting } from "./wholeCommit.js"

/** What commits are shared by. */
export interface Ways extends Carriage {
  /** A transaction for one commit. Where its projections are statements and nothing else, they are told. */
  readonly alone: <E, R>(
    commit: Commit,
    project: Effect.Effect<void, E, R>,
    projecting: Projecting | undefined
  ) => Effect.Effect<void, RetryCommand | StoreError | E, R>
}

/**
 * A way for commits with projections to transactions that carry many.
 *
 * - Where few are under way one leaves at once, by itself. When one ends, those that wait leave together.
 * - No two commits of a transaction concern the same aggregate, nor do those of two that are under way. Those about one aggregate leave
 *   in their order.
 * - All events are stored by one statement. Then the projections run, one commit after the other, each with what its caller has.
 *   Those of which each is known to be one statement run at the same time, and their statements make one round trip: whatever order
 *   they are sent in, it is as if their commits had come in that order. Where all are statements and nothing else, they and the events
 *   are one round trip together.
 * - Nobody is answered before COMMIT but those who have nothing in the transaction: refused, or stored before.
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
  /** How many have left together of late. */
  let company = 1
  const pace = makePace()

  const departSoon = (): void => {
    if (departing || queue.length === 0) return
    if (company <= 1) return depart()
    departing = true
    // Where there are others they come in this turn of the event loop: those who were just answered.
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
      company = Math.max(entries.length, company - 1)
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

  const enqueue = (entry: Entry): void => {
    entry.queued = true
    queue.push(entry)
    departSoon()
  }

  const travel = makeTravel(ways, pace, { finish, end })

  const withdraw = (entry: Entry): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (entry.queued) {
        queue.withdraw(entry)
        return Effect.void
      }
      entry.gone = true
      // It was told to go alone, and did not hear it any more.
      if (entry.isAlone) finish(entry)
      if (entry.finished || (entry.trip === undefined && !entry.projected)) return Effect.void
      // What has projected waits for its COMMIT. Anything else goes away, and the others go alone.
      if (!entry.projected) entry.trip?.stop()
      return Effect.asVoid(
        withinGrace(
          Effect.async<void>((resume) => {
            if (entry.finished) resume(Effect.void)
            else entry.onFinish = () => resume(Effect.void)
          })
        )
      )
    })

  const commitInCompany: Ways["alone"] = (commit, project, projecting) => {
    const measured = timed(project, pace.took)
    const alone = ways.alone(commit, measured, projecting)
    const kind = commit[0]?.type ?? ""
    return Effect.contextWithEffect((context: Context.Context<never>) => {
      const size = sizeOf(commit)
      if (isLarge(commit, size) || pace.isOut(kind)) return alone
      const entry: Entry = {
        commit,
        size,
        kind,
        aggregates: aggregatesOf(commit),
        span: Context.getOption(context, Tracer.ParentSpan),
        projecting,
        instruction: undefined,
        onInstruction: undefined,
        onFinish: undefined,
        queued: false,
        gone: false,
        isAlone: false,
        finished: false,
        projected: false,
        leave: undefined,
        trip: undefined,
        place: undefined,
        running: undefined
      }
      let fresh = true
      const next: ReturnType<typeof ways.alone<Failure<typeof project>, Services<typeof project>>> = Effect.flatMap(
        Effect.async<Instruction>((resume) => {
          // Not before: one that waits is heard of when it is interrupted.
          if (fresh) enqueue(entry)
          fresh = false
          listen(entry, (instruction) => resume(Effect.succeed(instruction)))
        }),
        (instruction) => {
          const { running } = entry
          switch (instruction._tag) {
            case "Alone":
              return running === undefined ? alone : Effect.zipRight(overBy(running, entry), alone)
            case "Project":
              return Effect.zipRight(
                start(entry, instruction.place, instruction.place.besideOthers ? project : measured),
                next
              )
            case "Ended":
              return running !== undefined && Exit.isSuccess(instruction.exit)
                ? Fiber.inheritAll(running)
                : instruction.exit
          }
        }
      )
      return Effect.onExit(next, (exit) => {
        if (Exit.isFailure(exit) && Cause.isInterrupted(exit.cause)) return withdraw(entry)
        if (entry.isAlone) finish(entry)
        return Effect.void
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

/** Gives back a place among those under way. */
type Lane = () => void

// What one transaction carries beside the number of its commits.
const limits = { events: 2048, size: 1_000_000, seen: 1024 }

/**
 * Waits for the end of what was broken off. A statement that was sent beside others is not: on a connection that has died without a
 * word it never ends, and is not waited for. Its transaction can't be committed any more.
 */
const overBy = (running: Fiber.RuntimeFiber<unknown, unknown>, { place }: Entry): Effect.Effect<unknown> =>
  place?.besideOthers === true ? withinGrace(Fiber.await(running)) : Fiber.await(running)

const listen = (entry: Entry, hear: (instruction: Instruction) => void): void => {
  const { instruction } = entry
  entry.instruction = undefined
  if (instruction === undefined) entry.onInstruction = hear
  else hear(instruction)
}

/** The projections in the transaction, as they would be in one of their own. */
const within = <E, R>(place: Place, project: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> =>
  spanned("sql.transaction", { kind: "client" })(on([place.connection, 0], project))

/** Begins the projections of one, as its own fiber would have run them. */
const start = <E, R>(entry: Entry, place: Place, project: Effect.Effect<void, E, R>): Effect.Effect<void, never, R> =>
  Effect.uninterruptibleMask((restore) => {
    if (place.closed) return Effect.void
    return Effect.map(Effect.forkDaemon(restore(within(place, project))), (fiber) => {
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
