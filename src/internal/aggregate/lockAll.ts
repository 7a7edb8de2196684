/**
 * Takes the locks of several aggregates. `severalCommands.ts` calls it.
 *
 * The locks are taken one after the other, in the order of the stream ids. So two calls never wait for each other. A
 * command on a single aggregate waits for no other lock while it holds its own.
 */
import * as Effect from "effect/Effect"

/** An aggregate that can be locked. */
export interface Lockable<out Locked> {
  readonly streamId: string
  /** Runs the work with the lock, and releases the lock at every end of the work. */
  readonly withLock: <A, E>(work: (locked: Locked) => Effect.Effect<A, E>) => Effect.Effect<A, E>
}

/**
 * Runs the work with all locks. It receives what is locked in the order of the list. An interruption while a lock is
 * awaited releases the locks that were taken before.
 */
export const lockAll = <Locked, A, E>(
  lockables: ReadonlyArray<Lockable<Locked>>,
  work: (locked: ReadonlyArray<Locked>) => Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.suspend(() => {
    // The last is taken next.
    const waiting = lockables
      .map((lockable, place) => ({ lockable, place }))
      .sort((a, b) => (a.lockable.streamId < b.lockable.streamId ? 1 : -1))
    const held: Array<{ readonly locked: Locked; readonly place: number }> = []
    const lockNext = (): Effect.Effect<A, E> => {
      const next = waiting.pop()
      if (next === undefined) return work(held.sort((a, b) => a.place - b.place).map(({ locked }) => locked))
      return next.lockable.withLock((locked) => {
        held.push({ locked, place: next.place })
        return lockNext()
      })
    }
    return lockNext()
  })
