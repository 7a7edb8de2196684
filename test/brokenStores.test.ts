/** The contract can fail: each broken store is caught by it, and the store that is not broken is not. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as TestContext from "effect/TestContext"
import { MemoryStore, StoreAdapter } from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import { onRealClock } from "../src/internal/contract/case.js"
import * as Broken from "./brokenStores.js"

// Those about the input take long, and no store here is wrong about it.
const cases = StoreContract.cases({ runs: 60, seed: 1, lacks: ["callerTransaction"] }).filter(
  ({ name, needs }) =>
    needs === undefined && !/beyond all bounds|bad input|stores (a megabyte|thirty)|10 000/.test(name)
)

type Breaking = (store: StoreAdapter.StoreAdapterService) => StoreAdapter.StoreAdapterService

/** The names of the cases that fail on a store. */
const failing = (breaking: Breaking) =>
  Effect.gen(function* () {
    const failed: Array<string> = []
    for (const { name, run } of cases) {
      const store = breaking(yield* MemoryStore.make)
      const exit = yield* run.pipe(
        Effect.provideService(StoreAdapter.StoreAdapter, store),
        Effect.provide(TestContext.TestContext),
        // Broken stores may wait for ever.
        Effect.timeoutFail({ duration: "10 seconds", onTimeout: () => "it hangs" }),
        onRealClock,
        Effect.exit
      )
      if (Exit.isFailure(exit)) failed.push(name)
    }
    return failed
  })

it.live("a store that is not broken passes", () =>
  Effect.gen(function* () {
    expect(yield* failing((store) => ({ ...store }))).toEqual([])
  })
)

const model = "model: random programs come to what the model comes to, step by step"

const caught: ReadonlyArray<readonly [breaking: Breaking, cases: ReadonlyArray<string>]> = [
  [
    Broken.skipsTheConflictCheck,
    [
      "commitEvents: a sequence that is taken is a RetryCommand that names aggregate and sequence",
      "commitEvents: of twenty writers at the same sequence exactly one wins",
      model
    ]
  ],
  [Broken.commitsOneByOne, ["commitEvents: a conflict in one aggregate leaves nothing in any", model]],
  [
    Broken.projectsAfterTheCommit,
    ["commitAll: a projection's failure rolls back everything and comes back unchanged", model]
  ],
  [
    Broken.forgetsWhatItStored,
    ["commitEvents: committing the very same events again succeeds and writes nothing", model]
  ],
  [
    Broken.projectsAgain,
    ["commitAll: projections run neither for a commit that is stored already nor for one that is refused"]
  ],
  [Broken.readsFromAfterTheBound, ["getEvents: both bounds are inclusive; 0 and 1 mean all", model]],
  [
    Broken.keepsTheLastSnapshot,
    ["commitSnapshot: replaces the stored one if and only if its sequence is higher", model]
  ],
  [Broken.acknowledgesEarly, ["commitEvents: what was stored comes back as it was, in order of sequence"]]
]

for (const [breaking, expected] of caught) {
  it.live(`a store that ${breaking.name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)} is caught`, () =>
    Effect.gen(function* () {
      const failed = yield* failing(breaking)
      for (const sentence of expected) expect(failed).toContain(sentence)
    })
  )
}
