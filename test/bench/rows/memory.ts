/** Evaluates a command on the stores in memory, which shows the cost of a command without a database. */
import { getInMemoryEventStore } from "@event-driven-io/emmett"
import * as Layer from "effect/Layer"
import { MemoryStore } from "effect-maestro"
import { Account } from "../domain.js"
import { type Contestant, contestant, type Work, workFor } from "../measure.js"
import { openOurs } from "../stage.js"
import { deposit, emmettDeposit, fresh, hot } from "./command.js"
import { contest, type Row } from "./row.js"

export const inMemoryOnNew: Row = contest({
  name: "memory",
  work: "in memory, command on a new aggregate",
  clients: [16],
  contestants: () => contestants(fresh)
})

export const inMemoryOnHot: Row = contest({
  name: "memory-hot",
  work: "in memory, command on a hot aggregate per client",
  clients: [16],
  contestants: () => contestants(hot)
})

// --- internal ---

/** Each turn has an empty store, for both libraries. */
const contestants = (on: (evaluate: (id: string) => Promise<unknown>) => Work): ReadonlyArray<Contestant> => [
  {
    name: "ours",
    round: async (clients, seconds) => {
      const ours = await openOurs(Layer.provideMerge(Account.layer, MemoryStore.layer))
      const round = await workFor(on(deposit(ours.run)), clients, seconds)
      await ours.close()
      return round
    }
  },
  contestant("emmett", () => on(emmettDeposit(getInMemoryEventStore())))
]
