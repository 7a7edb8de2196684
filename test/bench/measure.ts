/**
 * Measures the contestants of a row, for the files in `rows/`: in a turn, clients work for a fixed time; the figure is
 * the median of the rounds.
 *
 * In each round every contestant has a turn, and another one begins each time, so that other load on the machine slows
 * all of them. No garbage collection is forced between turns, because V8 then discards compiled code, which slows the
 * contestant with most code most.
 */

/** One operation, by the client with the number. */
export type Work = (client: number) => Promise<unknown>

/** The result of one turn. */
export interface Round {
  /** Operations that succeeded within the turn, per second. */
  readonly rate: number
  /** The latency of each successful operation in milliseconds, with the operations that ended after the turn. */
  readonly latencies: ReadonlyArray<number>
  readonly failures: number
}

export type ContestantName = "ours" | "emmett" | "floor" | "pg" | "pgbench"

export interface Contestant<Name extends string = ContestantName> {
  readonly name: Name
  /** The largest number of clients that it is measured with. */
  readonly maxClients?: number
  /** Makes the operation of a turn, so that each turn can have new aggregates. */
  readonly start?: () => Work | Promise<Work>
  /** Runs one turn: a number of clients, each with one operation after the other, for a fixed time. */
  readonly round: (clients: number, seconds: number) => Promise<Round>
}

/** The summary of all turns of one contestant. */
export interface Measured {
  readonly median: number
  readonly rounds: ReadonlyArray<number>
  /** Latencies of single operations in milliseconds, over all rounds. */
  readonly p50?: number
  readonly p99?: number
  readonly failures?: number
}

/** The number and length of turns. */
export interface Effort {
  readonly rounds: number
  /** The length of one turn. */
  readonly seconds: number
}

/** A contestant in JavaScript. */
export const contestant = <Name extends string>(name: Name, start: () => Work | Promise<Work>): Contestant<Name> => ({
  name,
  start,
  round: async (clients, seconds) => workFor(await start(), clients, seconds)
})

/** Runs one turn with a number of clients. */
export const workFor = async (work: Work, clients: number, seconds: number): Promise<Round> => {
  const latencies: Array<number> = []
  let failures = 0
  let inTime = 0
  const start = performance.now()
  const end = start + seconds * 1000
  await Promise.all(
    Array.from({ length: clients }, async (_, client) => {
      let now = performance.now()
      while (now < end) {
        const began = now
        const succeeded = await work(client).then(
          () => true,
          (error) => {
            report(error)
            return false
          }
        )
        now = performance.now()
        if (!succeeded) failures++
        else {
          latencies.push(now - began)
          if (now <= end) inTime++
        }
      }
    })
  )
  return { rate: inTime / seconds, latencies, failures }
}

/**
 * Warms up all contestants and measures them in turns. Returns summaries by name. `of` chooses the figure of a round.
 */
export const compete = async <Name extends string>(
  contestants: ReadonlyArray<Contestant<Name>>,
  clients: number,
  { rounds, seconds }: Effort,
  of: (round: Round) => number = ({ rate }) => rate
): Promise<Partial<Record<Name, Measured>>> => {
  const taking = contestants.filter(({ maxClients }) => maxClients === undefined || clients <= maxClients)
  for (const { round } of taking) await round(clients, seconds / 2)
  const turns = new Map<Name, Array<Round>>(taking.map(({ name }) => [name, []]))
  for (let index = 0; index < rounds; index++) {
    for (const { name, round } of rotated(taking, index)) {
      turns.get(name)?.push(await round(clients, seconds))
    }
  }
  const measured: Partial<Record<Name, Measured>> = {}
  for (const [name, done] of turns) measured[name] = summarize(done, of)
  return measured
}

/** The median latency of a round, which is the figure of rows with long operations. */
export const medianLatency = ({ latencies }: Round): number => median(latencies)

export const median = (values: ReadonlyArray<number>): number => quantile(ascending(values), 0.5)

export const summarize = (rounds: ReadonlyArray<Round>, of: (round: Round) => number): Measured => {
  const latencies = ascending(rounds.flatMap((round) => round.latencies))
  const figures = rounds.map(of)
  return {
    median: median(figures),
    rounds: figures,
    ...(latencies.length === 0 ? {} : { p50: quantile(latencies, 0.5), p99: quantile(latencies, 0.99) }),
    failures: rounds.reduce((sum, { failures }) => sum + failures, 0)
  }
}

export const quantile = (sorted: ReadonlyArray<number>, q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN

// --- internal ---

const reported = new Set<string>()

/** Failures are counted, and the first failure of each kind is printed. */
const report = (error: unknown): void => {
  const kind = String(error).replaceAll(/\d+/g, "n")
  if (!reported.has(kind)) console.error(`failed, as others may: ${error}`)
  reported.add(kind)
}

const ascending = (values: ReadonlyArray<number>): ReadonlyArray<number> => [...values].sort((a, b) => a - b)

const rotated = <A>(values: ReadonlyArray<A>, by: number): ReadonlyArray<A> => {
  const start = values.length === 0 ? 0 : by % values.length
  return [...values.slice(start), ...values.slice(0, start)]
}
