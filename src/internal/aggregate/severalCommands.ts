/**
 * Commands on several aggregates, in one commit with all their projections. `evaluateAll.ts` calls it.
 *
 * An attempt has the steps of `commandHandler.ts`, each on all aggregates before the next step:
 *
 * 1. Lock: the locks of all aggregates are taken in one order (`lockAll.ts`), and their open batches are committed.
 * 2. Load: the cached states, or those of the store.
 * 3. Decide: command by command, in the order of the list. A command sees the events of the commands before it on its
 *    aggregate. A refusal, or decisions of no events, on a cached state are checked against the store. If that state is
 *    outdated, the other cached states are read, too, so all commands are decided once more at most.
 * 4. Commit: the events in the order of the commands, then the receipts, in one commit (`commitSeveral.ts`).
 * 5. Answer: all states are cached, the locks are released, and snapshots are stored where they are due.
 *
 * `retrying` repeats the attempt after a lost race or a transient failure of a read.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import type { Evaluated } from "../../Aggregate.js"
import type { Event } from "../../Event.js"
import { StoreError, ValidationError } from "../../StoreError.js"
import { DecidingOn } from "../runtime/commandCause.js"
import type { Caller, CommandCall } from "./commandContext.js"
import { retryableRead, retrying } from "./commandRetry.js"
import { commitSeveral } from "./commitSeveral.js"
import { lockAll } from "./lockAll.js"
import type { LockedMember, SeveralLayer } from "./member.js"
import type { RecordedCall } from "./recordEvents.js"
import { type AggregateOfList, atCommandOf, type CommandOfList, failureOf, type SeveralInput } from "./severalInput.js"
import { isHandled, type Received, receiptsFor } from "./severalReceipts.js"

/** One call of `evaluateAll`. */
export interface SeveralCall {
  readonly input: SeveralInput
  readonly caller: Caller
  /** The call of each command, without the command. */
  readonly each: CommandCall<undefined>
  readonly retry: Schedule.Schedule<unknown>
}

/** The results of the commands, in their order. */
export type Answers = ReadonlyArray<Evaluated<unknown, unknown>>

/** Evaluates the commands. */
export const evaluateSeveral = (call: SeveralCall): Effect.Effect<Answers, unknown> =>
  Effect.flatMap(receiptsFor(call.input, call.caller.conditions), (receipts) => {
    const attempt = () => attemptOnce(call, receipts)
    return Effect.flatMap(retrying(call.retry, attempt(), attempt), ({ answers, members }) =>
      Effect.as(
        Effect.forEach(members, ({ locked }) => locked.snapshot, { discard: true }),
        answers
      )
    )
  })

// --- internal ---

/** An aggregate of the list, with its lock. */
interface Member extends AggregateOfList {
  readonly locked: LockedMember
}

/** A command that is decided, and the member of its aggregate. */
interface Step extends CommandOfList {
  readonly locked: LockedMember
}

interface Attempted {
  readonly answers: Answers
  /** The aggregates that may need a snapshot. */
  readonly members: ReadonlyArray<Member>
}

interface Decisions {
  readonly answers: Answers
  readonly decided: ReadonlyArray<Decided>
  /** What the events were recorded with. */
  readonly recorded: RecordedCall
}

/** An event, and the command that it is of. */
interface Decided {
  readonly event: Event
  readonly by: CommandOfList
}

const attemptOnce = (
  call: SeveralCall,
  receipts: ReadonlyArray<Received> | undefined
): Effect.Effect<Attempted, unknown> => {
  const { caller, each, input } = call
  return lockAll(
    input.aggregates.map(({ id, layer }) => layer.member(caller, each.clock, id)),
    (all) => {
      const members = input.aggregates.flatMap((aggregate, place) => {
        const locked = all[place]
        return locked === undefined ? [] : [{ ...aggregate, locked }]
      })
      const handling = decideAndCommit(call, members, receipts)
      return Effect.zipRight(
        loadAll(call, all, receipts !== undefined),
        receipts === undefined
          ? handling
          : Effect.catchAllCause(handling, (cause) => resolveDuplicate(call, members, receipts, cause))
      )
    }
  )
}

/** Step 2. A transaction has one connection, so there the states are read one after the other. */
const loadAll = (
  { caller }: SeveralCall,
  members: ReadonlyArray<LockedMember>,
  readsAll: boolean
): Effect.Effect<void, unknown> =>
  Effect.gen(function* () {
    // All open batches are committed concurrently.
    for (const member of members) member.closeBatch()
    for (const member of members) yield* member.flush
    yield* readAll(
      caller,
      members.filter((member) => readsAll || !member.useCached())
    )
  })

/** Reads the states. Returns for each whether it is another one than the state that was decided on. */
const readAll = (
  { isInTransaction }: Caller,
  members: ReadonlyArray<LockedMember>
): Effect.Effect<ReadonlyArray<boolean>, unknown> =>
  Effect.forEach(members, ({ read }) => read, { concurrency: isInTransaction ? 1 : maxReads })

/** Steps 3 and 4. */
const decideAndCommit = (
  call: SeveralCall,
  members: ReadonlyArray<Member>,
  receipts: ReadonlyArray<Received> | undefined
): Effect.Effect<Attempted, unknown> =>
  Effect.gen(function* () {
    const { answers, decided, recorded } = yield* decideAll(call, members)
    const made = receipts === undefined ? [] : yield* makeReceipts(members, receipts, recorded, decided[0]?.event)
    yield* Effect.onExit(commit(call, [...decided, ...made], receipts), (exit) =>
      Effect.sync(() => {
        for (const { locked } of members) {
          if (Exit.isSuccess(exit)) locked.stored()
          else locked.failed()
        }
      })
    )
    return { answers, members }
  })

/** Step 3. All commands belong to one chain, and are decided again if an outdated state was decided on. */
const decideAll = (call: SeveralCall, members: ReadonlyArray<Member>): Effect.Effect<Decisions, unknown> =>
  Effect.suspend(() => {
    const { caller, each } = call
    const chain = each.chain ?? { correlationId: undefined, causationId: undefined }
    const streams = [...caller.decision.streams, ...members.map(({ streamId }) => streamId)]
    return Effect.flatMap(
      Effect.provideService(decideOnce(caller, { ...each, chain }, members), DecidingOn, { streams, chain }),
      (decisions) => (decisions === undefined ? decideAll(call, members) : Effect.succeed(decisions))
    )
  })

/**
 * Decides the commands. Returns `undefined` if that was on an outdated state. Then all states have been read, and the next
 * call returns decisions.
 */
const decideOnce = (
  caller: Caller,
  recorded: CommandCall<undefined>,
  members: ReadonlyArray<Member>
): Effect.Effect<Decisions | undefined, unknown> =>
  Effect.gen(function* () {
    const answers: Array<Evaluated<unknown, unknown>> = []
    const decided: Array<Decided> = []
    const all = members.map(({ locked }) => locked)
    for (const member of all) member.restart()
    for (const step of stepsOf(members)) {
      const { command, id, locked } = step
      const exit = yield* Effect.exit(locked.decide({ ...recorded, id, command }, step))
      if (Exit.isFailure(exit)) {
        if (!Cause.isInterrupted(exit.cause) && (yield* isAnyOutdated(caller, [locked], all))) return undefined
        return yield* Effect.failCause(Cause.map(exit.cause, (error) => failureOf(step, error)))
      }
      answers.push(exit.value.answer)
      for (const event of exit.value.events) decided.push({ event, by: step })
    }
    // The store refuses events on an outdated state, but it does not see a decision of no events.
    const withoutEvents = all.filter((member) => !member.hasEvents())
    return (yield* isAnyOutdated(caller, withoutEvents, all)) ? undefined : { answers, decided, recorded }
  })

/** The commands of all members, in the order of the list. */
const stepsOf = (members: ReadonlyArray<Member>): ReadonlyArray<Step> =>
  members
    .flatMap(({ commands, locked }) => commands.map((command) => ({ ...command, locked })))
    .sort((a, b) => a.index - b.index)

/**
 * Whether a cached state that one of the members decided on is not the one of the store. Then the cached states of all
 * others are read, too.
 */
const isAnyOutdated = (
  caller: Caller,
  members: ReadonlyArray<LockedMember>,
  all: ReadonlyArray<LockedMember>
): Effect.Effect<boolean, unknown> => {
  const readCached = (some: ReadonlyArray<LockedMember>) =>
    readAll(
      caller,
      some.filter(({ isCached }) => isCached())
    )
  return Effect.flatMap(readCached(members), (areOther) =>
    areOther.includes(true) ? Effect.as(readCached(all), true) : Effect.succeed(false)
  )
}

const makeReceipts = (
  members: ReadonlyArray<Member>,
  receipts: ReadonlyArray<Received>,
  recorded: RecordedCall,
  firstEvent: Event | undefined
): Effect.Effect<ReadonlyArray<Decided>> =>
  Effect.map(
    Effect.forEach(members, ({ first, locked }, place) => {
      const receipt = receipts[place]
      return receipt === undefined
        ? Effect.succeed([])
        : Effect.map(locked.receipt(receipt.key, recorded, firstEvent?.timestamp), (event) => [{ event, by: first }])
    }),
    (made) => made.flat()
  )

/** Step 4. */
const commit = (
  { caller, input, retry }: SeveralCall,
  decided: ReadonlyArray<Decided>,
  receipts: ReadonlyArray<Received> | undefined
): Effect.Effect<void, unknown> => {
  const [first] = decided
  if (first === undefined) return Effect.void
  const by = (failedAt: Event | undefined): CommandOfList =>
    decided.find(({ event }) => event.aggregateId === failedAt?.aggregateId && event.sequence === failedAt.sequence)
      ?.by ?? first.by
  return commitSeveral(
    decided.map(({ event }) => event),
    input.store,
    streamsByLayer(input, receipts),
    {
      isInTransaction: caller.isInTransaction,
      retry,
      onFailure: (error, failedAt) =>
        // No projection has failed, so the store has refused the events.
        failedAt === undefined && error instanceof ValidationError
          ? atCommandOf(decided, error)
          : failureOf(by(failedAt), error)
    }
  )
}

/** The layers in the order of their first commands, each with the streams that its projections handle. */
const streamsByLayer = (
  { aggregates }: SeveralInput,
  receipts: ReadonlyArray<Received> | undefined
): ReadonlyMap<SeveralLayer, ReadonlySet<string>> => {
  const streams = new Map<SeveralLayer, Set<string>>()
  for (const [place, { layer, streamId }] of aggregates.entries()) {
    const own = streams.get(layer) ?? new Set()
    streams.set(layer, own)
    own.add(streamId)
    const receipt = receipts?.[place]
    if (receipt !== undefined) own.add(receipt.key.id)
  }
  return streams
}

/** Finds out what a failed attempt means: a duplicate, an id that belongs to another command, or the failure itself. */
const resolveDuplicate = (
  { caller, input }: SeveralCall,
  members: ReadonlyArray<Member>,
  receipts: ReadonlyArray<Received>,
  cause: Cause.Cause<unknown>
): Effect.Effect<Attempted, unknown> => {
  const failed = Effect.failCause(cause)
  // The receipts can't be read from a store that fails, and an interruption must not wait for them.
  if (Cause.isInterrupted(cause) || Option.getOrUndefined(Cause.failureOption(cause)) instanceof StoreError) {
    return failed
  }
  const getEvents = (id: string) => {
    const reading = input.store.getEvents(id, 1)
    // In a transaction that the failure has aborted no read succeeds, and nothing will be stored.
    return caller.isInTransaction ? Effect.orElseSucceed(reading, () => []) : retryableRead(reading)
  }
  return Effect.flatMap(isHandled(receipts, getEvents), (handled) =>
    handled
      ? Effect.map(
          readAll(
            caller,
            members.map(({ locked }) => locked)
          ),
          () => ({ answers: stepsOf(members).map(({ locked }) => locked.duplicate()), members: [] })
        )
      : failed
  )
}

/** How many states one call reads concurrently. More would take the connections that other callers need. */
const maxReads = 4
