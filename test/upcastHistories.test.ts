/**
 * Random histories of event types: several releases write to one log, each after random changes of its types, and each
 * folds what all have written to what a model says. A release that meets what a later one has written reads it rightly or
 * fails.
 *
 * The model knows neither schemas nor chains. It says for a stored type, version and number to which events of a release
 * they lead.
 */
import { expect, inject, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, MemoryStore, StoreAdapter, Upcast } from "effect-maestro"

/** An event of a type, and its number. */
type Line = readonly [tag: string, n: number]

/** The events that one old event is split into: their types, and what is added to the number of each. */
type Parts = ReadonlyArray<Line>

/** A type that is written: its version of today, what each step to the next version adds, and how old ones are split. */
interface Written {
  readonly version: number
  readonly oldest: number
  readonly parts: Parts | undefined
}

/** A type that is written no more. */
type Gone =
  | { readonly _tag: "Renamed"; readonly to: string }
  | { readonly _tag: "Dropped" }
  | { readonly _tag: "Replaced"; readonly version: number; readonly oldest: number; readonly parts: Parts }

interface Release {
  readonly written: ReadonlyMap<string, Written>
  readonly gone: ReadonlyMap<string, Gone>
}

/** What a step from that version adds: a number that tells the steps apart. */
const addedFrom = (version: number): number => 10 ** version

/** The versions from the first on, before the end. */
const between = (first: number, end: number): ReadonlyArray<number> =>
  Array.from({ length: Math.max(end - first, 0) }, (_, index) => first + index)

/** What the number of an old event has become before the last step, which leads from the version before `end`. */
const steppedTo = (version: number, end: number, n: number): number =>
  between(version, end).reduce((sum, from) => sum + addedFrom(from), n)

// --- the model ---

/** The events of the release that a stored event is read as, or undefined where the release can't read it. */
const readBy = (release: Release, type: string, version: number, n: number): ReadonlyArray<Line> | undefined => {
  const written = release.written.get(type)
  if (written !== undefined) {
    if (version > written.version || version < written.oldest) return undefined
    const now = steppedTo(version, written.version, n)
    if (version === written.version || written.parts === undefined) return [[type, now]]
    return written.parts.map(([tag, more]) => [tag, now + more])
  }
  const gone = release.gone.get(type)
  if (gone === undefined) return undefined
  switch (gone._tag) {
    case "Renamed":
      return readBy(release, gone.to, version, n)
    case "Dropped":
      return []
    case "Replaced":
      if (version > gone.version || version < gone.oldest) return undefined
      return gone.parts.map(([tag, more]) => [tag, steppedTo(version, gone.version, n) + more])
  }
}

// --- the program ---

interface AnyEvent {
  readonly _tag: string
  readonly [field: string]: unknown
}
type Body = Readonly<Record<string, number>>
type AnySchema = Schema.Schema<AnyEvent, AnyEvent>

/** The body of each version has a field of its own name, so no other version decodes it. */
const fieldOf = (version: number): string => `n${version}`
const shapeOf = (version: number): Schema.Schema<Body> => Schema.Struct({ [fieldOf(version)]: Schema.Number })
const valueIn = (old: Body, version: number): number => Number(old[fieldOf(version)])

/** The shapes of all versions before `end`, with a step from each to the next. */
const stepsTo = (oldest: number, end: number): Upcast.Steps<Body> =>
  between(oldest, end - 1).reduce<Upcast.Steps<Body>>(
    (steps, version) =>
      steps.pipe(
        Upcast.to(version + 1, shapeOf(version + 1), (old) => ({
          [fieldOf(version + 1)]: valueIn(old, version) + addedFrom(version)
        }))
      ),
    Upcast.from(oldest, shapeOf(oldest))
  )

/** The aggregate of a release, compiled from what the model says. */
const aggregateOf = (release: Release) => {
  const classes = new Map<string, (fields: Body) => AnyEvent>()
  /** Some types are classes. Every second of their events is an instance, the others are fields. */
  const schemaOf = (tag: string, { version }: Written): AnySchema => {
    const fields = { [fieldOf(version)]: Schema.Number }
    if (tag.length % 2 === 0) return Schema.TaggedStruct(tag, fields) as unknown as AnySchema
    class Event extends Schema.TaggedClass<Event>(tag)(tag, fields) {}
    classes.set(tag, (given) => new Event(given) as unknown as AnyEvent)
    return Event as unknown as AnySchema
  }
  const schemas = [...release.written].map(([tag, written]) => schemaOf(tag, written))
  const eventOf = ([tag, n]: Line): AnyEvent => {
    const fields = { [fieldOf(release.written.get(tag)?.version ?? 0)]: n }
    return (n % 2 === 0 ? classes.get(tag)?.(fields) : undefined) ?? { _tag: tag, ...fields }
  }
  const lineOf = (event: AnyEvent): string =>
    `${event._tag} ${event[fieldOf(release.written.get(event._tag)?.version ?? 0)]}`
  const partsOf = (parts: Parts, n: number) => parts.map(([part, more]) => eventOf([part, n + more]))

  const history: Record<string, Upcast.History[string]> = {}
  for (const [tag, { oldest, parts, version }] of release.written) {
    const last = version - 1
    const now = (old: Body) => valueIn(old, last) + addedFrom(last)
    if (oldest < version) {
      const steps = stepsTo(oldest, version)
      history[tag] =
        parts === undefined
          ? steps.pipe(Upcast.toEvent(version, (old) => eventOf([tag, now(old)])))
          : steps.pipe(Upcast.toEvents(version, (old) => partsOf(parts, now(old))))
    } else if (version > 1) history[tag] = Upcast.since(version)
  }
  for (const [type, gone] of release.gone) {
    if (gone._tag === "Renamed") history[type] = Upcast.renamed(gone.to)
    else if (gone._tag === "Dropped") history[type] = Upcast.dropped
    else {
      const { oldest, parts, version } = gone
      history[type] = stepsTo(oldest, version + 1).pipe(Upcast.toEvents((old) => partsOf(parts, valueIn(old, version))))
    }
  }
  const events = (Upcast.events as (schema: AnySchema, history: Upcast.History) => AnySchema)(
    Schema.Union(...schemas) as unknown as AnySchema,
    history
  )
  const Write = Schema.TaggedStruct("Write", { lines: Schema.Array(Schema.Tuple(Schema.String, Schema.Number)) })
  return Aggregate.make("Log", {
    state: Schema.Array(Schema.String),
    initialState: [],
    events,
    commands: Write,
    decide: { Write: ({ lines }) => Effect.succeed(lines.map(eventOf)) },
    evolve: Object.fromEntries(
      [...release.written.keys()].map((tag) => [
        tag,
        (state: ReadonlyArray<string>, event: AnyEvent) => [...state, lineOf(event)]
      ])
    )
  })
}

// --- random releases ---

const upTo = (max: number) => Random.nextIntBetween(1, max + 1)

/** Any number of parts, also none, of any types. */
const randomParts = (tags: ReadonlyArray<string>): Effect.Effect<Parts> =>
  Effect.flatMap(Random.nextIntBetween(0, 4), (count) =>
    Effect.forEach(Arr.range(1, 4).slice(0, count), () =>
      Effect.zipWith(Effect.orDie(Random.choice(tags)), upTo(9), (tag, more): Line => [tag, more])
    )
  )

/** The parts after a type has a new name, or has none any more. */
const withoutType = (parts: Parts, type: string, to: string | undefined): Parts =>
  parts.flatMap(([tag, more]): Parts => (tag !== type ? [[tag, more]] : to === undefined ? [] : [[to, more]]))

/** The release after a random change. `fresh` is a name that no release has used. */
const changed = (release: Release, fresh: string): Effect.Effect<Release> =>
  Effect.gen(function* () {
    const [written, gone] = [new Map(release.written), new Map(release.gone)]
    const tag = yield* Effect.orDie(Random.choice([...written.keys()]))
    const type = written.get(tag)
    const kind = yield* upTo(written.size > 1 ? 6 : 4)
    if (kind === 1 || type === undefined) {
      const version = yield* upTo(3)
      written.set(fresh, { version, oldest: version, parts: undefined })
    } else if (kind === 2) written.set(tag, { ...type, version: type.version + 1 })
    else if (kind === 3) {
      written.set(tag, { ...type, version: type.version + 1, parts: yield* randomParts([...written.keys()]) })
    } else {
      written.delete(tag)
      const to = kind === 4 ? fresh : undefined
      if (to !== undefined) written.set(to, type)
      for (const [other, { parts, ...rest }] of written) {
        written.set(other, { ...rest, parts: parts && withoutType(parts, tag, to) })
      }
      for (const [other, one] of gone) {
        if (one._tag === "Replaced") gone.set(other, { ...one, parts: withoutType(one.parts, tag, to) })
      }
      const { oldest, version } = type
      gone.set(
        tag,
        to !== undefined
          ? { _tag: "Renamed", to }
          : kind === 5
            ? { _tag: "Dropped" }
            : { _tag: "Replaced", oldest, version, parts: yield* randomParts([...written.keys()]) }
      )
    }
    return { written, gone }
  })

const first: Release = {
  written: new Map([
    ["A", { version: 1, oldest: 1, parts: undefined }],
    ["BB", { version: 1, oldest: 1, parts: undefined }]
  ]),
  gone: new Map()
}

/** From two to five releases, each some changes after the one before. */
const randomReleases = Effect.gen(function* () {
  const releases = [first]
  const count = yield* Random.nextIntBetween(1, 5)
  for (let index = 1; index <= count; index++) {
    let next = releases[index - 1] ?? first
    const changes = yield* upTo(4)
    for (let change = 1; change <= changes; change++) next = yield* changed(next, `T${index}${"x".repeat(change)}`)
    releases.push(next)
  }
  return releases
})

interface Stored {
  readonly type: string
  readonly version: number
  readonly n: number
}

/** What the model says of a log: the lines that each event is read as, up to the first that the release can't read. */
const modelOf = (release: Release, log: ReadonlyArray<Stored>) => {
  const lines: Array<ReadonlyArray<string>> = []
  for (const { n, type, version } of log) {
    const events = readBy(release, type, version, n)
    if (events === undefined) return { lines, unreadable: lines.length + 1 }
    lines.push(events.map(([tag, now]) => `${tag} ${now}`))
  }
  return { lines, unreadable: undefined }
}

/** A release reads the log as the model says, by loads, replays and histories. */
const checkReads = (release: Release, log: ReadonlyArray<Stored>, note: string) =>
  Effect.gen(function* () {
    const { lines, unreadable } = modelOf(release, log)
    const aggregate = aggregateOf(release)
    yield* Effect.gen(function* () {
      if (unreadable === undefined) expect(yield* aggregate.fetch("a"), note).toEqual(lines.flat())
      else {
        const failure = yield* Effect.flip(aggregate.fetch("a"))
        expect(failure, note).toMatchObject({ reason: "UnreadableEvent", sequence: unreadable })
      }
      const sequence = yield* Random.nextIntBetween(0, lines.length + 1)
      expect(yield* aggregate.replay("a", sequence), note).toEqual(lines.slice(0, sequence).flat())
      const readable = lines.flatMap((some, index) => some.map(() => index + 1))
      const history = yield* Stream.runCollect(Stream.take(aggregate.history("a"), readable.length))
      expect(Chunk.toReadonlyArray(Chunk.map(history, (event) => event.sequence)), note).toEqual(readable)
    }).pipe(Effect.provide(Layer.fresh(aggregate.layer)))
  })

const runs = inject("runs") > 100 ? 2000 : 50

it.effect(
  `${runs} random histories, written by several releases and read by each, fold to what a model says`,
  () =>
    Effect.gen(function* () {
      const seed = yield* Effect.sync(() => Number(process.hrtime.bigint() % 1_000_000_007n))
      for (let run = 0; run < runs; run++) {
        const note = `seed ${seed}, run ${run}`
        yield* Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const releases = yield* randomReleases
          const log: Array<Stored> = []
          for (const release of releases) {
            const aggregate = aggregateOf(release)
            const tags = [...release.written.keys()]
            const lines = yield* Effect.forEach(Arr.range(1, 6), () =>
              Effect.zipWith(Effect.orDie(Random.choice(tags)), upTo(9), (tag, n): Line => [tag, n])
            )
            yield* Effect.provide(aggregate.evaluate("a", { _tag: "Write", lines }), Layer.fresh(aggregate.layer))
            log.push(...lines.map(([type, n]) => ({ type, n, version: release.written.get(type)?.version ?? 0 })))
          }
          const stored = yield* store.getEvents("Log/a", 1)
          expect(stored.map(({ type, version }) => [type, version])).toEqual(
            log.map(({ type, version }) => [type, version])
          )
          for (const [index, release] of releases.entries())
            yield* checkReads(release, log, `${note}, release ${index}`)
        }).pipe(Effect.withRandom(Random.make(`${seed}/${run}`)), Effect.provide(Layer.fresh(MemoryStore.layer)))
      }
    }),
  inject("timeout")
)
