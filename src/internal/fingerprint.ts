/**
 * Tells one schema of a state from another.
 *
 * A changed schema can often decode an old snapshot, by a default or an optional field, to a state that a replay would not come to. So a
 * snapshot counts only for the very schema that it was written by.
 */
import * as Hash from "effect/Hash"
import * as Option from "effect/Option"
import type * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"

/** The same for schemas of one shape, also of a recursive one. Functions can't be compared: `stateVersion` is for those. */
export const fingerprint = (schema: Schema.Schema.Any): string => {
  const text = JSON.stringify(describe(schema.ast, { met: new Map(), depth: 0, maxDepth }))
  // Two hashes of 32 bits, since one would take two schemas of a long history for the same too easily.
  return `${Hash.string(text).toString(16)}.${Hash.string(`${text.length}${text}`).toString(16)}`
}

// --- internal ---

type Json = string | number | boolean | null | ReadonlyArray<Json>

/** Where in the schema a description is. */
interface Place {
  /** The suspended schemas that were met so far. What is inside of one is described where it is met first. */
  readonly met: Map<AST.AST, number>
  /** How many suspended schemas this place is inside of. */
  readonly depth: number
  readonly maxDepth: number
}

const describe = (ast: AST.AST, place: Place): Json => {
  const inner = (one: AST.AST): Json => describe(one, place)
  switch (ast._tag) {
    case "Suspend": {
      const known = place.met.get(ast)
      if (known !== undefined) return ["again", known]
      if (place.depth >= place.maxDepth || place.met.size >= maxMet) return ["and so on"]
      place.met.set(ast, place.met.size)
      return ["suspended", describe(ast.f(), { ...place, depth: place.depth + 1 })]
    }
    case "TypeLiteral":
      return [
        "struct",
        ast.propertySignatures.map(({ isOptional, name, type }) => [String(name), isOptional, inner(type)]),
        ast.indexSignatures.map(({ parameter, type }) => [inner(parameter), inner(type)])
      ]
    case "TupleType":
      return [
        "tuple",
        ast.elements.map(({ isOptional, type }) => [isOptional, inner(type)]),
        ast.rest.map(({ type }) => inner(type))
      ]
    case "Union":
      return ["union", ast.types.map(inner)]
    case "Refinement":
      return ["refinement", inner(ast.from), annotationsOf(ast)]
    case "Transformation":
      return [
        "transformation",
        inner(ast.from),
        // The decoded side of a recursive class suspends a new schema each time, so it has no end; what is in it stands in `from` too.
        describe(ast.to, { ...place, maxDepth: Math.min(place.maxDepth, place.depth + 1) }),
        renamedIn(ast.transformation)
      ]
    case "Declaration":
      return ["declaration", ast.typeParameters.map(inner), annotationsOf(ast)]
    default:
      // Literals, enums, templates and keywords say in full what they are, unless an annotation speaks for them.
      return [ast._tag, bareTextOf(ast)]
  }
}

/** A function that makes a new schema each time has no end. */
const maxMet = 1000
const maxDepth = 50

const renamedIn = (kind: AST.TransformationKind): Json =>
  kind._tag === "TypeLiteralTransformation"
    ? kind.propertySignatureTransformations.map(({ from, to }) => [String(from), String(to)])
    : kind._tag

/** What a filter, or a class, says about itself. */
const annotationsOf = (ast: AST.Annotated): Json => [
  textOf(AST.getSchemaIdAnnotation(ast)),
  textOf(AST.getIdentifierAnnotation(ast)),
  textOf(AST.getTitleAnnotation(ast)),
  textOf(Option.map(AST.getJSONSchemaAnnotation(ast), (annotation) => JSON.stringify(annotation)))
]

const textOf = (annotation: Option.Option<unknown>): Json =>
  Option.isSome(annotation) ? String(annotation.value) : null

const bareTextOf = (ast: AST.AST): string => {
  switch (ast._tag) {
    case "Literal":
      return `${typeof ast.literal} ${String(ast.literal)}`
    case "UniqueSymbol":
      return String(ast.symbol)
    case "Enums":
      return JSON.stringify(ast.enums)
    case "TemplateLiteral":
      return JSON.stringify([ast.head, ...ast.spans.map(({ literal, type }) => [String(type), literal])])
    default:
      return ""
  }
}
