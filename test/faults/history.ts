/**
 * The commands of clients, their answers, and the check of both against the log. Every acknowledged command must be there
 * once, every refused one nowhere, and every unknown one whole or not at all. Every answer must be true, and every
 * projection must be the fold of the log.
 */

/** One command, or one commit, of one client. */
export interface Attempt {
  /** It stands in the metadata of every event that the attempt makes. */
  readonly id: string
  /** The accounts that it concerns. */
  readonly accounts: ReadonlyArray<string>
  /** How many events it makes. */
  readonly events: number
  /** Each of them, in the order in which they are stored, where that is known before. */
  readonly moves?: ReadonlyArray<Move> | undefined
  /** Places in the history: what began after another one ended knows of it. */
  readonly began: number
  readonly ended: number
  readonly outcome: Outcome
  /** It failed because of another caller, and not because of a fault. */
  readonly felt: boolean
}

export type Outcome =
  /** It succeeded, with these answers. */
  | { readonly _tag: "Acknowledged"; readonly answers: ReadonlyArray<Answer> }
  /** The decision was no, on account of this balance. */
  | { readonly _tag: "Refused"; readonly account: string; readonly balance: number }
  /** A failure that says that nothing was stored. */
  | { readonly _tag: "Failed"; readonly reason: string }
  /** A failure, or an interruption, that leaves it open. */
  | { readonly _tag: "Open"; readonly reason: string }

/** What a command answered: at this sequence the account has this balance. */
export interface Answer {
  readonly account: string
  readonly sequence: number
  readonly balance: number
  /** It says that the command had taken effect before, at this sequence or at a lower one. */
  readonly duplicate?: boolean
}

/** What an event adds to the balance of an account. */
export interface Move {
  readonly account: string
  readonly amount: number
}

/** The place of an event in its stream. */
export interface Place {
  readonly account: string
  readonly sequence: number
}

/** An event as it stands in the log. */
export interface Row extends Place {
  readonly timestamp: string
  readonly attempt: string
  /** What it adds to the balance. */
  readonly amount: number
}

/** What was found wrong; all of it must be zero. */
export interface Verdict {
  /** Acknowledged, and not there. */
  readonly lost: number
  /** There more than once, or more of it than there should be. */
  readonly doubled: number
  /** There in part, or another than what was asked for. */
  readonly torn: number
  /** Refused, or said to have failed, and there all the same; or there without having been asked for. */
  readonly ghosts: number
  /**
   * Places in a stream where the sequence does not rise by one, or the timestamp does not rise. And lists of commands whose events have
   * another order.
   */
  readonly disorder: number
  /** Events that a follower saw before one of a lower sequence, twice, behind a gap, or not at all. */
  readonly outOfOrder: number
  /** What a caller felt of another: its context, its uncommitted rows, its settings, a failure or a cancel that was not its own. */
  readonly felt: number
  /** Answers, and reasons for a refusal, that were true at no moment between the question and the answer. */
  readonly untrue: number
  /** Accounts whose projection is not the fold of the log. */
  readonly projectionsOff: number
  /** Accounts whose state, loaded with snapshots, is not the fold of the log. */
  readonly statesOff: number
}

/** Nothing wrong. */
export const clean: Verdict = {
  lost: 0,
  doubled: 0,
  torn: 0,
  ghosts: 0,
  disorder: 0,
  outOfOrder: 0,
  felt: 0,
  untrue: 0,
  projectionsOff: 0,
  statesOff: 0
}

/** What is held against each other. */
export interface Findings {
  readonly attempts: ReadonlyArray<Attempt>
  /** All events but the receipts of commands. */
  readonly log: ReadonlyArray<Row>
  /** The places of all events. */
  readonly places: ReadonlyArray<Place>
  readonly projection: ReadonlyMap<string, number>
  readonly isProjected: (account: string) => boolean
  readonly states: ReadonlyMap<string, number>
  /** The places that each follower of the feed saw, in its order. */
  readonly seen: ReadonlyArray<ReadonlyArray<Place>>
  /** How often projections noted something of another caller. */
  readonly noted: number
}

export const verdictOf = ({
  attempts,
  isProjected,
  log,
  noted,
  places,
  projection,
  seen,
  states
}: Findings): Verdict => {
  const streams = groupBy(log, ({ account }) => account)
  for (const stream of streams.values()) stream.sort((a, b) => a.sequence - b.sequence)
  const rowsOf = groupBy(log, ({ attempt }) => attempt)
  const known = new Map(attempts.map((attempt) => [attempt.id, attempt]))

  let [lost, doubled, torn, ghosts, disorder, untrue] = [0, 0, 0, 0, 0, 0]
  for (const attempt of attempts) {
    const rows = rowsOf.get(attempt.id) ?? []
    const found = rows.length
    const unlike = found === attempt.events ? unlikeMoves(rows, attempt.moves) : undefined
    if (found > attempt.events) doubled++
    else if ((found > 0 && found < attempt.events) || unlike === "torn") torn++
    else if (found === 0 && attempt.outcome._tag === "Acknowledged") lost++
    else if (found > 0 && (attempt.outcome._tag === "Refused" || attempt.outcome._tag === "Failed")) ghosts++
    if (unlike === "disorder") disorder++
    untrue += untrueIn(attempt, streams, known)
  }
  for (const id of rowsOf.keys()) if (!known.has(id)) ghosts++

  for (const stream of streams.values()) {
    for (const [index, row] of stream.entries()) {
      const before = stream[index - 1]
      if (row.sequence !== index + 1 || (before !== undefined && before.timestamp >= row.timestamp)) disorder++
    }
  }
  doubled += log.length - new Set(log.map(({ timestamp }) => timestamp)).size

  const off = (found: ReadonlyMap<string, number>, handles: (account: string) => boolean) =>
    [...new Set([...streams.keys(), ...found.keys()])].filter(
      (account) =>
        handles(account) &&
        (found.get(account) ?? 0) !== balanceAt(streams.get(account) ?? [], Number.POSITIVE_INFINITY)
    ).length
  return {
    lost,
    doubled,
    torn,
    ghosts,
    disorder,
    outOfOrder: seen.reduce((sum, one) => sum + outOfOrder(one) + missingIn(one, places), 0),
    felt: noted + attempts.filter(({ felt }) => felt).length,
    untrue,
    projectionsOff: off(projection, isProjected),
    statesOff: off(states, (account) => states.has(account))
  }
}

/** How many events do not follow the event before them in their stream: they are out of order, doubled, or behind a gap. */
export const outOfOrder = (seen: Iterable<Place>): number => {
  const heads = new Map<string, number>()
  let count = 0
  for (const { account, sequence } of seen) {
    const head = heads.get(account) ?? 0
    if (sequence !== head + 1) count++
    heads.set(account, Math.max(head, sequence))
  }
  return count
}

// --- internal ---

const missingIn = (seen: ReadonlyArray<Place>, places: ReadonlyArray<Place>): number => {
  const known = new Set(seen.map(({ account, sequence }) => `${account}/${sequence}`))
  return places.filter(({ account, sequence }) => !known.has(`${account}/${sequence}`)).length
}

/** Whether rows, as many as there should be, are others than the attempt makes, or in another order. */
const unlikeMoves = (rows: ReadonlyArray<Row>, moves: Attempt["moves"]): "torn" | "disorder" | undefined => {
  if (moves === undefined) return undefined
  const keyOf = ({ account, amount }: Move) => `${account} ${amount}`
  const stored = [...rows].sort((a, b) => (a.timestamp < b.timestamp ? -1 : 1)).map(keyOf)
  const asked = moves.map(keyOf)
  if ([...stored].sort().join() !== [...asked].sort().join()) return "torn"
  return stored.join() === asked.join() ? undefined : "disorder"
}

/** How many of an attempt's answers the log does not bear out. */
const untrueIn = (
  attempt: Attempt,
  streams: ReadonlyMap<string, ReadonlyArray<Row>>,
  known: ReadonlyMap<string, Attempt>
): number => {
  const { outcome } = attempt
  if (outcome._tag === "Acknowledged") {
    return outcome.answers.filter(({ account, balance, duplicate, sequence }) => {
      const stream = streams.get(account) ?? []
      const isMine = duplicate
        ? stream.some((row) => row.attempt === attempt.id && row.sequence <= sequence)
        : mine(stream, attempt, sequence)
      return balanceAt(stream, sequence) !== balance || !isMine
    }).length
  }
  if (outcome._tag !== "Refused") return 0
  const stream = streams.get(outcome.account) ?? []
  // What had been acknowledged before the question was there; what was asked for after the answer was not.
  const last = (holds: (other: Attempt) => boolean) =>
    stream.findLast((row) => {
      const other = known.get(row.attempt)
      return other !== undefined && holds(other)
    })?.sequence ?? 0
  const from = last((other) => other.outcome._tag === "Acknowledged" && other.ended < attempt.began)
  const to = last((other) => other.began < attempt.ended)
  for (let sequence = from; sequence <= to; sequence++) {
    if (balanceAt(stream, sequence) === outcome.balance) return 0
  }
  return 1
}

/** The event at the answered sequence is the attempt's own. */
const mine = (stream: ReadonlyArray<Row>, { id }: Attempt, sequence: number): boolean =>
  stream[sequence - 1]?.attempt === id

const balanceAt = (stream: ReadonlyArray<Row>, sequence: number): number =>
  stream.reduce((sum, row) => (row.sequence <= sequence ? sum + row.amount : sum), 0)

const groupBy = <A>(items: ReadonlyArray<A>, key: (item: A) => string): Map<string, Array<A>> => {
  const groups = new Map<string, Array<A>>()
  for (const item of items) {
    const group = groups.get(key(item))
    if (group === undefined) groups.set(key(item), [item])
    else group.push(item)
  }
  return groups
}
