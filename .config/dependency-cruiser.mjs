/**
 * The floors of src, lowest first. A file may import only from strictly lower floors,
 * and a file of src that stands on no floor is an error. An entry ending in "/" is a whole folder.
 */
const floors = [
  [
    "StoreError.ts",
    "internal/shortWay.ts",
    "internal/ticking.ts",
    "internal/atOnce.ts",
    "internal/machineTime.ts",
    "internal/tableDependents.ts",
    "internal/tablePicture.ts",
    "internal/tableSettings.ts",
    "internal/embedded.ts",
    "internal/pageBytes.ts",
    "internal/pgBatch.ts",
    "internal/sha256.ts"
  ],
  [
    "Timestamp.ts",
    "internal/json.ts",
    "internal/sqlError.ts",
    "internal/storeTransaction.ts",
    "internal/folderLock.ts",
    "internal/nextTurn.ts",
    "internal/promptly.ts",
    "internal/tracing.ts",
    "internal/wakeUps.ts",
    "internal/minted.ts"
  ],
  ["Event.ts", "internal/fingerprint.ts", "internal/sqlConnection.ts", "internal/names.ts"],
  [
    "Snapshot.ts",
    "internal/eventCodec.ts",
    "internal/commitQueue.ts",
    "internal/sqlTransaction.ts",
    "internal/statements.ts",
    "internal/ownedTables.ts",
    "internal/origin.ts"
  ],
  ["internal/projectionFailure.ts"],
  [
    "Projection.ts",
    "internal/streams.ts",
    "internal/record.ts",
    "internal/stateCodec.ts",
    "internal/commandDigest.ts",
    "internal/commandInput.ts",
    "internal/conditions.ts",
    "internal/coalesce.ts",
    "internal/sqlMigrations.ts"
  ],
  ["internal/projecting.ts", "EventFeed.ts", "internal/sqlWrites.ts", "internal/handlerTypes.ts"],
  ["StoreAdapter.ts", "internal/statementCommit.ts", "internal/on.ts"],
  ["SubscriptionStore.ts", "internal/streamReader.ts", "internal/settling.ts", "internal/feedInput.ts"],
  ["internal/attempts.ts", "internal/enduring.ts", "internal/failureText.ts"],
  ["internal/loading.ts", "internal/feedWatch.ts", "internal/sqlReads.ts", "internal/sqlHeldBack.ts"],
  [
    "internal/recording.ts",
    "internal/history.ts",
    "internal/snapshotting.ts",
    "internal/receipt.ts",
    "internal/seats.ts",
    "internal/sqlFeed.ts",
    "internal/memoryFeed.ts"
  ],
  ["internal/sqlLease.ts"],
  [
    "internal/sqlSubscriptions.ts",
    "internal/sqlRepair.ts",
    "internal/memorySubscriptions.ts",
    "internal/consumer.ts",
    "internal/subscriptionStatus.ts",
    "internal/shadowTables.ts",
    "internal/tableRecords.ts"
  ],
  [
    "MemoryStore.ts",
    "SqlStore.ts",
    "PgliteClient.ts",
    "internal/lifecycle.ts",
    "internal/rebuildPlan.ts",
    "internal/tableRehearsal.ts"
  ],
  ["internal/evaluateOnce.ts", "internal/rebuildSwap.ts"],
  ["internal/aggregateService.ts", "internal/subscriptionMetrics.ts", "internal/rebuilding.ts"],
  ["internal/design.ts", "internal/subscriptionRun.ts", "internal/tableOwners.ts"],
  ["internal/ownedRebuild.ts"],
  ["Aggregate.ts", "Subscription.ts", "Rebuild.ts", "internal/tableVersions.ts"],
  ["ProjectionTables.ts"],
  ["internal/contract/"],
  ["StoreContract.ts", "FeedContract.ts"],
  ["index.ts"]
]

/** @param {ReadonlyArray<string>} entries */
const pathOf = (entries) =>
  `^src/(${entries.map((entry) => entry.replaceAll(".", "\\.") + (entry.endsWith("/") ? "" : "$")).join("|") || "$^"})`

const floorRules = floors.map((entries, floor) => {
  const folders = entries.filter((entry) => entry.endsWith("/"))
  return {
    name: `floor-${floor}`,
    comment: `Files of floor ${floor} may import only from the floors below it.`,
    severity: "error",
    from: { path: pathOf(entries) },
    to: { path: "^src/", pathNot: pathOf([...floors.slice(0, floor).flat(), ...folders]) }
  }
})

/** @type {import("dependency-cruiser").IConfiguration} */
export default {
  forbidden: [
    ...floorRules,
    {
      name: "no-cycle",
      severity: "error",
      from: {},
      to: { circular: true }
    },
    {
      name: "no-index-inside",
      comment: "index.ts is for consumers; inside src, import the module itself.",
      severity: "error",
      from: { path: "^src/" },
      to: { path: "^src/index\\.ts$" }
    },
    {
      name: "src-stands-alone",
      comment: "src must not import from the rest of the repository.",
      severity: "error",
      from: { path: "^src/" },
      to: { pathNot: ["^src/", "node_modules/"], dependencyTypesNot: ["core"] }
    },
    {
      name: "src-imports-what-is-declared",
      comment: "src may import packages only if they are dependencies or peerDependencies.",
      severity: "error",
      from: { path: "^src/" },
      to: { path: "node_modules/", dependencyTypesNot: ["npm", "npm-peer"] }
    },
    {
      name: "resolvable",
      severity: "error",
      from: {},
      to: { couldNotResolve: true }
    }
  ],
  required: [
    {
      name: "on-a-floor",
      comment: "Every file of src must be on a floor: add it to the list in .config/dependency-cruiser.mjs.",
      severity: "error",
      module: { path: "^src/", pathNot: pathOf(floors.flat()) },
      to: { path: "^on no floor$" }
    }
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    tsConfig: { fileName: "tsconfig.json" },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ["exports"],
      conditionNames: ["types", "import", "node", "default"]
    }
  }
}
