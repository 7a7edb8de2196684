/**
 * The receipts of `Aggregate.evaluateAll` with a command id: one for each aggregate, so that the id is known to each.
 * `severalCommands.ts` commits them with the events.
 *
 * Each receipt has the digest of the whole list, because the list takes effect as a whole. So the same id with another
 * list is refused, and so is a single command with that id on one of the aggregates.
 */
import * as Effect from "effect/Effect"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import { CommandIdReused, type ValidationError } from "../../StoreError.js"
import { reservedPrefix } from "../codec/names.js"
import { sha256 } from "../codec/sha256.js"
import type { CommandDigest } from "./commandDigest.js"
import type { ConditionValues } from "./conditions.js"
import { isReceiptOfAnother, type ReceiptKey, receiptKey } from "./receipt.js"
import { atCommand, type SeveralInput } from "./severalInput.js"

/** The receipt of an aggregate. */
export interface Received {
  readonly kind: string
  readonly id: string
  readonly key: ReceiptKey
}

/** The receipts of all aggregates, in their order, or `undefined` of a list without a command id. */
export const receiptsFor = (
  { aggregates }: SeveralInput,
  conditions: ConditionValues
): Effect.Effect<ReadonlyArray<Received> | undefined, ValidationError> =>
  "commandId" in conditions
    ? Effect.flatMap(digestOfAll(aggregates), (digest) =>
        Effect.forEach(aggregates, ({ id, layer, streamId }) =>
          // The id was checked with the list.
          Effect.map(receiptKey(layer, streamId, conditions.commandId, Effect.succeed(digest)), (key) => ({
            kind: layer.kind,
            id,
            key
          }))
        )
      )
    : Effect.succeed(noReceipts)

/**
 * Whether the list has taken effect before. The first receipt that is stored decides: it is that of this list, or of
 * another command with the id.
 */
export const isHandled = <E>(
  received: ReadonlyArray<Received>,
  getEvents: (id: string) => Effect.Effect<Effect.Effect.Success<ReturnType<StoreAdapterService["getEvents"]>>, E>
): Effect.Effect<boolean, E | CommandIdReused> =>
  Effect.gen(function* () {
    for (const { id, key, kind } of received) {
      const [receipt] = yield* getEvents(key.id)
      if (receipt === undefined) continue
      if (isReceiptOfAnother(key, receipt)) return yield* new CommandIdReused({ kind, id, commandId: key.commandId })
      return true
    }
    return false
  })

// --- internal ---

const noReceipts: ReadonlyArray<Received> | undefined = undefined

/**
 * The digest of the list: of each command, and of the stream that it is for. Its parts are hashes, because every
 * receipt has them, and the list may be long.
 */
const digestOfAll = (aggregates: SeveralInput["aggregates"]): Effect.Effect<CommandDigest, ValidationError> =>
  Effect.forEach(
    aggregates.flatMap((aggregate) => aggregate.commands.map((command) => ({ aggregate, command }))),
    ({ aggregate: { layer, streamId }, command: { command, index } }) =>
      Effect.mapBoth(layer.digest(command), {
        onFailure: (error) => atCommand(index, error),
        onSuccess: (digest) => ({ digest, index, streamId })
      })
  ).pipe(
    Effect.map((digests) => {
      const hashOf = (part: keyof CommandDigest) =>
        sha256(JSON.stringify(digests.map(({ digest, index, streamId }) => [index, streamId, digest[part]])))
      return {
        type: `${reservedPrefix}/evaluateAll/${hashOf("type")}`,
        schema: hashOf("schema"),
        hash: hashOf("hash")
      }
    })
  )
