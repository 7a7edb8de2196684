/**
 * The types of tests with random sequences of commands.
 */
import type * as FastCheck from "effect/FastCheck"

/** Random sequences of commands, and what they must not break. Each method throws with the shortest sequence found. */
export interface Sequences<State> {
  /**
   * The invariant holds for the initial state, and for each state that the commands lead to. It is broken where the
   * function returns `false` or throws. Refused commands change nothing, and do not count. A function that returns a
   * promise or an effect fails.
   */
  // biome-ignore lint/suspicious/noConfusingVoidType: a function with assertions returns nothing
  readonly keepInvariant: (invariant: (state: State) => boolean | void) => void
  /** The state after each command is the one that its events lead to when they are loaded. */
  readonly replayToSameState: () => void
  /** A snapshot of each state can be stored, and restores that state. */
  readonly restoreFromSnapshots: () => void
}

/** The options of random sequences of commands. */
export interface SequenceOptions<C> {
  /** How many sequences are tried, at least one: 100 by default. */
  readonly runs?: number | undefined
  /** The longest sequence, of at least one command: 20 by default. */
  readonly maxLength?: number | undefined
  /** The seed of the random sequences, a whole number. Drawn by default, and printed in the failure. */
  readonly seed?: number | undefined
  /** Makes the commands. By default it is the `Arbitrary` of their schema. */
  readonly commands?: FastCheck.Arbitrary<C> | undefined
}
