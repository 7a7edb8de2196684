/**
 * How the suite measures: clients at work for a while, contestants in turns, medians of the rounds.
 *
 * Contestants take turns within each round, and another one begins each time, so that what else the machine does falls on all
 * of them. Nothing collects garbage by force between turns: that makes V8 forget the code it has compiled, and slows down most
 * whoever has most of it.
 */

/** One operation, done by the client of that number. */
export type Work = (client: number) => Promise<unknown>

/** What came of one turn. */
export interface Round {
  /** Operations that succeeded within the turn, per second. */
  readonly rate: number
  /** How long each operation that succeeded took, in milliseconds; also of those that ended after the turn. */
  readonly latencies: ReadonlyArray<number>
  readonly failures: number
}

export type ContestantName = "ours" | "emmett" | "pg" | "pgbench"

export interface Contestant<Name extends string = ContestantName> {
  readonly name: Name
  /** It does not take part with more clients than that. */
  readonly maxClients?: number
  /** One turn: so many clients, each doing one thing after the other for so long. */
  readonly round: (clients: number, seconds: number) => Promise<Round>
}

/** What is kept of all turns of one contestant. */
export interface Measured {
  readonly median: number
  readonly rounds: ReadonlyArray<number>
  /** Of single operations, in milliseconds, over all rounds. */
  readonly p50?: number
  readonly p99?: number
  readonly failures?: number
}

/** How long to measure. */
export interface Effort {
  readonly rounds: number
  /** Of one turn. */
  readonly seconds: number
}

/** A contestant of JavaScript. `start` makes the work of a turn, so a turn can have aggregates of its own. */
export const contestant = <Name extends string>(name: Name, start: () => Work | Promise<Work>): Contestant<Name> => ({
  name,
  round: async (clients, seconds) => workFor(await start(), clients, seconds)
})

/** One turn of so many clients. */
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

/** Warms all contestants up and gives them turns; the result is by name. `of` says what of a round is the figure. */
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

/** The median latency of a round: the figure where one operation takes long. */
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

// --- internal ---

const reported = new Set<string>()

/** Failures are counted; so that it is known what they are, one of each kind is told. */
const report = (error: unknown): void => {
  const kind = String(error).replaceAll(/\d+/g, "n")
  if (!reported.has(kind)) console.error(`failed, as others may: ${error}`)
  reported.add(kind)
}

const ascending = (values: ReadonlyArray<number>): ReadonlyArray<number> => [...values].sort((a, b) => a - b)

const quantile = (sorted: ReadonlyArray<number>, q: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN

const rotated = <A>(values: ReadonlyArray<A>, by: number): ReadonlyArray<A> => {
  const start = values.length === 0 ? 0 : by % values.length
  return [...values.slice(start), ...values.slice(0, start)]
}
