/**
 * Receipts: the records that a command id was handled. `idempotentCommand.ts` commits one with the events of such a
 * command.
 *
 * A receipt is the first and only event of a stream of its own, and the stream's name is a hash of the command id. A
 * store accepts the first event of a stream once, and a commit as a whole or not at all. No store needs more than that
 * to make a command idempotent.
 */
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import type { HybridClockService, Timestamp } from "../../Timestamp.js"
import { textProblem } from "../codec/json.js"
import { sha256 } from "../codec/sha256.js"
import { receiptStreamId } from "../store/receiptStreams.js"
import { type CommandDigest, isOfAnother } from "./commandDigest.js"
import type { Provenance } from "./recordEvents.js"

/** A command with an id, and the stream of its receipt. */
export interface ReceiptKey {
  readonly commandId: string
  readonly command: CommandDigest
  /** The aggregate's kind. */
  readonly aggregate: string
  /** The aggregate's stream. */
  readonly aggregateId: string
  /** The receipt's stream. */
  readonly id: string
}

/**
 * The call that a receipt was stored by, if it has an id of its own, and the number of its events. A call that was refused
 * has a receipt where a message of it may still arrive: that message then takes no effect.
 */
export type ReceiptAttempt =
  | { readonly id: string; readonly events: number }
  | { readonly id: string; readonly refused: true }

/** The place of the events that a call has stored: `count` events up to a sequence. */
export interface StoredAttempt {
  readonly sequence: number
  readonly count: number
}

/** The key of a command's receipt. A `commandId` that is no valid id fails with a `ValidationError`. */
export const receiptKey = (
  { kind, name }: { readonly kind: string; readonly name: string },
  aggregateId: string,
  commandId: unknown,
  digest: Effect.Effect<CommandDigest, ValidationError>
): Effect.Effect<ReceiptKey, ValidationError> =>
  Effect.suspend(() => {
    const problem = commandIdProblem(commandId)
    if (problem !== undefined || typeof commandId !== "string") {
      const message = problem ?? "must be a text"
      return new ValidationError({
        operation: `${name}.evaluate`,
        issues: [new ValidationIssue({ path: ["commandId"], message })]
      })
    }
    // A hash, because the three texts together can be longer than an aggregate id may be.
    const streamHash = sha256(JSON.stringify([kind, aggregateId, commandId]))
    return Effect.map(digest, (command) => ({
      commandId,
      command,
      aggregate: kind,
      aggregateId,
      id: receiptStreamId(streamHash)
    }))
  })

/**
 * The receipt of a command that brought the aggregate to the sequence. It has the provenance of the command's events.
 */
export const makeReceipt = (
  clock: HybridClockService,
  key: ReceiptKey,
  sequence: number,
  provenance: (timestamp: Timestamp) => Provenance,
  attempt?: ReceiptAttempt
): Effect.Effect<Event> =>
  Effect.map(clock.now, (timestamp) => receiptAt(timestamp, key, sequence, provenance(timestamp), attempt))

/** The receipt with a timestamp. */
export const receiptAt = (
  timestamp: Timestamp,
  { aggregate, aggregateId, command, commandId, id }: ReceiptKey,
  sequence: number,
  provenance: Provenance,
  attempt?: ReceiptAttempt
): Event => ({
  timestamp,
  aggregateId: id,
  sequence: 1,
  type: "effect-maestro/CommandHandled",
  version: 1,
  body: { commandId, command, aggregate, aggregateId, sequence, ...(attempt !== undefined && { attempt }) },
  metadata: {},
  ...provenance
})

/** Why the value is no command id, or `undefined`. */
export const commandIdProblem = (commandId: unknown): string | undefined => {
  if (typeof commandId !== "string") return "must be a text"
  if (commandId === "") return "must not be empty"
  if (commandId.length > maxCommandId) return `must be at most ${maxCommandId} characters long`
  return textProblem(commandId)
}

/** Whether the stored receipt is that of another command with the same id. */
export const isReceiptOfAnother = ({ command }: ReceiptKey, { body }: Event): boolean =>
  isOfAnother(command, body.command)

/** What the call has stored, or that it was refused, if the receipt is that of the call with this id. */
export const storedByAttempt = ({ body }: Event, id: string): StoredAttempt | "refused" | undefined => {
  const { attempt, sequence } = body
  if (typeof attempt !== "object" || attempt === null || typeof sequence !== "number") return undefined
  const { events, id: stored, refused }: Readonly<Record<string, unknown>> = { ...attempt }
  if (stored !== id) return undefined
  if (refused === true) return "refused"
  return typeof events === "number" ? { sequence, count: events } : undefined
}

// --- internal ---

/** Enough for an id that is made of a subscription's name, an aggregate id of 255 characters, and a step. */
const maxCommandId = 1000
