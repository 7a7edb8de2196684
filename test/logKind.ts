/** The kind of log on which fault runs and failovers are run: `LOG_PARTITIONS=16` and `FEED_ORDER=counter` choose another than the usual one. */
import type { SqlStore } from "effect-maestro"

export type LogKind = Pick<SqlStore.Options, "feedOrder" | "logPartitions">

export const logKind = (): LogKind => {
  const { FEED_ORDER: order, LOG_PARTITIONS: partitions } = process.env
  if (order !== undefined && order !== "counter" && order !== "transactionIds") {
    throw new Error(`FEED_ORDER must be counter or transactionIds, and is ${JSON.stringify(order)}`)
  }
  return {
    ...(order !== undefined && { feedOrder: order }),
    ...(partitions !== undefined && { logPartitions: Number(partitions) })
  }
}

/** The kind as the first line of a run shows it. */
export const logKindInWords = ({ feedOrder, logPartitions }: LogKind): string =>
  [
    logPartitions === undefined ? [] : `a log of ${logPartitions} partitions`,
    feedOrder === undefined ? [] : `a feed by ${feedOrder}`
  ]
    .flat()
    .join(", ") || "the usual log"
