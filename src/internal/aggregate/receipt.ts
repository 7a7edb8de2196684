/**
 * Receipts: what is stored with the events of a command that has an id, so that it takes effect once.
 *
 * A receipt is the only event of a stream of its own. A store takes the first event of a stream once, and a commit whole or not at all;
 * that is all it takes, so it works on every store.
 */
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import type { HybridClockService } from "../../Timestamp.js"
import { textProblem } from "../codec/json.js"
import { sha256 } from "../codec/sha256.js"
import { receiptStreamId } from "../store/receiptStreams.js"
import { type CommandDigest, isOfAnother } from "./commandDigest.js"

/** Which command, and where its receipt is to be. */
export interface ReceiptKey {
  readonly commandId: string
  /** The aggregate's name. */
  readonly command: CommandDigest
  readonly aggregate: string
  /** The aggregate's stream. */
  readonly aggregateId: string
  /** The aggregate id of the receipt itself. */
  readonly id: string
}

/** The place of a command's receipt; an id that can be none is refused. */
export const receiptKey = (
  aggregate: string,
  aggregateId: string,
  commandId: unknown,
  digest: Effect.Effect<CommandDigest, ValidationError>
): Effect.Effect<ReceiptKey, ValidationError> =>
  Effect.suspend(() => {
    const problem = problemOf(commandId)
    if (problem !== undefined || typeof commandId !== "string") {
      const message = problem ?? "must be a text"
      return new ValidationError({
        operation: `${aggregate}.evaluate`,
        issues: [new ValidationIssue({ path: ["commandId"], message })]
      })
    }
    // Three texts of any length in a short one: of their own they would not always fit into an aggregate id.
    const place = sha256(JSON.stringify([aggregate, aggregateId, commandId]))
    return Effect.zipWith(digest, place, (command, hash) => ({
      commandId,
      command,
      aggregate,
      aggregateId,
      id: receiptStreamId(hash)
    }))
  })

/** The receipt of a command after which the aggregate stands at that sequence. */
export const makeReceipt = (
  clock: HybridClockService,
  { aggregate, aggregateId, command, commandId, id }: ReceiptKey,
  sequence: number
): Effect.Effect<Event> =>
  Effect.map(clock.now, (timestamp) => ({
    timestamp,
    aggregateId: id,
    sequence: 1,
    type: "effect-maestro/CommandHandled",
    body: { commandId, command, aggregate, aggregateId, sequence },
    metadata: {}
  }))

/** Whether the receipt that stands at the place is of another command with the same id. */
export const isReceiptOfAnother = ({ command }: ReceiptKey, { body }: Event): boolean =>
  isOfAnother(command, body.command)

// --- internal ---

/** Room for what names a command by an event: a subscription, an aggregate id of 255 characters, a step. */
const maxCommandId = 1000

const problemOf = (commandId: unknown): string | undefined => {
  if (typeof commandId !== "string") return "must be a text"
  if (commandId === "") return "must not be empty"
  if (commandId.length > maxCommandId) return `must be at most ${maxCommandId} characters long`
  return textProblem(commandId)
}
