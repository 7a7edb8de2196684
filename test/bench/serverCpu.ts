/** Reads the processor time of a Postgres server from `/proc`, which only Linux has. */
import { readdirSync, readFileSync } from "node:fs"
import type pg from "pg"

/**
 * Returns the milliseconds that all processes of the server have used, or undefined where the system does not report
 * them.
 */
export const serverCpuReader = async (pool: pg.Pool): Promise<(() => number) | undefined> => {
  const { rows } = await pool.query<{ pid: number }>("select pg_backend_pid() as pid")
  const postmaster = statOf(rows[0]?.pid ?? 0)?.parent
  if (postmaster === undefined) return undefined
  return () => {
    const children = readdirSync("/proc").flatMap((name) => {
      const stat = /^\d+$/.test(name) ? statOf(Number(name)) : undefined
      return stat?.parent === postmaster ? stat.own : []
    })
    // The postmaster has the sum of the processes that ended.
    const ended = statOf(postmaster)
    return children.reduce((sum, own) => sum + own, (ended?.own ?? 0) + (ended?.endedChildren ?? 0))
  }
}

// --- internal ---

const millisPerTick = 10

interface Stat {
  readonly parent: number
  readonly own: number
  readonly endedChildren: number
}

/** The fields of `/proc/<pid>/stat`. Its second field is a name in parentheses that may contain any character. */
const statOf = (pid: number): Stat | undefined => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8")
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ")
    const at = (index: number): number => Number(fields[index - 3])
    return { parent: at(4), own: (at(14) + at(15)) * millisPerTick, endedChildren: (at(16) + at(17)) * millisPerTick }
  } catch {
    return undefined
  }
}
