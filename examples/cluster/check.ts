/** Holds what clients have recorded against the log: which commands are lost, and which took effect more than once. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import type { Entry } from "./load.js"

export interface Verdict {
  /** Acknowledged, and without an event in the log, or without the receipt of its command id. */
  readonly lost: number
  /** More than one event in the log, or any event of a command that was refused. */
  readonly doubled: number
}

export const check = (entries: ReadonlyArray<Entry>): Effect.Effect<Verdict, unknown, SqlClient.SqlClient> =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const stored = yield* sql<{ command: string; events: number }>`
      select metadata ->> 'command' as command, count(*)::int as events from maestro.event_log
      where type <> 'effect-maestro/CommandHandled' and metadata ->> 'command' is not null group by 1`
    const handled = yield* sql<{ command: string; receipts: number }>`
      select body ->> 'commandId' as command, count(*)::int as receipts from maestro.event_log
      where type = 'effect-maestro/CommandHandled' group by 1`
    const events = new Map(stored.map(({ command, events }) => [command, events]))
    const receipts = new Map(handled.map(({ command, receipts }) => [command, receipts]))
    let [lost, doubled] = [0, 0]
    for (const { command, hasId, outcome } of entries) {
      const [eventCount, receiptCount] = [events.get(command) ?? 0, receipts.get(command) ?? 0]
      if (outcome === "acknowledged" && (eventCount === 0 || (hasId && receiptCount === 0))) lost++
      const most = outcome === "acknowledged" || outcome === "unknown" ? 1 : 0
      if (eventCount > most || (hasId && receiptCount > 1)) doubled++
    }
    return { lost, doubled }
  })
