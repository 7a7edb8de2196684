/**
 * The result of a command on an aggregate, for `when` and its assertions.
 *
 * The command handler of the aggregate's layer evaluates it, so decisions, encoding, histories and refusals are those of
 * an application.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import type { Evaluated } from "../../Aggregate.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import type { Tagged } from "../codec/eventCodec.js"
import { expectSame, isExpected, once, type Run, showCause, showExpected } from "./assertions.js"
import { freshLayer } from "./copy.js"
import { type AssertionFailed, asPromise, type Finding, failed, type Section, synchronously } from "./failure.js"
import { type AnyAggregate, asLoaded, sectionsOf } from "./given.js"
import type { Done, DoneChecks } from "./scenarioTypes.js"
import { show } from "./show.js"
import { buildLayers, inWorld, type Plan } from "./world.js"

/** A command to evaluate. */
export interface Target {
  readonly aggregate: AnyAggregate
  readonly id: string
}

/** Evaluates the command at the first assertion. */
export const whenCommand = <State, A extends Tagged, E>(
  plan: Plan,
  target: Target,
  command: Tagged
): Done<State, A, E> => {
  const evaluated = once(evaluation<State>(plan, target, command))
  const message = { target, command, sections: sectionsOf(plan.given) }
  const checks = <Out>(run: Run<Out>): DoneChecks<State, A, E, Out> => checksOn(evaluated, message, run)
  const done: Done<State, A, E> = {
    ...checks<Done<State, A, E>>((assertion) => {
      synchronously(assertion)
      return done
    }),
    promise: checks(asPromise),
    effect: checks((assertion) => assertion)
  }
  return done
}

// --- internal ---

/** What a command has led to. */
interface Result<State> {
  readonly state: State
  /** The stored events, as they are read again. */
  readonly events: ReadonlyArray<Tagged>
}

type Outcome<State> = Exit.Exit<Result<State>, unknown>

interface Message {
  readonly target: Target
  readonly command: Tagged
  readonly sections: ReadonlyArray<Section>
}

const evaluation = <State>(
  plan: Plan,
  { aggregate, id }: Target,
  command: Tagged
): Effect.Effect<Outcome<State>, AssertionFailed> =>
  inWorld(plan, ({ context }) =>
    Effect.exit(
      Effect.gen(function* () {
        const services = yield* buildLayers([freshLayer(aggregate)], context)
        const evaluate = aggregate.evaluate(id, command)
        const { sequence, state, events }: Evaluated<State, Tagged> = yield* Effect.provide(evaluate, services)
        const store = yield* StoreAdapter
        const minSequence = sequence - events.length + 1
        const stored = events.length === 0 ? [] : yield* store.getEvents(aggregate.streamId(id), minSequence)
        const read = yield* Either.all(stored.map((event) => aggregate.decode(event)))
        return { state, events: read.flat() }
      })
    )
  )

const checksOn = <State, A extends Tagged, E, Out>(
  evaluated: Effect.Effect<Outcome<State>, AssertionFailed>,
  message: Message,
  run: Run<Out>
): DoneChecks<State, A, E, Out> => {
  const { aggregate } = message.target
  const check = (assert: (outcome: Outcome<State>) => Effect.Effect<void, AssertionFailed>): Out =>
    run(Effect.flatMap(evaluated, assert))
  const events = (expected: ReadonlyArray<Tagged>, title: string): Out => {
    const loaded = expected.map((event) => asLoaded(aggregate, event))
    return check((outcome) =>
      expectSame(loaded, eventsOf(outcome), () => finding(message, title, loaded, showEvents(loaded), outcome))
    )
  }
  return {
    thenEvents: (...expected) => events(expected, "stores other events than expected"),
    thenNothing: () => events([], "stores events, or fails, where nothing is expected"),
    thenFails: (expected) =>
      check((outcome) =>
        isFailedWith(outcome, expected)
          ? Effect.void
          : failed(finding(message, "does not fail as expected", expected, [showExpected(expected)], outcome))
      ),
    thenState: (expected) =>
      check((outcome) =>
        Exit.isSuccess(outcome)
          ? expectSame(expected, outcome.value.state, () => ({
              ...finding(message, "leads to another state than expected", expected, [show(expected)], outcome),
              got: { value: outcome.value.state, lines: [show(outcome.value.state)] }
            }))
          : failed(finding(message, "leads to no state", expected, [show(expected)], outcome))
      )
  }
}

const eventsOf = <State>(outcome: Outcome<State>): unknown =>
  Exit.isSuccess(outcome) ? outcome.value.events : outcome.cause

const isFailedWith = <State>(outcome: Outcome<State>, expected: unknown): boolean =>
  Exit.isFailure(outcome) && isExpected(expected, outcome.cause)

const finding = <State>(
  { command, sections, target: { aggregate, id } }: Message,
  what: string,
  expected: unknown,
  lines: ReadonlyArray<string>,
  outcome: Outcome<State>
): Finding => ({
  title: `${command._tag} on ${aggregate.name} ${JSON.stringify(id)} ${what}`,
  sections: [...sections, ["when", [show(command)]]],
  expected: { value: expected, lines },
  got: Exit.isSuccess(outcome)
    ? { value: outcome.value.events, lines: showEvents(outcome.value.events) }
    : { value: Cause.squash(outcome.cause), lines: showCause(outcome.cause) }
})

const showEvents = (events: ReadonlyArray<Tagged>): ReadonlyArray<string> =>
  events.length === 0 ? ["(no events)"] : events.map(show)
