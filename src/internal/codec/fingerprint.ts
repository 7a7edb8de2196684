/**
 * The fingerprint of a schema: of a snapshot's state (`stateCodec`), and of a command with an id
 * (`aggregate/commandDigest`). A snapshot has the fingerprint of the history of events, too, because another history can
 * lead to another state.
 *
 * A changed schema can often decode an old snapshot, by a default or an optional field, to a state that a replay does
 * not return. So a snapshot is used only with the schema that wrote it. A missed change costs a wrong state, and a
 * change without effect costs one replay, or the comparison of one command with its receipt. So the fingerprint covers
 * every readable part of a schema:
 *
 * - **Annotations** of each node, except annotations for messages, documentation and generators (`withoutEffect`).
 * - **The source text of functions**: of transformations, filters and declarations, and of functions in annotations. It
 *   is the same in all processes of one build. Another build, another minifier or another version of Effect may change
 *   it.
 *
 * Values that a function closes over can't be seen. `Schema.transform`, `Schema.filter` and the defaults of
 * `Schema.optionalWith` close over the function of the application. A change there needs another annotation, such as an
 * `identifier`, or a higher `stateVersion`.
 */
import type * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import { type ChainEntry, type Origin, originsOf, type ReplacedEntry } from "./eventHistory.js"
import { isPlain } from "./json.js"

/** Equal for schemas of one shape in one build, also for recursive ones. */
export const fingerprint = (schema: Schema.Schema.Any): string =>
  hashOf(JSON.stringify(describe(schema.ast, { met: new Map(), depth: 0, maxDepth })))

/** Equal for schemas of events that read stored events by the same history. Undefined for a schema without one. */
export const historyFingerprint = (events: Schema.Schema.Any): string | undefined => {
  const origins = [...originsOf(events)].sort(([one], [other]) => (one < other ? -1 : 1))
  return origins.length === 0
    ? undefined
    : hashOf(JSON.stringify(origins.map(([type, one]) => [type, originJson(one)])))
}

// --- internal ---

const originJson = (origin: Origin): Json => {
  switch (origin._tag) {
    case "Dropped":
      return [origin._tag]
    case "Own":
      return [origin._tag, origin.tag, origin.chain === undefined ? null : chainJson(origin.chain)]
    case "Replaced":
      return [origin._tag, chainJson(origin)]
  }
}

const chainJson = (chain: ChainEntry | ReplacedEntry): Json => [
  chain.shapes.map(({ schema, version }) => [version, fingerprint(schema)]),
  chain.steps.map(sourceOf),
  chain.last === undefined ? null : [chain.last.parts, sourceOf(chain.last.run)],
  chain._tag === "Chain"
    ? [
        chain.version,
        ...chain.downcasts.map(({ run, schema, version }) => [version, fingerprint(schema), sourceOf(run)])
      ]
    : null
]

type Json = string | number | boolean | null | ReadonlyArray<Json>

/** The place in the schema that is described. */
interface Place {
  /** The suspended schemas so far. The content of each is described at its first place. */
  readonly met: Map<AST.AST, number>
  /** The number of suspended schemas around this place. */
  readonly depth: number
  readonly maxDepth: number
}

const describe = (ast: AST.AST, place: Place): Json => {
  const known = place.met.get(ast)
  return known === undefined ? [ast._tag, partsOf(ast, place), annotationsOf(ast)] : ["again", known]
}

const partsOf = (ast: AST.AST, place: Place): Json => {
  const inner = (one: AST.AST): Json => describe(one, place)
  switch (ast._tag) {
    case "Suspend": {
      if (place.depth >= place.maxDepth || place.met.size >= maxMet) return ["and so on"]
      place.met.set(ast, place.met.size)
      return describe(ast.f(), { ...place, depth: place.depth + 1 })
    }
    case "TypeLiteral":
      return [
        ast.propertySignatures.map((property) => [
          keyOf(property.name),
          property.isOptional,
          inner(property.type),
          annotationsOf(property)
        ]),
        ast.indexSignatures.map(({ parameter, type }) => [inner(parameter), inner(type)])
      ]
    case "TupleType":
      return [
        ast.elements.map((element) => [element.isOptional, inner(element.type), annotationsOf(element)]),
        ast.rest.map((element) => [inner(element.type), annotationsOf(element)])
      ]
    case "Union":
      return ast.types.map(inner)
    case "Refinement":
      return [inner(ast.from), sourceOf(ast.filter)]
    case "Transformation":
      return [
        inner(ast.from),
        // The decoded side of a recursive class suspends a new schema each time, without end. Its content is in `from`,
        // too.
        describe(ast.to, { ...place, maxDepth: Math.min(place.maxDepth, place.depth + 1) }),
        kindOf(ast.transformation)
      ]
    case "Declaration":
      return [ast.typeParameters.map(inner), sourceOf(ast.decodeUnknown), sourceOf(ast.encodeUnknown)]
    case "Literal":
      return valueOf(ast.literal)
    case "UniqueSymbol":
      return valueOf(ast.symbol)
    case "Enums":
      return ast.enums.map(([name, value]) => [name, value])
    case "TemplateLiteral":
      return [ast.head, ast.spans.map(({ literal, type }) => [inner(type), literal])]
    default:
      // A keyword has no parts.
      return null
  }
}

/** A limit, because a function may suspend a new schema each time. */
const maxMet = 1000
const maxDepth = 50

const kindOf = (kind: AST.TransformationKind): Json => {
  switch (kind._tag) {
    case "FinalTransformation":
      return [kind._tag, sourceOf(kind.decode), sourceOf(kind.encode)]
    case "TypeLiteralTransformation":
      return [
        kind._tag,
        kind.propertySignatureTransformations.map(({ decode, encode, from, to }) => [
          keyOf(from),
          keyOf(to),
          sourceOf(decode),
          sourceOf(encode)
        ])
      ]
    case "ComposeTransformation":
      return [kind._tag]
  }
}

/** The annotations of a schema, a property or an element. */
const annotationsOf = ({ annotations }: AST.Annotated): Json =>
  Object.getOwnPropertySymbols(annotations)
    .filter((key) => !withoutEffect.has(key))
    .map((key): readonly [string, Json] => [String(key), valueOf(annotations[key])])
    .sort(([one], [other]) => (one < other ? -1 : one > other ? 1 : 0))

/** Annotations that change neither decoding nor encoding. A surrogate repeats the parts of a class. */
const withoutEffect: ReadonlySet<symbol> = new Set<symbol>([
  AST.ArbitraryAnnotationId,
  AST.BatchingAnnotationId,
  AST.ConcurrencyAnnotationId,
  AST.DocumentationAnnotationId,
  AST.EquivalenceAnnotationId,
  AST.ExamplesAnnotationId,
  AST.MessageAnnotationId,
  AST.MissingMessageAnnotationId,
  AST.ParseIssueTitleAnnotationId,
  AST.PrettyAnnotationId,
  AST.SurrogateAnnotationId
])

/** Any value of an annotation or a literal, as far as it can be described. */
const valueOf = (value: unknown): Json => {
  let left = maxValues
  const write = (current: unknown): Json => {
    if (--left < 0) return ["and so on"]
    if (typeof current === "function") return ["function", sourceOf(current)]
    if (typeof current !== "object" || current === null) return [typeof current, String(current)]
    if (Array.isArray(current)) return ["list", current.slice(0, left).map(write)]
    if (current instanceof Date) return ["date", current.getTime()]
    if (current instanceof RegExp) return ["regular expression", String(current)]
    if (!isPlain(current)) return ["object", String(current.constructor?.name)]
    const keys = Object.keys(current).sort().slice(0, Math.max(left, 0))
    return ["record", keys.map((key) => [key, write(current[key])])]
  }
  return write(value)
}

/** A limit for one annotation, which may contain itself. */
const maxValues = 1000

const keyOf = (key: PropertyKey): Json => [typeof key, String(key)]

// The function's own `toString` may be overridden.
const sourceOf = (of: unknown): string => (typeof of === "function" ? Function.prototype.toString.call(of) : "")

/**
 * A hash of 64 bits: two of 32 bits, each with a multiplier of its own. `Hash.string` of Effect has 32 bits, and is
 * often equal for texts that differ in two neighbouring characters.
 */
const hashOf = (text: string): string => `${hash32(text, 0x9e3779b1)}${hash32(text, 0x85ebca6b)}`

const hash32 = (text: string, multiplier: number): string => {
  let hash = text.length
  for (let index = 0; index < text.length; index++) {
    hash = Math.imul(hash ^ text.charCodeAt(index), multiplier)
    // A product carries only upwards, so without this shift the low bits would depend on low bits alone.
    hash ^= hash >>> 15
  }
  return (hash >>> 0).toString(16).padStart(8, "0")
}
