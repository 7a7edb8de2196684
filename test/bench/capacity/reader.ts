/** A process that reads a whole log by a subscription, and reports its time and its memory. `reading.ts` starts it. */
import { randomUUID } from "node:crypto"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { Subscription } from "effect-maestro"
import { layerOn } from "./log.js"
import type { Reading } from "./reading.js"

const [, , url = "", count = ""] = process.argv
const events = Number(count)

const highest = { rss: 0, heap: 0 }
const look = (): void => {
  const { heapUsed, rss } = process.memoryUsage()
  highest.rss = Math.max(highest.rss, rss)
  highest.heap = Math.max(highest.heap, heapUsed)
}

const reading = Effect.gen(function* () {
  let seen = 0
  const all = yield* Deferred.make<void>()
  const Count = Subscription.make(`count ${randomUUID()}`, {
    batchSize: 5000,
    handleBatch: (batch) => {
      seen += batch.length
      look()
      return seen >= events ? Deferred.succeed(all, undefined) : Effect.void
    }
  })
  const { rss: before } = process.memoryUsage()
  const began = performance.now()
  yield* Effect.raceFirst(Count.run, Deferred.await(all))
  const seconds = (performance.now() - began) / 1000
  const result: Reading = { events: seen, seconds, before, rss: highest.rss, heap: highest.heap }
  yield* Effect.async<void>((resume) => void process.send?.(result, () => resume(Effect.void)))
})

await Effect.runPromise(Effect.provide(reading, layerOn(url, { migrate: false })))
process.disconnect()
