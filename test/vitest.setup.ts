/** Between tests a worker yields to the event loop, because vitest fails if a worker reads no message for a minute. */
import { setImmediate } from "node:timers/promises"
import { afterEach } from "vitest"

afterEach(() => setImmediate())
