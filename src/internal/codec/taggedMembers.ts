/**
 * Finds the members of a tagged schema, or of a union of them, by their tags. `eventCodec` and `eventHistory` call it.
 */
import * as AST from "effect/SchemaAST"

/** The members of a union by their tag. Several may share one: they are versions of an event, and tried in order. */
export const membersByTag = (ast: AST.AST): Map<string, Array<AST.AST>> => {
  const found = new Map<string, Array<AST.AST>>()
  visitMembers(ast, (member) => {
    if (AST.isUnion(member) || AST.isSuspend(member)) return
    const tag = literalTagOf(member)
    if (tag === undefined)
      throw new TypeError(`A schema without a literal _tag can't be distinguished from others: ${member}`)
    found.set(tag, [...(found.get(tag) ?? []), member])
  })
  return found
}

/** Visits a schema, and if it is a union all unions in it and all members. A suspended schema is visited as its content. */
export const visitMembers = (ast: AST.AST, visit: (ast: AST.AST) => void): void => {
  visit(ast)
  if (AST.isUnion(ast)) for (const type of ast.types) visitMembers(type, visit)
  else if (AST.isSuspend(ast)) visitMembers(ast.f(), visit)
}

/** The tag of a struct or a class, if it is a literal. */
export const literalTagOf = (ast: AST.AST): string | undefined => {
  const encoded = AST.encodedAST(ast)
  if (!AST.isTypeLiteral(encoded)) return undefined
  const tag = encoded.propertySignatures.find((property) => property.name === "_tag")?.type
  return tag !== undefined && AST.isLiteral(tag) && typeof tag.literal === "string" ? tag.literal : undefined
}
