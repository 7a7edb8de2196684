/**
 * Lets V8 compile the code that all rows use before the first row, because the warm-up turn of a row is too short for
 * that.
 */
import { workFor } from "./measure.js"
import { deposit, emmettDeposit, fresh, hot } from "./rows/command.js"
import type { Stage } from "./stage.js"

export const warmUp = async ({ effort, emmett, ours }: Stage): Promise<void> => {
  for (const evaluate of [deposit(ours.run), emmettDeposit(emmett.store)]) {
    for (const on of [fresh, hot]) await workFor(on(evaluate), 16, 3 * effort.seconds)
  }
}
