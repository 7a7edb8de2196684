/**
 * Runs before each file, because the files of a worker share their modules.
 *
 * `layer` of `@effect/vitest` writes the methods for its layer into the `it` that all files import. Without the
 * assignment below, `it.layer` of the next file would build its layer on the one of the previous file.
 */
import { setImmediate } from "node:timers/promises"
import { effect, flakyTest, it, layer, live, prop, scoped, scopedLive } from "@effect/vitest"
import { afterEach } from "vitest"

Object.assign(it, { effect, flakyTest, layer, live, prop, scoped, scopedLive })

// Yields to the event loop, because vitest fails if a worker reads no message for a minute.
afterEach(() => setImmediate())
