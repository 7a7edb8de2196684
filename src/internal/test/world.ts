/**
 * Carries out the steps of a test on a store in memory. The given events are committed first. Then commands, handlers
 * or reads run on the layers of the aggregates, as in an application.
 *
 * Strong projections do not run there, because they need a database. `projected.ts` runs them on one.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Event } from "../../Event.js"
import type { EventFeed } from "../../EventFeed.js"
import * as MemoryStore from "../../MemoryStore.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import type { SubscriptionStore } from "../../SubscriptionStore.js"
import * as Timestamp from "../../Timestamp.js"
import { scoped } from "../runtime/interruption.js"
import { type AssertionFailed, impossible } from "./failure.js"
import { type Given, recordGiven, type StepClock, sectionsOf } from "./given.js"

/** The services that the kit provides. */
export type Provided = StoreAdapter | EventFeed | SubscriptionStore

/** A layer of a test. The types of the public functions have checked what it needs. */
export type AnyLayer = Layer.Layer<never, unknown, unknown>

/** What a test has given so far. */
export interface Plan {
  readonly given: ReadonlyArray<Given>
  readonly layer: AnyLayer
  /** The time of what follows, or `undefined` for the time of the clock. */
  readonly millis: number | undefined
}

/** The state of a test after its given events. */
export interface World {
  /** All that is stored. */
  readonly events: ReadonlyArray<Event>
  // biome-ignore lint/suspicious/noExplicitAny: the services of any layer of the test
  readonly context: Context.Context<any>
}

/** Carries out the given steps, and then the effect, with the services of the kit and of the test's layer. */
export const inWorld = <A, E>(
  plan: Plan,
  // biome-ignore lint/suspicious/noExplicitAny: the services of any layer of the test
  use: (world: World) => Effect.Effect<A, E, any>
): Effect.Effect<A, E | AssertionFailed> =>
  scoped(
    Effect.flatMap(Effect.clock, (around) => {
      const clock = stepClock(around)
      return Effect.withClock(
        Effect.flatMap(openWorld(plan, clock), (world) => {
          clock.setMillis(plan.millis)
          const used: Effect.Effect<A, E> = Effect.provide(use(world), world.context)
          return used
        }),
        clock
      )
    })
  )

/** Builds the layers on the services, each with those before it. */
export const buildLayers = (
  layers: ReadonlyArray<AnyLayer>,
  // biome-ignore lint/suspicious/noExplicitAny: the services of any layer of the test
  context: Context.Context<any>
  // biome-ignore lint/suspicious/noExplicitAny: the services of any layer of the test
): Effect.Effect<Context.Context<any>, unknown, Scope.Scope> =>
  Effect.reduce(layers, context, (services, layer) =>
    Effect.map(Effect.provide(Layer.build(layer), services), (built) => Context.merge(services, built))
  )

/** A clock on which timestamps of any node are accepted: the kit has no nodes whose clocks may be wrong. */
export const hybridClock = (): Timestamp.HybridClockService => Timestamp.make({ maxDrift: Duration.infinity })

/** The clock around the test, whose time a step may set. */
export const stepClock = (around: Clock.Clock): StepClock => {
  let set: number | undefined
  const millis = (): number => set ?? around.unsafeCurrentTimeMillis()
  const nanos = (): bigint => (set === undefined ? around.unsafeCurrentTimeNanos() : BigInt(set) * 1_000_000n)
  return {
    [Clock.ClockTypeId]: Clock.ClockTypeId,
    setMillis: (to) => {
      set = to
    },
    unsafeCurrentTimeMillis: millis,
    unsafeCurrentTimeNanos: nanos,
    currentTimeMillis: Effect.sync(millis),
    currentTimeNanos: Effect.sync(nanos),
    sleep: (duration: Duration.Duration) => around.sleep(duration)
  }
}

// --- internal ---

const openWorld = (plan: Plan, clock: StepClock): Effect.Effect<World, AssertionFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const hybrid = hybridClock()
    const events = yield* recordGiven(plan.given, hybrid, clock)
    const memory = yield* Layer.build(MemoryStore.layer)
    const store = Context.get(memory, StoreAdapter)
    const unable = (title: string) => (error: unknown) =>
      impossible(title, sectionsOf(plan.given), [error instanceof Error ? error.message : String(error)])
    yield* Effect.mapError(store.commitEvents(events), unable("the given events can't be stored"))
    const services = memory.pipe(
      Context.add(StoreAdapter, { ...store, commitAll: (all) => store.commitEvents(all) }),
      Context.add(Timestamp.HybridClock, hybrid)
    )
    clock.setMillis(plan.millis)
    const context = yield* Effect.mapError(
      buildLayers([plan.layer], services),
      unable("the layer of the test can't be built")
    )
    return { events, context }
  })
