/**
 * The processor time of a command in a cluster by the size of its answer: the whole result, or its position alone. Runner,
 * client and store are in one process, connected by a socket, so the time is that of both sides.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { makeCluster } from "../../cluster.js"
import { makeLine } from "../lines.js"
import { type Effort, median, workFor } from "../measure.js"
import { type Ours, openOurs } from "../stage.js"
import type { Row } from "./row.js"

export const answers: Row = {
  name: "answers",
  run: async ({ effort }, emit) => {
    for (const [size, bytes] of sizes) {
      const ways = await openWays(makeList(bytes))
      for (const [answer, rounds] of await measure(ways, effort)) {
        const work = `processor time of a command, state of ${size}: ${answer}`
        const measured = { ours: { median: median(rounds), rounds } }
        emit(makeLine({ id: `answers/${size}/${answer}`, work, clients, unit: "µs", measured }))
      }
      for (const { close } of new Set(Object.values(ways).map(({ on }) => on))) await close()
    }
  }
}

// --- internal ---

const sizes = [
  ["1 kB", 1000],
  ["100 kB", 100_000],
  ["1 MB", 1_000_000]
] as const

const clients = 4

/** V8 compiles the code of a cluster for some seconds. */
const warmUpSeconds = 5

/** A list of small structs that has about so many bytes in JSON. */
const listOf = (bytes: number) =>
  Array.from({ length: Math.round(bytes / 50) }, (_, index) => ({
    name: `item-${String(index).padStart(6, "0")}`,
    count: 100_000 + index,
    isOpen: true
  }))

class Touched extends Schema.TaggedClass<Touched>()("Touched", {}) {}
class Touch extends Schema.TaggedClass<Touch>()("Touch", {}) {}

/** An aggregate whose state has the size from the beginning. */
const makeList = (bytes: number) =>
  Aggregate.make("List", {
    state: Schema.Struct({
      touches: Schema.Number,
      items: Schema.Array(Schema.Struct({ name: Schema.String, count: Schema.Number, isOpen: Schema.Boolean }))
    }),
    initialState: { touches: 0, items: listOf(bytes) },
    events: Touched,
    commands: Touch,
    refusals: {},
    decide: { Touch: () => Effect.succeed([new Touched()]) },
    evolve: { Touched: (state) => ({ ...state, touches: state.touches + 1 }) }
  })

type List = ReturnType<typeof makeList>

/** What evaluates the commands, and the function that sends one. */
interface Way {
  readonly on: Ours<Aggregate.Instance<"List">>
  readonly touch: (id: string) => Effect.Effect<unknown, unknown, Aggregate.Instance<"List">>
}

/** A client whose runner is behind a socket, and the local layer. Each has a store in memory. */
const openWays = async (list: List): Promise<Readonly<Record<string, Way>>> => {
  const lists = ClusterAggregate.make(list)
  const store = Layer.fresh(MemoryStore.layer)
  const clustered = await openOurs(
    Layer.unwrapScoped(
      Effect.gen(function* () {
        const cluster = yield* makeCluster()
        yield* cluster.startRunner(lists.layerRunner.pipe(Layer.provide(list.layer), Layer.provide(store)))
        return lists.layerClient.pipe(Layer.provide(cluster.layerClient))
      })
    )
  )
  const local = await openOurs(list.layer.pipe(Layer.provide(store)))
  const touch = new Touch()
  return {
    whole: { on: clustered, touch: (id) => list.evaluate(id, touch) },
    position: { on: clustered, touch: (id) => list.evaluate(id, touch, { reply: "position" }) },
    "local layer": { on: local, touch: (id) => list.evaluate(id, touch) }
  }
}

/** The microseconds of the processor for one command, of each way in turns. */
const measure = async (
  ways: Readonly<Record<string, Way>>,
  { rounds, seconds }: Effort
): Promise<ReadonlyArray<readonly [way: string, rounds: ReadonlyArray<number>]>> => {
  const figures = Object.entries(ways).map(([name, way]) => ({ name, way, rounds: [] as Array<number> }))
  for (const { way } of figures) await microsOf(way, warmUpSeconds)
  for (let round = 0; round < rounds; round++) {
    for (const { rounds, way } of figures) rounds.push(await microsOf(way, seconds))
  }
  return figures.map(({ name, rounds }) => [name, rounds])
}

const microsOf = async ({ on, touch }: Way, seconds: number): Promise<number> => {
  const before = process.cpuUsage()
  const { failures, latencies } = await workFor((client) => on.run(touch(`${client}`)), clients, seconds)
  if (failures > 0) throw new Error(`${failures} commands failed`)
  const { system, user } = process.cpuUsage(before)
  return (system + user) / latencies.length
}
