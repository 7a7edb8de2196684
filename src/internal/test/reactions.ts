/**
 * The reaction of a process manager to an event, for `on(...).handledBy(...)` and its assertions.
 *
 * The handlers run on the layers of the aggregates, on the store in memory, so that a command may be refused as in an
 * application. The services of the aggregates record each command that a handler evaluates, and then evaluate it.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { RuntimeFiber } from "effect/Fiber"
import * as Layer from "effect/Layer"
import type { TargetedCommand } from "../../Aggregate.js"
import { identityOf } from "../../Event.js"
import type { FeedEvent, Position } from "../../EventFeed.js"
import type { On } from "../../Subscription.js"
import type { SeveralLayer } from "../aggregate/member.js"
import { serviceTag } from "../aggregate/operations.js"
import type { Service } from "../aggregate/service.js"
import type { Tagged } from "../codec/eventCodec.js"
import { DecidingOn } from "../runtime/commandCause.js"
import { handles } from "../store/runProjections.js"
import { handlingEach } from "../subscription/handler.js"
import { expectSame, failureIn, isExpected, once, type Run, showCause, showExpected } from "./assertions.js"
import { checkAggregate } from "./checkInput.js"
import { freshLayer } from "./copy.js"
import { type AssertionFailed, asPromise, type Finding, failed, impossible, type Section } from "./failure.js"
import { type AnyAggregate, type Given, sectionsOf } from "./given.js"
import type { Reacted, ReactedChecks, Received } from "./scenarioTypes.js"
import { show } from "./show.js"
import { type AnyLayer, buildLayers, inWorld, type Plan, type World } from "./world.js"

/** The last event of the plan is the one to handle. */
export const receiving = <Has>(plan: Plan, before: ReadonlyArray<Given>): Received<Has> => ({
  handledBy: (handlers, ...[aggregates = []]) => {
    for (const aggregate of aggregates) checkAggregate("`handledBy` of a test", aggregate)
    return reacted(plan, before, listOf(handlers), aggregates)
  }
})

// --- internal ---

/** A command that a handler has evaluated, or that the test expects. */
interface Command {
  readonly aggregate: string
  readonly id: string
  readonly command: unknown
}

interface Reaction {
  readonly commands: ReadonlyArray<Command>
  readonly exit: Exit.Exit<unknown, unknown>
}

const listOf = (handlers: On.Any | ReadonlyArray<On.Any>): ReadonlyArray<On.Any> =>
  "handle" in handlers ? [handlers] : handlers

const reacted = <E>(
  plan: Plan,
  before: ReadonlyArray<Given>,
  handlers: ReadonlyArray<On.Any>,
  aggregates: ReadonlyArray<AnyAggregate>
): Reacted<E> => {
  const sections: ReadonlyArray<Section> = [...sectionsOf(before), onSection(plan)]
  const reaction = once(reactionTo(plan, handlers, aggregates, sections))
  return {
    ...checksOn<E, Promise<void>>(reaction, sections, asPromise),
    effect: checksOn(reaction, sections, (assertion) => assertion)
  }
}

const reactionTo = (
  plan: Plan,
  handlers: ReadonlyArray<On.Any>,
  aggregates: ReadonlyArray<AnyAggregate>,
  sections: ReadonlyArray<Section>
): Effect.Effect<Reaction, AssertionFailed> =>
  inWorld(plan, (world) => {
    const event = lastEvent(world)
    const concerned = handlers.filter((one) => event !== undefined && handles(one, event))
    if (event === undefined || concerned.length === 0) {
      return impossible("no handler is for the event", sections, [
        `the handlers are for ${handlers.flatMap(({ events }) => events).join(", ") || "no events"}`
      ])
    }
    const commands: Array<Command> = []
    const layers = aggregates.map((aggregate) => recording(aggregate, commands))
    const handling = handlingEach("AggregateTest", (each) =>
      Effect.forEach(concerned, (one) => one.handle(each), { discard: true })
    )
    return Effect.map(
      Effect.exit(
        Effect.flatMap(buildLayers(layers, world.context), (services) => Effect.provide(handling([event]), services))
      ),
      (exit): Reaction => ({ commands, exit })
    )
  })

/** The event as a subscription receives it. */
const lastEvent = ({ events }: World): FeedEvent | undefined => {
  const last = events.at(-1)
  return last && { ...last, ...identityOf(last.aggregateId), position: `0-${events.length}` as Position }
}

/** The layer of the aggregate, which records the commands that are evaluated outside of other decisions. */
const recording = (aggregate: AnyAggregate, commands: Array<Command>): AnyLayer => {
  const { name } = aggregate
  const tag = serviceTag<string, unknown, Tagged, unknown, unknown>(name)
  const record = (id: string, command: unknown): void => {
    commands.push({ aggregate: name, id, command })
  }
  return Layer.map(freshLayer(aggregate), (context) =>
    Context.add(context as Context.Context<unknown>, tag, recordingService(Context.unsafeGet(context, tag), record))
  )
}

const recordingService = <State, A extends Tagged, C, E>(
  service: Service<State, A, C, E>,
  record: (id: string, command: unknown) => void
): Service<State, A, C, E> => {
  /** A command within the decision of another one is a part of that one. */
  const recordOuter = ({ currentContext }: RuntimeFiber<unknown, unknown>, id: string, command: C): void => {
    if (Context.get(currentContext, DecidingOn).streams.length === 0) record(id, command)
  }
  return {
    ...service,
    evaluate: (fiber, id, command) => {
      recordOuter(fiber, id, command)
      return service.evaluate(fiber, id, command)
    },
    acknowledge: (fiber, id, command) => {
      recordOuter(fiber, id, command)
      return service.acknowledge(fiber, id, command)
    },
    several: "elsewhere" in service.several ? service.several : recordingSeveral(service.several, record)
  }
}

const recordingSeveral = (several: SeveralLayer, record: (id: string, command: unknown) => void): SeveralLayer => ({
  ...several,
  member: (caller, clock, id) => {
    const member = several.member(caller, clock, id)
    if (caller.decision.streams.length > 0) return member
    const recorded = new Set<number>()
    return {
      ...member,
      withLock: (work) =>
        member.withLock((locked) =>
          work({
            ...locked,
            decide: (call, at) => {
              // A decision on a state that was outdated is repeated.
              if (!recorded.has(at.index)) record(id, call.command)
              recorded.add(at.index)
              return locked.decide(call, at)
            }
          })
        )
    }
  }
})

const checksOn = <E, Out>(
  reaction: Effect.Effect<Reaction, AssertionFailed>,
  sections: ReadonlyArray<Section>,
  run: Run<Out>
): ReactedChecks<E, Out> => {
  const commands = (expected: ReadonlyArray<TargetedCommand.Any>, title: string): Out => {
    const wanted = expected.map(({ aggregate, command, id }): Command => ({ aggregate, id, command }))
    return run(
      Effect.flatMap(reaction, ({ commands, exit }) =>
        expectSame(wanted, Exit.isSuccess(exit) ? commands : exit.cause, () =>
          finding(sections, title, wanted, showCommands(wanted), { commands, exit })
        )
      )
    )
  }
  return {
    thenCommands: (...expected) => commands(expected, "the handlers evaluate other commands than expected"),
    thenNothing: () => commands([], "the handlers evaluate commands, or fail, where nothing is expected"),
    thenFails: (expected) =>
      run(
        Effect.flatMap(reaction, (found) =>
          Exit.isFailure(found.exit) && isExpected(expected, found.exit.cause)
            ? Effect.void
            : failed(
                finding(sections, "the handlers do not fail as expected", expected, [showExpected(expected)], found)
              )
        )
      )
  }
}

const finding = (
  sections: ReadonlyArray<Section>,
  title: string,
  expected: unknown,
  lines: ReadonlyArray<string>,
  { commands, exit }: Reaction
): Finding => ({
  title,
  sections,
  expected: { value: expected, lines },
  got: {
    value: Exit.isSuccess(exit) ? commands : failureIn(exit.cause),
    lines: Exit.isSuccess(exit)
      ? showCommands(commands)
      : [...(commands.length === 0 ? [] : showCommands(commands)), ...showCause(exit.cause)]
  }
})

const showCommands = (commands: ReadonlyArray<Command>): ReadonlyArray<string> =>
  commands.length === 0
    ? ["(no commands)"]
    : commands.map(({ aggregate, command, id }) => `${aggregate} ${JSON.stringify(id)}: ${show(command)}`)

const onSection = ({ given }: Plan): Section => {
  const last = given.at(-1)
  const [event] = last?.events ?? []
  return [
    last === undefined ? "on" : `on, of ${last.aggregate.name} ${JSON.stringify(last.id)}`,
    event?._tag === "Event" ? [show(event.event)] : []
  ]
}
