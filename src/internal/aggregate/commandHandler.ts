/**
 * The way of a command: its aggregate's turn, state, decision, commit, answer.
 */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type { Event } from "../../Event.js"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import {
  type CommandIdReused,
  RetryCommand,
  type StoreError,
  type UnexpectedSequence,
  type ValidationError
} from "../../StoreError.js"
import type { HybridClockService } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { liveSleep } from "../runtime/clock.js"
import { awaitGrace } from "../runtime/interruption.js"
import { macrotask } from "../runtime/macrotask.js"
import { isTransient, retryAfter, retryWhile, settleCommit } from "../runtime/retry.js"
import { called, flatMapSync, isSettled } from "../runtime/syncEffect.js"
import type { CommandDigest } from "./commandDigest.js"
import { unexpected } from "./conditions.js"
import { type Definition, type Loaded, load, refresh } from "./loadState.js"
import { type Recorded, record } from "./recordEvents.js"
import { type AggregateEntry, type Group, passTurn, type StateCache, type Ticket, waitForTurn } from "./stateCache.js"
import { isSnapshotDue, snapshotWhenDue } from "./takeSnapshot.js"

/** What a command came to. */
export interface Outcome<State, A> {
  readonly root: Loaded<State>
  readonly events: ReadonlyArray<A>
  /** Whether it had been done before, so that nothing was done now. */
  readonly duplicate?: boolean
}

/** What commands of one aggregate are evaluated with. */
export interface CommandContext<State, A extends Tagged, C, E> {
  readonly definition: Definition<State, A>
  readonly store: StoreAdapterService
  readonly clock: HybridClockService
  readonly seats: StateCache<State>
  /** The decision of the command's handler, with all that it needs. */
  readonly decide: (
    command: C,
    root: Loaded<State>
  ) => Effect.Effect<ReadonlyArray<A>, E | ValidationError | UnexpectedSequence>
  /** What tells the command from others of the same id. */
  readonly digest: (command: C) => Effect.Effect<CommandDigest, ValidationError>
  /** When a command is decided again after a lost race, or after a read that failed for a reason that may pass. */
  readonly again: Schedule.Schedule<unknown>
  /** Commits with the projections, with all that they need. */
  readonly commit: (events: ReadonlyArray<Event>) => Effect.Effect<void, Failures<E>>
  /** Whether a projection handles one of the events, so that they are a transaction of their own, in the caller's fiber. */
  readonly isProjected: (events: ReadonlyArray<Event>) => boolean
  /** Forks a commit for several callers, uninterruptible, with the context and the fiber refs of the layer: it has those of no caller. */
  readonly forkNeutral: <A2, E2>(effect: Effect.Effect<A2, E2>) => Effect.Effect<Fiber.RuntimeFiber<A2, E2>>
}

/** What a command finds around it. */
export interface CallContext {
  readonly metadata: Readonly<Record<string, unknown>>
  readonly clock: Clock.Clock
}

/** The last two come only where a caller has set the condition; `Aggregate` shows them in the types of those effects alone. */
export type Failures<E> = E | RetryCommand | ValidationError | StoreError | CommandIdReused | UnexpectedSequence

/**
 * A workplace that decides only while the aggregate is at the expected sequence. A mismatch is a refusal like any other: one by a cached
 * state is checked against the store, and one by events that are not stored yet waits for their commit.
 *
 * After a lost race the command is decided again immediately, because the sequence that won shows that the expectation has failed.
 */
export const expecting = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  id: string,
  expected: number
): CommandContext<State, A, C, E> => ({
  ...workplace,
  decide: (command, root) =>
    root.sequence === expected
      ? workplace.decide(command, root)
      : Exit.fail(unexpected(workplace.definition.name, id, expected, root.sequence)),
  again: Schedule.andThen(Schedule.recurs(1), workplace.again)
})

/**
 * Decides and commits, and again by the `retry` schedule while others come first, or while the store can't be read for a reason
 * that may pass.
 *
 * Commands on one aggregate are decided one at a time, in order of arrival. While others wait, what was decided is not
 * committed yet: the next command is decided on the state that it leads to, and they are committed together. No command returns
 * before the commit, not even a refused one, because the refusal is true only if the state that it was decided on is.
 *
 * Events that a projection handles are never committed with those of another command: projections run in their own caller's fiber.
 */
export const evaluate = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  surroundings: CallContext,
  streamId: string,
  command: C
): Effect.Effect<Outcome<State, A>, Failures<E>> => {
  const { again } = workplace
  let alone = false
  const round = (): Effect.Effect<Outcome<State, A>, Failures<E> | ReadFailed> =>
    Effect.catchAll(decideInTurn(workplace, surroundings, streamId, command, alone), (error) => {
      if (!(error instanceof DecideAlone)) return Effect.fail(error)
      alone = true
      return round()
    })
  // Whatever it takes to try again is set up when there is a reason to.
  return Effect.catchAll(round(), (error) =>
    mayPass(error)
      ? Effect.mapError(retryAfter(error, Effect.suspend(round), again, mayPass), unwrap)
      : Effect.fail(unwrap(error))
  )
}

/**
 * The same beside all turns and kept states, for who holds a turn already (two such could wait for each other for ever) and who is
 * inside a transaction (what it reads may never come to be, and who waits for it may have to wait for its end).
 */
export const evaluateIsolated = <State, A extends Tagged, C, E>(
  { again, clock, commit, decide, definition, store }: CommandContext<State, A, C, E>,
  surroundings: CallContext,
  inTransaction: boolean,
  streamId: string,
  command: C
): Effect.Effect<Outcome<State, A>, Failures<E>> =>
  Effect.suspend(() => {
    let known: Loaded<State> | undefined
    const round = Effect.gen(function* () {
      const read = known === undefined ? load(definition, store, streamId) : refresh(definition, store, known)
      const root: Loaded<State> = yield* inTransaction ? read : mayTryAgain(read)
      known = root
      const decided = yield* decide(command, root)
      if (decided.length === 0) return { root, events: decided }
      const recorded = yield* record(definition, clock, surroundings, root, decided)
      const committing = commit(recorded.events)
      yield* inTransaction ? committing : settleCommit(definition.retry, committing)
      return { root: recorded.root, events: decided }
    })
    return Effect.mapError(retryWhile(round, again, mayPass), unwrap)
  }).pipe(Effect.tap(({ events, root }) => snapshotWhenDue(definition, store, root, events.length)))

/** Takes the aggregate's turn. Whoever gets it has to pass it on by `releaseTurn`, and is not interrupted but where it lets itself be. */
export const inTurn = <State, A extends Tagged, C, E, A2, E2>(
  workplace: CommandContext<State, A, C, E>,
  { clock }: CallContext,
  streamId: string,
  work: (seat: AggregateEntry<State>, restore: Restore) => Effect.Effect<A2, E2>
): Effect.Effect<A2, E2> =>
  Effect.uninterruptibleMask((restore: Restore) => {
    const seat = workplace.seats.at(streamId, clock.unsafeCurrentTimeMillis())
    if (!seat.taken) {
      seat.taken = true
      return work(seat, restore)
    }
    const ticket: Ticket = { holds: false }
    return Effect.matchCauseEffect(restore(waitForTurn(seat, ticket)), {
      onSuccess: () => work(seat, restore),
      onFailure: (cause) =>
        Effect.zipRight(ticket.holds ? releaseTurn(workplace, seat) : Effect.void, Effect.failCause(cause))
    })
  })

/** With the turn in hand: has what others decided committed, and waits for it, whatever comes of it. */
export const untilCommitted = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  seat: AggregateEntry<State>
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { group } = seat
    return group === undefined
      ? Effect.void
      : Effect.zipRight(
          group.sealed ? Effect.void : commitGroup(workplace, seat, group, false),
          Deferred.await(group.done)
        )
  })

// --- internal ---

/** As many events as a group grows to. */
const maxGroup = 1000

/** How long those who have decided wait for one who decides slowly, in milliseconds. */
const patience = 5

/**
 * Reading failed before anything was decided. It is told from a failed commit, since trying that again would be deciding again.
 */
export class ReadFailed extends Data.TaggedError("ReadFailed")<{ readonly error: StoreError | ValidationError }> {}

/** The commit of several failed, maybe through the fault of one: each is to be decided and committed by itself. */
class DecideAlone extends Data.TaggedError("DecideAlone") {}

export const mayPass = (error: unknown): boolean => error instanceof RetryCommand || error instanceof ReadFailed

export const unwrap = <E>(error: E | ReadFailed): E | StoreError | ValidationError =>
  error instanceof ReadFailed ? error.error : error

export const mayTryAgain = <A>(
  read: Effect.Effect<A, ValidationError | StoreError>
): Effect.Effect<A, ValidationError | StoreError | ReadFailed> =>
  Effect.mapError(read, (error) => (isTransient(error) ? new ReadFailed({ error }) : error))

/** What a command was decided on, and what it came to. */
interface Decision<State, A, E> {
  /** The group whose events lead to the state, and are not known to be stored yet. */
  readonly basis: Group<State> | undefined
  readonly exit: Exit.Exit<Recorded<State> & { readonly decided: ReadonlyArray<A> }, E>
}

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** One round: everything between taking the turn and the answer. Interruptible where it waits for others, or for the store. */
const decideInTurn = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  surroundings: CallContext,
  streamId: string,
  command: C,
  alone: boolean
): Effect.Effect<Outcome<State, A>, Failures<E> | ReadFailed | DecideAlone> =>
  inTurn(workplace, surroundings, streamId, (seat, restore) => {
    const follow = (
      decision: Exit.Exit<Decision<State, A, Failures<E>>, Failures<E> | ReadFailed>
    ): Effect.Effect<Outcome<State, A>, Failures<E> | ReadFailed | DecideAlone> =>
      Exit.isSuccess(decision)
        ? conclude(workplace, seat, decision.value, alone, restore)
        : Effect.zipRight(releaseTurn(workplace, seat), Effect.failCause(decision.cause))
    const deciding = called(() => decide(workplace, surroundings, seat, command, alone))
    return isSettled(deciding) ? follow(deciding) : Effect.flatMap(Effect.exit(restore(deciding)), follow)
  })

/** Decides on the newest state there is, with the turn in hand; at once, where it is kept and the handler has to wait for nothing. */
const decide = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  surroundings: CallContext,
  seat: AggregateEntry<State>,
  command: C,
  alone: boolean
): Effect.Effect<Decision<State, A, Failures<E>>, Failures<E> | ReadFailed> => {
  const { clock, definition, store } = workplace

  const decideOn = (
    root: Loaded<State>,
    basis: Group<State> | undefined
  ): Effect.Effect<Decision<State, A, Failures<E>>> => {
    const recorded = called(() =>
      flatMapSync(workplace.decide(command, root), (decided) =>
        decided.length === 0
          ? Exit.succeed({ decided, root, events: [] })
          : flatMapSync(record(definition, clock, surroundings, root, decided), ({ events, root }) =>
              Exit.succeed({ decided, events, root })
            )
      )
    )
    return isSettled(recorded)
      ? Exit.succeed({ basis, exit: recorded })
      : Effect.map(Effect.exit(recorded), (exit) => ({ basis, exit }))
  }

  const again = Effect.suspend(() => decide(workplace, surroundings, seat, command, alone))

  const { group, kept } = seat
  if (group !== undefined) {
    // On nothing that may fall with the others.
    return alone ? Effect.zipRight(untilCommitted(workplace, seat), again) : decideOn(group.root, group)
  }
  if (kept === undefined || seat.stale) {
    const read = kept === undefined ? load(definition, store, seat.streamId) : refresh(definition, store, kept)
    return Effect.flatMap(mayTryAgain(read), (root) => {
      seat.kept = root
      seat.stale = false
      return decideOn(root, undefined)
    })
  }
  return flatMapSync(decideOn(kept, undefined), (decision) => {
    if (!commitsNothing(decision.exit)) return Exit.succeed(decision)
    // Events on an outdated state could not be committed, but nothing would stop a refusal.
    return Effect.flatMap(mayTryAgain(refresh(definition, store, kept)), (root) => {
      if (root === kept) return Exit.succeed(decision)
      seat.kept = root
      return again
    })
  })
}

/** Whether an answer would be given without the store having its say. */
const commitsNothing = (exit: Exit.Exit<{ readonly events: ReadonlyArray<unknown> }, unknown>): boolean =>
  Exit.isSuccess(exit) ? exit.value.events.length === 0 : !Cause.isInterrupted(exit.cause)

/** What follows from a decision: commit it, alone or with others, pass the turn on, answer. */
const conclude = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  seat: AggregateEntry<State>,
  { basis, exit }: Decision<State, A, Failures<E>>,
  alone: boolean,
  restore: Restore
): Effect.Effect<Outcome<State, A>, Failures<E> | DecideAlone> => {
  const outcome = Exit.map(exit, ({ decided, root }): Outcome<State, A> => ({ root, events: decided }))

  if (Exit.isFailure(exit) || exit.value.events.length === 0) {
    // Decided on what is stored, or given up.
    if (basis === undefined || !commitsNothing(exit)) return Effect.zipRight(releaseTurn(workplace, seat), outcome)
    basis.members++
    basis.live++
    return Effect.zipRight(
      basis.sealed ? releaseTurn(workplace, seat) : passOn(workplace, seat, basis, alone),
      answerWith(basis, outcome, restore)
    )
  }

  const { events, root } = exit.value
  const projected = workplace.isProjected(events)
  if (projected && basis?.sealed === false) {
    return Effect.zipRight(
      commitGroup(workplace, seat, basis, false),
      Effect.suspend(() => conclude(workplace, seat, { basis, exit }, alone, restore))
    )
  }
  if (basis?.sealed) {
    // It was sealed while this was decided on it. If it is stored, this is the beginning of the next.
    basis.members++
    basis.live++
    return Effect.flatMap(Effect.exit(answerWith(basis, outcome, restore)), (stored) =>
      Exit.isFailure(stored)
        ? Effect.zipRight(releaseTurn(workplace, seat), Effect.failCause(stored.cause))
        : conclude(workplace, seat, { basis: undefined, exit }, alone, restore)
    )
  }

  if (basis === undefined && (alone || projected || seat.waiting.size === 0)) {
    return Effect.matchCauseEffect(restore(commit(workplace, events)), {
      onFailure: (cause) => {
        stored(seat, root, false)
        return Effect.zipRight(releaseTurn(workplace, seat), Effect.failCause(cause))
      },
      onSuccess: () => {
        stored(seat, root, true)
        const passing = passTurnOn(workplace, seat)
        const answer = isSnapshotDue(workplace.definition, root, events.length)
          ? Effect.zipRight(
              restore(snapshotWhenDue(workplace.definition, workplace.store, root, events.length)),
              outcome
            )
          : outcome
        return passing === undefined ? answer : Effect.zipRight(passing, answer)
      }
    })
  }

  const group = basis ?? {
    root,
    events: [],
    members: 0,
    live: 0,
    sealed: false,
    fiber: undefined,
    done: Deferred.unsafeMake(FiberId.none)
  }
  group.events.push(...events)
  group.root = root
  group.members++
  group.live++
  return Effect.zipRight(passOn(workplace, seat, group, alone), answerWith(group, outcome, restore))
}

/** Lets the next command be decided on an open group, or commits it when there is none. */
const passOn = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  seat: AggregateEntry<State>,
  group: Group<State>,
  alone: boolean
): Effect.Effect<void, never> => {
  if (alone || group.events.length >= maxGroup || !passTurn(seat)) return commitGroup(workplace, seat, group, true)
  if (seat.group === group) return Effect.void
  seat.group = group
  const patiently = liveSleep(patience)
  return Effect.asVoid(
    Effect.forkDaemon(
      Effect.zipRight(
        patiently,
        Effect.suspend(() => (group.sealed ? Effect.void : commitGroup(workplace, seat, group, false)))
      )
    )
  )
}

/**
 * Commits a group in a fiber that belongs to none of its callers; the turn, where it comes along, is passed on afterwards, when those who
 * are answered have had the time to come back with their next: so they go along with those who wait, and do not leave them one commit
 * behind.
 */
const commitGroup = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  seat: AggregateEntry<State>,
  group: Group<State>,
  withTurn: boolean
): Effect.Effect<void, never> =>
  // Once it is sealed its members wait for this fiber: it must come to be.
  Effect.uninterruptible(
    Effect.suspend(() => {
      group.sealed = true
      seat.group = group
      const committing = Effect.onExit(
        Effect.interruptible(group.live > 0 ? commit(workplace, group.events) : Effect.interrupt),
        (exit) => {
          seat.group = undefined
          stored(seat, group.root, Exit.isSuccess(exit))
          return Effect.zipRight(
            withTurn
              ? Effect.forkDaemon(Effect.zipRight(macrotask, releaseTurn(workplace, seat)))
              : Effect.sync(() => workplace.seats.leave(seat)),
            Effect.zipRight(
              Exit.isSuccess(exit)
                ? snapshotWhenDue(workplace.definition, workplace.store, group.root, group.events.length)
                : Effect.void,
              Deferred.succeed(group.done, exit)
            )
          )
        }
      )
      return Effect.map(workplace.forkNeutral(Effect.exit(committing)), (fiber) => {
        group.fiber = fiber
      })
    })
  )

/** Waits until the group is stored, and answers; where it is not, this command fails as the group did, or is decided alone. */
const answerWith = <State, A, E>(
  group: Group<State>,
  outcome: Exit.Exit<Outcome<State, A>, Failures<E>>,
  restore: Restore
): Effect.Effect<Outcome<State, A>, Failures<E> | DecideAlone> =>
  Effect.flatMap(
    Effect.exit(restore(Deferred.await(group.done))),
    (waited): Effect.Effect<Outcome<State, A>, Failures<E> | DecideAlone> => {
      if (Exit.isFailure(waited)) return Effect.zipRight(withdraw(group), Effect.failCause(waited.cause))
      const result = waited.value as Exit.Exit<void, Failures<E>>
      if (Exit.isSuccess(result)) return outcome
      return group.members === 1 || isShared(result.cause) ? Effect.failCause(result.cause) : new DecideAlone()
    }
  )

const withdraw = <State>(group: Group<State>): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (--group.live > 0 || group.fiber === undefined) return Effect.void
    return Effect.zipRight(Fiber.interruptFork(group.fiber), awaitGrace(Deferred.await(group.done)))
  })

/** Whether the failure of a group is that of each of its commands: somebody else came first, or the store is out of reach. */
const isShared = (cause: Cause.Cause<unknown>): boolean =>
  Option.exists(Cause.failureOption(cause), (error) => error instanceof RetryCommand || isTransient(error))

const commit = <State, A extends Tagged, C, E>(
  { commit, definition }: CommandContext<State, A, C, E>,
  events: ReadonlyArray<Event>
): Effect.Effect<void, Failures<E>> => settleCommit(definition.retry, commit(events))

/** Keeps what was stored. After a failure nobody knows what is. */
const stored = <State>(seat: AggregateEntry<State>, root: Loaded<State>, isStored: boolean): void => {
  if (isStored) seat.kept = root
  seat.stale = !isStored
}

/** Gives the turn to the next; where there is none, what was decided so far is committed first. */
export const releaseTurn = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  seat: AggregateEntry<State>
): Effect.Effect<void, never> => Effect.suspend(() => passTurnOn(workplace, seat) ?? Effect.void)

/** The same at once, but for what is left to do. */
const passTurnOn = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  seat: AggregateEntry<State>
): Effect.Effect<void, never> | undefined => {
  if (passTurn(seat)) return undefined
  if (seat.group?.sealed === false) return commitGroup(workplace, seat, seat.group, true)
  seat.taken = false
  workplace.seats.leave(seat)
  return undefined
}
