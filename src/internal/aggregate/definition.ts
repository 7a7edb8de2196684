/**
 * From the options of an aggregate to what its layer works with.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type * as Schema from "effect/Schema"
import type { StreamIds } from "../../Event.js"
import * as Projection from "../../Projection.js"
import { ValidationError } from "../../StoreError.js"
import {
  lossyMembers,
  makeEventCodec,
  refusingBadInput,
  type Tagged,
  tagOf,
  tagsOf,
  unknownTag
} from "../codec/eventCodec.js"
import { reservedPrefix } from "../codec/names.js"
import { makeStateCodec } from "../codec/stateCodec.js"
import { makeCommandDigest } from "./commandDigest.js"
import { makeFreshIds } from "./freshIds.js"
import type { Loaded } from "./loadState.js"
import type { Design } from "./service.js"
import type { CacheLimits } from "./stateCache.js"
import { makeStreams } from "./streamIds.js"

/** The options, but for what a caller of `Aggregate.make` has checked by types. */
interface Parts<State, StateEncoded, A, I, C, CI, E, R> {
  readonly state: Schema.Schema<State, StateEncoded>
  readonly initialState: State
  readonly events: Schema.Schema<A, I>
  readonly commands: Schema.Schema<C, CI>
  readonly decide: Readonly<
    Record<string, (command: never, root: Loaded<State>) => Effect.Effect<ReadonlyArray<A>, E, R>>
  >
  readonly evolve: Readonly<Record<string, (state: State, event: never) => State>>
  readonly refusals?: object | undefined
  readonly projections?: ReadonlyArray<Projection.Projection<E, R>> | undefined
  readonly streams: StreamIds
  readonly snapshotEvery?: number | undefined
  readonly stateVersion?: number | undefined
  readonly retry: Schedule.Schedule<unknown>
}

/** Compiles what an aggregate is made of; what can't be one is a mistake in the program, and throws. */
export const define = <State, StateEncoded, A extends Tagged, I extends Tagged, C extends Tagged, CI, E, R>(
  name: string,
  options: Parts<State, StateEncoded, A, I, C, CI, E, R>
): Design<State, A, C, E, R> => {
  const streams = makeStreams(name, options.streams)
  if (options.snapshotEvery !== undefined && !(Number.isInteger(options.snapshotEvery) && options.snapshotEvery > 0)) {
    throw new TypeError(`snapshotEvery of ${name} must be a whole number above 0, and is ${options.snapshotEvery}`)
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
  const decide = handlersOf<(command: never, root: Loaded<State>) => Effect.Effect<ReadonlyArray<A>, E, R>>(
    `decide of ${name}`,
    commandTags,
    options.decide
  )
  const strange = Object.keys(options.refusals ?? {}).filter((tag) => !commandTags.includes(tag))
  if (strange.length > 0) throw new TypeError(`refusals of ${name} names what is no command: ${strange.join(", ")}`)
  const evolve = handlersOf<(state: State, event: never) => State>(
    `evolve of ${name}`,
    tagsOf(options.events),
    options.evolve
  )
  const unknownCommand = (command: C) =>
    Effect.suspend(
      () => new ValidationError({ operation: `${name}.evaluate`, issues: [unknownTag(commandTags, command)] })
    )
  return {
    name,
    streams,
    initialState: options.initialState,
    events: makeEventCodec(options.events),
    state: makeStateCodec(name, options.stateVersion ?? 1, options.state, options.streams),
    evolve: (state, event) => {
      const step = evolve.get(event._tag)
      // A decoded event has one: `handlersOf` has seen to it.
      // biome-ignore lint/plugin: the handler under a tag takes the member of that tag, which a `Map` can't say
      return step === undefined ? state : step(state, event as never)
    },
    decide: (command, root) => {
      const handler = decide.get(tagOf(command) ?? "")
      return handler === undefined
        ? unknownCommand(command)
        : // biome-ignore lint/plugin: as above
          refusingBadInput(`${name}.evaluate`, () => handler(command as never, root))
    },
    digest: makeCommandDigest(`${name}.evaluate`, options.commands),
    projections: (options.projections ?? []).map((projection) =>
      projection.of === "all"
        ? { ...projection, of: projection.of }
        : Projection.of({ name, streams: options.streams }, projection)
    ),
    minted: makeFreshIds(),
    snapshotEvery: options.snapshotEvery,
    retry: options.retry
  }
}

/** How many states are kept, and for how long. */
export const cacheLimits = (
  name: string,
  keep: Partial<{ capacity: number | undefined; idleTimeToLive: Duration.DurationInput | undefined }> | undefined
): CacheLimits => {
  const capacity = keep?.capacity ?? 10_000
  if (!(Number.isInteger(capacity) && capacity >= 0)) {
    throw new TypeError(`cache.capacity of ${name} must be a whole number from 0 on, and is ${capacity}`)
  }
  return { capacity, idleTimeToLive: Duration.decode(keep?.idleTimeToLive ?? "10 minutes") }
}

// --- internal ---

/** The handlers by tag; one that is missing is found when the aggregate is defined, not when it is first needed. */
const handlersOf = <F>(
  what: string,
  tags: ReadonlyArray<string>,
  handlers: Readonly<Record<string, F>>
): ReadonlyMap<string, F> => {
  const missing = tags.filter((tag) => !Object.hasOwn(handlers, tag))
  if (missing.length > 0) throw new TypeError(`${what} has no handler for ${missing.join(", ")}`)
  return new Map(Object.entries(handlers))
}
