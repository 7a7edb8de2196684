/** All rows, in the order of the table. */
import { answers } from "./answers.js"
import { append } from "./append.js"
import { cluster } from "./cluster.js"
import { onHot, onNew, onOne, onOneEnduring, onShort } from "./command.js"
import { cost } from "./cost.js"
import { feed } from "./feed.js"
import { growth } from "./growth.js"
import { kept } from "./kept.js"
import { load, loadEvolved } from "./load.js"
import { many } from "./many.js"
import { inMemoryOnHot, inMemoryOnNew } from "./memory.js"
import { network } from "./network.js"
import { projections } from "./projection.js"
import { rebuild } from "./rebuild.js"
import type { Row } from "./row.js"

export const allRows: ReadonlyArray<Row> = [
  append,
  onNew,
  onHot,
  onShort,
  onOne,
  onOneEnduring,
  ...projections,
  load,
  loadEvolved,
  network,
  many,
  inMemoryOnNew,
  inMemoryOnHot,
  growth,
  feed,
  rebuild,
  cluster,
  answers,
  cost,
  kept
]
