/**
 * One at a time for each key, in order of arrival; nothing is kept for a key that nobody uses.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"

export interface Turns {
  readonly take: (key: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

export const makeTurns = (): Turns => {
  const entries = new Map<string, { readonly semaphore: Effect.Semaphore; users: number }>()
  return {
    take: (key) => (effect) =>
      Effect.flatMap(HoldsTurn, (holds) =>
        // Who holds a turn already takes no second one: two such could wait for each other for ever.
        holds
          ? effect
          : Effect.acquireUseRelease(
              Effect.sync(() => {
                const entry = entries.get(key) ?? { semaphore: Effect.unsafeMakeSemaphore(1), users: 0 }
                entry.users++
                entries.set(key, entry)
                return entry
              }),
              ({ semaphore }) => semaphore.withPermits(1)(Effect.provideService(effect, HoldsTurn, true)),
              (entry) =>
                Effect.sync(() => {
                  entry.users--
                  if (entry.users === 0) entries.delete(key)
                })
            )
      )
  }
}

/** Whether this fiber holds a turn. */
export class HoldsTurn extends Context.Reference<HoldsTurn>()("effect-maestro/internal/HoldsTurn", {
  defaultValue: () => false
}) {}
