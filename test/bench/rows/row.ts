/** The interface of a row, and the row that most files make: contestants at equal work, by numbers of clients. */
import { type Line, makeLine, type Unit } from "../lines.js"
import { type Contestant, compete, type Effort, medianLatency } from "../measure.js"
import type { Stage } from "../stage.js"

export interface Row {
  /** The name of the row on the command line. */
  readonly name: string
  /** Measures the row, and reports each line when it is measured. */
  readonly run: (stage: Stage, emit: (line: Line) => void) => Promise<void>
  /** The contestants, this library first, for the profiler and for `tail.ts`. */
  readonly contestants?: (stage: Stage) => Promise<ReadonlyArray<Contestant>>
}

export interface Contest {
  readonly name: string
  readonly work: string
  readonly clients: ReadonlyArray<number>
  /** Operations per second by default, or the median of their times. */
  readonly unit?: Extract<Unit, "per second" | "ms">
  readonly effort?: (effort: Effort) => Effort
  /** The contestants, this library first. */
  readonly contestants: (stage: Stage) => ReadonlyArray<Contestant> | Promise<ReadonlyArray<Contestant>>
  /** Fails, after the last turn, unless the work was done. */
  readonly verify?: (stage: Stage) => Promise<void>
}

export const contest = ({ clients, contestants, name, verify, work, ...options }: Contest): Row => ({
  name,
  run: async (stage, emit) => {
    const unit = options.unit ?? "per second"
    const effort = options.effort?.(stage.effort) ?? stage.effort
    const taking = await contestants(stage)
    for (const { maxClients, round } of taking)
      await round(Math.min(16, maxClients ?? 16, Math.max(...clients)), warmUpSeconds)
    for (const count of clients) {
      const measured = await compete(taking, count, effort, unit === "ms" ? medianLatency : undefined)
      emit(makeLine({ id: `${name}/${count}`, work, clients: count, unit, measured }))
    }
    await verify?.(stage)
  },
  contestants: async (stage) => contestants(stage)
})

/** For rows that explain others and have no goal. */
export const fewer = ({ rounds, seconds }: Effort): Effort => ({ rounds: Math.min(rounds, 3), seconds })

/** The warm-up in which V8 compiles the code of the row. A service runs for longer than that. */
const warmUpSeconds = 2
