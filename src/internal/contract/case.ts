/**
 * What the cases of the contract are, and what they are made of.
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
import type { StoreAdapter } from "../../StoreAdapter.js"
import { HybridClock } from "../../Timestamp.js"

/** What an adapter may lack. Documented at `StoreContract.Capability`. */
export type Capability = "callerTransaction" | "concurrentReads"

/** A sentence of a contract: of which ports `R`, and what a store may lack of `C`. */
export interface Case<R = StoreAdapter, C extends string = Capability> {
  readonly name: string
  /** Not to be run for a store that lacks this. */
  readonly needs: C | undefined
  readonly run: Effect.Effect<void, unknown, R>
}

/** How the cases are to be run. */
export interface Settings<C extends string = Capability> {
  readonly lacks: ReadonlyArray<C>
  /** How many random inputs a property test tries. */
  readonly runs: number
  /** Of the random inputs; drawn, and printed on failure, where there is none. */
  readonly seed: number | undefined
}

export const test = <R, C extends string = never>(
  name: string,
  run: () => Effect.Effect<void, unknown, R>,
  needs?: C
): Case<R, C> => ({
  name,
  needs,
  // A store may sleep, and a test clock would leave it asleep. Many projections of the cases fail, and the log would be full of them.
  run: Logger.withMinimumLogLevel(onRealClock(Effect.suspend(run)), LogLevel.None)
})

// --- records ---

/** At random: a store may keep what earlier runs left, and knows nothing of their seeds. */
export const newId = (): string => crypto.randomUUID()

export const event = (
  aggregateId: string,
  sequence: number,
  fields: Partial<Pick<Event, "type" | "body" | "metadata">> = {}
): Effect.Effect<Event> =>
  Effect.gen(function* () {
    const { now } = yield* HybridClock
    return {
      timestamp: yield* now,
      aggregateId,
      sequence,
      type: "Happened",
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

/** Changes a value at every depth, as far as it lets itself be changed. */
export const deface = (value: unknown): void => {
  if (typeof value !== "object" || value === null) return
  for (const key of Object.keys(value)) {
    deface(Reflect.get(value, key))
    // Unlike an assignment it does not throw where the object is frozen.
    Reflect.set(value, key, "changed")
  }
  Reflect.set(value, "added", "changed")
}

/** Two streams in one commit, their events by turns. */
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

/** A projection that runs one effect, whatever the event is. */
export const projecting = <E>(effect: Effect.Effect<unknown, E>): Projection<E> => ({
  name: "projecting",
  project: () => effect
})

// --- answers ---

/** The typed failure, if that is what it came to. */
export const failureOf = (exit: Exit.Exit<unknown, unknown>): unknown =>
  Exit.isFailure(exit) ? Option.getOrUndefined(Cause.failureOption(exit.cause)) : undefined

/** What is wrong when a case needs the client of the caller's transaction. */
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

/** What a store that accepts the value returns: plain objects and lists, with the sign of -0. */
export const asJson = (value: unknown): unknown =>
  Array.isArray(value)
    ? value.map(asJson)
    : typeof value === "object" && value !== null
      ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, asJson(inner)]))
      : value

// --- running ---

/** Lets timers and sockets have their turn. */
export const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

/** On the clock of the machine, whatever clock there is around: what stores wait for is driven by no test clock. */
export const onRealClock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(effect, Clock.make())

/** Tries so many random inputs. On failure fast-check prints the seed, and the smallest input that fails. */
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
