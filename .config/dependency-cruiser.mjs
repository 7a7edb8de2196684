/**
 * The rooms of src, one floor in a line, lowest first. A room is a folder of `src/internal`, together with the public
 * modules that it implements.
 *
 * - A file may import values from its own room, from `ports`, and from rooms on lower floors.
 * - It may also import types from a public module above, so that no type is declared twice.
 * - No two rooms import each other, also on one floor.
 *
 * `ports` are the public modules that import no room: failures, events, and the tags of the feed and of subscriptions.
 */
const ports = ["StoreError.ts", "Timestamp.ts", "Event.ts", "Snapshot.ts", "EventFeed.ts", "SubscriptionStore.ts"]

/** @type {ReadonlyArray<Readonly<Record<string, ReadonlyArray<string>>>>} */
const floors = [
  { runtime: [], codec: ["Upcast.ts"] },
  { store: ["StoreAdapter.ts", "Projection.ts"], "sql/pg": [], pglite: ["PgliteClient.ts"] },
  { aggregate: ["Aggregate.ts"], subscription: ["Subscription.ts"], memory: ["MemoryStore.ts"], "sql/commit": [] },
  { sql: ["SqlStore.ts"], http: ["AggregateHttp.ts"], cluster: ["ClusterAggregate.ts"] },
  {
    rebuild: ["Rebuild.ts", "ProjectionTables.ts"],
    contract: ["StoreContract.ts", "FeedContract.ts"],
    test: ["AggregateTest.ts", "TestStore.ts"]
  }
]

/** Matches files of the given rooms. The files of `sql/pg` and `sql/commit` do not belong to the room `sql`. */
const pathOf = (files, rooms) =>
  `^src/(${[
    ...files.map((file) => `${file.replaceAll(".", "\\.")}$`),
    ...rooms.map((room) => `internal/${room}/[^/]+$`)
  ].join("|")})`

const publicModules = "^src/[^/]+\\.ts$"

const below = (floor) => floors.slice(0, floor).flatMap(Object.entries)

const filesOf = (rooms) => [...ports, ...rooms.flatMap(([, files]) => files)]

const roomRules = floors.flatMap((rooms, floor) =>
  Object.entries(rooms).flatMap(([room, files]) => {
    const from = { path: pathOf(files, [room]) }
    const seen = [...below(floor), [room, files]]
    const pathNot = pathOf(
      filesOf(seen),
      seen.map(([name]) => name)
    )
    return [
      {
        name: `room-${room}`,
        comment: `Files of the room ${room} may import values only from their room and from rooms on lower floors.`,
        severity: "error",
        from,
        to: { path: "^src/", pathNot, dependencyTypesNot: ["type-only"] }
      },
      {
        name: `types-${room}`,
        comment: `Types that do not come from the room ${room} or a lower floor must come from a public module.`,
        severity: "error",
        from,
        to: { path: "^src/", pathNot: [pathNot, publicModules] }
      }
    ]
  })
)

const everyRoom = floors.flatMap(Object.entries)

/** @type {import("dependency-cruiser").IConfiguration} */
export default {
  forbidden: [
    ...roomRules,
    {
      name: "ports",
      comment: "The ports import no room.",
      severity: "error",
      from: { path: pathOf(ports, []) },
      to: { path: "^src/", pathNot: pathOf(ports, []), dependencyTypesNot: ["type-only"] }
    },
    {
      name: "no-cycle",
      comment: "Imports of types alone close no cycle: they are gone at run time.",
      severity: "error",
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } }
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
      name: "in-a-room",
      comment:
        "Every file of src must be in a room, in cli, or among the ports: .config/dependency-cruiser.mjs lists them.",
      severity: "error",
      module: {
        path: "^src/",
        pathNot: [
          "^src/index\\.ts$",
          "^src/cli/",
          pathOf(
            filesOf(everyRoom),
            everyRoom.map(([room]) => room)
          )
        ]
      },
      to: { path: "^in no room$" }
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
