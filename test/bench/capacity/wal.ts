/** The bytes of WAL that an event takes, by the kind of commit, after a checkpoint and in steady state. */
import { type Log, measured } from "./log.js"
import { appendsOn, clients, removeAppended } from "./speed.js"

/** Bytes of WAL for an event. */
export interface Wal {
  /** The first events after a checkpoint: the first change of each page writes the whole page. */
  readonly afterCheckpoint: number
  /** As many further events, without a checkpoint between them. */
  readonly steady: number
}

/** The kinds of commits, with their names in the table. */
export const walNames = {
  one: "one event to a new aggregate, one client",
  many: "one event to a new aggregate, 16 clients",
  ten: "ten events to a new aggregate in one commit, one client",
  old: "one event to an account at random, one client",
  oldCompressed: "the same, with `wal_compression = on`"
} as const

/** How many events each of the two measurements appends. */
export const eventsOfWal = 1600

/** Measures commits to new aggregates. Few pages are in use by them, whatever the size of the log. */
export const measureNewWal = async (log: Log): Promise<Readonly<Record<NewName, Wal>>> => {
  await removeAppended(log)
  const { toNew } = appendsOn(log)
  const found = {
    one: await walOf(log, () => inTurn(eventsOfWal, () => toNew())),
    many: await walOf(log, async () => {
      await Promise.all(Array.from({ length: clients }, () => inTurn(eventsOfWal / clients, () => toNew())))
    }),
    ten: await walOf(log, () => inTurn(eventsOfWal / 10, () => toNew(10)))
  }
  return found
}

/** Measures commits to accounts at random. Each may change another page of the index of streams. */
export const measureOldWal = async (log: Log): Promise<Readonly<Record<OldName, Wal>>> => {
  await removeAppended(log)
  const { toOld } = appendsOn(log)
  const work = () => inTurn(eventsOfWal, () => toOld(0, 1))
  const found = { old: await walOf(log, work), oldCompressed: await compressed(log, () => walOf(log, work)) }
  return found
}

// --- internal ---

type OldName = "old" | "oldCompressed"
type NewName = Exclude<keyof typeof walNames, OldName>

/** The bytes of WAL for each of so many events, twice in turn after a checkpoint. */
const walOf = async (log: Log, work: () => Promise<void>): Promise<Wal> => {
  await log.pool.query("checkpoint")
  const afterCheckpoint = await measured(log.pool, work)
  const steady = await measured(log.pool, work)
  return { afterCheckpoint: afterCheckpoint.wal / eventsOfWal, steady: steady.wal / eventsOfWal }
}

const inTurn = async (times: number, work: () => Promise<void>): Promise<void> => {
  for (let index = 0; index < times; index++) await work()
}

/** Compresses the pages in the WAL meanwhile, in all sessions. */
const compressed = async <A>({ pool }: Log, work: () => Promise<A>): Promise<A> => {
  const set = async (value: string) => {
    await pool.query(`alter system set wal_compression = ${value}`)
    await pool.query("select pg_reload_conf()")
    // Sessions read the file when they are between two statements.
    await new Promise((resolve) => setTimeout(resolve, 500))
  }
  await set("on")
  try {
    return await work()
  } finally {
    await set("off")
  }
}
