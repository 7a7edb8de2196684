/**
 * What a replica must have in common with the primary to be read, and how both are asked for it. `replica.ts` compares them.
 */
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import type { LogTable } from "../store/pageBytes.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import type { Rows } from "./pg/driver.js"
import { executeAlone } from "./pg/execute.js"

/** An event log, and what reads it outside of transactions. */
export interface ReadableLog {
  readonly log: LogTable
  readonly runner: CommandRunner
}

/** What identifies a database, and the history of its log. */
export interface Identity {
  /** The cluster of servers, and the database in it. A replica has both of its primary. */
  readonly database: string
  readonly isStandby: boolean
  /** The timeline that a primary writes, or that a standby has replayed. */
  readonly timeline: string
}

/**
 * Reads the identity of a server.
 *
 * A standby does not show the timeline that it replays. The control file has that of its last restart point, and that up to which its files
 * have been written. So after a failover it may take some minutes until a standby shows the new timeline.
 */
export const identityOf = (server: ReadableLog): Effect.Effect<Identity, StoreError> =>
  Effect.flatMap(ask(server, selectIdentity), ([row]): Effect.Effect<Identity, StoreError> => {
    const [database, isStandby, timeline] = row ?? []
    return typeof database === "string" && typeof timeline === "string"
      ? Effect.succeed({ database, isStandby: isStandby === "true", timeline })
      : new StoreError({ reason: "Misconfigured", operation, description: "the server has no identity" })
  })

/** Why the replica can't be read; undefined if it can. */
export const differenceOf = (primary: Identity, replica: Identity): string | undefined => {
  if (isOther(primary, replica)) return "it is another database, and no physical replica of that of the store"
  if (!replica.isStandby) return "it is no standby: it was promoted, or it is the primary itself"
  if (replica.timeline !== primary.timeline) {
    return `it has replayed timeline ${replica.timeline}, and the primary writes timeline ${primary.timeline}`
  }
  return undefined
}

/** Whether the two are different databases. */
export const isOther = (primary: Identity, replica: Identity): boolean => primary.database !== replica.database

// --- internal ---

const operation = "SqlStore"

const selectIdentity = `select
    system_identifier::text || '/' || (select oid from pg_database where datname = current_database()),
    pg_is_in_recovery()::text,
    case when pg_is_in_recovery() then (
      select greatest(c.timeline_id, r.min_recovery_end_timeline)::text
      from pg_control_checkpoint() c, pg_control_recovery() r
    ) else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int::text end
  from pg_control_system()`

const ask = ({ runner }: ReadableLog, text: string): Effect.Effect<Rows, StoreError> =>
  executeAlone(runner, operation, "reading", { text, values: [] })
