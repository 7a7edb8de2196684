/** Roles of a database that have only the rights that a test gives to them. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import { uniqueName } from "./database.js"

/** Creates a role, and drops it with all that it has at the end of the scope. */
export const makeRole = Effect.flatMap(SqlClient.SqlClient, (sql) => {
  const role = uniqueName("role")
  return Effect.acquireRelease(Effect.as(sql`create role ${sql(role)} login password 'secret'`, role), () =>
    Effect.orDie(Effect.zipRight(sql`drop owned by ${sql(role)} cascade`, sql`drop role ${sql(role)}`))
  )
})

/** The address of the database for the role. */
export const as = (url: string, role: string): string => {
  const other = new URL(url)
  other.username = role
  other.password = "secret"
  return other.href
}
