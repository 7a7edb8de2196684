/** Evaluates a command whose event is also an upsert into a table, in the same transaction. */
import type pg from "pg"
import { Deposit, ProjectedAccount } from "../domain.js"
import { contestant, type Work } from "../measure.js"
import type { Stage } from "../stage.js"
import { emmettDeposit, fresh, hot } from "./command.js"
import { contest, type Row } from "./row.js"

export const projectionOnNew: Row = contest({
  name: "projection",
  work: "command with a strong projection, new aggregate",
  clients: [1, 16],
  contestants: (stage) => contestants(stage, fresh),
  verify: ({ pool }) => projected(pool)
})

export const projectionOnHot: Row = contest({
  name: "projection-hot",
  work: "command with a strong projection, hot aggregate",
  clients: [1, 16],
  contestants: (stage) => contestants(stage, hot),
  verify: ({ pool }) => projected(pool)
})

// --- internal ---

const contestants = ({ ours, projecting }: Stage, on: (evaluate: (id: string) => Promise<unknown>) => Work) => [
  contestant("ours", () => on((id) => ours.run(ProjectedAccount.evaluate(id, new Deposit({ amount: 1 }))))),
  contestant("emmett", () => on(emmettDeposit(projecting.store)))
]

/** Each deposit of one is in the table, on both sides. */
const projected = async (pool: pg.Pool): Promise<void> => {
  const { rows } = await pool.query<{ ours: boolean; emmett: boolean }>(`select
    (select sum(amount) from balances)
      = (select count(*) from maestro.event_log where metadata->>'aggregate' = 'ProjectedAccount') as ours,
    (select sum(amount) from emmett_balances)
      = (select count(*) from emt_messages m where m.stream_id in (select account from emmett_balances)) as emmett`)
  if (rows[0]?.ours !== true || rows[0].emmett !== true) throw new Error("projections and events differ")
}
