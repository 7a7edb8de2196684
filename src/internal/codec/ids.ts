/**
 * Checks ids of aggregates by their schema. The aggregate's operations call it, and the handlers of projections and
 * subscriptions for ids that are stored already.
 */
import * as Either from "effect/Either"
import type * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import { guarded, parseIssues } from "./eventCodec.js"
import { decodeUnknownEither } from "./fastSchema.js"

/** Returns why a text is no id, or `undefined`. */
export type IdProblem = (id: unknown) => string | undefined

/** The check of a schema, compiled once. There is none for a schema of any text, also if it has a brand. */
export const idProblemBy = (schema: IdSchema): IdProblem | undefined => {
  if (AST.isStringKeyword(schema.ast)) return undefined
  const decode = guarded(decodeUnknownEither(schema))
  return (id) => {
    const decoded = decode(id)
    return Either.isRight(decoded)
      ? undefined
      : [...new Set(parseIssues(decoded.left).map(({ message }) => message))].join("; ")
  }
}

/** Whether the decoded form of a schema may differ from the encoded one. */
export const transforms = ({ ast }: IdSchema): boolean => transformsIn(ast, new Set())

/** The schema of ids. Its encoded form is text of any type. */
// biome-ignore lint/suspicious/noExplicitAny: a schema of a template literal has that type as its encoded form
export type IdSchema = Schema.Schema<any, any>

// --- internal ---

const transformsIn = (ast: AST.AST, seen: Set<AST.AST>): boolean => {
  if (seen.has(ast)) return false
  seen.add(ast)
  if (AST.isRefinement(ast)) return transformsIn(ast.from, seen)
  if (AST.isUnion(ast)) return ast.types.some((member) => transformsIn(member, seen))
  if (!AST.isSuspend(ast)) return AST.typeAST(ast) !== ast
  const suspended = definedNow(ast)
  return suspended !== undefined && transformsIn(suspended, seen)
}

/** The schema behind a suspended one. There is none yet where the program defines it later. */
const definedNow = ({ f }: AST.Suspend): AST.AST | undefined => {
  try {
    return f()
  } catch {
    return undefined
  }
}
