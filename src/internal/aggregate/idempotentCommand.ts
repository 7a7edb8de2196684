/**
 * The way of a command that has an id: it takes effect once, and whoever comes again with the same id is told so.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { CommandIdReused, StoreError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { retryWhile, settleCommit } from "../runtime/retry.js"
import {
  type CallContext,
  type CommandContext,
  type Failures,
  inTurn,
  mayPass,
  mayTryAgain,
  type Outcome,
  type ReadFailed,
  releaseTurn,
  untilCommitted,
  unwrap
} from "./commandHandler.js"
import { type Loaded, load, refresh } from "./loadState.js"
import { isReceiptOfAnother, makeReceipt, type ReceiptKey, receiptKey } from "./receipt.js"
import { record } from "./recordEvents.js"
import { snapshotWhenDue } from "./takeSnapshot.js"

/**
 * Decides on what is stored, and commits the events with a receipt. Whatever stands against that (the receipt of an earlier time, a conflict, a
 * refusal by a state in which the command has taken effect) is looked at in the light of the receipt before it is answered.
 *
 * Such commands take their aggregate's turn, unless they are to be apart, but they share no commit: one whose receipt is
 * there already would take all others down with it.
 */
export const evaluateIdempotent = <State, A extends Tagged, C, E>(
  workplace: CommandContext<State, A, C, E>,
  surroundings: CallContext,
  where: Where,
  streamId: string,
  command: C,
  commandId: unknown
): Effect.Effect<Outcome<State, A>, Failures<E>> =>
  Effect.flatMap(receiptKey(workplace.definition.name, streamId, commandId, workplace.digest(command)), (place) => {
    const { definition, again, store } = workplace
    let known: Loaded<State> | undefined

    const round = (kept: Loaded<State> | undefined) =>
      Effect.gen(function* () {
        const before = kept ?? known
        const read = before === undefined ? load(definition, store, streamId) : refresh(definition, store, before)
        const root = yield* where.inside ? read : mayTryAgain(read)
        known = root
        // A handler may die because the command has taken effect already. `judge` hands back interruptions as they are.
        return yield* Effect.catchAllCause(attempt(workplace, surroundings, where, root, command, place), (cause) =>
          judge(workplace, where, root, place, cause)
        )
      })

    const roundInTurn = inTurn(workplace, surroundings, streamId, (seat, restore) =>
      Effect.flatMap(
        Effect.exit(
          restore(
            Effect.zipRight(
              untilCommitted(workplace, seat),
              Effect.suspend(() => round(seat.kept))
            )
          )
        ),
        (exit) => {
          // After a failure nobody knows what is stored.
          if (Exit.isSuccess(exit)) seat.kept = exit.value.root
          seat.stale = Exit.isFailure(exit)
          return Effect.zipRight(releaseTurn(workplace, seat), exit)
        }
      )
    )

    return Effect.mapError(
      retryWhile(where.apart ? Effect.suspend(() => round(undefined)) : roundInTurn, again, mayPass),
      unwrap
    ).pipe(Effect.tap(({ events, root }) => snapshotWhenDue(definition, store, root, events.length)))
  })

/** Whether the command is evaluated beside all turns and kept states, and whether that is because of a transaction around it. */
interface Where {
  readonly apart: boolean
  readonly inside: boolean
}

// --- internal ---

const attempt = <State, A extends Tagged, C, E>(
  { clock, commit, decide, definition }: CommandContext<State, A, C, E>,
  surroundings: CallContext,
  { inside }: Where,
  root: Loaded<State>,
  command: C,
  place: ReceiptKey
): Effect.Effect<Outcome<State, A>, Failures<E>> =>
  Effect.gen(function* () {
    const decided = yield* decide(command, root)
    const recorded = yield* record(definition, clock, surroundings, root, decided)
    const receipt = yield* makeReceipt(clock, place, recorded.root.sequence)
    const committing = commit([...recorded.events, receipt])
    yield* inside ? committing : settleCommit(definition.retry, committing)
    return { root: recorded.root, events: decided }
  })

/** What a failed attempt means: that the command has been handled before, that its id belongs to another, or what the attempt says. */
const judge = <State, A extends Tagged, C, E>(
  { definition, store }: CommandContext<State, A, C, E>,
  { inside }: Where,
  root: Loaded<State>,
  place: ReceiptKey,
  cause: Cause.Cause<Failures<E>>
): Effect.Effect<Outcome<State, A>, Failures<E> | ReadFailed> => {
  const failed = Effect.failCause(cause)
  // A store that fails says nothing about the command, and would not say more.
  if (Cause.isInterrupted(cause) || Option.getOrUndefined(Cause.failureOption(cause)) instanceof StoreError)
    return failed
  const receipts = store.getEvents(place.id, 1)
  return Effect.flatMap(
    // In a transaction that the failure has spoiled nothing can be read, and nothing will be stored.
    inside ? Effect.catchAll(receipts, () => Effect.succeed([])) : mayTryAgain(receipts),
    ([receipt]): Effect.Effect<Outcome<State, A>, Failures<E> | ReadFailed> => {
      if (receipt === undefined) return failed
      if (isReceiptOfAnother(place, receipt)) {
        return new CommandIdReused({ kind: place.aggregate, id: root.id, commandId: place.commandId })
      }
      const current = refresh(definition, store, root)
      return Effect.map(inside ? current : mayTryAgain(current), (now) => ({ root: now, events: [], duplicate: true }))
    }
  )
}
