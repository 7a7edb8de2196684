/**
 * The turn of a consumer: when its partition is to be given up, which happens between two batches. `shares.ts` asks for
 * it, and the consumer looks at it before each batch.
 *
 * It is no interruption of the batch, because that is bounded by `shutdown`, and a batch may take longer.
 */
import * as Effect from "effect/Effect"
import { order, type Page, type Position } from "../../EventFeed.js"

/** Only synchronous code reads and sets the flags. */
export interface Turn {
  /** The position up to which the consumer works, before the number of partitions changes; undefined without an end. */
  readonly until: Position | undefined
  /** Whether the consumer is to end before its next batch. It never becomes false again. */
  isOver: boolean
  /** Whether a batch is under way. Otherwise an interruption ends the consumer between two batches. */
  isHandling: boolean
}

export const makeTurn = (until?: Position): Turn => ({ until, isOver: false, isHandling: false })

/** The part of a page that is in the turn. */
export const withinTurn = ({ until }: Turn, page: Page): Page =>
  until === undefined || order(page.position, until) < 0
    ? page
    : {
        events: page.events.filter(({ position }) => order(position, until) <= 0),
        position: until,
        more: false
      }

/** Ends the turn if its consumer has reached the position up to which it works. */
export const endAt = (turn: Turn, position: Position): void => {
  if (turn.until !== undefined && order(position, turn.until) >= 0) turn.isOver = true
}

/** Runs a batch. It returns without it if the turn is over. */
export const duringTurn = <E, R>(turn: Turn, batch: Effect.Effect<void, E, R>): Effect.Effect<void, E, R> =>
  Effect.suspend(() => {
    if (turn.isOver) return Effect.void
    turn.isHandling = true
    return Effect.ensuring(
      batch,
      Effect.sync(() => {
        turn.isHandling = false
      })
    )
  })

/** Waits within a batch, between two attempts. The consumer may be ended then, and must look at the turn afterwards. */
export const outsideOfTurn = <A>(turn: Turn, wait: Effect.Effect<A>): Effect.Effect<A> =>
  Effect.suspend(() => {
    turn.isHandling = false
    return Effect.tap(wait, () =>
      Effect.sync(() => {
        turn.isHandling = !turn.isOver
      })
    )
  })
