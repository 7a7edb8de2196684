/** The contract fails for each broken store, and passes for the store that is not broken. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as TestContext from "effect/TestContext"
import { MemoryStore, StoreAdapter } from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import { onRealClock } from "../src/internal/contract/case.js"
import * as BrokenReaders from "./brokenReaders.js"
import * as Broken from "./brokenStores.js"
import * as Unusual from "./unusualStores.js"

function asWords(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)
}

interface Which {
  readonly runs?: number
  readonly lacks?: ReadonlyArray<StoreContract.Capability>
}

const casesFor = ({ lacks = [], runs = 60 }: Which = {}) =>
  StoreContract.cases({ runs, seed: 1, lacks: ["callerTransaction", ...lacks] }).filter(
    ({ needs }) => needs === undefined || ![...lacks, "callerTransaction"].includes(needs)
  )

// Without the cases about input, which take long, because the stores here give their input to a store that has passed
// them.
const aboutTheInput = /a body that is too large|bad input|stores (a megabyte|thirty)|10 000|any JSON/

const quickCasesFor = (which?: Which) => casesFor(which).filter(({ name }) => !aboutTheInput.test(name))

type Store = StoreAdapter.StoreAdapterService
type Breaking = (store: Store) => Store

/** The names of the cases that fail, each on a store of its own. */
const failing = (make: Effect.Effect<Store>, cases: ReadonlyArray<StoreContract.Case>) =>
  Effect.gen(function* () {
    const failed: Array<string> = []
    for (const { name, run } of cases) {
      const exit = yield* run.pipe(
        Effect.provideService(StoreAdapter.StoreAdapter, yield* make),
        Effect.provide(TestContext.TestContext),
        // A broken store may wait without end.
        Effect.timeoutFail({ duration: "10 seconds", onTimeout: () => "it hangs" }),
        onRealClock,
        Effect.exit
      )
      if (Exit.isFailure(exit)) failed.push(name)
    }
    return failed
  })

it.live("a store that is not broken passes, and passes again with the records of the first run", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    for (const _ of [1, 2]) expect(yield* failing(Effect.succeed(store), quickCasesFor({ runs: 10 }))).toEqual([])
  })
)

for (const [what, make] of Object.entries(Unusual)) {
  it.live(`a store that ${asWords(what)} passes`, () =>
    Effect.gen(function* () {
      expect(yield* failing(make, quickCasesFor({ runs: 2 }))).toEqual([])
    })
  )
}

const model = "model: random programs have the results of the model, step by step"

const unseen = (ending: string) =>
  `commitAll: until all projections have succeeded only they see the commit, which then ${ending}`

const caught: ReadonlyArray<readonly [breaking: Breaking, cases: ReadonlyArray<string>]> = [
  [
    Broken.skipsTheConflictCheck,
    [
      "commitEvents: a sequence that is taken is a RetryCommand that names aggregate and sequence",
      "commitEvents: of twenty concurrent commits at one sequence exactly one succeeds",
      model
    ]
  ],
  [
    BrokenReaders.deniesThatAnAggregateExists,
    ["streamReader: its pages have the events of getEvents, and the snapshot of getSnapshot"]
  ],
  [
    Broken.ignoresWhatAnEventFollows,
    ["commitEvents: an event that follows another than the stored one is a RetryCommand, and nothing is written"]
  ],
  [Broken.commitsOneByOne, ["commitEvents: a conflict in one aggregate stores nothing in any other", model]],
  [
    Broken.projectsAfterTheCommit,
    ["commitAll: a failed projection rolls back the whole commit, which fails with the same failure", model]
  ],
  [
    Broken.forgetsWhichProjectionFailed,
    ["commitAll: a projection's StoreError that names no aggregate gets the names of projection and event"]
  ],
  [
    Broken.ignoresWhoseEventsAProjectionIsAbout,
    ["commitAll: a projection of one aggregate receives no events of others in the commit"]
  ],
  [Broken.forgetsWhatItStored, ["commitEvents: committing stored events again succeeds and writes nothing", model]],
  [
    Broken.projectsAgain,
    ["commitAll: projections run neither for a commit that is stored already nor for one that is refused"]
  ],
  [Broken.readsFromAfterTheBound, ["getEvents: both bounds are inclusive; 0 and 1 mean all", model]],
  [
    Broken.keepsTheLastSnapshot,
    ["commitSnapshot: a snapshot replaces the stored one unless that has a higher sequence", model]
  ],
  [Broken.acknowledgesEarly, ["commitEvents: stored events are read as they were committed, in order of sequence"]],
  [
    Broken.keepsWhatFailedInside,
    ["commitAll: a failed commit inside a projection undoes only itself, and the projection can continue"]
  ],
  [Broken.showsSnapshotsEarly, [unseen("succeeds"), unseen("fails")]],
  [Broken.keepsTheSnapshotsOfFailures, [unseen("fails")]],
  [
    Broken.acknowledgesWhatComesTooLate,
    ["succeeded", "failed"].map(
      (ended) => `commitAll: a fiber that a projection left running can't commit once the commit has ${ended}`
    )
  ],
  [
    Broken.losesThoseBesideAFailure,
    ["commitAll: of the concurrent commits of a projection a failing one, which ends first, undoes only itself"]
  ],
  [
    Broken.looksAtTheEndsOnly,
    ["commitEvents: a stored commit with one other event, at any place, is a conflict", model]
  ],
  [
    Broken.showsCommitsByHalves,
    ["commitEvents: a concurrent reader finds all of a commit or nothing, in each aggregate and in all"]
  ],
  [Broken.readsWhatIsNotCommitted, [unseen("succeeds"), unseen("fails")]],
  [
    Broken.projectsInTheContextOfTheLastCaller,
    ["commitAll: a projection runs in its caller's context, also when many callers commit concurrently"]
  ],
  [
    Broken.projectsInAFiberOfItsOwn,
    ["commitAll: a fiber ref that a projection sets has the new value for its caller, and for no other"]
  ],
  [
    Broken.sharesTheEventsItReads,
    ["getEvents: a caller may change an event without changing the stored one, or another event that was read"]
  ],
  [
    Broken.sharesTheSnapshotsItReads,
    ["getSnapshot: a caller may change a snapshot without changing the stored one, or the result of another read"]
  ],
  [Broken.projectsFiftyEventsAtMost, ["commitAll: every projection receives every event of a commit of 120 events"]],
  [
    Broken.keepsTheFirstSnapshot,
    ["commitSnapshot: a snapshot replaces the stored one unless that has a higher sequence"]
  ],
  ...[Broken.losesVersions, Broken.losesCorrelationIds, Broken.losesCausationIds, Broken.losesTraceparents].map(
    (breaking) =>
      [
        breaking,
        ["commitEvents: version, correlationId, causationId and traceparent are read as they were committed"]
      ] as const
  ),
  [
    Broken.sortsKeys,
    ["commitEvents", "commitSnapshot"].map(
      (operation) => `${operation}: any JSON is read as it was committed, with the order of keys and the sign of -0`
    )
  ],
  [
    Broken.forgetsTheSignOfZero,
    ["commitEvents", "commitSnapshot"].map(
      (operation) => `${operation}: any JSON is read as it was committed, with the order of keys and the sign of -0`
    )
  ]
]

it.live("a store whose reads may wait is caught if they find uncommitted records", () =>
  Effect.gen(function* () {
    const sentences = ["succeeds", "fails"].map(unseen)
    const cases = casesFor({ lacks: ["concurrentReads"] }).filter(({ name }) => sentences.includes(name))
    expect(yield* failing(Effect.map(MemoryStore.make, Broken.readsWhatIsNotCommitted), cases)).toEqual(sentences)
  })
)

for (const [breaking, expected] of caught) {
  it.live(`a store that ${asWords(breaking.name)} is caught`, () =>
    Effect.gen(function* () {
      const cases = casesFor().filter(({ name }) => expected.includes(name))
      expect(yield* failing(Effect.map(MemoryStore.make, breaking), cases)).toEqual(cases.map(({ name }) => name))
      expect(cases.map(({ name }) => name).sort()).toEqual([...expected].sort())
    })
  )
}
