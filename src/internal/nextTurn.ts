/**
 * The next turn of the event loop: what others have made ready to leave has left by then.
 */
import * as Effect from "effect/Effect"

export const soon = (go: () => void): unknown =>
  typeof setImmediate === "function" ? setImmediate(go) : setTimeout(go, 0)

export const nextTurn: Effect.Effect<void> = Effect.async((resume) => {
  soon(() => resume(Effect.void))
})
