/**
 * The result of a command, and its short form. `Aggregate.ts` exports both types.
 */
import type { StreamPosition } from "../../EventFeed.js"

/**
 * The result of a command with `reply: "position"`: where the aggregate is after it. It has no state and no events.
 */
export interface Acknowledged {
  /** The sequence after the events of the command. */
  readonly sequence: number
  /**
   * The aggregate's id and sequence. Give it to `Subscription.waitFor` to read your own write in a table that a subscription writes. It is
   * plain JSON, so another node may wait for it, too.
   */
  readonly position: StreamPosition
  /**
   * Whether the aggregate handled the command of this id before (`withCommandId`). Then there are no events, and the state is the current
   * one. Always `false` for a command without an id.
   */
  readonly duplicate: boolean
}

/**
 * The result of a command: its events, and the state and the sequence after them.
 */
export interface Evaluated<out State, out A> extends Acknowledged {
  readonly state: State
  /** The events as the handler returned them. (The state is folded from their stored form, decoded again, as in every load.) */
  readonly events: ReadonlyArray<A>
}

/** The value of the option `reply`. */
export type Reply = "position"

/** The short form of a result: a new object, so that it keeps neither the state nor the events in memory. */
export const acknowledgedOf = ({ duplicate, position, sequence }: Acknowledged): Acknowledged => ({
  sequence,
  position,
  duplicate
})
