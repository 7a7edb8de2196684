/** Loads an aggregate of ten thousand events, without a cached state or a snapshot; also through steps of evolution. */
import { randomUUID } from "node:crypto"
import * as Effect from "effect/Effect"
import {
  Account,
  type Balance,
  type EmmettDeposited,
  EvolvedAccount,
  emmettAccount,
  emmettDeposited
} from "../domain.js"
import { makeLine } from "../lines.js"
import { compete, contestant, type Effort, medianLatency } from "../measure.js"
import { commitDeposits, type Stage } from "../stage.js"
import { contest, type Row } from "./row.js"

/** Turns are short, and there are more of them. */
const shortTurns = ({ rounds, seconds }: Effort): Effort => ({ rounds: 2 * rounds, seconds: seconds / 2 })

export const load: Row = contest({
  name: "load",
  work: "load 10 000 events",
  clients: [1],
  unit: "ms",
  effort: shortTurns,
  contestants: async (stage) => {
    const id = await prepareLongStream(stage)
    return [
      contestant("ours", () => () => loadOurs(stage.ours, id)),
      contestant("emmett", () => () => loadEmmett(stage.emmett, id)),
      contestant("pg", () => async () => whole((await stage.pool.query(select, [Account.streamId(id)])).rows.length))
    ]
  }
})

/** The same events as of version 1, each through three steps to today's event, beside the load without steps. */
export const loadEvolved: Row = {
  name: "load-evolved",
  run: async (stage, emit) => {
    const id = await prepareLongStream(stage)
    const measured = await compete(
      [
        contestant("with", () => () => loadEvolvedOurs(stage.ours, id)),
        contestant("without", () => () => loadOurs(stage.ours, id))
      ],
      1,
      shortTurns(stage.effort),
      medianLatency
    )
    const { with: ours, without } = measured
    if (ours === undefined || without === undefined) return
    const line = { id: "load-evolved/1", work: "load 10 000 events, each by three steps", clients: 1 }
    emit(makeLine({ ...line, unit: "ms", measured: { ours } }, { "without steps": without.median / ours.median }))
  }
}

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

const loadEvolvedOurs = async ({ run }: Stage["ours"], id: string): Promise<void> =>
  whole((await run(Effect.provide(EvolvedAccount.fetch(id), EvolvedAccount.layer))).balance)

const length = 10_000

const select = `select timestamp::text, sequence, type, body::text, metadata::text
  from maestro.event_log where aggregate_id = $1 order by sequence`

const whole = (count: number): void => {
  if (count !== length) throw new Error(`${count} events of ${length}`)
}
