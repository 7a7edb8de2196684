/**
 * The errors of subscriptions. `Subscription` exports them.
 */
import * as Schema from "effect/Schema"

/**
 * A subscription stopped before an event that it could not handle, until `resume`.
 */
export class SubscriptionStopped extends Schema.TaggedError<SubscriptionStopped>("effect-maestro/SubscriptionStopped")(
  "SubscriptionStopped",
  {
    subscription: Schema.String,
    partition: Schema.Number,
    aggregateId: Schema.String,
    sequence: Schema.Number,
    type: Schema.String,
    /** What the handler failed with, as text. */
    error: Schema.String,
    attempts: Schema.Number
  }
) {
  override get message(): string {
    return `subscription ${JSON.stringify(this.subscription)} stopped at event ${this.sequence} of aggregate ${JSON.stringify(this.aggregateId)}, of type ${JSON.stringify(this.type)}, after ${this.attempts} ${this.attempts === 1 ? "attempt" : "attempts"}: ${this.error}`
  }
}

/**
 * A subscription had not reached a position within the timeout of `waitFor`.
 */
export class NotReached extends Schema.TaggedError<NotReached>("effect-maestro/NotReached")("NotReached", {
  subscription: Schema.String,
  position: Schema.String,
  /**
   * - `Behind`: it runs, and needs more time. With `failure`, it retries that event.
   * - `Idle`: no process runs it, or one of its partitions.
   * - `Stopped`: it has stopped, at the event of `failure`, and waits for `resume`.
   * - `NeverRun`: no subscription of that name has run on this store.
   */
  reason: Schema.Literal("Behind", "Idle", "Stopped", "NeverRun"),
  /** The event before which it stopped, or which it retries, and the last failure. */
  failure: Schema.optional(
    Schema.Struct({
      aggregateId: Schema.String,
      sequence: Schema.Number,
      type: Schema.String,
      error: Schema.String,
      attempts: Schema.Number
    })
  )
}) {
  override get message(): string {
    const name = JSON.stringify(this.subscription)
    const event =
      this.failure &&
      `event ${this.failure.sequence} of aggregate ${JSON.stringify(this.failure.aggregateId)}, of type ${JSON.stringify(this.failure.type)}`
    const error = this.failure?.error.split("\n")[0]
    const why = {
      Behind:
        this.failure === undefined
          ? "it is at work"
          : `it retries ${event}, because attempt ${this.failure.attempts} failed: ${error}`,
      Idle: "no process runs it, or one of its partitions",
      Stopped: this.failure === undefined ? "it has stopped" : `it has stopped at ${event}: ${error}`,
      NeverRun: "no subscription of that name has run"
    }[this.reason]
    return `subscription ${name} has not reached position ${this.position} in time: ${why}`
  }
}
