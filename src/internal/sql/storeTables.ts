/**
 * Where the tables of a SQL store are. `SqlStore.layer` provides the tag; `Rebuild` and `ProjectionTables` require it,
 * because they work on tables of the store that no port shows. A program that runs them on another store does not
 * compile.
 */
import * as Context from "effect/Context"
import type { LogTable } from "../store/pageBytes.js"

/** A client, and the schema in which the store has its tables. */
export interface StoreTables extends LogTable {
  /** The name of the schema. */
  readonly name: string
  /** Whether the database is part of this process. */
  readonly isEmbedded: boolean
}

/**
 * Where the store has its tables. `Rebuild` and `ProjectionTables` require it, so that they compile on this store alone.
 */
export class Tables extends Context.Tag("effect-maestro/SqlStore/Tables")<Tables, StoreTables>() {}
