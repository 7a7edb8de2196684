/** Reads a whole log by a subscription, in a process of its own, so that its memory is that of the reader alone. */
import { fork } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"

export interface Reading {
  readonly events: number
  readonly seconds: number
  /** The memory of the process in bytes, before it reads. */
  readonly before: number
  /** The most memory that the process had after one of its batches. */
  readonly rss: number
  /** The largest heap after one of its batches, with what is not collected yet. */
  readonly heap: number
}

/** The limit of the heap of old objects, in MB. */
export const heapLimit = 96

/**
 * The process is started like this one, so it runs the package as it is built, too. Its heap is limited, because V8 lets a heap grow while there
 * is memory. A reader that held the log would end.
 */
export const measureReading = async (url: string, events: number): Promise<Reading> => {
  const child = fork(fileURLToPath(new URL("reader.ts", import.meta.url)), [url, String(events)], {
    execArgv: [...process.execArgv, `--max-old-space-size=${heapLimit}`]
  })
  const exit = once(child, "exit")
  const result = await Promise.race([once(child, "message"), exit.then(() => [undefined])])
  await exit
  const reading: Reading | undefined = result[0]
  if (reading === undefined || reading.events < events) throw new Error("the reader did not reach the end of the log")
  return reading
}
