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

/**
 * The cause of a handler, as the cluster can send it. A defect is cut where it is too large, and described where it can't be encoded, because
 * the cluster sends defects without a schema of ours. Of several failures the first is sent where they are too large together.
 */
export const sendableCause = <E>(cause: Cause.Cause<E>): Cause.Cause<E> => {
  const defect = [...Cause.defects(cause)].map(replacementOf).find(Predicate.isNotUndefined)
  if (defect !== undefined) return Cause.die(defect)
  const [first, ...others] = Cause.failures(cause)
  return first !== undefined && others.length > 0 && areTooLarge([first, ...others]) ? Cause.fail(first) : cause
}

/** Whether values are too large for one message together. One that throws where it is counted is found where it is encoded. */
export const areTooLarge = (values: ReadonlyArray<unknown>): boolean => {
  try {
    return isTooLarge(values)
  } catch {
    return true
  }
}

/** The reason, where a defect is that of an answer that a runner could not send. */
export const unsentReason = (defect: unknown): string | undefined =>
  ParseResult.isParseError(defect)
    ? parseIssues(defect).find(({ message }) => message.startsWith(prefix))?.message
    : undefined

// --- internal ---

/** What is sent in place of a defect, or nothing where it can be sent. */
const replacementOf = (defect: unknown): Error | undefined => {
  try {
    const encoded = encodeDefect(defect)
    if (!isTooLarge(encoded)) return undefined
    const [name, message] = Predicate.isString(encoded) ? ["Error", encoded] : [encoded.name, encoded.message]
    return Object.assign(new Error(`${message.slice(0, maxText)}…`), { name: name.slice(0, maxText) })
  } catch {
    return new Error("the handler died, and its defect can't be sent")
  }
}

/** Text, or the name and the message of an error. */
const encodeDefect = (defect: unknown) =>
  Schema.encodeSync(Schema.Defect)(defect) as string | { readonly name: string; readonly message: string }

/** The message of an issue may have the value. */
const maxText = 1000

const prefix = "the runner can't send its answer: "
