/**
 * The schemas of requests and responses: `HttpApi` decodes and encodes by them, and OpenAPI shows them.
 */
import * as JSONSchema from "effect/JSONSchema"
import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import { StreamPosition } from "../../EventFeed.js"
import type { Tagged } from "../codec/eventCodec.js"

/** The schemas of successful responses. */
export interface ViewSchemas {
  readonly read: Schema.Schema<unknown, unknown>
  readonly result: Schema.Schema<unknown, unknown>
}

export const viewSchemas = (view: Schema.Schema.AnyNoContext): ViewSchemas => {
  const fields = { state: view, position: StreamPosition }
  const duplicate = Schema.Boolean.annotations({
    description: "whether a command of this Idempotency-Key was handled before"
  })
  const read = Schema.Struct(fields)
  const result = Schema.Struct({ ...fields, duplicate })
  return { read: Schema.make(read.ast), result: Schema.make(result.ast) }
}

/**
 * The path of an aggregate. A router has decoded the id, and a typed client does not encode it, so the schema encodes it
 * for the client.
 */
export const pathSchema = <Id extends string>(
  // biome-ignore lint/suspicious/noExplicitAny: the encoded form is text of any type
  id: Schema.Schema<Id, any>
): Schema.Schema<{ readonly id: Id }, { readonly id: string }> => {
  const text = Schema.String.annotations({
    jsonSchema: { description: "the id of the aggregate", ...jsonSchemaOf(id.ast) }
  })
  return Schema.Struct({
    id: Schema.transform(text, Schema.typeSchema(id), {
      strict: false,
      decode: (decoded: string) => decoded,
      encode: (id: Id) => encodeURIComponent(id)
    })
  })
}

/** The body of a command: its fields without the tag, which the path has. */
export const bodySchema = <C>(member: Schema.Schema<C, Tagged>, tag: string): Schema.Schema<C, object> => {
  const fields = withoutTag(Schema.encodedBoundSchema(member).ast)
  return Schema.transform(Schema.make<object, object>(fields), member, {
    strict: true,
    decode: (body) => ({ ...body, _tag: tag }),
    encode: ({ _tag, ...body }) => body
  })
}

/** Headers are declared, so that OpenAPI shows them and typed clients send them. */
export const commandHeaders = Schema.Struct({
  "idempotency-key": Schema.optional(
    Schema.String.annotations({
      description: "makes the command take effect once, however often it is sent: a text that its sender keeps"
    })
  ),
  "if-match": Schema.optional(
    Schema.String.annotations({
      description: 'an ETag, such as "3": the command is refused if the state is another one'
    })
  ),
  "if-none-match": Schema.optional(
    Schema.String.annotations({ description: "*: the command is refused if the aggregate has events" })
  )
})

export const readHeaders = Schema.Struct({
  "if-none-match": Schema.optional(
    Schema.String.annotations({
      description: "the ETag of a state that the client has: status 304 if it is still that"
    })
  )
})

// --- internal ---

const withoutTag = (ast: AST.AST): AST.AST =>
  AST.isUnion(ast)
    ? AST.Union.make(ast.types.map(withoutTag))
    : AST.isTypeLiteral(ast)
      ? emptyAsObject(
          new AST.TypeLiteral(
            ast.propertySignatures.filter(({ name }) => name !== "_tag"),
            ast.indexSignatures
          )
        )
      : AST.omit(ast, ["_tag"])

/** The JSON schema of a struct without fields allows lists, too. */
const emptyAsObject = (ast: AST.TypeLiteral): AST.AST =>
  ast.propertySignatures.length > 0 || ast.indexSignatures.length > 0
    ? ast
    : AST.annotations(ast, { [AST.JSONSchemaAnnotationId]: { type: "object", properties: {}, required: [] } })

/** What OpenAPI shows of an id. A schema without a JSON schema, such as a custom filter, is shown as text. */
const jsonSchemaOf = (ast: AST.AST): object => {
  try {
    return JSONSchema.fromAST(ast, { definitions: {}, target: "openApi3.1", topLevelReferenceStrategy: "skip" })
  } catch {
    return { type: "string" }
  }
}
