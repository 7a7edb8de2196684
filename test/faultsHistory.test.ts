/** The judge of the fault run on histories of transfers with one planted mistake: it finds each of them, and nothing where there is none. */
import { expect, it } from "@effect/vitest"
import { type Attempt, type Findings, type Move, type Outcome, type Verdict, verdictOf } from "./faults/history.js"

const attempt = (id: string, moves: ReadonlyArray<Move>, outcome: Outcome, began: number): Attempt => ({
  id,
  accounts: moves.map(({ account }) => account),
  events: moves.length,
  moves,
  began,
  ended: began + 1,
  outcome,
  felt: false
})

const row = (account: string, sequence: number, amount: number, attempt: string, time: number) => ({
  account,
  sequence,
  amount,
  attempt,
  timestamp: String(time).padStart(3, "0")
})

const moves = (from: string, to: string, amount: number): ReadonlyArray<Move> => [
  { account: from, amount: -amount },
  { account: to, amount }
]

const deposited = row("ann", 1, 100, "deposit", 1)
const [paid, received] = [row("ann", 2, -30, "transfer", 2), row("bob", 1, 30, "transfer", 3)]
const [paidAgain, receivedAgain] = [row("ann", 3, -30, "transfer", 4), row("bob", 2, 30, "transfer", 5)]

const transferred = attempt(
  "transfer",
  moves("ann", "bob", 30),
  {
    _tag: "Acknowledged",
    answers: [
      { account: "ann", sequence: 2, balance: 70, duplicate: false },
      { account: "bob", sequence: 1, balance: 30, duplicate: false }
    ]
  },
  3
)
const refusedAt = (balance: number) =>
  attempt("refused", moves("bob", "ann", 500), { _tag: "Refused", account: "bob", balance }, 5)
const others: ReadonlyArray<Attempt> = [
  attempt(
    "deposit",
    [{ account: "ann", amount: 100 }],
    { _tag: "Acknowledged", answers: [{ account: "ann", sequence: 1, balance: 100 }] },
    1
  ),
  refusedAt(30)
]

/** A history whose projection and states are the sums of its log, or what is given. */
const history = (
  log: Findings["log"],
  attempts: ReadonlyArray<Attempt> = [...others, transferred],
  projection?: Findings["projection"]
): Findings => {
  const sums = new Map<string, number>()
  for (const { account, amount } of log) sums.set(account, (sums.get(account) ?? 0) + amount)
  return {
    attempts,
    log,
    places: log,
    projection: projection ?? sums,
    isProjected: () => true,
    states: sums,
    seen: [log],
    noted: 0
  }
}

const right = [deposited, paid, received]

const answering = (answers: Extract<Outcome, { _tag: "Acknowledged" }>["answers"]) => [
  ...others,
  { ...transferred, outcome: { _tag: "Acknowledged" as const, answers } }
]

const duplicateAt = (sequence: number, balance: number) => [{ account: "ann", sequence, balance, duplicate: true }]

const mistakes: ReadonlyArray<readonly [mistake: string, history: Findings, by: keyof Verdict]> = [
  ["an acknowledged transfer that is missing", history([deposited]), "lost"],
  ["a transfer that was only paid", history([deposited, paid]), "torn"],
  ["a transfer that was only received", history([deposited, received]), "torn"],
  ["a transfer that was paid twice and not received", history([deposited, paid, paidAgain]), "torn"],
  ["a transfer of another amount", history([deposited, paid, { ...received, amount: 29 }]), "torn"],
  ["a transfer to another account", history([deposited, paid, { ...received, account: "cid" }]), "torn"],
  ["a transfer that took effect twice", history([...right, paidAgain, receivedAgain]), "doubled"],
  ["a transfer of which a half took effect twice", history([...right, receivedAgain]), "doubled"],
  [
    "a refused transfer that is stored",
    history([...right, row("bob", 2, -500, "refused", 4), row("ann", 3, 500, "refused", 5)]),
    "ghosts"
  ],
  ["a refused transfer that is stored by half", history([...right, row("ann", 3, 500, "refused", 4)]), "torn"],
  [
    "a transfer that was rolled back and is stored",
    history(right, [...others, { ...transferred, outcome: { _tag: "Failed", reason: "Abandoned" } }]),
    "ghosts"
  ],
  [
    "an open transfer that is there by half",
    history([deposited, paid], [...others, { ...transferred, outcome: { _tag: "Open", reason: "cut" } }]),
    "torn"
  ],
  [
    "a transfer whose events are not in the order of its commands",
    history([deposited, { ...paid, timestamp: "004" }, received]),
    "disorder"
  ],
  [
    "a refusal for a balance that never was",
    history(right, [transferred, ...others.slice(0, 1), refusedAt(29)]),
    "untrue"
  ],
  ["a duplicate whose answer is older than its events", history(right, answering(duplicateAt(1, 100))), "untrue"],
  ["a duplicate with a balance that never was", history(right, answering(duplicateAt(2, 71))), "untrue"],
  [
    "an answer from the event of another",
    history(right, answering([{ account: "ann", sequence: 1, balance: 100 }])),
    "untrue"
  ],
  ["a table with the sum of only one half", history(right, undefined, new Map([["ann", 70]])), "projectionsOff"],
  [
    "a table whose sum is right, and whose balances are not",
    history(
      right,
      undefined,
      new Map([
        ["ann", 60],
        ["bob", 40]
      ])
    ),
    "projectionsOff"
  ]
]

const wrongIn = (findings: Findings): ReadonlyArray<string> =>
  Object.entries(verdictOf(findings)).flatMap(([column, count]) => (count === 0 ? [] : [column]))

for (const [mistake, findings, by] of mistakes) {
  it(`the judge finds ${mistake}`, () => {
    expect(wrongIn(findings)).toContain(by)
  })
}

it("the judge finds nothing in a right history", () => {
  expect(wrongIn(history(right))).toEqual([])
  // An open transfer may be there as a whole, or not at all.
  const open: Attempt = { ...transferred, outcome: { _tag: "Open", reason: "cut" } }
  expect(wrongIn(history(right, [...others, open]))).toEqual([])
  expect(wrongIn(history([deposited], [...others.slice(0, 1), open]))).toEqual([])
  // A duplicate may tell of what came later.
  const later = { ...paidAgain, attempt: "later" }
  const withdrawn = attempt("later", [{ account: "ann", amount: -30 }], { _tag: "Open", reason: "cut" }, 4)
  expect(wrongIn(history([...right, later], [...answering(duplicateAt(3, 40)), withdrawn]))).toEqual([])
})
