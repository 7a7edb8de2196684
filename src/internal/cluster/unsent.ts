/**
 * What a runner sends in place of an answer that it can't send, because a schema refuses or throws, or because the answer is too large. The
 * client fails with the reason.
 *
 * The cluster would send the failure of the encoding itself, but with the answer in its text, which may be too large, too.
 */
import * as Cause from "effect/Cause"
import * as ParseResult from "effect/ParseResult"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import type * as AST from "effect/SchemaAST"
import { parseIssues } from "../codec/eventCodec.js"
import { isTooLarge } from "./messageSize.js"

const unsent = "effect-maestro/unsent"

/** The encoded form. A refusal may have properties of any usual name. */
export interface Unsent {
  readonly [unsent]: string
}

export const isUnsent = (encoded: unknown): encoded is Unsent =>
  Predicate.hasProperty(encoded, unsent) && Predicate.isString(encoded[unsent])

export const unsentOf = (issue: ParseResult.ParseIssue): Unsent => {
  const [{ message, path }] = parseIssues(new ParseResult.ParseError({ issue }))
  return { [unsent]: [...(path.length === 0 ? [] : [`${path.join(".")}: `]), message].join("").slice(0, maxText) }
}

/** The issue by which the client fails. */
export const unsentIssue = (ast: AST.AST, { [unsent]: reason }: Unsent): ParseResult.ParseIssue =>
  new ParseResult.Type(ast, undefined, `${prefix}${reason}`)

/** The cause of a handler. A defect that is too large for a message is cut, because the cluster sends defects without a schema of ours. */
export const sendableCause = <E>(cause: Cause.Cause<E>): Cause.Cause<E> => {
  const tooLarge = [...Cause.defects(cause)].map(encodeDefect).find(isTooLarge)
  if (tooLarge === undefined) return cause
  const [name, message] = Predicate.isString(tooLarge) ? ["Error", tooLarge] : [tooLarge.name, tooLarge.message]
  return Cause.die(Object.assign(new Error(`${message.slice(0, maxText)}…`), { name: name.slice(0, maxText) }))
}

/** The reason, where a defect is that of an answer that a runner could not send. */
export const unsentReason = (defect: unknown): string | undefined =>
  ParseResult.isParseError(defect)
    ? parseIssues(defect).find(({ message }) => message.startsWith(prefix))?.message
    : undefined

// --- internal ---

/** Text, or the name and the message of an error. */
const encodeDefect = (defect: unknown) =>
  Schema.encodeSync(Schema.Defect)(defect) as string | { readonly name: string; readonly message: string }

/** The message of an issue may have the value. */
const maxText = 1000

const prefix = "the runner can't send its answer: "
