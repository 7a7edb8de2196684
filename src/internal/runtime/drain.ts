/**
 * Work that is accepted until a scope closes, and ends before it is closed. The append batcher uses it.
 *
 * It is `closing` while accepted work goes on, and `closed` when that has ended, or has taken too long.
 */
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import { awaitAtMost } from "./interruption.js"

export class Drain {
  phase: "open" | "closing" | "closed" = "open"
  private going = 0
  private readonly drained = Deferred.unsafeMake<void>(FiberId.none)

  begin(): void {
    this.going++
  }

  end(count = 1): void {
    this.going -= count
    if (this.phase === "closing" && this.going === 0) Deferred.unsafeDone(this.drained, Effect.void)
  }

  /** Waits for the end of the work for a time at most. */
  readonly close = (time: Duration.DurationInput): Effect.Effect<void> =>
    Effect.suspend(() => {
      this.phase = "closing"
      this.end(0)
      return Effect.map(awaitAtMost(time, Deferred.await(this.drained)), () => {
        this.phase = "closed"
      })
    })
}
