/**
 * Refuses values whose key `__proto__` a schema would lose. `effect/Schema` and its classes assign the keys of records,
 * and an assignment of this key sets the prototype, or does nothing. `fastSchema` checks every result of a schema that
 * may do so.
 */
import type * as Schema from "effect/Schema"
import type * as AST from "effect/SchemaAST"

/** Whether the schema may take a key `__proto__`: by an index signature, or by a property of that name. */
export const takesProtoKey = (schema: Schema.Schema.Any): boolean => {
  const seen = new Set<AST.AST>()
  const takes = (ast: AST.AST): boolean => {
    if (seen.has(ast)) return false
    seen.add(ast)
    switch (ast._tag) {
      case "TypeLiteral":
        return (
          ast.indexSignatures.length > 0 ||
          ast.propertySignatures.some(({ name, type }) => name === protoKey || takes(type))
        )
      case "TupleType":
        return [...ast.elements, ...ast.rest].some(({ type }) => takes(type))
      case "Union":
        return ast.types.some(takes)
      case "Refinement":
        return takes(ast.from)
      case "Transformation":
        return takes(ast.from) || takes(ast.to)
      case "Declaration":
        return ast.typeParameters.some(takes)
      case "Suspend":
        return takes(ast.f())
      default:
        return false
    }
  }
  return takes(schema.ast)
}

/** How many keys `__proto__` a value has, at every depth. */
export const countProtoKeys = (value: unknown): number => {
  const seen = new Set<object>()
  const open: Array<unknown> = [value]
  let count = 0
  while (open.length > 0) {
    const current = open.pop()
    if (typeof current !== "object" || current === null || seen.has(current)) continue
    seen.add(current)
    for (const key of Object.keys(current)) {
      if (key === protoKey) count++
      open.push((current as Record<string, unknown>)[key])
    }
  }
  return count
}

/** Sets a property, also one of this name. */
export const setProperty = (object: Record<PropertyKey, unknown>, key: PropertyKey, value: unknown): void => {
  if (key === protoKey)
    Object.defineProperty(object, key, { value, configurable: true, enumerable: true, writable: true })
  else object[key] = value
}

export const protoKey = "__proto__"
