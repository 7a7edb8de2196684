/**
 * The parts that the cases of both contracts are made of: records, projections, and checks of results.
 */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import type { Snapshot } from "../../Snapshot.js"
import type { Capability, Case } from "../../StoreContract.js"
import { HybridClock } from "../../Timestamp.js"

export type { Case } from "../../StoreContract.js"

/** The options of a contract, with their defaults. */
export interface Settings<C extends string = Capability> {
  readonly lacks: ReadonlyArray<C>
  /** The number of random inputs of a property test. */
  readonly runs: number
  /** The seed of the random inputs. Without one it is drawn, and printed on failure. */
  readonly seed: number | undefined
}

export const test = <R, C extends string = never>(
  name: string,
  run: () => Effect.Effect<void, unknown, R>,
  needs?: C
): Case<R, C> => ({
  name,
  needs,
  // On the live clock, because a store may sleep. Without a log, because many projections of the cases fail on purpose.
  run: Logger.withMinimumLogLevel(onRealClock(Effect.suspend(run)), LogLevel.None)
})

// --- records ---

/** A random id, because a store may still have the records of earlier runs. */
export const newId = (): string => crypto.randomUUID()

export const event = (
  aggregateId: string,
  sequence: number,
  fields: Partial<Omit<Event, "timestamp" | "aggregateId" | "sequence">> = {}
): Effect.Effect<Event> =>
  Effect.gen(function* () {
    const { now } = yield* HybridClock
    return {
      timestamp: yield* now,
      aggregateId,
      sequence,
      type: "Happened",
      version: 1,
      body: { amount: sequence, text: `event ${sequence}` },
      metadata: { test: "Test" },
      ...fields
    }
  })

export const stream = (aggregateId: string, first: number, length: number): Effect.Effect<ReadonlyArray<Event>> =>
  Effect.forEach(
    Arr.makeBy(length, (index) => first + index),
    (sequence) => event(aggregateId, sequence)
  )

export const snapshot = (aggregateId: string, sequence: number): Effect.Effect<Snapshot> =>
  Effect.gen(function* () {
    const { now } = yield* HybridClock
    return {
      timestamp: yield* now,
      aggregateId,
      sequence,
      body: { state: { total: sequence } },
      metadata: { version: 1 }
    }
  })

export const idOf = (events: ReadonlyArray<Event>): string => {
  const [first] = events
  if (first === undefined) throw new Error("the case has no events")
  return first.aggregateId
}

/** Changes a value at every depth, except frozen parts. */
export const deface = (value: unknown): void => {
  if (typeof value !== "object" || value === null) return
  for (const key of Object.keys(value)) {
    deface(Reflect.get(value, key))
    // Unlike an assignment it does not throw where the object is frozen.
    Reflect.set(value, key, "changed")
  }
  Reflect.set(value, "added", "changed")
}

/** Two streams in one commit, their events alternating. */
export const mixed = (a: ReadonlyArray<Event>, b: ReadonlyArray<Event>): ReadonlyArray<Event> =>
  Arr.makeBy(Math.max(a.length, b.length), (index) => [a[index], b[index]])
    .flat()
    .filter((one) => one !== undefined)

// --- projections ---

export const recording = (ran: Array<string>): Projection => ({
  name: "recording",
  project: (one) => Effect.sync(() => ran.push(`${one.aggregateId} ${one.sequence}`))
})

export const passing: Projection = { name: "passing", project: () => Effect.yieldNow() }

/** A projection that runs one effect for every event. */
export const projecting = <E>(effect: Effect.Effect<unknown, E>): Projection<E> => ({
  name: "projecting",
  project: () => effect
})

// --- results ---

/** The typed failure of an exit, if it has one. */
export const failureOf = (exit: Exit.Exit<unknown, unknown>): unknown =>
  Exit.isFailure(exit) ? Option.getOrUndefined(Cause.failureOption(exit.cause)) : undefined

/** The error of a case that needs a client for the caller's transaction, where the layer has none. */
export const noSqlClient = (): Error =>
  new Error(`the layer provides no SqlClient: give the suite \`lacks: ["callerTransaction"]\`, or a layer with one`)

/** Fails unless both are the same JSON: the same values, the same order of keys, the same sign of -0. */
export const expectExactly = (actual: unknown, expected: unknown): void => {
  const [found, wanted] = [exactly(actual), exactly(expected)]
  if (found === wanted) return
  // A diff of megabytes would take longer than the test.
  let place = 0
  while (found[place] === wanted[place]) place++
  const around = (text: string) => text.slice(Math.max(0, place - 100), place + 100)
  throw new Error(`at character ${place} there is\n${around(found)}\ninstead of\n${around(wanted)}`)
}

/** The JSON text of a value, with the sign of -0. */
const exactly = (value: unknown): string => {
  if (Array.isArray(value)) return `[${value.map(exactly).join()}]`
  if (typeof value !== "object" || value === null) return Object.is(value, -0) ? "-0" : `${JSON.stringify(value)}`
  return `{${Object.entries(value).map(([key, inner]) => `${JSON.stringify(key)}:${exactly(inner)}`)}}`
}

/** The value as a store returns it: plain objects and lists, with the sign of -0. */
export const asJson = (value: unknown): unknown =>
  Array.isArray(value)
    ? value.map(asJson)
    : typeof value === "object" && value !== null
      ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, asJson(inner)]))
      : value

// --- running ---

/** Waits for the next turn of the event loop, in which timers and sockets are served. */
export const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** Runs the effect on the live clock, because no test clock drives the waits of a store. */
export const onRealClock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(effect, Clock.make())

/** Checks random inputs. On failure fast-check prints the seed and the smallest input that fails. */
export const everyCase = <A, E, R>(
  settings: Pick<Settings, "runs" | "seed">,
  inputs: FastCheck.Arbitrary<A>,
  check: (input: A) => Effect.Effect<void, E, R>,
  runs: number = settings.runs
): Effect.Effect<void, never, R> =>
  Effect.flatMap(Effect.runtime<R>(), (runtime) =>
    Effect.promise((signal) =>
      FastCheck.assert(
        FastCheck.asyncProperty(inputs, async (input) => {
          if (signal.aborted) return
          // The test runner needs the event loop between inputs: vitest fails where a worker is busy for a minute.
          await Effect.runPromise(Effect.provide(Effect.zipLeft(check(input), macrotask), runtime), { signal })
        }),
        { numRuns: runs, ...(settings.seed === undefined ? {} : { seed: settings.seed }) }
      )
    )
  )
