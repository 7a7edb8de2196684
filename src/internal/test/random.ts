/**
 * Random sequences of commands, for `AggregateTest.sequences`.
 *
 * FastCheck makes and shrinks them. It does not leave out each single command of a sequence, and a smaller number in one
 * command may need another number in the next. So a sequence that it has shrunk is then shortened command by command,
 * and shorter sequences are tried.
 */
import * as Arbitrary from "effect/Arbitrary"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { Evaluated } from "../../Aggregate.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { serviceTag } from "../aggregate/operations.js"
import type { Tagged } from "../codec/eventCodec.js"
import { refusalIn } from "./assertions.js"
import { checkSequenceOptions } from "./checkInput.js"
import { copyOf, freshLayer } from "./copy.js"
import { AssertionFailed, impossible, type Section, synchronously } from "./failure.js"
import type { AnyAggregate } from "./given.js"
import { isSame } from "./same.js"
import type { SequenceOptions, Sequences } from "./sequenceTypes.js"
import { show } from "./show.js"
import { type AnyLayer, buildLayers, inWorld } from "./world.js"

/** Random sequences of commands on an aggregate without events. */
export const sequencesOf = <State, C>(
  aggregate: AnyAggregate,
  id: string,
  options: SequenceOptions<C> & { readonly provide?: AnyLayer }
): Sequences<State> => {
  checkSequenceOptions(options)
  const check = (property: string, find: Find<State>) =>
    checkAll<State>({ aggregate, id, layer: options.provide ?? Layer.empty, property, find }, options)
  return {
    keepInvariant: (invariant) =>
      check("keep the invariant", (reached) => Effect.sync(() => brokenInvariant(invariant, reached.state))),
    replayToSameState: () => check("replay to the state that the commands led to", replayed),
    restoreFromSnapshots: () => check("lead to states that a snapshot restores", restored)
  }
}

// --- internal ---

/** The state after an accepted command. */
interface Reached<State> {
  readonly aggregate: AnyAggregate
  readonly id: string
  readonly state: State
  /** A copy of the state. */
  readonly copy: State
  /** The state before the command, and a copy from then. */
  readonly before: Kept<State> | undefined
  readonly sequence: number
  // biome-ignore lint/suspicious/noExplicitAny: the services of any layer of the test
  readonly context: Context.Context<any>
}

/** A state that commands led to, and a copy of it from that time. */
interface Kept<State> {
  readonly state: State
  readonly copy: State
}

/** Returns what is wrong with a state, or undefined. */
type Find<State> = (reached: Reached<State>) => Effect.Effect<Problem | undefined, unknown>

type Problem = ReadonlyArray<string>

interface Property<State> {
  readonly aggregate: AnyAggregate
  readonly id: string
  readonly layer: AnyLayer
  readonly property: string
  readonly find: Find<State>
}

/** The run of one sequence: what its commands did, up to the first problem. */
interface Ran {
  readonly steps: ReadonlyArray<Step>
  readonly problem: Problem | undefined
}

interface Step {
  readonly command: Tagged
  /** Undefined if the command was accepted. */
  readonly refusal: unknown
  readonly line: string
}

const checkAll = <State>(property: Property<State>, options: SequenceOptions<unknown>): void => {
  const { aggregate } = property
  const search = new Search(property, options)
  const seed = search.sequences(options.maxLength ?? 20, options.seed)
  if (search.broken !== undefined) {
    search.shorten(seed)
    synchronously(broken(property, search.broken, seed))
  } else if (search.accepted === 0) {
    synchronously(
      impossible(
        `no random command of ${aggregate.name} was accepted`,
        [],
        [
          "so the property holds for no state but the first one: give `commands` that the aggregate accepts",
          `seed ${seed}`
        ]
      )
    )
  }
}

/** Looks for a sequence that breaks a property, and for a short one. */
class Search<State> {
  /** How many commands were accepted. */
  accepted = 0
  /**
   * The last run that broke the property. It is not repeated for the message, because code that is not pure may break
   * the property in one run and keep it in the next.
   */
  broken: Ran | undefined
  readonly #each: FastCheck.Arbitrary<Tagged>

  constructor(
    readonly property: Property<State>,
    readonly options: SequenceOptions<unknown>
  ) {
    this.#each = (options.commands ?? Arbitrary.make(property.aggregate.commands)) as FastCheck.Arbitrary<Tagged>
  }

  /** Tries sequences up to that length, and shrinks the first that breaks the property. Returns the seed. */
  sequences(maxLength: number, seed: number | undefined): number {
    const details = FastCheck.check(
      FastCheck.property(FastCheck.array(this.#each, { maxLength }), (sequence) => !this.#breaks(sequence)),
      { numRuns: this.options.runs ?? 100, ...(seed === undefined ? {} : { seed }) }
    )
    const { errorInstance, failed, seed: used } = details
    if (errorInstance instanceof AssertionFailed) throw errorInstance
    // No property was found to be broken, so the sequences could not be made.
    if (failed && this.broken === undefined) throw errorInstance ?? new Error(FastCheck.defaultReportMessage(details))
    return used
  }

  /** Leaves out commands that are not needed, and then tries shorter sequences, beginning with one command. */
  shorten(seed: number): void {
    this.#leaveOut()
    for (let length = 1; length < (this.broken?.steps.length ?? 0); length++) {
      this.sequences(length, seed)
      this.#leaveOut()
    }
  }

  #leaveOut(): void {
    const sequence = this.broken?.steps.map(({ command }) => command) ?? []
    const index = sequence.findIndex((_, index) => this.#breaks(sequence.filter((_, at) => at !== index)))
    if (index >= 0) this.#leaveOut()
  }

  #breaks(sequence: ReadonlyArray<Tagged>): boolean {
    const ran = runSequence(this.property, sequence)
    this.accepted += ran.steps.filter(({ refusal }) => refusal === undefined).length
    if (ran.problem !== undefined) this.broken = ran
    return ran.problem !== undefined
  }
}

const broken = <State>({ aggregate, property }: Property<State>, { problem, steps }: Ran, seed: number) => {
  const sections: ReadonlyArray<Section> = [
    [
      `the shortest sequence found, of ${steps.length} ${steps.length === 1 ? "command" : "commands"}`,
      steps.map(({ line }) => line)
    ],
    ["seed", [`${seed}, to repeat it by the option \`seed\``]]
  ]
  return impossible(`random commands of ${aggregate.name} do not ${property}`, sections, problem ?? [])
}

/** Evaluates the commands one after the other, and looks at each state, beginning with the initial one. */
const runSequence = <State>(property: Property<State>, sequence: ReadonlyArray<Tagged>): Ran => {
  const { aggregate, find, id, layer } = property
  const steps: Array<Step> = []
  const running = inWorld({ given: [], layer, millis: undefined }, ({ context: services }) =>
    Effect.gen(function* () {
      const context = yield* buildLayers([freshLayer(aggregate)], services)
      let before: Kept<State> | undefined
      const look = ({ sequence, state }: { readonly state: State; readonly sequence: number }) => {
        const reached = { aggregate, id, context, state, copy: copyOf(state), before, sequence }
        before = reached
        return Effect.catchAllCause(find(reached), (cause): Effect.Effect<Problem, unknown> => {
          const defect = defectIn(`the state ${show(reached.copy)} can't be checked:`, cause)
          return defect === undefined ? Effect.failCause(cause) : Effect.succeed(defect)
        })
      }
      const first: { readonly state: State; readonly sequence: number } = yield* Effect.provide(
        aggregate.root(id),
        context
      )
      let problem = yield* look(first)
      for (const command of sequence) {
        if (problem !== undefined) break
        const evaluated: Exit.Exit<Evaluated<State, Tagged>, unknown> = yield* Effect.exit(
          Effect.provide(aggregate.evaluate(id, command), context)
        )
        steps.push(stepOf(command, evaluated))
        if (Exit.isFailure(evaluated))
          problem = defectIn(`${command._tag} does not end with events or a refusal:`, evaluated.cause)
        else if (evaluated.value.events.length > 0) problem = yield* look(evaluated.value)
      }
      return problem
    })
  )
  let found: Problem | undefined
  synchronously(
    Effect.catchAll(
      Effect.map(running, (problem) => {
        found = problem
      }),
      (error) => impossible(`the commands of ${aggregate.name} can't be run`, [], [show(error)])
    ) as Effect.Effect<void, AssertionFailed>
  )
  return { steps, problem: found }
}

const stepOf = (command: Tagged, evaluated: Exit.Exit<unknown, unknown>): Step => {
  if (Exit.isSuccess(evaluated)) return { command, refusal: undefined, line: show(command) }
  const refusal = Option.getOrUndefined(refusalIn(evaluated.cause))
  return {
    command,
    refusal: refusal ?? evaluated.cause,
    line: refusal === undefined ? show(command) : `${show(command)}, refused: ${show(refusal)}`
  }
}

/** The exception, or the interruption, of code under test. There is none in a refusal. */
const defectIn = (title: string, cause: Cause.Cause<unknown>): Problem | undefined =>
  Option.isSome(refusalIn(cause)) ? undefined : [title, ...Cause.pretty(cause).split("\n")]

const brokenInvariant = <State>(invariant: (state: State) => unknown, state: State): Problem | undefined => {
  try {
    const result = invariant(state)
    if (result === false) return [`the invariant does not hold for the state ${show(state)}`]
    const kind = unusableKind(result)
    return kind === undefined ? undefined : [`the invariant must return true, false or nothing, and returns ${kind}`]
  } catch (thrown) {
    return [
      `the invariant throws for the state ${show(state)}:`,
      ...(thrown instanceof Error ? thrown.message : String(thrown)).split("\n")
    ]
  }
}

/** What says nothing about a state. An assertion of a test runner may return an object, and throws where it fails. */
const unusableKind = (result: unknown): string | undefined => {
  if (result === undefined || result === true) return undefined
  if (Effect.isEffect(result)) return "an effect"
  if (typeof result !== "object" || result === null) return show(result)
  if (!(result instanceof Promise)) return undefined
  // A rejection would end the process.
  result.catch(() => undefined)
  return "a promise"
}

/** `evolve` must return a new state, because the cache and a decision that is repeated still have the one before. */
const changed = <State>({ before }: Reached<State>): Problem | undefined =>
  before === undefined || isSame(before.copy, before.state)
    ? undefined
    : [
        `the state before the command was ${show(before.copy)}`,
        `and has been changed to          ${show(before.state)}`,
        "`evolve` must not change a state, but return a new one"
      ]

const replayed = <State>(reached: Reached<State>) => {
  const { aggregate, context, copy: state, id, sequence } = reached
  return Effect.map(Effect.provide(aggregate.replay(id, sequence), context), (again) =>
    isSame(state, again)
      ? changed(reached)
      : [
          `the state after the command is   ${show(state)}`,
          `the state of the replayed events ${show(again)}`,
          "`evolve` must depend on nothing but the state and the event, and must not change them"
        ]
  )
}

const restored = <State>(reached: Reached<State>) => {
  const { aggregate, context, copy: state, id, sequence } = reached
  return Effect.gen(function* () {
    if (sequence === 0) return undefined
    yield* Effect.provide(aggregate.snapshot(id), context)
    const store = yield* StoreAdapter
    const snapshot = yield* store.getSnapshot(aggregate.streamId(id), sequence)
    if (Option.isNone(snapshot)) return ["no snapshot was stored"]
    const { definition } = yield* serviceTag<string, State, Tagged, unknown, unknown>(aggregate.name)
    const decoded = definition.state.decode(snapshot.value)
    if (Either.isLeft(decoded)) {
      const why = decoded.left._tag === "Damaged" ? decoded.left.why : "it seems to be of another schema"
      return [`a snapshot of the state ${show(state)} can't be used: ${why}`]
    }
    return isSame(state, decoded.right)
      ? changed(reached)
      : [`the state is          ${show(state)}`, `the snapshot restores ${show(decoded.right)}`]
  }).pipe(
    Effect.catchTag("ValidationError", (error) =>
      Effect.succeed([`the state ${show(state)} can't be stored as a snapshot: ${error.message}`])
    ),
    Effect.provide(context)
  )
}
