/**
 * The history of a schema of events: what `Upcast` makes, its checks, and where it is kept. `eventCodec` reads events by
 * it, and projections and subscriptions find the stored types by it.
 *
 * The history is an annotation of the schema, so a schema with a history is used like any other. A history that can't
 * work is a mistake in the program, and throws a `TypeError` that names the type.
 */
import * as Option from "effect/Option"
import { type Pipeable, pipeArguments } from "effect/Pipeable"
import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import { maxVersion } from "../../Event.js"
import { reservedPrefix } from "./names.js"
import { membersByTag, visitMembers } from "./taggedMembers.js"

/** The key of the types that a part of a history is about. */
export const UpcastTypeId: unique symbol = Symbol.for("effect-maestro/Upcast")

export type UpcastTypeId = typeof UpcastTypeId

/** A function of the application, from one decoded shape to the next, or to events. */
export type Run = (value: unknown) => unknown

/** A version of a type, and the schema of its body. */
export interface Shape {
  readonly version: number
  // biome-ignore lint/suspicious/noExplicitAny: stored events have any form
  readonly schema: Schema.Schema<any, any>
}

/** The last step of a chain: to an event, or to any number of them. */
export interface LastStep {
  readonly parts: boolean
  readonly run: Run
}

/** A chain without its last step. Each step leads from a shape to the next. */
export interface StepsEntry {
  readonly _tag: "Steps"
  readonly shapes: ReadonlyArray<Shape>
  readonly steps: ReadonlyArray<Run>
}

/** The chain of a type that is still written. */
export interface ChainEntry extends Omit<StepsEntry, "_tag"> {
  readonly _tag: "Chain"
  /** The version of today. */
  readonly version: number
  /** There is none if there are no older shapes. */
  readonly last: LastStep | undefined
  readonly downcasts: ReadonlyArray<Shape & { readonly run: Run }>
}

/** The chain of a type that is written no more. */
export interface ReplacedEntry extends Omit<StepsEntry, "_tag"> {
  readonly _tag: "Replaced"
  readonly last: LastStep
}

export interface RenamedEntry {
  readonly _tag: "Renamed"
  readonly type: string
}

export interface DroppedEntry {
  readonly _tag: "Dropped"
}

export type Entry = StepsEntry | ChainEntry | ReplacedEntry | RenamedEntry | DroppedEntry

/** How the events of a stored type are read: as events of a type of today, by the chain of another, or not at all. */
export type Origin =
  | { readonly _tag: "Own"; readonly tag: string; readonly chain: ChainEntry | undefined }
  | ReplacedEntry
  | DroppedEntry

/** Makes a part of a history. Its type says what the entry is. */
export const makePart = <Part extends Pipeable>(entry: Entry): Part =>
  Object.assign(Object.create(partPrototype), { entry }) as Part

/** The schema with the history, which is checked. */
export const withHistory = <A, I>(
  schema: Schema.Schema<A, I>,
  parts: Readonly<Record<string, unknown>>
): Schema.Schema<A, I> => {
  const own = new Map(Option.getOrElse(annotated(schema.ast), () => noHistory))
  for (const [type, part] of Object.entries(parts)) addEntry(own, type, entryOf(type, part))
  const withOwn = Schema.make<A, I, never>(AST.annotations(schema.ast, { [historyAnnotation]: own }))
  originsOf(withOwn)
  return withOwn
}

/**
 * How each stored type with a history is read. It is empty for a schema without one. Throws a `TypeError` for a history
 * that can't work, also where two that work alone meet in one union.
 */
export const originsOf = (schema: Schema.Schema.Any): ReadonlyMap<string, Origin> => {
  const history = new Map<string, Entry>()
  visitMembers(schema.ast, (member) => {
    let ast = member
    for (;;) {
      const own = annotated(ast)
      if (Option.isSome(own)) for (const [type, entry] of own.value) addEntry(history, type, entry)
      if (!AST.isRefinement(ast)) break
      ast = ast.from
    }
    if (AST.isTransformation(ast) && Option.isSome(annotated(ast.from))) throw insideTransformation(ast)
  })
  if (history.size === 0) return noOrigins
  const tags = membersByTag(schema.ast)
  for (const [type, entry] of history) checkEntry(type, entry, tags.has(type))
  return new Map([...history.keys()].map((type) => [type, resolve(type, history, tags)]))
}

/**
 * The stored types whose events may be read as events of these tags. A step returns any events of the schema, so a type
 * that is split, or replaced by others, is among the types of every tag.
 */
export const storedTypesOf = (schema: Schema.Schema.Any, tags: ReadonlyArray<string>): ReadonlyArray<string> => {
  const types = new Set(tags)
  if (types.size === 0) return []
  for (const [type, origin] of originsOf(schema)) {
    if (origin._tag === "Replaced" || (origin._tag === "Own" && (types.has(origin.tag) || splits(origin.chain)))) {
      types.add(type)
    }
  }
  return [...types]
}

/** The version of today of a tag. */
export const versionOf = (origins: ReadonlyMap<string, Origin>, tag: string): number => {
  const origin = origins.get(tag)
  return (origin?._tag === "Own" && origin.chain?.version) || 1
}

/**
 * What a schema reads otherwise than the schema that writes the events, of the stored types that it handles. Returns
 * undefined where both have one history.
 */
export const historyProblem = (
  writing: Schema.Schema.Any,
  reading: Schema.Schema.Any,
  handled: ReadonlyArray<string>
): string | undefined => {
  const [written, read] = [originsOf(writing), originsOf(reading)]
  if (written.size === 0 && read.size === 0) return undefined
  const writtenTags = membersByTag(writing.ast)
  const tags = [...membersByTag(reading.ast).keys()].filter((tag) => handled.includes(tag) && writtenTags.has(tag))
  for (const tag of tags) {
    const [own, other] = [versionOf(read, tag), versionOf(written, tag)]
    if (own !== other) return `reads ${tag} in version ${own} and not in version ${other}`
  }
  const missed = storedTypesOf(writing, tags).find((type) => !handled.includes(type))
  return missed === undefined
    ? undefined
    : `misses stored events of type ${missed}, which may be read as ${tags.join(", ")}`
}

// --- internal ---

type History = ReadonlyMap<string, Entry>

const historyAnnotation = Symbol.for("effect-maestro/Upcast/history")

const annotated = AST.getAnnotation<History>(historyAnnotation)

const noHistory: History = new Map()
const noOrigins: ReadonlyMap<string, Origin> = new Map()

const partPrototype: Pipeable & { readonly [UpcastTypeId]: unknown } = {
  [UpcastTypeId]: {},
  pipe() {
    // biome-ignore lint/complexity/noArguments: `pipeArguments` takes them
    return pipeArguments(this, arguments)
  }
}

const splits = (chain: ChainEntry | undefined): boolean => chain?.last?.parts === true

/** Callers that circumvent the types may give anything. */
const entryOf = (type: string, part: unknown): Entry => {
  if (typeof part === "object" && part !== null && UpcastTypeId in part && "entry" in part) return part.entry as Entry
  throw mistake(type, "is no part of a history: `Upcast` makes them")
}

const addEntry = (history: Map<string, Entry>, type: string, entry: Entry): void => {
  const known = history.get(type)
  if (known !== undefined && known !== entry) throw mistake(type, "has two histories in one schema")
  history.set(type, entry)
}

const insideTransformation = (ast: AST.AST): TypeError =>
  new TypeError(`a schema with a history is inside a transformation, which loses the history: ${ast}`)

const mistake = (type: string, problem: string): TypeError =>
  new TypeError(`the history of events can't work: ${JSON.stringify(type)} ${problem}`)

const checkEntry = (type: string, entry: Entry, isWritten: boolean): void => {
  if (type.startsWith(`${reservedPrefix}/`)) {
    throw mistake(type, `must not begin with ${reservedPrefix}/, which is reserved`)
  }
  switch (entry._tag) {
    case "Steps":
      throw mistake(
        type,
        `ends in a shape of version ${entry.shapes.at(-1)?.version}, and must end in toEvent or toEvents`
      )
    case "Renamed":
    case "Dropped":
      if (isWritten) throw mistake(type, `is the tag of an event, so it can't be ${entry._tag.toLowerCase()}`)
      return
    case "Replaced":
      if (isWritten) {
        const last = entry.shapes.at(-1)?.version
        throw mistake(
          type,
          `does not reach a version of today: its last step, from version ${last}, must name that version`
        )
      }
      return checkChain(type, entry, [])
    case "Chain":
      if (!isWritten) {
        throw mistake(
          type,
          `is the tag of no event, so its last step must not name a version, and names ${entry.version}`
        )
      }
      return checkChain(type, entry, [entry.version, ...entry.downcasts.map(({ version }) => version)])
  }
}

const checkChain = (type: string, chain: ChainEntry | ReplacedEntry, furtherVersions: ReadonlyArray<number>): void => {
  let previous: number | undefined
  for (const version of [...chain.shapes.map((shape) => shape.version), ...furtherVersions]) {
    if (!(Number.isInteger(version) && version >= 1 && version <= maxVersion)) {
      throw mistake(type, `has the version ${String(version)}, which must be an integer from 1 to ${maxVersion}`)
    }
    if (version === previous) throw mistake(type, `has version ${version} twice`)
    if (previous !== undefined && version < previous) throw mistake(type, `has version ${version} after ${previous}`)
    if (previous !== undefined && version > previous + 1) {
      throw mistake(type, `goes from version ${previous} to ${version}, so there is a gap at version ${previous + 1}`)
    }
    previous = version
  }
  const downcasts = chain._tag === "Chain" ? chain.downcasts : []
  const runs = [
    ...chain.steps,
    ...(chain.last === undefined ? [] : [chain.last.run]),
    ...downcasts.map(({ run }) => run)
  ]
  if (runs.some((run) => typeof run !== "function")) throw mistake(type, "has a step that is no function")
}

/** Follows the new names of a type. */
const resolve = (type: string, history: History, tags: ReadonlyMap<string, unknown>): Origin => {
  const seen = new Set<string>()
  let current = type
  for (;;) {
    if (seen.has(current)) throw mistake(type, `is renamed in a circle: ${[...seen, current].join(" → ")}`)
    seen.add(current)
    const entry = history.get(current)
    if (tags.has(current)) return { _tag: "Own", tag: current, chain: entry?._tag === "Chain" ? entry : undefined }
    if (entry === undefined)
      throw mistake(type, `is renamed to ${JSON.stringify(current)}, which is the tag of no event`)
    if (entry._tag === "Replaced" || entry._tag === "Dropped") return entry
    if (entry._tag === "Renamed") current = entry.type
  }
}
