/**
 * Between an aggregate's state and the snapshots of it: which of them can be trusted, and how they are written.
 */
import * as Either from "effect/Either"
import * as Hash from "effect/Hash"
import * as JSONSchema from "effect/JSONSchema"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Snapshot } from "../Snapshot.js"
import { ValidationError } from "../StoreError.js"
import { guarded, parseIssues } from "./eventCodec.js"
import { decodeUnknownEither, encodeUnknownEither } from "./shortWay.js"

export interface StateCodec<State> {
  /** The state, unless the snapshot is another aggregate's, of another version, or can't be decoded. */
  readonly decode: (snapshot: Snapshot) => Option.Option<State>
  readonly encode: (state: State) => Either.Either<Pick<Snapshot, "body" | "metadata">, ValidationError>
}

export const makeStateCodec = <State, I>(
  aggregate: string,
  version: number,
  schema: Schema.Schema<State, I>
): StateCodec<State> => {
  const metadata = { aggregate, version, schema: fingerprint(schema) }
  // Under a key of its own, since a state may be a number or a list, and a snapshot's body is an object.
  const body = Schema.Struct({ state: schema })
  const decode = guarded(decodeUnknownEither(body))
  const encode = guarded(encodeUnknownEither(body))
  return {
    decode: (snapshot) =>
      snapshot.metadata.aggregate === aggregate &&
      snapshot.metadata.version === version &&
      snapshot.metadata.schema === metadata.schema
        ? Option.map(Either.getRight(decode(snapshot.body)), ({ state }) => state)
        : Option.none(),
    encode: (state) =>
      Either.mapBoth(encode({ state }), {
        onLeft: (error) => new ValidationError({ operation: `${aggregate}.snapshot`, issues: parseIssues(error, 0) }),
        onRight: (encoded) => ({ body: { ...encoded }, metadata })
      })
  }
}

// --- internal ---

/**
 * Tells one form of state from another. A changed schema can often decode an old snapshot, by a default or an optional
 * field, to a state that a replay would not come to; so a snapshot counts only for the very schema that it was written by.
 */
const fingerprint = (schema: Schema.Schema.Any): string => {
  try {
    return Hash.string(JSON.stringify(JSONSchema.make(schema))).toString(16)
  } catch {
    // A schema that JSON Schema can't tell, such as one of a bigint.
    return Hash.string(Schema.format(Schema.encodedSchema(schema))).toString(16)
  }
}
