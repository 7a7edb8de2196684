/**
 * How many transactions are to be under way at once, how many commits one may carry, and whose commits had better go alone: all from
 * what came of those before. By the machine's clock, whatever clock the program has.
 */

/** What is learned and answered. */
export interface Pace {
  /** How many transactions may be under way before others wait. */
  readonly lanes: () => number
  /** How many commits travel together. */
  readonly seats: () => number
  /** How long those that come after wait for a transaction, in milliseconds: far longer than a healthy one takes here. */
  readonly patience: () => number
  /** Whether commits of this kind go alone for now. */
  readonly isOut: (kind: string) => boolean
  /** A commit's projections took so many milliseconds. */
  readonly took: (millis: number) => void
  /** A transaction, shared or not, lasted so many milliseconds. */
  readonly lasted: (millis: number) => void
  /** A shared transaction took too long, through nobody's fault. */
  readonly tooLong: () => void
  /** A commit of this kind took a shared transaction apart, or may have; the weight says how much harm that did. */
  readonly blame: (kind: string, weight: number) => void
  /** One of this kind came through. */
  readonly praise: (kind: string) => void
  /** The projections of a commit of this kind came to so many statements. */
  readonly needed: (kind: string, statements: number) => void
  /** Whether those of its kind have always come to one statement, or none. */
  readonly isOneStatement: (kind: string) => boolean
  /** Two transactions wanted the same rows. */
  readonly collided: () => void
}

export const makePace = (): Pace => {
  let usual = 0
  let duration = 0
  let mostSeats = maxSeats
  let oneLaneUntil = 0
  const records = new Map<string, { faults: number; outs: number; outUntil: number }>()
  const statements = new Map<string, { most: number; times: number }>()

  return {
    // While others compute, one waits for the database; more would only share the processor. Where projections wait longer than
    // that, for a database that is far or for whatever they do, many at once are worth more than many in one.
    lanes: () =>
      performance.now() < oneLaneUntil ? 1 : Math.floor(lanesAtLeast + Math.max(0, usual - quick) * lanesPerMilli),
    seats: () => Math.max(1, Math.min(mostSeats, Math.floor(maxMillis / Math.max(usual, 0.01)))),
    patience: () => Math.min(Math.max(3 * duration, leastPatience), mostPatience),
    isOut: (kind) => {
      const record = records.get(kind)
      return record !== undefined && performance.now() < record.outUntil
    },
    took: (millis) => {
      // Nearly the least: what the waiting for each other adds is not to make them wait even more.
      usual = millis < usual || usual === 0 ? millis : usual + (millis - usual) * drift
    },
    lasted: (millis) => {
      duration += (millis - duration) * 0.1
    },
    tooLong: () => {
      mostSeats = Math.max(2, mostSeats >> 1)
    },
    blame: (kind, weight) => {
      const record = records.get(kind) ?? { faults: 0, outs: 0, outUntil: 0 }
      records.delete(kind)
      records.set(kind, record)
      record.faults += weight
      if (record.faults >= maxFaults) {
        record.outUntil = performance.now() + shortestOut * 2 ** record.outs
        record.outs = Math.min(record.outs + 1, maxOuts)
        // The next one is enough.
        record.faults = maxFaults - 1
      }
      forgetOldest(records)
    },
    praise: (kind) => {
      if (mostSeats < maxSeats) mostSeats++
      const record = records.get(kind)
      if (record === undefined) return
      record.faults -= redemption
      if (record.faults <= 0) records.delete(kind)
    },
    needed: (kind, count) => {
      const before = statements.get(kind) ?? { most: 0, times: 0 }
      if (before.times >= enoughTimes && count <= before.most) return
      statements.delete(kind)
      statements.set(kind, { most: Math.max(before.most, count), times: before.times + 1 })
      forgetOldest(statements)
    },
    isOneStatement: (kind) => {
      const known = statements.get(kind)
      return known !== undefined && known.times >= enoughTimes && known.most <= 1
    },
    collided: () => {
      oneLaneUntil = performance.now() + oneLaneFor
    }
  }
}

// --- internal ---

const lanesAtLeast = 2

/** What a projection takes that is one statement on a database near by, in milliseconds, and so far no more lanes are made. */
const quick = 0.5
const lanesPerMilli = 2

/** How much of the difference to what is usual a slower one counts. */
const drift = 0.02

const maxSeats = 64

/** How long the projections of a shared transaction should take at most, in milliseconds. */
const maxMillis = 50

const leastPatience = 25
const mostPatience = 100

const maxFaults = 3
const redemption = 0.25

/** For how long a kind goes alone, in milliseconds: at first, and how often that is doubled. */
const shortestOut = 250
const maxOuts = 6

const maxRecords = 1000

const forgetOldest = (map: Map<string, unknown>): void => {
  for (const oldest of map.keys()) {
    if (map.size <= maxRecords) return
    map.delete(oldest)
  }
}

/** How often a kind is looked at before one can tell how many statements it takes. */
const enoughTimes = 8

/** Rows that are wanted by many are so for some time. In one lane nobody waits for them. */
const oneLaneFor = 10_000
