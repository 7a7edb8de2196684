/** The steps of a run. Their results are kept in a file, so that an interrupted run goes on after its last whole step. */
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs"

export interface Steps {
  /** Runs the step, or returns the result that an interrupted run has of it. */
  readonly step: <A>(name: string, run: () => Promise<A>) => Promise<A>
  /** Whether the step has a result. */
  readonly has: (name: string) => boolean
  /** How many seconds all steps took, also those of the interrupted run. */
  readonly seconds: () => number
  /** Removes the file, after the last step. */
  readonly end: () => void
}

/** `options` are those of the run: results of a run with others are not used, and neither are any where it does not resume. */
export const openSteps = (file: string, options: unknown, resumes: boolean): Steps => {
  const key = JSON.stringify(options)
  const kept: Kept = resumes && existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : none
  const results: Record<string, Result> = kept.key === key ? { ...kept.results } : {}
  return {
    step: async <A>(name: string, run: () => Promise<A>): Promise<A> => {
      const known = results[name]
      const began = performance.now()
      const result = known ?? { text: JSON.stringify(await run()), seconds: (performance.now() - began) / 1000 }
      if (known === undefined) {
        results[name] = result
        writeFileSync(file, JSON.stringify({ key, results }))
        console.error(`${name}: ${result.seconds.toFixed(1)} s`)
      }
      return JSON.parse(result.text)
    },
    has: (name) => name in results,
    seconds: () => Object.values(results).reduce((sum, { seconds }) => sum + seconds, 0),
    end: () => rmSync(file, { force: true })
  }
}

// --- internal ---

/** The result of a step as JSON. */
interface Result {
  readonly text: string
  readonly seconds: number
}

interface Kept {
  readonly key: string
  readonly results: Readonly<Record<string, Result>>
}

const none: Kept = { key: "", results: {} }
