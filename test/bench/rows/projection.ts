/**
 * Evaluates a command with a strong projection that upserts into a table: as an effect, and as statements. Emmett has
 * one form for both, which sends its statement through the driver, because that is its fastest.
 */
import * as Effect from "effect/Effect"
import { Deposit, ProjectedAccount, ProjectedBySql } from "../domain.js"
import { contestant } from "../measure.js"
import type { OnPostgres, Stage } from "../stage.js"
import { emmettDeposit, fresh, hot } from "./command.js"
import { contest, type Row } from "./row.js"

/** The aggregates of a turn: new ones, or one for each client. */
const row = (name: string, work: string, on: "new" | "hot", evaluate: (id: string) => Evaluated, newId: NewId): Row =>
  contest({
    name,
    work,
    clients: [1, 16],
    contestants: ({ ours, projecting }) => [
      contestant("ours", () =>
        on === "new" ? () => ours.run(Effect.flatMap(newId, evaluate)) : hot((id) => ours.run(evaluate(id)))
      ),
      contestant("emmett", () => (on === "new" ? fresh : hot)(emmettDeposit(projecting.store)))
    ],
    verify: projected
  })

type Evaluated = Effect.Effect<unknown, unknown, OnPostgres>
type NewId = Effect.Effect<string, never, OnPostgres>

/** Fails unless the table has each deposit, for both libraries. */
const projected = async ({ pool }: Pick<Stage, "pool">): Promise<void> => {
  const { rows } = await pool.query<{ ours: boolean; emmett: boolean }>(`select
    (select sum(amount) from balances)
      = (select count(*) from maestro.event_log where aggregate_id like 'Projected%') as ours,
    (select sum(amount) from emmett_balances)
      = (select count(*) from emt_messages m where m.stream_id in (select account from emmett_balances)) as emmett`)
  if (rows[0]?.ours !== true || rows[0].emmett !== true) throw new Error("projections and events differ")
}

const byEffect = (id: string) => ProjectedAccount.evaluate(id, new Deposit({ amount: 1 }))
const bySql = (id: string) => ProjectedBySql.evaluate(id, new Deposit({ amount: 1 }))

const work = "command with a strong projection"

export const projections: ReadonlyArray<Row> = [
  row("projection", `${work}, new aggregate`, "new", byEffect, ProjectedAccount.newId),
  row("projection-hot", `${work}, hot aggregate`, "hot", byEffect, ProjectedAccount.newId),
  row("projection-sql", `${work} that is SQL, new aggregate`, "new", bySql, ProjectedBySql.newId),
  row("projection-sql-hot", `${work} that is SQL, hot aggregate`, "hot", bySql, ProjectedBySql.newId)
]
