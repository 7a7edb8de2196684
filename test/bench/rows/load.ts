/** Loads an aggregate of ten thousand events, without a cached state or a snapshot. */
import { randomUUID } from "node:crypto"
import * as Effect from "effect/Effect"
import { Account, type Balance, type EmmettDeposited, emmettAccount, emmettDeposited } from "../domain.js"
import { contestant } from "../measure.js"
import { commitDeposits, type Stage } from "../stage.js"
import { contest, type Row } from "./row.js"

export const load: Row = contest({
  name: "load",
  work: "load 10 000 events",
  clients: [1],
  unit: "ms",
  // Turns are short, and there are more of them.
  effort: ({ rounds, seconds }) => ({ rounds: 2 * rounds, seconds: seconds / 2 }),
  contestants: async (stage) => {
    const id = await prepareLongStream(stage)
    return [
      contestant("ours", () => () => loadOurs(stage.ours, id)),
      contestant("emmett", () => () => loadEmmett(stage.emmett, id)),
      contestant("pg", () => async () => whole((await stage.pool.query(select, [Account.streamId(id)])).rows.length))
    ]
  }
})

/** A stream of ten thousand deposits in both stores. */
export const prepareLongStream = async ({ emmett, ours, pool }: Stage): Promise<string> => {
  const id = randomUUID()
  await ours.run(commitDeposits(id, length))
  await emmett.store.appendToStream<EmmettDeposited>(
    id,
    Array.from({ length }, () => emmettDeposited)
  )
  await pool.query("vacuum analyze")
  return id
}

/** Loads by a new layer, without a cached state. */
export const loadOurs = async ({ run }: Stage["ours"], id: string): Promise<void> =>
  whole((await run(Effect.provide(Account.fetch(id), Account.layer))).balance)

export const loadEmmett = async ({ store }: Stage["emmett"], id: string): Promise<void> =>
  whole((await store.aggregateStream<Balance, EmmettDeposited>(id, emmettAccount)).state.balance)

// --- internal ---

const length = 10_000

const select = `select timestamp::text, sequence, type, body::text, metadata::text
  from maestro.event_log where aggregate_id = $1 order by sequence`

const whole = (count: number): void => {
  if (count !== length) throw new Error(`${count} events of ${length}`)
}
