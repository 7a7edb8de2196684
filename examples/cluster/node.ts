/** The layers of a process in the cluster: its database, and its place among the runners. */
import * as MessageStorage from "@effect/cluster/MessageStorage"
import * as RunnerAddress from "@effect/cluster/RunnerAddress"
import * as ShardingConfig from "@effect/cluster/ShardingConfig"
import * as SqlRunnerStorage from "@effect/cluster/SqlRunnerStorage"
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import { PgClient } from "@effect/sql-pg"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"

/** What all processes of one cluster must agree on. */
export interface ClusterOptions {
  /** Where the shards are locked: rows of a table that expire, or advisory locks of a session, which a stopped process keeps. */
  readonly locks: "rows" | "session"
  /** After this time a runner that is not heard of has lost its shards. */
  readonly leaseMillis: number
}

/** The database of the store and of the cluster. The cluster keeps one connection of the pool for itself. */
export const layerDatabase = (url: string, applicationName: string, maxConnections = 6) =>
  PgClient.layer({ url: Redacted.make(url), maxConnections, applicationName })

/** A runner that listens on the port. */
export const layerRunner = (options: ClusterOptions, port: number) => {
  const config = { ...sharding(options), runnerAddress: Option.some(RunnerAddress.make("127.0.0.1", port)) }
  return NodeClusterSocket.layer({ storage: "byo", shardingConfig: config }).pipe(Layer.provide(layerStorage(config)))
}

/** A process that sends commands, and evaluates none. */
export const layerClientOnly = (options: ClusterOptions) => {
  const config = { ...sharding(options), runnerAddress: Option.none() }
  return NodeClusterSocket.layer({ storage: "byo", clientOnly: true, shardingConfig: config }).pipe(
    Layer.provide(layerStorage(config))
  )
}

// --- internal ---

/** Short times, so that a runner that is gone is noticed within the lease. */
const sharding = ({ leaseMillis, locks }: ClusterOptions) => ({
  shardsPerGroup: 48,
  shardLockDisableAdvisory: locks === "rows",
  shardLockExpiration: leaseMillis,
  shardLockRefreshInterval: leaseMillis / 5,
  refreshAssignmentsInterval: leaseMillis / 10,
  runnerHealthCheckInterval: leaseMillis / 5,
  entityMessagePollInterval: leaseMillis / 5,
  entityTerminationTimeout: leaseMillis,
  // A command on an aggregate of the same process is not encoded.
  simulateRemoteSerialization: false
})

/**
 * The list of runners and the locks of their shards are in the database. No message is persisted, so the storage in memory stays empty.
 *
 * The storage creates its tables. Of processes that do so at the same time all but one may fail, so they try again.
 */
const layerStorage = (config: Partial<ShardingConfig.ShardingConfig["Type"]>) =>
  Layer.merge(Layer.retry(SqlRunnerStorage.layer, Schedule.recurs(5)), MessageStorage.layerMemory).pipe(
    Layer.provide(ShardingConfig.layer(config))
  )
