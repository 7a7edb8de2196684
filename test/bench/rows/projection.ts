/** Evaluates a command whose event is also an upsert into a table, in the same transaction. */
import * as Effect from "effect/Effect"
import type pg from "pg"
import { Deposit, ProjectedAccount } from "../domain.js"
import { contestant } from "../measure.js"
import { emmettDeposit, fresh, hot } from "./command.js"
import { contest, type Row } from "./row.js"

export const projectionOnNew: Row = contest({
  name: "projection",
  work: "command with a strong projection, new aggregate",
  clients: [1, 16],
  contestants: ({ ours, projecting }) => [
    contestant("ours", () => () => ours.run(Effect.flatMap(ProjectedAccount.newId, deposit))),
    contestant("emmett", () => fresh(emmettDeposit(projecting.store)))
  ],
  verify: ({ pool }) => projected(pool)
})

export const projectionOnHot: Row = contest({
  name: "projection-hot",
  work: "command with a strong projection, hot aggregate",
  clients: [1, 16],
  contestants: ({ ours, projecting }) => [
    contestant("ours", () => hot((id) => ours.run(deposit(id)))),
    contestant("emmett", () => hot(emmettDeposit(projecting.store)))
  ],
  verify: ({ pool }) => projected(pool)
})

// --- internal ---

const deposit = (id: string) => ProjectedAccount.evaluate(id, new Deposit({ amount: 1 }))

/** Each deposit of one is in the table, on both sides. */
const projected = async (pool: pg.Pool): Promise<void> => {
  const { rows } = await pool.query<{ ours: boolean; emmett: boolean }>(`select
    (select sum(amount) from balances)
      = (select count(*) from maestro.event_log where metadata->>'aggregate' = 'ProjectedAccount') as ours,
    (select sum(amount) from emmett_balances)
      = (select count(*) from emt_messages m where m.stream_id in (select account from emmett_balances)) as emmett`)
  if (rows[0]?.ours !== true || rows[0].emmett !== true) throw new Error("projections and events differ")
}
