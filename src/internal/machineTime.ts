/**
 * The time of the machine, whatever clock the program has: for what waits for a database, or for the end of a process.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

export const machineClock: Clock.Clock = Clock.make()

/** Runs the effect by the machine's clock. */
export const onMachineTime = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(effect, machineClock)

/** Sleeps for so many milliseconds of the machine's time. */
export const machineSleep = (millis: number): Effect.Effect<void> => onMachineTime(Effect.sleep(millis))
