/**
 * The feed: how fast a subscription reads stored events, the delay of a new event, and what waiting subscriptions cost
 * appends.
 */
import { randomUUID } from "node:crypto"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlStore, StoreAdapter, Subscription } from "effect-maestro"
import type pg from "pg"
import { makeLine } from "../lines.js"
import { compete, contestant, medianLatency, type Round } from "../measure.js"
import { openOurs, poolSize, type Stage } from "../stage.js"
import { appendDeposit } from "./append.js"
import type { Row } from "./row.js"

export const feed: Row = {
  name: "feed",
  run: async (stage, emit) => {
    await count(stage, emit)
    await hear(stage, emit)
    await idle(stage, emit)
  }
}

// --- internal ---

type Emit = Parameters<Row["run"]>[1]

const events = 1_000_000

/** A store in a schema of its own, with its feed. */
const storeIn = ({ url }: Stage, schema: string) =>
  SqlStore.layerWith({ schema }).pipe(
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: poolSize }))
  )

/** A subscription that counts a million stored events, beside a cursor that fetches the rows of these events. */
const count = async (stage: Stage, emit: Emit): Promise<void> => {
  const ours = await openOurs(storeIn(stage, "feed_log"))
  await stage.pool.query(
    `insert into feed_log.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
      select 'Account/a' || (n / 100), n % 100 + 1, 'Deposited', '{"amount": 1}', '{}', uuidv7()
      from generate_series(0, $1::int - 1) n`,
    [events]
  )
  await stage.pool.query("vacuum analyze feed_log.event_log")
  const timed = async (work: () => Promise<number>): Promise<Round> => {
    const began = performance.now()
    const seen = await work()
    if (seen !== events) throw new Error(`${seen} events of ${events}`)
    return { rate: events / ((performance.now() - began) / 1000), latencies: [], failures: 0 }
  }
  const measured = await compete(
    [
      { name: "ours", round: () => timed(() => ours.run(counted)) },
      { name: "pg", round: () => timed(() => fetched(stage.pool)) }
    ],
    1,
    { ...stage.effort, rounds: Math.min(stage.effort.rounds, 3) }
  )
  emit(
    makeLine({
      id: "feed/count",
      work: "events read by a subscription, of 10^6 stored",
      clients: 1,
      unit: "per second",
      measured
    })
  )
  await ours.close()
  // So that the server does not write the pages of this log while the next rows are measured.
  await stage.pool.query("drop schema feed_log cascade")
  await stage.pool.query("checkpoint")
}

const counted = Effect.gen(function* () {
  let seen = 0
  const all = yield* Deferred.make<void>()
  const Count = Subscription.make(`count ${randomUUID()}`, {
    batchSize: 5000,
    handleBatch: (batch) => {
      seen += batch.length
      return seen === events ? Deferred.succeed(all, undefined) : Effect.void
    }
  })
  yield* Effect.raceFirst(Count.run, Deferred.await(all))
  return seen
})

/** Rows as text, as the store reads them, without decoding. */
const fetched = async (pool: pg.Pool): Promise<number> => {
  const client = await pool.connect()
  try {
    await client.query("begin")
    await client.query(`declare everything no scroll cursor for
      select feed_key::text, position::text, timestamp::text, aggregate_id, sequence, type, body::text, metadata::text
      from feed_log.event_log order by event_log.feed_key, event_log.position`)
    let seen = 0
    for (;;) {
      const { rows } = await client.query("fetch 5000 from everything")
      if (rows.length === 0) break
      seen += rows.length
    }
    await client.query("commit")
    return seen
  } finally {
    client.release()
  }
}

/** The delay from the result of a commit to the handler of a waiting subscription, one commit after the other. */
const hear = async (stage: Stage, emit: Emit): Promise<void> => {
  const heard = new Map<string, () => void>()
  const Live = Subscription.make("live", {
    handle: ({ aggregateId }) => Effect.sync(() => heard.get(aggregateId)?.())
  })
  const ours = await openOurs(Live.layer.pipe(Layer.provideMerge(storeIn(stage, "feed_live"))))
  // Another client commits, as in another process, so that the notification arrives through the database.
  const other = await openOurs(storeIn(stage, "feed_live"))
  const once = async (committing: typeof ours): Promise<number> => {
    const id = randomUUID()
    const arrival = new Promise<number>((resolve) => heard.set(id, () => resolve(performance.now())))
    await committing.run(Effect.flatMap(StoreAdapter.StoreAdapter, (store) => appendDeposit(store, stage.clock, id)))
    const answered = performance.now()
    const arrived = await arrival
    heard.delete(id)
    return Math.max(arrived - answered, 0)
  }
  const listening =
    (committing: typeof ours) =>
    async (_: number, seconds: number): Promise<Round> => {
      const latencies: Array<number> = []
      for (const end = performance.now() + seconds * 1000; performance.now() < end; ) {
        latencies.push(await once(committing))
        // The subscription becomes idle again.
        await new Promise((resolve) => setTimeout(resolve, 30))
      }
      return { rate: latencies.length / seconds, latencies, failures: 0 }
    }
  const measured = await compete(
    [
      { name: "here", round: listening(ours) },
      { name: "elsewhere", round: listening(other) }
    ],
    1,
    stage.effort,
    medianLatency
  )
  for (const place of ["here", "elsewhere"] as const) {
    const found = measured[place]
    if (found === undefined) continue
    emit(
      makeLine({
        id: `feed/live-${place}`,
        work: `from a commit ${place} to a live handler`,
        clients: 1,
        unit: "ms",
        measured: { ours: found }
      })
    )
  }
  await Promise.all([ours.close(), other.close()])
}

/** Appends beside ten waiting subscriptions whose events never arrive, and appends without subscriptions. */
const idle = async (stage: Stage, emit: Emit): Promise<void> => {
  const waiting = Array.from({ length: 10 }, (_, index) =>
    Subscription.make(`idle ${index}`, { filter: { types: [`Nothing${index}`] }, handle: () => Effect.void })
  )
  const [first, ...rest] = waiting.map(({ layer }) => layer)
  if (first === undefined) return
  const alone = await openOurs(storeIn(stage, "feed_alone"))
  const followed = await openOurs(Layer.mergeAll(first, ...rest).pipe(Layer.provideMerge(storeIn(stage, "feed_idle"))))
  const appending = async ({ run }: typeof alone) => {
    const store = await run(StoreAdapter.StoreAdapter)
    return () => run(appendDeposit(store, stage.clock, randomUUID()))
  }
  // A difference of a few per cent is visible only over many turns.
  const effort = { rounds: 4 * stage.effort.rounds, seconds: stage.effort.seconds / 2 }
  for (const clients of [1, 16]) {
    const measured = await compete(
      [contestant("with", () => appending(followed)), contestant("without", () => appending(alone))],
      clients,
      effort
    )
    const { with: ours, without } = measured
    if (ours === undefined || without === undefined) continue
    emit(
      makeLine(
        {
          id: `feed/idle/${clients}`,
          work: "append, with ten idle subscriptions",
          clients,
          unit: "per second",
          measured: { ours }
        },
        { "without them": ours.median / without.median }
      )
    )
  }
  await Promise.all([alone.close(), followed.close()])
}
