/** Commands on a hundred thousand aggregates, touched at random, where a tenth of their states fits into the cache. */
import { randomInt } from "node:crypto"
import type pg from "pg"
import { Account, type Balance, type EmmettDeposited, emmettAccount, emmettDeposited } from "../domain.js"
import { makeLine } from "../lines.js"
import { compete, contestant } from "../measure.js"
import { makeDatabase, onPostgres, openEmmett, openOurs } from "../stage.js"
import { deposit, emmettDeposit } from "./command.js"
import { fewer, type Row } from "./row.js"

export const many: Row = {
  name: "many-aggregates",
  run: async (stage, emit) => {
    const { effort } = stage
    const { pool: setup, url } = await makeDatabase(stage, "many")
    const ours = await openOurs(onPostgres(url))
    const emmett = await openEmmett(url)
    try {
      await fill(setup)
      const sample = Array.from({ length: eventsEach }, () => emmettDeposited)
      await emmett.store.appendToStream<EmmettDeposited>(model, sample)
      await fillEmmett(setup)
      await setup.query("vacuum analyze")
      await setup.query("checkpoint")
      const [evaluate, emmettEvaluate] = [deposit(ours.run), emmettDeposit(emmett.store)]
      const contestants = [
        contestant("ours", () => () => evaluate(randomId())),
        contestant("emmett", () => () => emmettEvaluate(randomId()))
      ]
      for (const { round } of contestants) await round(clients, 2)
      const measured = await compete(contestants, clients, fewer(effort))
      const work = "command on one of 100 000 aggregates, 10 000 cached"
      emit(makeLine({ id: `many-aggregates/${clients}`, work, clients, unit: "per second", measured }))
      const id = randomId()
      const { balance } = await ours.run(Account.fetch(id))
      const { state } = await emmett.store.aggregateStream<Balance, EmmettDeposited>(id, emmettAccount)
      if (Math.min(balance, state.balance) < eventsEach) throw new Error(`${id} has lost its events`)
    } finally {
      await Promise.all([ours.close(), emmett.close(), setup.end()])
    }
  }
}

// --- internal ---

const aggregates = 100_000
const eventsEach = 3
const clients = 16

const randomId = (): string => `a${randomInt(aggregates)}`

/** Inserts rows directly, because commits through the store would take minutes. */
const fill = (pool: pg.Pool) =>
  pool.query(
    `insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
      select 'Account/a' || (n / $2::int), n % $2::int + 1, 'Deposited', '{"amount": 1}', '{}', uuidv7()
      from generate_series(0, $1::int * $2::int - 1) n`,
    [aggregates, eventsEach]
  )

/** The stream of Emmett that the others are copied from. */
const model = "model"

const fillEmmett = async (pool: pg.Pool): Promise<void> => {
  await pool.query(
    `insert into emt_streams (stream_id, stream_position, partition, stream_type, stream_metadata)
      select 'a' || n, stream_position, partition, stream_type, stream_metadata
      from emt_streams, generate_series(0, $1::int - 1) n where stream_id = $2`,
    [aggregates, model]
  )
  await pool.query(
    `insert into emt_messages (stream_id, stream_position, partition, message_kind, message_data, message_metadata,
        message_schema_version, message_type, message_id, transaction_id)
      select 'a' || n, stream_position, partition, message_kind, message_data, message_metadata,
        message_schema_version, message_type, gen_random_uuid()::text, transaction_id
      from generate_series(0, $1::int - 1) n, emt_messages where stream_id = $2 order by n, stream_position`,
    [aggregates, model]
  )
}
