/**
 * Compiles the options of `Aggregate.make` to a definition: codecs, handlers by tag, and the names of streams.
 *
 * `Aggregate.ts` calls it once for each aggregate. Options that can't work are a mistake in the program, so `compile`
 * throws a `TypeError` when the aggregate is made, and not when a handler is first needed.
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as ParseResult from "effect/ParseResult"
import type * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type { Options, Root } from "../../Aggregate.js"
import * as Projection from "../../Projection.js"
import { ValidationError } from "../../StoreError.js"
import {
  type EventCodec,
  lossyMembers,
  makeEventCodec,
  refusedInput,
  refusingBadInput,
  type Tagged,
  tagOf,
  tagsOf,
  unknownTag
} from "../codec/eventCodec.js"
import { reservedPrefix } from "../codec/names.js"
import { makeStateCodec, type StateCodec } from "../codec/stateCodec.js"
import { isSettled } from "../runtime/syncEffect.js"
import { checkHistory } from "../store/origin.js"
import type { DecidedCall } from "./commandContext.js"
import { type CommandDigest, makeCommandDigest } from "./commandDigest.js"
import { type FreshIds, makeFreshIds } from "./freshIds.js"
import type { Steps } from "./handlerTypes.js"
import type { VersionedState } from "./loadState.js"
import { makeStreams, type StreamOptions, type Streams } from "./streamIds.js"

/** An aggregate's options, compiled. Modules that only load and fold leave out the last three types. */
export interface AggregateDefinition<State, A extends Tagged, in C = never, out E = unknown, out R = unknown> {
  readonly name: string
  /** The kind under which its events, receipts and tables are stored. */
  readonly kind: string
  readonly streams: Streams
  readonly initialState: State
  readonly events: EventCodec<A>
  readonly state: StateCodec<State>
  /** The state after an event. */
  readonly evolve: (state: State, event: A) => State
  /**
   * Makes the function that runs the handler of a command. A decision that is an effect and no exit is run by `run`.
   */
  readonly decider: (
    run: RunDecision<R>
  ) => (call: DecidedCall<C>, root: VersionedState<State>) => Effect.Effect<ReadonlyArray<A>, E | ValidationError>
  /** What a receipt says of the command. */
  readonly digest: (command: C) => Effect.Effect<CommandDigest, ValidationError>
  /** The tags of its commands. */
  readonly commandTags: ReadonlyArray<string>
  readonly projections: ReadonlyArray<Projection.Projection.Bound<E, R>>
  readonly freshIds: FreshIds
  /** The option `newId`. */
  readonly newId: Effect.Effect<string> | undefined
  readonly snapshotEvery: number | undefined
  readonly retry: Schedule.Schedule<unknown>
}

/** Runs the decision of a call on the state of a stream. */
export type RunDecision<in R> = <A, E>(
  decision: Effect.Effect<A, E, R>,
  streamId: string,
  call: DecidedCall<unknown>
) => Effect.Effect<A, E>

/** The handlers of commands by their tags, as `compile` takes them: callers have checked the types of the commands. */
export type AnyDecide<State, A, E, R, Id extends string> = Readonly<Record<string, AnyHandler<State, A, E, R, Id>>>

/** The options of `Aggregate.make` that have their defaults. */
export interface Defaults extends StreamOptions {
  readonly retry: Schedule.Schedule<unknown>
}

export const compile = <
  State,
  StateEncoded,
  A extends Tagged,
  I extends Tagged,
  C extends Tagged,
  CI,
  E,
  R,
  Id extends string
>(
  name: string,
  options: Options<
    State,
    StateEncoded,
    A,
    I,
    C,
    CI,
    AnyDecide<State, A, E, R, Id>,
    ReadonlyArray<Projection.Projection<E, R>>,
    object | undefined,
    Id,
    Effect.Effect<Id> | undefined
  >,
  defaults: Defaults
): AggregateDefinition<State, A, C, E, R> => {
  const streams = makeStreams(name, defaults)
  const { kind } = defaults
  checkOptions(name, options)
  return {
    name,
    kind,
    streams,
    initialState: options.initialState,
    events: makeEventCodec(options.events),
    state: makeStateCodec(
      name,
      options.stateVersion ?? 1,
      options.state,
      options.events,
      defaults.streams === "plain" ? kind : undefined
    ),
    // The compiler can't tell that `StateOf` of a type parameter is that type.
    evolve: evolveBy(handlersOf(`evolve of ${name}`, tagsOf(options.events), options.evolve as Steps<State>)),
    decider: deciderBy(name, handlersOf(`decide of ${name}`, tagsOf(options.commands), options.decide)),
    digest: makeCommandDigest(`${name}.evaluate`, options.commands),
    commandTags: tagsOf(options.commands),
    projections: (options.projections ?? []).map((projection) => {
      checkHistory({ name, events: options.events }, projection)
      return projection.of === "all"
        ? { ...projection, of: projection.of }
        : Projection.of({ name, kind, streams: defaults.streams }, projection)
    }),
    freshIds: makeFreshIds(),
    newId: options.newId,
    snapshotEvery: options.snapshotEvery,
    retry: defaults.retry
  }
}

// --- internal ---

type AnyHandler<State, A, E, R, Id extends string> = (
  command: never,
  root: Root<State, Id>
) => Effect.Effect<ReadonlyArray<A>, E, R>

const checkOptions = <State, StateEncoded>(
  name: string,
  options: {
    readonly state: Schema.Schema<State, StateEncoded>
    readonly initialState: State
    readonly events: Schema.Schema.Any
    readonly commands: Schema.Schema.Any
    readonly refusals?: object | undefined
    readonly newId?: unknown
    readonly snapshotEvery?: number | undefined
  }
): void => {
  const { newId, snapshotEvery } = options
  if (newId !== undefined && !Effect.isEffect(newId)) throw new TypeError(`newId of ${name} must be an effect`)
  if (snapshotEvery !== undefined && !(Number.isInteger(snapshotEvery) && snapshotEvery > 0)) {
    throw new TypeError(`snapshotEvery of ${name} must be a whole number above 0, and is ${snapshotEvery}`)
  }
  const lossy = lossyMembers(options.events)
  if (lossy !== undefined) {
    throw new TypeError(
      `events of ${name}: ${lossy[0]} comes before ${lossy[1]} of the same tag, and would write its events without a field of theirs: put the new form first`
    )
  }
  const reserved = tagsOf(options.events).find((tag) => tag.startsWith(`${reservedPrefix}/`))
  if (reserved !== undefined) {
    throw new TypeError(
      `events of ${name}: the type ${JSON.stringify(reserved)} must not begin with ${reservedPrefix}/, which is reserved`
    )
  }
  const commandTags = tagsOf(options.commands)
  const unknown = Object.keys(options.refusals ?? {}).filter((tag) => !commandTags.includes(tag))
  if (unknown.length > 0) throw new TypeError(`refusals of ${name} names what is no command: ${unknown.join(", ")}`)
  const problem = encodingProblem(options.state, options.initialState)
  if (problem !== undefined) {
    throw new TypeError(
      `initialState of ${name} can't be encoded by the schema of the state, so no snapshot of it could be stored: ${problem}`
    )
  }
}

/**
 * Why the schema can't encode the value. A schema that must wait to encode, or that names one which is not defined yet,
 * can't be checked here.
 */
const encodingProblem = <A, I>(schema: Schema.Schema<A, I>, value: A): string | undefined => {
  try {
    const encoded = Schema.encodeUnknownEither(schema)(value)
    return Either.isRight(encoded) || isForbidden(encoded.left.issue) ? undefined : encoded.left.message
  } catch {
    return undefined
  }
}

/** Whether encoding stopped because it is asynchronous. */
const isForbidden = (issue: ParseResult.ParseIssue): boolean => {
  if (issue._tag === "Forbidden") return true
  if ("issue" in issue) return isForbidden(issue.issue)
  return "issues" in issue && Arr.ensure(issue.issues).some(isForbidden)
}

/** The handlers by tag. */
const handlersOf = <F>(
  option: string,
  tags: ReadonlyArray<string>,
  handlers: Readonly<Record<string, F>>
): ReadonlyMap<string, F> => {
  const missing = tags.filter((tag) => !Object.hasOwn(handlers, tag))
  if (missing.length > 0) throw new TypeError(`${option} has no handler for ${missing.join(", ")}`)
  return new Map(Object.entries(handlers))
}

const evolveBy =
  <State, A extends Tagged>(steps: ReadonlyMap<string, (state: State, event: never) => State>) =>
  (state: State, event: A): State => {
    const step = steps.get(event._tag)
    // A decoded event has a step, because `handlersOf` checks it.
    // biome-ignore lint/plugin: the handler under a tag takes the member of that tag, which a `Map` can't say
    return step === undefined ? state : step(state, event as never)
  }

const deciderBy =
  <State, A, C, E, R, Id extends string>(name: string, handlers: ReadonlyMap<string, AnyHandler<State, A, E, R, Id>>) =>
  (run: RunDecision<R>) =>
  (call: DecidedCall<C>, root: VersionedState<State>): Effect.Effect<ReadonlyArray<A>, E | ValidationError> => {
    const { command } = call
    const handler = handlers.get(tagOf(command) ?? "")
    if (handler === undefined) return unknownCommand(name, [...handlers.keys()], command)
    const operation = `${name}.evaluate`
    try {
      // The id was checked before the state was loaded.
      const checked = root as VersionedState<State> & Root<State, Id>
      // biome-ignore lint/plugin: the handler under a tag takes the member of that tag, which a `Map` can't say
      const decision = handler(command as never, checked)
      // An exit needs no services, and can't throw.
      return isSettled(decision) ? decision : run(refusingBadInput(operation, decision, call), root.streamId, call)
    } catch (thrown) {
      return refusedInput(operation, thrown, call)
    }
  }

const unknownCommand = (
  name: string,
  tags: ReadonlyArray<string>,
  command: unknown
): Effect.Effect<never, ValidationError> =>
  Effect.suspend(() => new ValidationError({ operation: `${name}.evaluate`, issues: [unknownTag(tags, command)] }))
